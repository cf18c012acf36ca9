"""What engine.json promises of a checkpoint's texts: the ids that end one."""

from pathlib import Path
from typing import Any

import pytest
from tiny.llama import DROP, config, edit_json, tiny_llama

from lmcast.exporter import export
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.engine.contract import eos_ids

GENERATION = "generation_config.json"
# eos_token_id of config.json and of generation_config.json -> the ids. Both files are released, and
# differ: chat models end a turn by ids that the second alone names.
ENDS: list[tuple[Any, Any, list[int]]] = [
    (DROP, DROP, []),
    (7, DROP, [7]),
    ([9, 7, 9], DROP, [7, 9]),
    (DROP, 5, [5]),
    (7, 5, [5]),
    (7, [96, 5], [5, 96]),
    ([7, 8], 5, [5]),
]


@pytest.mark.parametrize(("of_config", "of_generation", "ids"), ENDS)
def test_ids_of_generation_config_come_first(of_config, of_generation, ids, tmp_path: Path):
    tiny_llama(tmp_path)
    config(eos_token_id=of_config)(tmp_path)
    edit_json(GENERATION, eos_token_id=of_generation)(tmp_path)
    assert eos_ids(open_checkpoint(tmp_path)) == ids


@pytest.mark.parametrize("file", ["config.json", GENERATION])
@pytest.mark.parametrize("given", [True, "</s>", [1, 2.0]])
def test_ids_that_are_no_integers_are_refused(file: str, given: Any, tmp_path: Path):
    tiny_llama(tmp_path)
    edit_json(GENERATION, eos_token_id=DROP)(tmp_path)
    edit_json(file, eos_token_id=given)(tmp_path)
    with pytest.raises(CheckpointError, match=r"eos_token_id is .* accepted: integers"):
        eos_ids(open_checkpoint(tmp_path))


def test_an_engine_ends_where_generation_config_says(tmp_path: Path):
    source = tmp_path / "checkpoint"
    tiny_llama(source)
    config(eos_token_id=2)(source)
    edit_json(GENERATION, eos_token_id=[0, 1])(source)
    first = export(source, tmp_path / "first", parity=False)
    assert first.eos_ids == {0, 1}
    (whole,) = first.generate([[5, 6, 7]], max_new_tokens=6)
    ids = list(whole.ids)
    edit_json(GENERATION, eos_token_id=ids[2])(source)
    (cut,) = export(source, tmp_path / "second", parity=False).generate(
        [[5, 6, 7]], max_new_tokens=6
    )
    assert list(cut.ids) == ids[: ids.index(ids[2]) + 1]
