"""Every engine against its eager definition: prefill, steps past the window, ragged, greedy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_errors import TOKENS, errors
from other_programs import differs, opened
from other_programs import greedy as greedy_of
from tiny import CASES, Case, make, prompt
from tiny.multimodal import FAMILY

from lmcast.exporter import Engine, export, load
from lmcast.exporter.clients.genai import contract as genai
from lmcast.exporter.clients.write import WRITTEN
from lmcast.graphs import load as load_eager

# The text of a multimodal checkpoint is a family of its own, which has the same variants.
ONCE = [next(case for case in CASES if case.architecture == name) for name in FAMILY.classes]
BY_CASE = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.architecture not in FAMILY.classes or case in ONCE],
    ids=lambda case: case.name,
)
GREEDY = 5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from case and target to (engine, eager fp32, eager fp64)."""
    made: dict[tuple[str, str], tuple] = {}

    def get(case: Case, target: str = "cpu"):
        key = (case.name, target)
        if key not in made:
            folder = tmp_path_factory.mktemp("case")
            checkpoint = make(case, folder / "checkpoint")
            options = {"parity": False, "tokenizer": False, "context": 64, "text_only": True}
            export(checkpoint, folder / "engine", target, **options)
            made[key] = (
                load(folder / "engine", threads=1),
                load_eager(checkpoint).eval(),
                load_eager(checkpoint, torch.float64).eval(),
            )
        return made[key]

    return get


@BY_CASE
@torch.no_grad()
def test_engine_matches_eager(case: Case, built, report):
    engine, rough, exact = built(case)
    found, ids = errors(engine, rough, exact), prompt(2, TOKENS)
    report("Engine logits against eager, fp32", found.row(case=case.name))
    assert found.share <= 1
    assert greedy(engine, ids[:1]) == greedy_eager(rough, ids[:1], engine.eos_ids)


def greedy(engine: Engine, ids: torch.Tensor) -> list[int]:
    (result,) = engine.generate([ids[0].tolist()], max_new_tokens=GREEDY)
    return list(result.ids)


def greedy_eager(eager: torch.nn.Module, ids: torch.Tensor, ends: frozenset[int]) -> list[int]:
    length, past = torch.zeros(1, dtype=torch.int64), eager.empty_states(1, 2 * TOKENS)
    picked: list[int] = []
    while len(picked) < GREEDY and not ends.intersection(picked):
        count = torch.tensor([ids.shape[1]])
        logits, past = eager.step(ids, length, count, past)
        length, ids = length + count, logits[:, -1:].argmax(-1)
        picked.append(int(ids))
    return picked


# Caches, windows (of the kernel, of a body, lent, chunks), latents, chosen positions, recurrent
# states with one convolution, with three and with none; three of one tap, and no cache at all.
OTHERS = (
    "llama/plain", "gemma3_text/derived types", "gpt_oss/plain", "llama4_text/plain",
    "mimo_v2_flash/derived layers", "gemma3n_text/one of each shared", "deepseek_v3/plain",
    "deepseek_v32/plain", "qwen3_next/plain", "nemotron_h/plain", "kimi_linear/plain",
    "minimax/plain", "kimi_linear/linear alone, one tap",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_programs_find_the_same_tokens(name: str, built):
    (case,) = (case for case in CASES if case.name == name)
    engine, *_ = built(case)
    ids = np.random.default_rng(0).integers(2, engine.vocab_size, 31).tolist()
    assert not differs(engine, [ids[:5], ids[5:22], ids[22:]], GREEDY)


def test_rows_that_must_begin_anew_fail(built):
    engine, *_ = built(next(case for case in CASES if case.name == "phi3/longrope in part"))
    for contract in WRITTEN:
        with pytest.raises(Exception, match="a_row_that_grows_beyond_16_tokens_must_begin_anew"):
            greedy_of(opened(engine, contract), contract, 4, [list(range(2, 16))])


def test_states_that_are_not_carried_with_their_rows_fail(built):
    """As beams of ONNX Runtime GenAI would leave them, with buffers that grow."""
    engine, *_ = built(next(case for case in CASES if case.name == "qwen3_next/plain"))
    session = opened(engine, genai)
    sizes = {"batch_size": 1}
    given = {
        value.name: np.zeros([sizes.get(n, 0) if isinstance(n, str) else n for n in value.shape],
                             np.float32)
        for value in session.get_inputs() if value.name.startswith("past")
    }  # fmt: skip
    ids = np.array([[5, 6, 7]])
    given |= {"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": ids - 5}
    with pytest.raises(Exception, match="needs_past_present_share_buffer_and_no_beams"):
        session.run(None, given)


# No window, a window, one that is shared, sinks, chunks, latents, chosen positions that are shared:
# the graph differs by its operators alone.
NAMES = (
    "llama/plain",
    "gemma2/plain",
    "gemma3n_text/one of each shared",
    "gpt_oss/plain",
    "llama4_text/plain",
    "deepseek_v3/plain",
    "glm_moe_dsa/shared, wide values",
)
PORTABLE = [case for case in CASES if case.name in NAMES]


@pytest.mark.parametrize("case", PORTABLE, ids=lambda case: case.name)
@torch.no_grad()
def test_portable_graph(case: Case, built):
    engine, rough, exact = built(case, "onnx")
    assert errors(engine, rough, exact).share <= 1


def test_window_states_do_not_grow(built):
    case = next(c for c in CASES if c.name == "gemma2/plain")
    engine, *_ = built(case)
    states = engine.manifest.fields["graph"]["states"]
    assert {s["shape"][2] for s in states} == {"C", 8}


@pytest.mark.parametrize(
    ("name", "target", "split"),
    [
        ("qwen3_moe/plain", "cpu", True),
        ("qwen3_moe/plain", "onnx", False),
        ("gemma3n_text/one of each shared", "cpu", False),  # it splits other things
    ],
)
def test_the_contract_says_whether_experts_are_split(name: str, target: str, split: bool, built):
    engine, *_ = built(next(c for c in CASES if c.name == name), target)
    assert engine.manifest.fields["graph"]["split_experts"] is split


@torch.no_grad()
def test_prepacked_weights_give_the_same(built):
    engine, rough, exact = built(PORTABLE[0])
    prepacked = load(engine.directory, threads=1, prepack=True)
    assert errors(prepacked, rough, exact).share <= 1


def test_reload_runs_the_same(built, tmp_path: Path):
    engine, *_ = built(PORTABLE[0])
    ids = prompt(1, 9)
    again = load(engine.directory, threads=1)
    np.testing.assert_array_equal(again.logits(ids), load(engine.directory, 1).logits(ids))
