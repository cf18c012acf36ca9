"""Weight tables of experts that checkpoints hold in stacks, with gate and up in one tensor."""

from collections.abc import Mapping

from lmcast.graphs.weights.bind import EachExpert, Entry, per_expert
from lmcast.graphs.weights.sources import Source, View

ALL = slice(None)
OURS = "layers.{i}.ffn.experts"


def alternating(theirs: str) -> dict[str, Entry]:
    """In-first gate_up_proj E,D,2I whose columns alternate, down_proj E,I,D and biases; or, in
    MXFP4, the same two out-first."""
    table: dict[str, Entry] = {
        f"{OURS}.down": (
            View(f"{theirs}.down_proj", turned=True),
            View(f"{theirs}.down_proj_blocks"),
        ),
        f"{OURS}.down_bias": f"{theirs}.down_proj_bias",
    }
    both = f"{theirs}.gate_up_proj"
    for name, first in (("gate", 0), ("up", 1)):
        rows = slice(first, None, 2)
        table[f"{OURS}.{name}"] = (
            View(both, (ALL, ALL, rows), turned=True),
            View(f"{both}_blocks", (ALL, rows)),
        )
        table[f"{OURS}.{name}_bias"] = View(f"{both}_bias", (ALL, rows))
    return table


def in_first(theirs: str, inner: int) -> dict[str, Entry]:
    """In-first gate_up_proj E,D,2I, gate before up, and down_proj E,I,D; I is `inner`."""
    both = f"{theirs}.gate_up_proj"
    return {
        f"{OURS}.gate": View(both, (ALL, ALL, slice(0, inner)), turned=True),
        f"{OURS}.up": View(both, (ALL, ALL, slice(inner, None)), turned=True),
        f"{OURS}.down": View(f"{theirs}.down_proj", turned=True),
    }


def out_first(theirs: str, inner: int) -> dict[str, View]:
    """Out-first gate_up_proj E,2I,D, gate before up, and down_proj E,D,I; I is `inner`."""
    both = f"{theirs}.gate_up_proj"
    return {
        f"{OURS}.gate": View(both, (ALL, slice(0, inner))),
        f"{OURS}.up": View(both, (ALL, slice(inner, None))),
        f"{OURS}.down": View(f"{theirs}.down_proj"),
    }


def either(*tables: Mapping[str, Source | EachExpert]) -> dict[str, Entry]:
    """Return what tables of the same keys say, as alternatives; the first is the usual one."""
    return {ours: tuple(table[ours] for table in tables) for ours in tables[0]}


def sparse_block(inner: int) -> dict[str, Entry]:
    """Router and experts as files of the hub with a `block_sparse_moe` have them, or as Hugging
    Face names its modules; I is `inner`."""
    hub, modules = (f"model.layers.{{i}}.{ffn}" for ffn in ("block_sparse_moe", "mlp"))
    router = View(f"{hub}.gate.weight"), View(f"{modules}.gate.weight")
    experts = per_expert(f"{hub}.experts", "w1", "w3", "w2")
    return {
        "layers.{i}.ffn.router.weight": router,
        **either(experts, out_first(f"{modules}.experts", inner)),
    }
