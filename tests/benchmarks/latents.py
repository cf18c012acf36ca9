"""Decode with latent attention: prints tables and draws latents.png.

    python tests/benchmarks/latents.py [--scale 8] [--longest 131072] [--rounds 7]

One token behind a cache of so many, one layer's operators in ONNX Runtime as the target `cpu` runs
them, states in place, float32. Sizes are those of DeepSeek V3.2 divided by --scale, but for the
positions chosen. Beside the absorbed form, which decoding takes, stand the expanded one, made to be
taken, and GroupQueryAttention with the latents as one key and value head. Each point is the least
of several runs, taken in turn.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import children
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import parser

from lmcast.exporter.graph.assemble import IR_VERSION
from lmcast.exporter.graph.lowering import OPSETS
from lmcast.exporter.passes.latents_by_length import BODIES, fused
from lmcast.exporter.passes.rewrite import MICROSOFT
from lmcast.plugins.latent.onnx_body import Heads, Style
from lmcast.plugins.plugin import DOMAIN, find

PICTURE = Path(__file__).with_suffix(".png")
TOP_K = 2048
SHOWN = (8192, 32768, 131072)
ABSORBED, EXPANDED = "absorbed", "expanded"
SPARSE_NAME, INDEX_NAME, GROUPED = "sparse", "indexer", "one key head"


class Sizes:
    """The letters of the operators, and I and D of the indexer."""

    def __init__(self, scale: int):
        self.heads, self.width, self.turned, self.rank = (n // scale for n in (128, 128, 64, 512))
        self.value, self.index_heads, self.index_width = (n // scale for n in (128, 64, 128))

    @property
    def row(self) -> int:
        return self.rank + self.turned


Runs = Callable[[int], float]  # cached tokens -> seconds


class Operator:
    """A model of one node, its cache bound in place."""

    def __init__(self, name: str, sizes: Sizes, capacity: int):
        self.sizes, self.capacity, self.name = sizes, capacity, name
        self.inputs = self.arrays()
        attribute = {"top_k": TOP_K} if name == "sparse_index" else {"scale": 0.1}
        style = Style(fused, wide=False, by_length=True)
        write = partial(BODIES[name], style=style)
        body = find(name).function({**self.inputs, **attribute}, write)
        values = [
            ir.Value(name=n, type=ir.TensorType(ir.DataType.from_numpy(a.dtype)),
                     shape=ir.Shape(a.shape))
            for n, a in self.inputs.items()
        ]  # fmt: skip
        attribute = {"top_k": TOP_K} if name == "sparse_index" else {"scale": 0.1}
        node = ir.node(name, values, attribute, domain=DOMAIN, num_outputs=2, name="node")
        for value, kind in zip(node.outputs, ("out", "present"), strict=True):
            value.name = kind
            whole = name == "sparse_index" and kind == "out"
            value.type = ir.TensorType(ir.DataType.INT64 if whole else ir.DataType.FLOAT)
            value.shape = ir.Shape([None] * (4 if kind == "out" and not whole else 3))
        graph = ir.Graph(values, node.outputs, nodes=[node], name="one",
                         opset_imports={**OPSETS, MICROSOFT: 1})  # fmt: skip
        model = ir.Model(graph, ir_version=IR_VERSION, functions=[body])
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def arrays(self) -> dict[str, np.ndarray]:
        s, rng = self.sizes, np.random.default_rng(0)

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        lengths = {"cache_lengths": np.zeros(1, np.int64), "token_counts": np.ones(1, np.int64)}
        if self.name == "sparse_index":
            query = draw(1, 1, s.index_heads, s.index_width)
            own = {"query": query, "weights": draw(1, 1, s.index_heads)}
            own |= {"key": draw(1, 1, s.index_width)}
            return own | {"past_key": draw(1, self.capacity, s.index_width)} | lengths
        own = {"query": draw(1, 1, s.heads, s.width), "rotated": draw(1, 1, s.heads, s.turned)}
        own |= {"latent": draw(1, 1, s.row), "past": draw(1, self.capacity, s.row), **lengths}
        if self.name == "sparse_attention":
            own["chosen"] = np.zeros((1, 1, min(TOP_K, self.capacity)), np.int64)
        ups = {"key_up": draw(s.heads, s.width, s.rank), "value_up": draw(s.heads, s.value, s.rank)}
        return own | ups

    def __call__(self, cached: int) -> float:
        """Return the seconds of one step behind `cached` tokens."""
        binding, held = self.session.io_binding(), []
        self.inputs["cache_lengths"][0] = cached
        if "chosen" in self.inputs:  # spread over what is held, as an indexer does it
            kept = self.inputs["chosen"].shape[2]
            spread = np.linspace(0, cached, min(kept, cached + 1)).astype(np.int64)
            rest = np.arange(cached + 1, cached + 1 + kept - len(spread))
            self.inputs["chosen"][0, 0] = np.concatenate([spread, rest])
        for name, array in self.inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            held.append(value)
            binding.bind_ortvalue_input(name, value)
            if name.startswith("past"):
                binding.bind_ortvalue_output("present", value)
        binding.bind_output("out", "cpu")
        start = time.perf_counter()
        self.session.run_with_iobinding(binding)
        return time.perf_counter() - start


GROUPED_TEXT = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
one (float[1,1,{all}] q, float[1,1,{row}] k, float[1,1,{row}] v, float[1,1,{room},{row}] past_key,
     float[1,1,{room},{row}] past_value, int32[1] last, int32 total)
    => (float[1,1,{all}] y, float[1,1,{room},{row}] key, float[1,1,{room},{row}] value) {{
    y, key, value = com.microsoft.GroupQueryAttention <num_heads = {heads}, kv_num_heads = 1,
        scale = 0.1> (q, k, v, past_key, past_value, last, total)
}}"""


def grouped(s: Sizes, capacity: int) -> Runs:
    """Return decode with one key head whose keys and values are the same rows."""
    text = GROUPED_TEXT.format(all=s.heads * s.row, row=s.row, room=capacity, heads=s.heads)
    session = ort.InferenceSession(
        parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    cache = ort.OrtValue.ortvalue_from_numpy(
        rng.standard_normal((1, 1, capacity, s.row), np.float32)
    )
    query = rng.standard_normal((1, 1, s.heads * s.row), np.float32)

    def run(cached: int) -> float:
        binding = session.io_binding()
        given = {"q": query, "k": query[..., : s.row].copy(), "v": query[..., : s.row].copy()}
        given |= {"last": np.array([cached], np.int32), "total": np.array(cached + 1, np.int32)}
        held = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in given.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name, out in (("past_key", "key"), ("past_value", "value")):
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(out, cache)
        binding.bind_output("y", "cpu")
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        return time.perf_counter() - start

    return run


def measure(ways: dict[str, Runs], lengths: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Return the least seconds of every way at every length; ways take turns."""
    found: dict[str, dict[int, float]] = {name: {} for name in ways}
    for length in lengths:
        for _ in range(rounds):
            for name, run in ways.items():
                took = run(length)
                found[name][length] = min(took, found[name].get(length, took))
    return found


def text(found: dict[str, dict[int, float]], sizes: Sizes) -> str:
    columns = ["cached tokens", *(f"{name} ms" for name in found), "cache MB", "absorbed GB/s"]
    rows = []
    for length in found[ABSORBED]:
        size = 4 * (length + 1) * sizes.row
        cells = [f"{found[name][length] * 1e3:.3f}" for name in found]
        rows.append(
            [
                str(length),
                *cells,
                f"{size / 1e6:.1f}",
                f"{size / found[ABSORBED][length] / 1e9:.2f}",
            ]
        )
    lines = [children.table(columns, rows)]
    ratio = found[ABSORBED][0] / found[EXPANDED][0]
    lines.append(f"at 0 tokens the absorbed form takes {ratio:.2f} of the expanded (aim 1.3)")
    shown = [n for n in SHOWN if n in found[ABSORBED]]
    for one, other in pairwise(shown):
        times = found[ABSORBED][other] / found[ABSORBED][one]
        lines.append(f"{one} to {other} tokens: {times:.2f} times the time for {other // one} times"
                     " the bytes")  # fmt: skip
    for length in shown:
        lines.append(
            f"at {length} tokens the absorbed form takes"
            f" {found[ABSORBED][length] / found[EXPANDED][length]:.3f} of the expanded,"
            f" {found[ABSORBED][length] / found[GROUPED][length]:.2f} of one key head;"
            f" sparse attention {found[SPARSE_NAME][length] / found[SPARSE_NAME][TOP_K]:.2f} of its"
            f" own time at {TOP_K}"
        )
    return "\n".join(lines)


def draw(found: dict[str, dict[int, float]], sizes: Sizes) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, times in found.items():
        x = [n for n in times if n]
        axes.plot(x, [times[n] * 1e3 for n in x], "o-", label=name, markersize=4)
    axes.axvline(TOP_K, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate(f"index_topk {TOP_K}", (TOP_K, axes.get_ylim()[0]), rotation=90, va="bottom",
                  ha="right", fontsize=8, color="grey")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="cached tokens", ylabel="ms a token and layer")
    axes.set_xscale("log", base=2)
    axes.set_title(
        f"One decoding step, {sizes.heads} heads, rank {sizes.rank} + {sizes.turned}, ONNX Runtime"
        " CPU, float32", fontsize=10,
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--scale", type=int, default=8, help="real sizes are divided by it")
    options.add_argument("--longest", type=int, default=131072)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    sizes, longest = Sizes(given.scale), given.longest
    steps = (0, 512, TOP_K, 4096, 8192, 16384, 32768, 65536, 131072)
    lengths = [n for n in steps if n <= longest]
    capacity = longest + TOP_K
    ways: dict[str, Runs] = {ABSORBED: Operator("mla_attention", sizes, capacity)}
    with mock.patch.object(Heads, "absorbs", lambda heads, slots: heads.op.constant(False)):
        ways[EXPANDED] = Operator("mla_attention", sizes, capacity)
    ways[SPARSE_NAME] = Operator("sparse_attention", sizes, capacity)
    ways[INDEX_NAME] = Operator("sparse_index", sizes, capacity)
    ways[GROUPED] = grouped(sizes, capacity)
    found = measure(ways, lengths, given.rounds)
    print(text(found, sizes))
    draw(found, sizes)


if __name__ == "__main__":
    main()
