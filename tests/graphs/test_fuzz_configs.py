"""A sample of fuzz_configs, and every key that the table of inert ones has."""

from pathlib import Path

import pytest
from fuzz_configs import VALUES, Trial, fault, sample
from tiny import CASES, case

from lmcast.graphs import archs
from lmcast.graphs.config.inert import INERT

SEED, COUNT = 0, 3  # of another seed: other keys; of each architecture


@pytest.mark.parametrize("name", archs.NAMES)
def test_a_config_is_refused_or_gives_hugging_faces_logits(name: str, checkpoint, tmp_path: Path):
    first = next(case for case in CASES if case.architecture == name)
    directory = checkpoint(first)
    for i, trial in enumerate(sample(first, directory, COUNT, SEED)):
        work = tmp_path / str(i)
        work.mkdir()
        assert fault(trial, directory, work) is None, trial


def test_inert_keys_change_no_logit_of_hugging_face(checkpoint, tmp_path: Path):
    plain = case("llama/plain")
    for i, key in enumerate(sorted(INERT)):
        work = tmp_path / str(i)
        work.mkdir()
        value = list(VALUES)[i % len(VALUES)]
        assert fault(Trial(plain, (key,), value), checkpoint(plain), work) is None, (key, value)
