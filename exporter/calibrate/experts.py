"""Calibration of experts, each on the tokens that are routed to it.

Letters: n rows (tokens), E experts, R routes of a token, D width, I inner width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmcast.calib.presets import Preset
from lmcast.calib.statistics import InputStatistics
from lmcast.exporter.calibrate.choice import HELD_ROWS, Choice, Held, choose
from lmcast.exporter.calibrate.hidden_states import Stream, room
from lmcast.graphs.blocks.moe import Experts
from lmcast.graphs.weights.quantized import Quantized
from lmcast.plugins.experts.moe_experts import ACTIVATIONS

STACKS = ("gate", "up", "down")
POOLED_ROWS = 2048  # of all tokens of a layer, for an expert that sees too few of its own
FEWEST_HELD = 16  # held-out tokens of an expert that candidates are compared on; else of all


@dataclass(frozen=True)
class Tokens:
    """The inputs of a stack of experts: x n,D; weights n,R; chosen n,R."""

    x: Tensor
    weights: Tensor
    chosen: Tensor
    scale_input: bool

    @classmethod
    def of(cls, stream: Stream, index: int, name: str, scale_input: bool, file: Path) -> "Tokens":
        """Collect the inputs of a module of a layer.

        file: where many of them are stored.
        """
        x, done, others = torch.empty(0), 0, []
        for calls in stream.calls(index, [name], 1):
            ((_, (given, weights, chosen)),) = calls
            flat = given.flatten(0, -2)
            if not done:
                x = room((stream.ids.numel(), flat.shape[1]), file)
            x[done : done + len(flat)] = flat
            done += len(flat)
            others.append((weights.flatten(0, -2), chosen.flatten(0, -2)))
        weights, chosen = (torch.cat(parts) for parts in zip(*others, strict=True))
        return cls(x, weights, chosen, scale_input)

    def routed(self, expert: int) -> Tensor:
        """Return the inputs of one expert, n,D."""
        row, route = (self.chosen == expert).nonzero(as_tuple=True)
        return self._entering(self.x[row], self.weights[row, route])

    def spread(self, most: int) -> Tensor:
        """Return a sample of all tokens, evenly spread, as inputs of one expert."""
        every = -(-len(self.x) // most)
        return self._entering(self.x[::every], self.weights[::every].mean(1))

    def counts(self, experts: int) -> list[int]:
        found: list[int] = self.chosen.flatten().bincount(minlength=experts).tolist()
        return found

    def _entering(self, x: Tensor, share: Tensor) -> Tensor:
        return x * share[:, None] if self.scale_input else x


@dataclass(frozen=True)
class Rows:
    """The rows that one expert is calibrated on; empty where there is too little text for any."""

    own: Tensor
    held: Tensor

    def through(self, stacks: Experts, expert: int) -> "Rows":
        """Return the inputs of the expert's last matrix for these rows."""
        return Rows(inner(stacks, expert, self.own), inner(stacks, expert, self.held))


@dataclass(frozen=True)
class Found:
    """choices: stack -> that of each expert. coverage: tokens and fallbacks, for the report."""

    choices: Mapping[str, list[Choice]]
    coverage: Mapping[str, Any]


def quantize(
    stacks: Experts,
    tokens: Tokens,
    held: Tokens,
    presets: Mapping[str, Preset],
    fewest: int,
) -> Found:
    """Quantize the experts of a layer one by one, in place; return what was chosen.

    presets: of the stacks to quantize.

    An expert with fewer than `fewest` tokens is calibrated on tokens of the whole layer; where
    those are too few as well, on its weights alone.
    """
    experts = len(stacks.up)
    counts = tokens.counts(experts)
    choices: dict[str, list[Choice]] = {leaf: [] for leaf in presets}
    pooled, alone = list[int](), list[int]()
    for expert in range(experts):
        if counts[expert] >= fewest:
            own = tokens.routed(expert)
        elif len(tokens.x) >= fewest:
            pooled.append(expert)
            own = tokens.spread(POOLED_ROWS)
        else:
            alone.append(expert)
            own = tokens.x[:0]
        rows = Rows(own, _held(held, expert))
        for leaf in STACKS:
            if leaf not in presets:
                continue
            if leaf == "down":
                rows = rows.through(stacks, expert)
            weight = getattr(stacks, leaf)[expert]
            choice = _choose(weight, rows, presets[leaf])
            with torch.no_grad():
                weight.copy_(choice.kept.candidate.quantized.dequantize())
            choices[leaf].append(choice)
    coverage = {"tokens": counts, "pooled": pooled, "weight_only": alone}
    return Found(choices, coverage)


def stacked(parts: list[Quantized]) -> Quantized:
    """Return one weight E,N,K of those of all experts."""
    first = parts[0]
    codes = torch.stack([part.codes for part in parts])
    scales = torch.stack([part.scales for part in parts])
    shared = [part.shared.reshape(1, 1) for part in parts if part.shared is not None]
    return Quantized(first.scheme, codes, scales, torch.stack(shared) if shared else None)


def inner(stacks: Experts, expert: int, x: Tensor) -> Tensor:
    """Return the inputs of an expert's last matrix, n,I, for x n,D."""

    def linear(weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight[expert], None if bias is None else bias[expert])

    ups = linear(stacks.up, stacks.up_bias)
    gates = ups if stacks.gate is None else linear(stacks.gate, stacks.gate_bias)
    return ACTIVATIONS[stacks.activation][0](gates, ups, stacks.alpha, stacks.limit)


def _held(held: Tokens, expert: int) -> Tensor:
    rows = held.routed(expert)
    return rows[:HELD_ROWS] if len(rows) >= FEWEST_HELD else held.spread(HELD_ROWS)


def _choose(weight: Tensor, rows: Rows, preset: Preset) -> Choice:
    statistics = InputStatistics(weight.shape[-1])
    statistics.add(rows.own)
    return choose(weight, statistics, Held(rows.held), preset, "")
