"""What the graph of a text takes of pictures, and what a call without any gives it.

Letters: B rows of a call, T tokens, F features that it uses, H their width.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lmcast.exporter.backends.runner import INPUTS
from lmcast.exporter.engine.description import Description, Graph

FEATURES = "image_features"


def _zeros(places: np.ndarray, width: int) -> np.ndarray:
    """One row: no runtime gathers from none."""
    return np.zeros((1, width), np.float32)


def _none(places: np.ndarray, width: int) -> np.ndarray:
    return np.full(places.shape, -1, np.int64)


def _own(places: np.ndarray, width: int) -> np.ndarray:
    return places


def _turned(places: np.ndarray, width: int) -> np.ndarray:
    return np.repeat(places[:, :, None], 3, 2)


# Of every input for pictures, what stands for none: (places of the tokens B,T, H) -> array.
WITHOUT: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    FEATURES: _zeros,
    "image_rows": _none,
    "visible_ends": _own,
    "rope_positions": _turned,
}


Taken = Mapping[str, tuple[int | str, ...]]  # inputs for pictures, by name and axes


def taken(graph: Graph) -> Taken:
    """Return what a graph takes of pictures: {} where it takes text alone."""
    axes = {name: axes for name, axes in graph.inputs if name in WITHOUT}
    return {n: tuple(int(a) if a.isdigit() else a for a in own) for n, own in axes.items()}


def without(asked: Taken, cache_lengths: np.ndarray, tokens: int) -> dict[str, np.ndarray]:
    """Return what a call without pictures gives for them; cache_lengths B, T tokens."""
    places = cache_lengths[:, None] + np.arange(tokens)
    width = int(asked[FEATURES][1]) if asked else 0
    return {name: WITHOUT[name](places, width) for name in asked}


def inputs(about: Description) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Return what a graph takes besides states and total_length, by name: dtype and axes."""
    found: dict[str, tuple[str, tuple[int | str, ...]]]
    found = {name: ("int64", axes) for name, axes in INPUTS.items()}
    for name, axes in taken(about.graph).items():
        found[name] = (about.dtype if name == FEATURES else "int64"), axes
    return found
