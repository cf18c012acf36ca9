"""A sample of what fuzz_configs tries, another one for another seed."""

from itertools import islice
from pathlib import Path

import pytest
from fuzz_configs import is_accepted, of_table, run, sample, trials
from tiny import CASES, case, read

from lmcast.graphs import archs

SEED = 0


@pytest.mark.parametrize("name", archs.NAMES)
def test_a_config_is_refused_or_gives_hugging_faces_logits(name: str, checkpoint, tmp_path: Path):
    first = next(case for case in CASES if case.architecture == name)
    directory = checkpoint(first)
    assert not run(sample(trials(first, directory), 3, SEED), directory, tmp_path)


@pytest.mark.parametrize("name", archs.NAMES)
def test_null_and_absent_are_told_apart_where_hugging_face_does(
    name: str, checkpoint, tmp_path: Path
):
    first = next(case for case in CASES if case.architecture == name)
    directory = checkpoint(first)
    config, tensors = read(directory)
    found = [trial for trial in trials(first, directory) if trial.value in ("null", "absent")]
    drawn = sample(found, len(found), SEED)
    # No more than are needed: to define a model for each takes longer than what is tried.
    accepted = (trial for trial in drawn if is_accepted(trial.config(config), tensors))
    few = list(islice(accepted, 4))
    assert len(few) == 4
    assert not run(few[:2], directory, tmp_path)


def test_inert_keys_change_no_logit_of_hugging_face(checkpoint, tmp_path: Path):
    assert not run(sample(of_table(), 40, SEED), checkpoint(case("llama/plain")), tmp_path)
