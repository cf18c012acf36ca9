"""The graph of a tower: each distinct part is traced once, and called where it is used.

Letters: N pictures of one grid, M merged tokens, K patches of each, S tokens within the tower, F
features (N * M), D width, H width of the text.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import onnx_ir as ir
from torch import Tensor, nn

from lmcast.exporter.graph.assemble import Assembly, value_of
from lmcast.exporter.graph.capture import SIZES, Call, Input, Multiple, Part, Sizes, trace
from lmcast.exporter.graph.fingerprint import fingerprint
from lmcast.graphs.blocks.tower import Tower, TowerPart

FEATURES = "features"
CLIP = Multiple(4, 0, 3)  # K where it is dynamic: two by two patches of each frame


def tower_graph(tower: Tower, prefix: str) -> ir.Model:
    """Return the portable graph of a tower on meta, in the dtype of its parameters.

    prefix: of the names of its weights, which are initializers without data. Output: features F,H.
    """
    return _Capture(tower).graph(prefix)


class _Part(nn.Module):
    """A part whose inputs come in as one tuple, as there may be any number of them."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, given: tuple[Tensor, ...]) -> Any:
        return self.part(*given)


class _Capture:
    """The parts of one tower, traced."""

    def __init__(self, tower: Tower):
        self.tower, self.dtype = tower, next(tower.parameters()).dtype
        self.given: dict[str, Input] = {n: (n, *given) for n, given in tower.inputs.items()}
        self.kinds: dict[str, Part] = {}
        self.sizes: Sizes = {**SIZES, "K": CLIP}
        self.embed = self.call("Embed", tower.embed, "embed", ["x"])
        self.sizes = {**self.sizes, "S": self._tokens()}
        x = self._x(self.embed)
        self.positions, self.shared = self._positions()
        self.blocks = list[Call]()
        self.kept: dict[int, Input] = {}
        for index, block in enumerate(tower.blocks):
            taken = [x, *self.shared]
            self.blocks.append(self.call("Block", block, f"blocks.{index}", ["x"], taken))
            x = self._x(self.blocks[-1])
            if index in tower.keeps:
                self.kept[index] = (f"kept.{index}", *x[1:])
        taken = [x, *self.kept.values()]
        self.merger = self.call("Merger", tower.merger, "merger", [FEATURES], taken)

    def call(
        self, kind: str, module: nn.Module, at: str, gives: list[str], before: Sequence[Input] = ()
    ) -> Call:
        """Trace a part unless its like has been; before: what it takes ahead of inputs by name."""
        named = module.takes if isinstance(module, TowerPart) else ()
        inputs = [*before, *(self.given[name] for name in named)]
        key = f"{kind} {inputs} {fingerprint(module, {})}"
        if key not in self.kinds:
            name = f"{kind}{sum(known.startswith(f'{kind} ') for known in self.kinds)}"
            nesting = ((None,) * len(inputs),)
            self.kinds[key] = trace(
                name, _Part(module), inputs, gives, nesting=nesting, sizes=self.sizes
            )
        return Call(self.kinds[key], at, module)

    def _x(self, call: Call) -> Input:
        """Return what a part gives, as an input of the next: N,S,D, or places of fixed sizes."""
        (made,) = _results(call.part)
        axes = tuple(n if isinstance(n, int) else "NS"[i] for i, n in enumerate(made.shape))
        return "x", axes, made.dtype

    def _tokens(self) -> int | Multiple:
        """Return what is known of S: M * K, and a few more where there are tokens besides patches;
        else an example."""
        (embedded,) = _results(self.embed.part)
        size = embedded.shape[1]
        example = size if isinstance(size, int) else int(size.node.hint)
        merged = self.tower.inputs["patches"][0][2] if "patches" in self.tower.inputs else "K"
        if isinstance(merged, str):
            return example
        return Multiple(merged, example - SIZES["M"] * merged, SIZES["M"])

    def _positions(self) -> tuple[Call | None, list[Input]]:
        """Trace what all blocks take beside x; also return that as inputs of theirs, N,S,..."""
        if self.tower.positions is None:
            return None, []
        call = self.call("Positions", cast(nn.Module, self.tower.positions), "positions", [])
        values = _results(call.part)
        names = tuple(f"positions.{number}" for number in range(len(values)))
        shared: list[Input] = [
            (name, ("N", "S", *value.shape[2:]), value.dtype)
            for name, value in zip(names, values, strict=True)
        ]
        return replace(call, part=replace(call.part, outputs=names)), shared

    def graph(self, prefix: str) -> ir.Model:
        """Return the graph that calls the parts in order."""
        inputs = [value_of(name, kind, axes) for name, axes, kind in self.given.values()]
        graph = Assembly(self.tower, self.kinds.values(), inputs, prefix)
        (x,) = graph.call(self.embed, self.embed.prefix, graph.given)
        if self.positions:
            tables = graph.call(self.positions, self.positions.prefix, graph.given)
            graph.given.update(zip(self.positions.part.outputs, tables, strict=True))
        for index, block in enumerate(self.blocks):
            (x,) = graph.call(block, block.prefix, {**graph.given, "x": x})
            if index in self.kept:
                graph.given[self.kept[index][0]] = x
        (features,) = graph.call(self.merger, self.merger.prefix, {**graph.given, "x": x})
        assert features.shape is not None
        features.name, features.shape = FEATURES, ir.Shape(["F", features.shape[-1]])
        return graph.finish([features], "vision")


def _results(part: Part) -> list[Any]:
    """Return what a part gives, as traced: values with dtypes and shapes."""
    return [node.meta["val"] for node in part.program.graph.output_node().args[0]]
