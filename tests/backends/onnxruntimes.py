"""Tries every ONNX Runtime that an engine.json names, with the engines that name it: 8 minutes.

    python tests/backends/onnxruntimes.py FOLDER [FAMILY ...]

Each family's first tiny checkpoint, and one with weights in few bits, becomes an engine of target
onnx and one of target cpu in FOLDER. pip downloads each version into it (18 MB each). Versions from
the one that an engine names must compute what the installed one does, and those before must not
load it: the claim is the oldest. Exit status 1 where one does otherwise.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

VERSIONS = ("1.24", "1.25", "1.26", "1.27", "1.28", "1.29", "1.30")
TARGETS = ("onnx", "cpu")
CLOSE = 1e-4  # of the largest logit: kernels of fp32 sum in other orders
PROMPT, CAPACITY = 5, 48
FEW_BITS = "qwen3_moe in few bits"


def main(folder: Path, families: list[str]) -> int:
    for target in TARGETS:
        (folder / target).mkdir(parents=True, exist_ok=True)
    make_engines(folder, families)
    here = ran(folder, os.environ)
    wrong = [f"{name}: {found}" for name, found in here.items() if isinstance(found, str)]
    for version in VERSIONS:
        found = ran(folder, os.environ | {"PYTHONPATH": str(unpacked(version, folder))})
        for name, claimed in claims(folder).items():
            runs = agree(found[name], here[name])
            if runs != (numbers(version) >= numbers(claimed)):
                what = found[name] if isinstance(found[name], str) else "other logits"
                wrong.append(f"{name}, from {claimed}: in {version} {'it runs' if runs else what}")
        print(f"{version}: {sum(not isinstance(v, str) for v in found.values())} run", flush=True)
    for name, claimed in sorted(claims(folder).items()):
        print(f"{name}: {claimed}")
    print(*wrong, sep="\n")
    return bool(wrong)


def make_engines(folder: Path, families: list[str]) -> None:
    from files.rounded import round_weights
    from forms import first_cases
    from tiny import CLASSES, Case, make

    from lmcast.calib.formats import WEIGHTS
    from lmcast.exporter import export

    wide = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 128}  # fmt: skip
    few = Case(FEW_BITS, FEW_BITS, *CLASSES["qwen3_moe"], wide)
    for case in [*first_cases(), few]:
        if families and case.architecture not in families:
            continue
        source = make(case, new(folder / "sources" / case.architecture))
        recipe = None
        if case is few:  # those that ONNX Runtime's CPU has kernels for in the standard form
            shutil.rmtree(folder / "recipe", ignore_errors=True)
            kinds = cycle(n for n in WEIGHTS if not n.startswith(("mxfp", "nvfp")))
            recipe = round_weights(
                source, folder / "recipe",
                lambda name, p, kinds=kinds: next(kinds) if p.dim() > 1 and "router" not in name
                else None,
            )  # fmt: skip
        for target in TARGETS:
            export(
                source, folder / target / case.architecture, target, "float32",
                recipe=recipe, parity=False, tokenizer=False, force=True,
            )  # fmt: skip


def new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def claims(folder: Path) -> dict[str, str]:
    return {
        f"{target}/{engine.name}": json.loads((engine / "engine.json").read_text())["graph"][
            "onnxruntime"
        ]
        for target in TARGETS
        for engine in sorted((folder / target).iterdir())
    }


def unpacked(version: str, folder: Path) -> Path:
    """Return a folder with the newest ONNX Runtime of a minor version, downloaded once."""
    to = folder / f"onnxruntime-{version}"
    if not to.exists():
        wheels = new(folder / "wheels" / version)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels]
        subprocess.run([*map(str, command), f"onnxruntime=={version}.*"], check=True)
        (wheel,) = wheels.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(to)
    return to


def ran(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return engine -> its logits, or why it does not run, in a process of this environment."""
    names = [str(folder / name) for name in claims(folder)]
    command = [sys.executable, "-P", __file__, "--run", *names]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(zip(claims(folder), json.loads(done.stdout), strict=True))


def run(engine: Path) -> list[float]:
    """Return the logits of a prompt and of a step behind it; knows ONNX Runtime alone."""
    import onnxruntime as ort

    graph = json.loads((engine / "engine.json").read_text())["graph"]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if graph["optimized"]:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    folder = "/" if graph["weights"] == "link" else str(engine)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    # Given by its path, a graph finds weights beside itself alone before 1.28, whatever the folder.
    model = (engine / graph["file"]).read_bytes()
    made = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    sizes = {"B": 1, "C": CAPACITY}
    held = [
        np.zeros([sizes.get(axis, axis) for axis in state["shape"]], state["dtype"])
        for state in graph["states"]
    ]
    names = [state["name"] for state in graph["states"]]
    outputs, logits = ["logits", *(f"{name}.present" for name in names)], []
    for length, ids in ((0, np.arange(3, 3 + PROMPT)), (PROMPT, np.array([7]))):
        count = len(ids)
        given = {"input_ids": ids, "cache_lengths": [length], "token_counts": [count],
                 "logit_rows": [count - 1]}  # fmt: skip
        fed = {n: np.array(v, np.int64) for n, v in given.items()}
        fed |= {n: fed[n][None] for n in ("input_ids", "logit_rows")}
        wanted = {value.name for value in made.get_inputs()}
        fed |= {f"{name}.past": state for name, state in zip(names, held, strict=True)}
        found, *held = made.run(outputs, {n: v for n, v in fed.items() if n in wanted})
        logits += found.ravel().tolist()
    return logits


def agree(found: list[float] | str, here: list[float] | str) -> bool:
    if isinstance(found, str) or isinstance(here, str):
        return False
    return bool(np.abs(np.subtract(found, here)).max() <= CLOSE * np.abs(here).max())


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def run_all(engines: list[str]) -> None:
    found: list[Any] = []
    for engine in engines:
        try:
            found.append(run(Path(engine)))
        # What a version raises is its own.
        except Exception as error:  # noqa: BLE001
            found.append(" ".join(str(error).split())[:300])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run_all(sys.argv[2:])
    else:
        sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:]))
