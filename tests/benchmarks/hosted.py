"""lmcast's graph inside onnxruntime-genai, beside that of its own builder, from one checkpoint.

    python tests/benchmarks/hosted.py [--models smollm2-fp32 smollm2-int4] [--rounds 7]
        [--threads 1] [--tokens 128] [--work DIRECTORY]

Both are open in one process and take turns, step by step, so that a machine that others use slows
both. Which is opened first changes a step by a tenth, for where memory lies then, so each round is
two new processes, one for each order, and its ratio the geometric mean of theirs. Printed are
ratios of speeds, ours to theirs: medians, and in brackets the range of the rounds; by the clock,
and by CPU seconds, which with one thread are of the work alone.
"""

import argparse
import json
import math
import os
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import children
from peer_models import MODELS

NEW_TOKENS = 32
NAMES = ("hosted", "genai")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    models = ["smollm2-fp32", "smollm2-int4"]
    parser.add_argument("--models", choices=MODELS, nargs="+", default=models)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt")
    parser.add_argument("--work", type=Path, default=Path(".cache/peers"), help="kept")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}, {options.threads} threads", flush=True)
    python = children.python("genai")
    for name in options.models:
        model, work = MODELS[name], options.work / name
        paths = {each: str(model.prepare(work, each, python)) for each in NAMES}
        given = {"threads": options.threads, "tokens": options.tokens}
        found = [both(paths, python, **given) for _ in range(options.rounds)]
        rows = [
            [what, *(spread([each[what][i] for each in found]) for i in (0, 1))]
            for what in ("prefill", "decode")
        ]
        print(f"\n{model.title}, {options.tokens} tokens and {NEW_TOKENS} steps")
        print(children.table(["ours to theirs", "by the clock", "by CPU seconds"], rows))


def both(paths: dict[str, str], python: str, **given: int) -> dict[str, list[float]]:
    """Return the ratios of a round."""
    one, other = (
        children.run("hosted", "compare", python, paths=ordered, **given).result
        for ordered in (paths, dict(reversed(paths.items())))
    )
    return {
        what: [math.sqrt(a * b) for a, b in zip(one[what], other[what], strict=True)]
        for what in one
    }


def compare(paths: dict[str, str], threads: int, tokens: int) -> dict[str, list[float]]:
    """Return ratios of speeds by the clock and of the CPU. Runs where onnxruntime-genai is."""
    import numpy as np
    import onnxruntime_genai as og

    models = {name: opened(og, path, threads) for name, path in paths.items()}
    ids = np.random.default_rng(tokens).integers(1000, 49_000, tokens).astype(np.int32)
    for _ in range(2):  # the first makes pools of memory
        generators, prefill = {}, {}
        for name, model in models.items():
            parameters = og.GeneratorParams(model)
            length = tokens + NEW_TOKENS
            parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
            generators[name] = og.Generator(model, parameters)
            prefill[name] = timed(partial(generators[name].append_tokens, ids))
        decode = {name: np.zeros(2) for name in models}
        for step in range(NEW_TOKENS):
            for name in sorted(models, reverse=bool(step % 2)):
                taken = timed(generators[name].generate_next_token)
                # The first picks a token of what the prompt gave; those that follow run the model.
                decode[name] += taken if step else 0
    return {
        what: list(each["genai"] / each["hosted"])
        for what, each in (("prefill", prefill), ("decode", decode))
    }


def opened(og: Any, path: str, threads: int) -> Any:
    """Open a model with so many threads, which do not spin: that would count as work."""
    config = og.Config(path)
    options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return og.Model(config)


def timed(call: Any) -> Any:
    """Return what a call took: seconds by the clock, and of the CPU."""
    import numpy as np

    begin, used = time.perf_counter(), time.process_time()
    call()
    return np.array([time.perf_counter() - begin, time.process_time() - used])


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
