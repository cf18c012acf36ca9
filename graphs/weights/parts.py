"""Matrices of experts that files hold in parts, one for each rank of tensor parallelism."""

from lmcast.graphs.weights.bind import EachExpert, Entry
from lmcast.graphs.weights.sources import Joined, View

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
