"""Other programs open engines and make lmcast's tokens; CLIENTS.md has all families."""

from pathlib import Path

import pytest
import torch
from client_table import DOCUMENT, page, recorded_outcomes, touched

from clients import CLIENTS, Given, differs, first_cases, given, outcomes
from clients.triton_states import Sequences
from lmcast.exporter.engine.manifest import undeclared, verify
from lmcast.exporter.pack import pack_for

# Of each way to hold states one: caches, windows with sinks, latents in an odd number, matrices.
# The others are run by `make test-clients`.
FAMILIES = ("deepseek_v3", "gpt_oss", "llama", "qwen3_next")
CONTEXT = 64  # of tiny checkpoints
PROGRAMS = ("genai", "onnxruntime")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Given]:
    folder, before = tmp_path_factory.mktemp("programs"), torch.get_num_threads()
    torch.set_num_threads(1)
    found = {
        name: given(first_cases()[name], folder / "checkpoints" / name, folder / name)
        for name in FAMILIES
    }
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_make_the_same_tokens(program: str, engines: dict[str, Given], tmp_path: Path):
    client = CLIENTS[program]
    if client.missing:
        pytest.skip(client.missing)
    assert outcomes(client, engines, tmp_path) == dict.fromkeys(FAMILIES, "yes")
    assert not [name for name, each in engines.items() if touched(each)]


@pytest.mark.parametrize("family", FAMILIES)
def test_triton_carries_the_states(family: str, engines: dict[str, Given], tmp_path: Path):
    """Sequences of different length, first alone and then in one batch; their weights are links."""
    each = engines[family]
    pack_for(each.engine.directory, "triton", tmp_path / "models")
    model = Sequences(tmp_path / "models/lmcast_step")
    made = [[int(model.infer({i: prompt}).argmax())] for i, prompt in enumerate(each.prompts)]
    for _ in range(max(map(len, each.tokens)) - 1):
        logits = model.infer({i: row[-1:] for i, row in enumerate(made)})
        for row, token in zip(made, logits[:, 0].argmax(-1), strict=True):
            row.append(int(token))
    assert [
        row[: len(tokens)] for row, tokens in zip(made, each.tokens, strict=True)
    ] == each.tokens
    room = CONTEXT - len(each.prompts[0]) - len(made[0]) + 1
    model.infer({0: [5] * room})
    # By the name of a node; where a kernel of its own runs first, that finds no place.
    with pytest.raises(Exception, match=r"a_sequence_has_more_tokens_than_dims|invalid indice"):
        model.infer({0: [5]})
    engine = tmp_path / "models/lmcast/1/engine"
    assert not verify(engine) and not undeclared(engine)
    weights = [f for f in engine.rglob("*") if f.parent.name == "weights"]
    assert weights and all(f.stat().st_nlink == 3 for f in weights)


def test_other_tokens_are_seen(engines: dict[str, Given]):
    """A program that gives one other token, or ends too early, does not pass."""
    each = engines["llama"]
    right = {"single": each.tokens, "batch": each.tokens}
    assert not differs(each, right)
    other = [*each.tokens[:2], [*each.tokens[2][:-1], each.tokens[2][-1] + 1]]
    last = len(each.tokens[2]) - 1
    assert differs(each, right | {"batch": other}) == f"batch: row 2 differs from token {last} on"
    early = [row[:1] for row in each.tokens]
    assert differs(each, right | {"single": early}) == "single: row 0 differs from token 1 on"
    assert differs(each, right | {"batch": "Error: no"}) == "batch: Error: no"
    # Prompts differ in length, and what is made of them is long enough to differ.
    for given_ in engines.values():
        assert len({*map(len, given_.prompts)}) == 3 and sum(map(len, given_.tokens)) > 10


def test_the_page_has_every_family():
    found = recorded_outcomes()
    titles = [client.title for client in CLIENTS.values()]
    assert list(found) == [(name, title) for name in first_cases() for title in titles]
    again = {n: {f: found[f, c.title] for f in first_cases()} for n, c in CLIENTS.items()}
    assert page(again) == DOCUMENT.read_text()
    assert {found[name, CLIENTS[p].title] for name in FAMILIES for p in PROGRAMS} == {"yes"}
