"""Steps and prompts of engines in one process, by turns, in CPU time of one thread: a table.

    python tests/benchmarks/in_turn.py ENGINE [ENGINE ...] [--held 128] [--tokens 1 128]

For machines that are not quiet: other work changes the CPU time of a call by a tenth where it
triples the wall time. A folder without an engine.json is a model of onnxruntime-genai's builder,
whose graph is run in the same ONNX Runtime, without its generator.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import children
import numpy as np

ROOM = 512  # tokens of a cache of a model of onnxruntime-genai beyond those that are held


def ours(directory: str) -> Any:
    from lmcast.exporter.runtime.engine import Engine

    return Engine(directory, threads=1)


def genai(folder: str) -> Any:
    from lmcast.exporter.backends.ort import ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    config = json.loads(Path(folder, "genai_config.json").read_text())
    return ort.InferenceSession(f"{folder}/model.onnx", options), config["model"]["decoder"]


def call_of_ours(engine: Any, held: int, tokens: int) -> Callable[[], Any]:
    """Return a call of an engine that adds so many tokens to those that are held."""
    session = engine.session(1)
    for _, array in session.reserve(held + tokens):
        array[...] = 0.5  # memory that was never written takes no time to read
    ids = np.arange(tokens)[None]

    def call() -> None:
        session.lengths[:] = held
        session.append(ids)

    return call


def call_of_genai(loaded: Any, held: int, tokens: int) -> Callable[[], Any]:
    from lmcast.exporter.backends.ort import ort

    session, decoder = loaded
    heads, width = decoder["num_key_value_heads"], decoder["head_size"]
    ids, mask = np.arange(tokens)[None], np.ones((1, held + tokens), np.int64)
    binding, given = session.io_binding(), {"input_ids": ids, "attention_mask": mask}
    kept = []  # the values must outlive the binding
    for one in session.get_inputs():
        if one.name in given:
            array = given[one.name]
        else:
            array = np.full((1, heads, held + tokens + ROOM, width), 0.5, np.float32)
        value = ort.OrtValue.ortvalue_from_numpy(array)
        kept.append((array, value))
        binding.bind_ortvalue_input(one.name, value)
        if one.name not in given:
            present = one.name.replace("past_key_values", "present")
            binding.bind_ortvalue_output(present, value)

    def call() -> None:
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        assert kept and len(binding.get_outputs()[-1].numpy())

    return call


def measure(calls: list[Callable[[], Any]], times: list[list[float]]) -> None:
    for call, found in zip(calls, times, strict=True):
        call()  # what another engine's weights have pushed out of the caches
        begin = time.thread_time()
        call()
        found.append((time.thread_time() - begin) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--held", type=int, default=128, help="tokens before a step")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128], help="of each call")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    calls, times = {}, {}
    for engine in options.engines:
        is_ours = Path(engine, "engine.json").exists()
        loaded, make = (ours(engine), call_of_ours) if is_ours else (genai(engine), call_of_genai)
        # A prompt has nothing before it.
        given = [(options.held if n < options.held else 0, n) for n in options.tokens]
        calls[engine] = [make(loaded, held, n) for held, n in given]
        times[engine] = [[] for _ in given]
    for _ in range(options.rounds):
        for engine in random.sample(options.engines, len(options.engines)):
            measure(calls[engine], times[engine])
    first, rows = times[options.engines[0]], []
    for engine in options.engines:
        cells = []
        for found, base in zip(times[engine], first, strict=True):
            share = median(a / b for a, b in zip(found, base, strict=True))
            cells += [f"{median(found):.2f}", f"{min(found):.2f}", f"{share:.2f}"]
        rows.append([Path(engine).name, *cells])
    columns = ["engine", *(f"{n} tokens: {what}" for n in options.tokens
                           for what in ("ms", "least", "of the first's"))]  # fmt: skip
    print(children.table(columns, rows), flush=True)


if __name__ == "__main__":
    main()
