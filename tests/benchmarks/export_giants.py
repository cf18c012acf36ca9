"""What it takes to export the largest models, linked: prints a table.

    python tests/benchmarks/export_giants.py

The checkpoints have the names, shapes and shards of the published ones in files that are holes (see
tests/giants): headers are read, the graph is made, and a sample of every tensor is looked at.
"""

import sys
import tempfile
from pathlib import Path

import children

sys.path.insert(0, str(Path(__file__).parents[1]))
from giants import GIANTS, make

MB = 1e6


def main() -> None:
    rows = []
    for name in GIANTS:
        with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as folder:
            checkpoint, engine = Path(folder, "checkpoint"), Path(folder, "engine")
            make(name, checkpoint)
            given = {"checkpoint": str(checkpoint), "output": str(engine)}
            child = children.run("export_giants", "export_linked", **given)
            written = sum(file.stat().st_size for file in engine.rglob("*") if file.is_file())
        found = child.result
        rows.append(
            [
                name,
                *(f"{found[key] / 1e9:.2f}" for key in ("parameters", "active_parameters")),
                f"{child.cpu_seconds:.1f}",
                f"{child.wall_seconds:.1f}",
                f"{child.peak_rss / MB:.0f}",
                f"{written / MB:.2f}",
            ]
        )
    columns = ["checkpoint", "10^9 parameters", "active", "CPU s", "wall s", "peak RSS MB"]
    print(children.table([*columns, "written MB"], rows))


def export_linked(checkpoint: str, output: str) -> dict[str, int]:
    from lmcast.exporter import export

    options = {"dtype": "bfloat16", "weights": "link", "parity": False, "tokenizer": False}
    fields = export(checkpoint, output, "onnx", **options).manifest.fields
    return {key: fields[key] for key in ("parameters", "active_parameters")}


if __name__ == "__main__":
    main()
