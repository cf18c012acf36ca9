"""The bound of parity proves something: of the calls that it judges, and of tokens that rounding
does not decide."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from operators import REGISTRY
from tiny import case, make

from lmcast.exporter import export
from lmcast.exporter.checkpoint import identified
from lmcast.exporter.pipeline import understand
from lmcast.exporter.prove.compare import compare
from lmcast.exporter.prove.decided import decided_rows
from lmcast.exporter.prove.junit import junit
from lmcast.exporter.prove.parity_report import TELLING, Report, Result
from lmcast.exporter.prove.references import Reference, drawn, references, steps
from lmcast.exporter.prove.scenarios import EXACT, PREFILL, RAGGED, STEPS

# Routers; positions that an indexer chooses, and routers of groups; and a state that is scaled by
# a norm of almost nothing. Of the tokens that are drawn, zeros would pass for each.
NAMES = ("gpt_oss/plain", "deepseek_v32/plain", "bamba/plain")
FORMAT, LENGTH = "bfloat16", 12
Made = tuple[dict[str, Reference], dict[str, Reference]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a case to what parity compares with: of drawn rows, and of those that
    are drawn in their place."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    @cache
    def get(name: str) -> Made:
        source, _ = identified(make(case(name), tmp_path_factory.mktemp("checkpoint")))
        found = understand(source, (), tokenizer=False)
        rows, vocab, dtype = drawn(source.config["vocab_size"], LENGTH), 96, torch.bfloat16
        rows = [rows[0], rows[1]]

        def of(rows: list[list[int]]) -> dict[str, Reference]:
            return references(found, found, source, rows, {PREFILL: [], STEPS: steps(rows)}, dtype)

        return of(rows), of(decided_rows((found, found), source, rows, vocab, dtype))

    yield get
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_logits_that_say_nothing_fail(name: str, made):
    before, after = made(name)
    other = made(NAMES[NAMES.index(name) - 1])[1]  # another model's, of the same vocabulary
    assert not all(reference.tells(FORMAT) for reference in before.values())
    for way, reference in after.items():
        assert reference.tells(FORMAT)
        right, random = reference.exact, np.random.default_rng(0)
        places = list(right)
        allowed = compare(way, right, reference, FORMAT).bound
        noise = {at: x + random.uniform(-0.9, 0.9, x.shape) * allowed for at, x in right.items()}
        assert compare(way, noise, reference, FORMAT).problem(proven=False) is None
        for wrong in (
            {at: np.zeros_like(x) for at, x in right.items()},
            {at: right[places[i - 1]] for i, at in enumerate(places)},
            {at: other[way].exact[at] for at in places},
            {at: np.full_like(x, np.nan) for at, x in right.items()},
        ):
            assert not compare(way, wrong, reference, FORMAT).passed


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_that_says_nothing_is_refused_by_name(name: str, made):
    """Also right logits do not pass by it, of tokens that somebody gives."""
    before, _ = made(name)
    results = tuple(compare(way, ref.exact, ref, FORMAT) for way, ref in before.items())
    report = Report(FORMAT, LENGTH, None, results)
    assert all(result.error == 0 for result in results) and not report.passed
    assert "vacuous: a bound of" in report.worst()
    assert "VACUOUS: FAILED" in report.table() and b"vacuous" in junit(report)
    assert any(result["vacuous"] for result in report.as_json()["results"])
    told = Result(EXACT, 1, 0.0, 0.1, 0.4, 1.0, 0.0, 1.0)
    proven = Report(FORMAT, LENGTH, None, (told, *results))
    assert proven.passed and "VACUOUS, see exact" in proven.table()


def test_what_eager_is_off_by_in_any_way_bounds_all(tmp_path: Path):
    """It is not the same where a delta rule is computed in chunks or token by token."""
    source, _ = identified(make(case("qwen3_5_moe/plain"), tmp_path))
    found = understand(source, (), tokenizer=False, text_only=True)
    rows = drawn(96, LENGTH)
    ways = {PREFILL: [], STEPS: steps(rows)}
    given = references(found, found, source, rows, ways, torch.float32)
    whole, behind = given[PREFILL], given[STEPS]
    assert behind.exact and all((whole.exact[at] == x).all() for at, x in behind.exact.items())
    alone = [references(found, found, source, rows, {w: ways[w]}, torch.float32) for w in ways]
    each = [one.error for given in alone for one in given.values()]
    assert len({*each}) == 2 and whole.error == behind.error == max(each)


def test_an_engine_in_fp16_is_compared_by_tokens_that_tell(tmp_path: Path):
    checkpoint = make(case("gpt_oss/plain"), tmp_path / "checkpoint")
    export(checkpoint, tmp_path / "engine", "onnx", "float16", tokenizer=False)
    results = json.loads((tmp_path / "engine/parity.json").read_text())["results"]
    assert [result["scenario"] for result in results] == [PREFILL, STEPS, RAGGED]
    for result in results:
        assert result["bound"] < TELLING * result["nothing"] and not result["vacuous"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_what_selects_says_by_what(name: str):
    """An operator that gives indices jumps where two scores meet: parity must know of it."""
    plugin = REGISTRY[name]
    arguments = plugin.cases()[0]
    outputs = plugin.eager(*arguments)
    gives = any(o.dtype == torch.int64 for o in (outputs if isinstance(outputs, tuple) else ()))
    assert gives == (plugin.selections is not None)
    for scores, count in plugin.selections(*arguments) if plugin.selections else ():
        assert count <= scores.shape[-1]
