"""A stand-in for a model that takes pictures: everything that a call is told changes its logits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmcast.exporter.engine.description import Graph, State
from lmcast.exporter.runtime.images import Images, Picture
from lmcast.exporter.runtime.session import Session

WIDTH, VOCABULARY, CONTEXT = 6, 40, 512
INPUTS: dict[str, tuple[str, ...]] = {
    "input_ids": ("B", "T"),
    "cache_lengths": ("B",),
    "token_counts": ("B",),
    "logit_rows": ("B", "R"),
    "image_features": ("F", str(WIDTH)),
    "image_rows": ("B", "T"),
}
MORE: dict[str, tuple[str, ...]] = {
    "visible_ends": ("B", "T"),
    "rope_positions": ("B", "T", "3"),
}


def graph_with(*names: str, **more: Any) -> Graph:
    """Return the contract of a graph that takes these beside the usual inputs of pictures."""
    inputs = INPUTS | {name: MORE[name] for name in names}
    state = State("kept", ("B", "C", WIDTH), "float32")
    return Graph(
        file="model.onnx", weights="copy", optimized=True, split_experts=False, append="batch",
        inputs=tuple(inputs.items()), outputs=(("logits", ("B", "R", str(VOCABULARY))),),
        states=(state,), **more,
    )  # fmt: skip


class Model:
    """A runner: each token's logits are of the mean of what it may see, by where that is turned."""

    limits, gpu, place = None, None, "this test"

    def __init__(self) -> None:
        draw = np.random.default_rng(7).normal
        self.embedding, self.head = draw(size=(VOCABULARY, WIDTH)), draw(size=(WIDTH, VOCABULARY))
        self.calls: list[Mapping[str, np.ndarray]] = []

    def memory(self, states: Any) -> tuple[int, int]:
        return 0, 1

    def allocate(self, states: Any, kept: Any = None) -> Any:
        made = {name: np.zeros(shape) for name, shape, _ in states}
        if kept is not None:
            made["kept"][:, : kept["kept"].shape[1]] = kept["kept"]
        return made

    def run(
        self, inputs: Mapping[str, np.ndarray], states: Any, *, rows: slice
    ) -> list[np.ndarray]:
        self.calls.append({name: array.copy() for name, array in inputs.items()})
        kept, counts, places = (
            states["kept"][rows],
            inputs["token_counts"],
            inputs["image_rows"],
        )
        batch, tokens = inputs["input_ids"].shape
        features = inputs["image_features"]
        assert 1 <= len(features) <= max(1, counts.sum()), "what the call uses, never nothing"
        x = np.where(
            places[..., None] >= 0,
            features[np.maximum(places, 0)],
            self.embedding[inputs["input_ids"]],
        )
        own = inputs["cache_lengths"][:, None] + np.arange(tokens)
        turned = inputs.get("rope_positions", np.repeat(own[..., None], 3, axis=2))
        x = x * np.cos(turned @ np.array([0.1, 0.2, 0.3]))[..., None]
        ends = inputs.get("visible_ends", own)
        logits = np.zeros((*inputs["logit_rows"].shape, VOCABULARY), np.float32)
        for b in range(batch):
            kept[b, own[b, : counts[b]]] = x[b, : counts[b]]
            for r, row in enumerate(inputs["logit_rows"][b]):
                end = min(ends[b, row], own[b, max(counts[b] - 1, 0)])
                logits[b, r] = kept[b, : end + 1].mean(axis=0) @ self.head
        return [logits]


def session(graph: Graph, rows: int, model: Model | None = None) -> Session:
    return Session(model or Model(), graph, CONTEXT, VOCABULARY, rows)


def prompt(kinds: Sequence[str], *parts: int, seed: int = 0) -> tuple[list[int], Images]:
    """Return the ids of a prompt and its images: parts are text of n tokens, or pictures of -n."""
    random = np.random.default_rng([seed, *map(abs, parts)])
    ids: list[int] = []
    rows: list[int] = []
    ends: list[int] = []
    turned: list[tuple[int, int, int]] = []
    pictures, at, used = [], 0, 0
    for part in parts:
        start, size = len(ids), abs(part)
        if part > 0:
            ids += random.integers(1, VOCABULARY, size).tolist()
            rows += [-1] * size
            ends += range(start, start + size)
            turned += [(at + i,) * 3 for i in range(size)]
            at += size
            continue
        across = 3  # of a picture's tokens
        ids += [VOCABULARY] * size  # a placeholder outside the vocabulary
        rows += range(used, used + size)
        ends += [start + size - 1] * size
        turned += [(at, at + i // across, at + i % across) for i in range(size)]
        at += max(across, -(-size // across))
        used += size
        pictures.append(Picture.of_features(random.normal(size=(size, WIDTH)).astype(np.float32)))
    return ids, Images(
        tuple(pictures),
        np.array(rows),
        np.array(ends) if "visible_ends" in kinds else None,
        np.array(turned) if "rope_positions" in kinds else None,
    )
