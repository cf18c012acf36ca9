"""What a step, a prompt and a few tokens take, operator by operator, against the memory: tables.

    python tests/benchmarks/by_operator.py [ENGINE ...] [--threads 2] [--held 128] [--prompt 128]

Without engines: SmolLM2-135M's dimensions with random weights, in fp32, and in int4 in groups of
32, both with their tied head. Times are ONNX Runtime's own, of every node the least of some calls,
so that other work on the machine counts little; what lies between nodes is not in them. Bytes are
those of weights, as the kernels lay them out, and of held keys and values that a node reads; beside
their speed is the read bandwidth of the same number of threads.
"""

import argparse
import json
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import children

CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
FORMATS = ("float32", "int4")
CALLS = {1: 40, 2: 30, 4: 30, 8: 20}  # tokens of a call -> how often; of prompts PROMPTS
PROMPTS = 5
GATHERS = ("Gather", "GatherBlockQuantized")
SHOWN = 6  # operators, of which the others are one line
MB = 1e6


def prepare(work: str, name: str) -> None:
    """Write a random checkpoint once, and an engine of it in a format."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lmcast.exporter import export

    checkpoint = Path(work, "checkpoint")
    if not checkpoint.exists():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(checkpoint)
    recipe = Path(work, f"{name}-recipe") if name != "float32" else None
    if recipe is not None:
        from peer_models import round_all

        round_all(str(checkpoint), str(recipe), name)
    export(checkpoint, Path(work, name), parity=False, tokenizer=False, recipe=recipe)


def measure(engine: str, threads: int, held: int, prompt: int) -> dict[str, Any]:
    """Return, for each number of tokens, operator -> [nodes, seconds, bytes]; and the bandwidth.

    In a process of its own.
    """
    import numpy as np

    from lmcast.exporter.backends import onnxruntime as backend
    from lmcast.exporter.bench import READ_BYTES, Bandwidth
    from lmcast.exporter.runtime.engine import Engine

    options = backend.session_options
    found: dict[str, Any] = {}
    speeds = []  # of which, as of times, the best counts
    with tempfile.TemporaryDirectory() as folder:

        def profiled(*given: Any) -> Any:
            made = options(*given)
            made.enable_profiling, made.profile_file_prefix = True, f"{folder}/profile"
            return made

        for tokens, calls in {**CALLS, prompt: PROMPTS}.items():
            with mock.patch.object(backend, "session_options", profiled):
                loaded = Engine(engine, threads=threads)
                runner: Any = loaded.runner
            ids = np.arange(tokens)[None] % loaded.vocab_size
            before = 0 if tokens == prompt else held
            session = loaded.session(1)
            for _, array in session.reserve(before + tokens):
                array[...] = 0.5  # memory that was never written takes no time to read
            for _ in range(calls):
                session.lengths[:] = before
                session.append(ids)
            times = least(Path(runner._session.end_profiling()), calls)
            found[str(tokens)] = by_operator(loaded, times, before + tokens)
            speeds.append(Bandwidth(threads).bandwidth(READ_BYTES))
    return {"calls": found, "bandwidth": max(speeds)}


def least(profile: Path, calls: int) -> dict[str, float]:
    """Return node -> its seconds, the least of the last calls."""
    ended = "_kernel_time"
    times: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(ended):
            times[event["name"].removesuffix(ended)].append(event["dur"] / 1e6)
    return {name: min(each[-calls:]) for name, each in times.items()}


def by_operator(loaded: Any, times: Mapping[str, float], seen: int) -> dict[str, list[float]]:
    """Return operator -> nodes, seconds and bytes that they read of weights and states.

    seen: tokens of the row, whose states are read.
    """
    from lmcast.exporter.engine.graph_file import read_graph

    graph = read_graph(loaded.manifest).graph
    axes = {"B": 1, "C": seen}
    found: dict[str, list[float]] = {}
    for node in graph:
        if str(node.name) not in times:
            continue  # a constant
        size = weight_bytes(node)
        for value in node.inputs if node.op_type not in GATHERS else ():
            if value is not None and str(value.name).endswith(".past") and value.shape is not None:
                sizes = [axes.get(str(n), n) for n in value.shape]
                size += math.prod(int(n) for n in sizes) * (
                    value.dtype.itemsize if value.dtype else 0
                )
        entry = found.setdefault(node.op_type, [0, 0.0, 0.0])
        for i, more in enumerate((1, times[str(node.name)], size)):
            entry[i] += more
    return found


def weight_bytes(node: Any) -> float:
    """Return the bytes of weights that a node reads once."""
    if node.op_type in ("GroupQueryAttention", *GATHERS):
        return 0.0  # a few rows of tables
    if node.op_type == "MatMulNBits":  # beside codes, fp32 scales and zero points times those
        k, n, bits, block = (node.attributes[a].as_int() for a in ("K", "N", "bits", "block_size"))
        return n * k * (bits / 8 + 8 / block)
    total = 0.0
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.const_value is not None:
            total += value.const_value.nbytes
        elif node.op_type == "FusedMatMul" and value is node.inputs[1]:  # computed at load
            total += math.prod(value.shape.numpy()) * value.dtype.itemsize
    return total


def text(engine: str, found: Mapping[str, Any]) -> str:
    """Return a table for each number of tokens, and how they compare."""
    lines, sums = [], {}
    for tokens, operators in found["calls"].items():
        ordered = sorted(operators.items(), key=lambda item: -item[1][1])
        rest = [sum(entry[i] for _, entry in ordered[SHOWN:]) for i in range(3)]
        total = [sum(entry[i] for _, entry in ordered) for i in range(3)]
        sums[int(tokens)] = total[1]
        rows = []
        for name, (nodes, seconds, size) in [
            *ordered[:SHOWN],
            ("others", rest),
            ("all", total),
        ]:
            speed = size / seconds if seconds else 0
            of = f"{speed / found['bandwidth']:.0%}" if size else "-"
            rows.append(
                [name, f"{nodes:.0f}", f"{seconds * 1e3:.3f}", f"{seconds / total[1]:.1%}"]
                + ([f"{size / MB:.1f}", f"{speed / 1e9:.1f}", of] if size else ["-"] * 3)
            )
        lines += [f"{engine}, {tokens} tokens a call:"]
        columns = ["operator", "nodes", "ms", "share", "MB", "GB/s", "of bandwidth"]
        lines += [children.table(columns, rows), ""]
    few = ", ".join(f"{n}: {sums[n] / sums[1]:.2f}" for n in CALLS if n > 1)
    lines.append(f"times one token's, by tokens of a call: {few}")
    lines.append(f"read bandwidth: {found['bandwidth'] / 1e9:.1f} GB/s\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engines", nargs="*")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--held", type=int, default=128, help="tokens before a step")
    parser.add_argument("--prompt", type=int, default=128)
    options = parser.parse_args()
    given = {"threads": options.threads, "held": options.held, "prompt": options.prompt}
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as work:
        for name in () if options.engines else FORMATS:
            children.run("by_operator", "prepare", work=work, name=name)
            options.engines.append(f"{work}/{name}")
        for engine in options.engines:
            found = children.run("by_operator", "measure", engine=engine, **given).result
            print(text(Path(engine).name, found), flush=True)


if __name__ == "__main__":
    main()
