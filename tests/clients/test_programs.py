"""Other programs open engines and make lmcast's tokens; CLIENTS.md has all families."""

from pathlib import Path

import pytest
import torch
from client_table import DOCUMENT, page, recorded_outcomes, touched

from clients import CLIENTS, Given, differs, first_cases, given, outcomes

# Of each way to hold states one: caches, windows with sinks, latents in an odd number, matrices.
# The others are run by `make test-clients`.
FAMILIES = ("deepseek_v3", "gpt_oss", "llama", "qwen3_next")
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
