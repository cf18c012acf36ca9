"""Eager logits without a whole embedding or head in memory are those of the whole model."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny import case, make
from torch import Tensor

from lmcast.exporter.checkpoint import identified
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.pipeline import understand
from lmcast.exporter.prove import by_rows
from lmcast.exporter.prove.eager_pass import Batch, full_pass
from lmcast.graphs import load

SLAB = 16  # of a vocabulary of about 100
IDS = torch.tensor([[5, 90, 41, 5], [91, 17, 40, 63]])
# What has a row for each token, and is not a norm or a projection.
TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight", "lm_head.weight", "lm_head.bias")


@dataclass(frozen=True)
class Counting(Checkpoint):
    """Notes which rows are asked of which tensor."""

    asked: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        self.asked.setdefault(name, []).append((start, stop))
        return super().rows(name, start, stop)

    def read(self, name: str) -> Tensor:
        assert not name.endswith(TABLES)
        return super().read(name)


@pytest.mark.parametrize(
    "name",
    [
        "llama/plain",
        "gemma2/no caps, untied",
        "gemma3_text/final cap, bias, scalar",
        "granite/biases, tied",
        "granite/plain",
        "grok2/temperature, caps",
        "gemma3n_text/windowed only, biases, untied",
        "gemma3n_text/several shared, sparse",
    ],
)
@torch.no_grad()
def test_rows_of_what_has_one_for_each_token(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(by_rows, "SLAB", SLAB)
    monkeypatch.setattr(by_rows, "NEAR", 1)
    source, _ = identified(make(case(name), tmp_path))
    found = understand(source, (), tokenizer=False)
    counting = Counting(**vars(source))
    at = torch.tensor([[1, 3], [2, 0]])
    whole, ends = Batch(IDS, torch.tensor([4, 4])), Batch(IDS, torch.tensor([4, 4]), wanted=at)
    kinds = (torch.float64, torch.float32)
    before = {n: p.shape for n, p in found.model.named_parameters()}
    got = full_pass(found, counting, {kind: [whole, ends] for kind in kinds})
    assert before == {n: p.shape for n, p in found.model.named_parameters()}
    assert all(p.is_meta for p in found.model.parameters())
    for kind in kinds:
        want = load(tmp_path, kind)(IDS)
        chosen = want.gather(1, at[..., None].expand(-1, -1, want.shape[-1]))
        # Sums of one dtype, but a BLAS orders those of a product by its size.
        near = {"rtol": 0, "atol": 100 * torch.finfo(kind).eps}
        torch.testing.assert_close(got[kind], [want, chosen], **near)
    tables = {n: asked for n, asked in counting.asked.items() if n.endswith(TABLES)}
    assert tables
    for table, asked in tables.items():
        (rows, *_) = source.tensors[table].shape
        slabs = {(start, min(start + SLAB, rows)) for start in range(0, rows, SLAB)}
        looked_up = {row for span in set(asked) - slabs for row in range(*span)}
        assert looked_up <= {*IDS.flatten().tolist(), 0}, table  # 0: what Gemma 3n knows no id of
