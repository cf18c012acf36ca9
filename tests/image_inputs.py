"""A batch with pictures for texts of multimodal families, and calls that it is cut into."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tiny import prompt, read
from torch import Tensor

from lmcast import graphs
from lmcast.graphs import fill
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.step import ENDS, FEATURES, ROPE_POSITIONS, ROWS

TOKENS = 37
# Of each row, where its pictures begin, and their rows and columns. Windows have 8 tokens: pictures
# are shorter and longer than those, at the start, and one behind the other but for a token.
PICTURES = [[(3, 3, 4), (16, 1, 2), (19, 2, 5)], [(0, 2, 2), (5, 5, 3)]]
# Case of the text -> what it takes besides features and rows.
CASES = {
    "gemma3/linear on full": (ENDS,),
    "gemma3/untied": (ENDS,),
    "qwen3_5_text/plain": (ROPE_POSITIONS,),
    "qwen3_5_moe_text/plain": (ROPE_POSITIONS,),
    "qwen3_vl/bias": (ROPE_POSITIONS,),
    "qwen3_vl_moe/a dense layer, gelu": (ROPE_POSITIONS,),
    "mistral3/mistral, untied": (),
}
# Layers that add features of their own.
DEEP = {"qwen3_vl/bias": 2, "qwen3_vl_moe/a dense layer, gelu": 2}
# Tokens of each row in each call; none ends within a picture. Rows are padded.
CALLS = {
    "whole": [(37, 37)],
    "pieces": [(15, 4), (3, 1), (1, 15), (10, 0), (1, 1), (1, 1), (6, 15)],
}


@dataclass(frozen=True)
class Given:
    """A batch: ids B,T, and what stands for pictures by name, features of all rows together."""

    ids: Tensor
    images: dict[str, Tensor]


def given(width: int) -> Given:
    batch = len(PICTURES)
    rows = torch.full((batch, TOKENS), -1)
    ends = torch.arange(TOKENS).repeat(batch, 1)
    turned = torch.zeros(batch, TOKENS, 3, dtype=torch.int64)
    used = 0
    for b, pictures in enumerate(PICTURES):
        at = place = 0
        for start, high, wide in pictures:
            turned[b, at:start] = (place + torch.arange(start - at))[:, None]
            place += start - at
            size, at = high * wide, start + high * wide
            rows[b, start:at] = used + torch.arange(size)
            ends[b, start:at] = at - 1
            grid = torch.stack([torch.arange(size) // wide, torch.arange(size) % wide], 1)
            turned[b, start:at, 0] = place
            turned[b, start:at, 1:] = place + grid
            place, used = place + max(high, wide), used + size
        turned[b, at:] = (place + torch.arange(TOKENS - at))[:, None]
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(used, width, generator=generator)
    images = {FEATURES: features, ROWS: rows, ENDS: ends, ROPE_POSITIONS: turned}
    return Given(prompt(batch, TOKENS), images)


@cache
def text_of(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    config, tensors = read(directory)
    found = graphs.defined(config, tensors, text_only=True)
    found.model.see(found.config.hidden_size, *CASES[name], deep=DEEP.get(name, 0))
    fill(found, found.model, tensors.__getitem__, dtype)
    return found.model


def cut(images: dict[str, Tensor], starts: Tensor, tokens: int) -> dict[str, Tensor]:
    """Return T tokens of each row from where it starts; behind its end, any that is in reach."""
    at = (starts[:, None] + torch.arange(tokens)).clamp(max=TOKENS - 1)
    rows = torch.arange(len(starts))[:, None]
    return {n: v if n == FEATURES else v[rows, at] for n, v in images.items()}
