"""Weight tables of routers and experts, for each layout that checkpoints use.

Letters: E experts, D width, I inner width. Out-first is [outputs, inputs], as in nn.Linear;
in-first is its transpose.
"""

from collections.abc import Mapping

from lmcast.graphs.weights.bind import EachExpert, Entry
from lmcast.graphs.weights.sources import Joined, Source, View

ALL = slice(None)
OURS = "layers.{i}.ffn.experts"

# As most checkpoints have them: the router, what selects experts and weighs none, shared experts.
ROUTER: dict[str, Entry] = {"layers.{i}.ffn.router": "model.layers.{i}.mlp.gate"}
CORRECTION: dict[str, Entry] = {
    "layers.{i}.ffn.router.correction": "model.layers.{i}.mlp.gate.e_score_correction_bias"
}
SHARED_EXPERTS: dict[str, Entry] = {
    f"layers.{{i}}.ffn.shared.{x}": f"model.layers.{{i}}.mlp.shared_experts.{x}_proj"
    for x in ("gate", "up", "down")
}


def per_expert(theirs: str, gate: str, up: str, down: str) -> dict[str, EachExpert]:
    """Three matrices for every expert, by the names of their modules in `theirs`."""
    return {
        f"{OURS}.{ours}": EachExpert(View(f"{theirs}.{{e}}.{name}.weight"))
        for ours, name in (("gate", gate), ("up", up), ("down", down))
    }


PER_EXPERT = per_expert("model.layers.{i}.mlp.experts", "gate_proj", "up_proj", "down_proj")


def alternating(theirs: str) -> dict[str, Entry]:
    """In-first gate_up_proj E,D,2I with gate and up in alternating columns, down_proj E,I,D, and
    biases; in MXFP4, the same two out-first."""
    table: dict[str, Entry] = {
        f"{OURS}.down": (
            View(f"{theirs}.down_proj", transposed=True),
            View(f"{theirs}.down_proj_blocks"),
        ),
        f"{OURS}.down_bias": f"{theirs}.down_proj_bias",
    }
    both = f"{theirs}.gate_up_proj"
    for name, first in (("gate", 0), ("up", 1)):
        rows = slice(first, None, 2)
        table[f"{OURS}.{name}"] = (
            View(both, (ALL, ALL, rows), transposed=True),
            View(f"{both}_blocks", (ALL, rows)),
        )
        table[f"{OURS}.{name}_bias"] = View(f"{both}_bias", (ALL, rows))
    return table


def in_first(theirs: str, inner: int) -> dict[str, View]:
    """In-first gate_up_proj E,D,2I, gate before up, and down_proj E,I,D; I is `inner`."""
    both = f"{theirs}.gate_up_proj"
    return {
        f"{OURS}.gate": View(both, (ALL, ALL, slice(0, inner)), transposed=True),
        f"{OURS}.up": View(both, (ALL, ALL, slice(inner, None)), transposed=True),
        f"{OURS}.down": View(f"{theirs}.down_proj", transposed=True),
    }


def out_first(theirs: str, inner: int) -> dict[str, View]:
    """Out-first gate_up_proj E,2I,D, gate before up, and down_proj E,D,I; I is `inner`."""
    both = f"{theirs}.gate_up_proj"
    return {
        f"{OURS}.gate": View(both, (ALL, slice(0, inner))),
        f"{OURS}.up": View(both, (ALL, slice(inner, None))),
        f"{OURS}.down": View(f"{theirs}.down_proj"),
    }


def switched(theirs: str) -> dict[str, View]:
    """Out-first gate_proj and up_proj E,I,D and down_proj E,D,I: a stack each, as MLX has them."""
    return {
        f"{OURS}.{name}": View(f"{theirs}.{name}_proj.weight") for name in ("gate", "up", "down")
    }


def either(*tables: Mapping[str, Source | EachExpert]) -> dict[str, Entry]:
    """Merge tables of the same keys into alternatives, the usual one first."""
    return {ours: tuple(table[ours] for table in tables) for ours in tables[0]}


def routed(inner: int) -> dict[str, Entry]:
    """Experts of `mlp.experts`: one matrix each, as most files on the hub have them, or stacks as
    in Hugging Face's modules or in MLX's; I is `inner`."""
    theirs = "model.layers.{i}.mlp"
    return either(
        PER_EXPERT, out_first(f"{theirs}.experts", inner), switched(f"{theirs}.switch_mlp")
    )


def sparse_block(inner: int) -> dict[str, Entry]:
    """Router and experts of a `block_sparse_moe`, as files on the hub have them, or as Hugging Face
    names its modules; I is `inner`."""
    hub, modules = (f"model.layers.{{i}}.{ffn}" for ffn in ("block_sparse_moe", "mlp"))
    router = View(f"{hub}.gate.weight"), View(f"{modules}.gate.weight")
    experts = per_expert(f"{hub}.experts", "w1", "w3", "w2")
    return {
        "layers.{i}.ffn.router.weight": router,
        **either(experts, out_first(f"{modules}.experts", inner)),
    }


# Ours, Mixtral's, and the axis of the inner width, which the ranks divide among themselves.
MATRICES = (("gate", "w1", 0), ("up", "w3", 0), ("down", "w2", 1))


def part_name(tensor: str, rank: int) -> str:
    """Return the name under which the part of one rank is presented."""
    return f"{tensor}.TP-{rank:03}"


def whole_or_parts(ours: str, theirs: str, ranks: int) -> dict[str, Entry]:
    """Return the table of experts whose matrices w1, w2 and w3 are whole, or in a part per rank."""
    table: dict[str, Entry] = {}
    for name, matrix, axis in MATRICES:
        whole = f"{theirs}.{{e}}.{matrix}.weight"
        parts = tuple(View(part_name(whole, rank)) for rank in range(ranks))
        table[f"{ours}.{name}"] = EachExpert(View(whole)), EachExpert(Joined(parts, axis))
    return table
