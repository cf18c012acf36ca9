"""What texts take of pictures, against Hugging Face on the same features; whole and in pieces."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from image_inputs import CALLS, CASES, DEEP, TOKENS, cut, given, text_of
from tiny import case, gap, oracle_model
from torch import Tensor

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.step import ENDS, FEATURES, ROPE_POSITIONS, ROWS
from lmcast.graphs.config.rope_parameters import MRope
from lmcast.graphs.towers import qwen_vision, siglip

BY_CASE = pytest.mark.parametrize("name", CASES)


@torch.no_grad()
def theirs(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return Hugging Face's logits B,T,V of one pass over embeddings with features among them."""
    model = oracle_model(case(name), directory, dtype)
    x = model.get_input_embeddings()
    width = x.weight.shape[1]
    batch = given(width * (1 + DEEP.get(name, 0)))
    seen = batch.images[ROWS] >= 0
    embedded = x(batch.ids)
    first, *deep = batch.images[FEATURES].to(dtype).split(width, -1)
    embedded[seen] = first
    how: dict[str, Any] = {}
    if ENDS in CASES[name]:
        how["token_type_ids"] = seen.long()
    if ROPE_POSITIONS in CASES[name]:
        how["position_ids"] = batch.images[ROPE_POSITIONS].permute(2, 0, 1)
    if deep:
        how |= {"visual_pos_masks": seen, "deepstack_visual_embeds": deep}
        text = model.model.language_model
        return model.lm_head(text(inputs_embeds=embedded, use_cache=False, **how)[0])
    logits: Tensor = model(inputs_embeds=embedded, use_cache=False, **how).logits
    return logits


@torch.no_grad()
def logits(model: Decoder, calls: list[tuple[int, ...]], *without: str) -> Tensor:
    """Return logits B,T,V in these calls; without: inputs to leave as those of a text."""
    batch, out = given(model.image_width), []
    images = {name: batch.images[name] for name in model.image_inputs}
    own = torch.arange(TOKENS).repeat(len(batch.ids), 1)
    texts = {ENDS: own, ROPE_POSITIONS: own[..., None].repeat(1, 1, 3), ROWS: own * 0 - 1}
    images |= {name: texts[name] for name in without}
    past, lengths = model.empty_states(len(batch.ids), 2 * TOKENS), torch.zeros_like(own[:, 0])
    taken: list[list[Tensor]] = [[] for _ in batch.ids]
    for counts in calls:
        tokens = max(counts)
        ids = batch.ids[
            torch.arange(len(batch.ids))[:, None],
            (lengths[:, None] + torch.arange(tokens)).clamp(max=TOKENS - 1),
        ]
        part = cut(images, lengths, tokens)
        ids = torch.where(part[ROWS] < 0, ids, 0)  # as placeholders may lie outside the vocabulary
        new, past = model.step(ids, lengths, torch.tensor(counts), past, part)
        for row, count in enumerate(counts):
            taken[row].append(new[row, :count])
        lengths = lengths + torch.tensor(counts)
    out = [torch.cat(parts) for parts in taken]
    return torch.stack(out)


@BY_CASE
def test_pictures_are_hugging_faces(name: str, checkpoint: Any, report: Any):
    directory = checkpoint(case(name))
    wanted, exact = theirs(name, directory), theirs(name, directory, torch.float64)
    bound = min(1e-3, 4 * gap(wanted, exact) + 2e-5)
    model = text_of(name, directory)
    for way, calls in CALLS.items():
        error = gap(logits(model, calls), wanted)
        report("Texts with pictures against Hugging Face, fp32",
               {"case": name, "calls": way, "error": error, "bound": bound})  # fmt: skip
        assert error <= bound, way
    for input in (ROWS, *CASES[name]):  # each of them counts
        assert gap(logits(model, CALLS["whole"], input), wanted) > 0.1, input


@BY_CASE
def test_pieces_are_one_pass(name: str, checkpoint: Any):
    model = text_of(name, checkpoint(case(name)), torch.float64)
    whole, pieces = (logits(model, calls) for calls in CALLS.values())
    assert gap(whole, pieces) < 1e-10  # fp64 leaves about 1e-14


@BY_CASE
@torch.no_grad()
def test_a_text_is_what_it_was(name: str, checkpoint: Any):
    """Bit for bit, without inputs for pictures and with those of a text."""
    model = text_of(name, checkpoint(case(name)))
    ids = given(model.image_width).ids
    images = {n: v for n, v in given(model.image_width).images.items() if n in model.image_inputs}
    own = torch.arange(TOKENS).repeat(len(ids), 1)
    images |= {ROWS: own * 0 - 1, FEATURES: torch.zeros(1, model.image_width)}
    images |= {ENDS: own} if ENDS in images else {}
    images |= {ROPE_POSITIONS: own[..., None].repeat(1, 1, 3)} if ROPE_POSITIONS in images else {}
    lengths = torch.zeros(len(ids), dtype=torch.int64)
    states, counts = model.empty_states(len(ids), TOKENS), torch.full_like(lengths, TOKENS)
    assert torch.equal(model.step(ids, lengths, counts, states, images)[0], model(ids))


@torch.no_grad()
def test_features_of_every_layer_count(checkpoint: Any):
    model = text_of("qwen3_vl/bias", checkpoint(case("qwen3_vl/bias")))
    batch, width = given(model.image_width), model.image_width // 3
    lengths = torch.zeros(len(batch.ids), dtype=torch.int64)
    states = model.empty_states(len(batch.ids), TOKENS)

    def run(features: Tensor) -> Tensor:
        images = {name: batch.images[name] for name in model.image_inputs} | {FEATURES: features}
        return model.step(batch.ids, lengths, lengths + TOKENS, states, images)[0]

    whole = batch.images[FEATURES]
    for depth in range(3):
        without = whole.clone()
        without[:, depth * width : (1 + depth) * width] = 0
        assert gap(run(without), run(whole)) > 0.1, depth


def test_more_features_than_layers_are_refused(checkpoint: Any):
    model = text_of("qwen3_vl/bias", checkpoint(case("qwen3_vl/bias")))
    with pytest.raises(ValueError, match=r"layers do not take 9 features each"):
        deepcopy(model).see(8, deep=9)


def test_towers_say_what_their_texts_take():
    assert siglip.TOWER.text_inputs == (ENDS,)
    assert qwen_vision.TOWER.text_inputs == (ROPE_POSITIONS,)


def sections() -> Iterator[tuple[tuple[int, ...], int, str]]:
    """Sections, pairs, and the axis of each pair: t time, r row, c column."""
    yield (11, 11, 10), 32, "trc" * 10 + "tr"
    yield (2, 1, 1), 4, "trct"
    yield (4, 4, 0), 8, "trttrttr"
    yield (24, 20, 20), 64, "trc" * 20 + "tttt"  # Qwen3-VL


@pytest.mark.parametrize(("section", "pairs", "wanted"), [*sections()], ids=str)
def test_pairs_turn_by_turns(section: tuple[int, ...], pairs: int, wanted: str):
    found = MRope(mrope_section=section).axes(pairs)
    assert "".join("trc"[axis] for axis in found) == wanted


def test_sections_one_behind_the_other_are_refused():
    parameters = MRope(mrope_section=(1, 1, 1), mrope_interleaved=False)
    with pytest.raises(ValueError, match="mrope_interleaved is False; accepted where pictures"):
        parameters.axes(3)
