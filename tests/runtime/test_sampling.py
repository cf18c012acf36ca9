"""Sampling against Hugging Face's logits processors, and its own promises."""

import math

import numpy as np
import pytest
from transformers import GenerationConfig

from lmcast.exporter.runtime.sampling import (
    NEUTRAL,
    Sampler,
    Sampling,
    SamplingError,
    candidates,
    choose_sampling,
    of_generation_config,
    penalize,
)
from lmcast.plugins.arguments import ArgumentError

VOCABULARY = 1000
OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 1},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 1.0, "top_p": 0.1},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.99},  # more than FIRST_CANDIDATES
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 0.0},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.8},
    {
        "temperature": 1.4,
        "top_k": 50,
        "top_p": 0.8,
        "min_p": 0.02,
        "repetition_penalty": 1.1,
        "seed": 3,
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_distribution_is_that_of_transformers(options: dict):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((8, VOCABULARY)) * 3).astype(np.float32)
    histories = rng.integers(0, VOCABULARY, (8, 30))
    histories[:, 3] = VOCABULARY  # has no logit: embeddings may be larger than heads
    theirs = transformers.LogitsProcessorList()
    if "repetition_penalty" in options:
        penalty = options["repetition_penalty"]
        theirs.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
    # The order in which transformers' generate puts them.
    theirs.append(transformers.TemperatureLogitsWarper(options["temperature"]))
    for name, kind in (
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if name in options:
            theirs.append(kind(options[name]))
    expected = theirs(torch.from_numpy(histories), torch.from_numpy(logits)).softmax(-1).numpy()

    sampling = Sampling(**options)
    for row, history, wanted in zip(logits, histories, expected, strict=True):
        kept, weights = candidates(
            penalize(row, history.tolist(), sampling.repetition_penalty), sampling
        )
        found = np.zeros(VOCABULARY)
        found[kept] = weights / weights.sum()
        assert np.flatnonzero(found).tolist() == np.flatnonzero(wanted).tolist()
        # Theirs is float32: a few roundings of numbers up to 1, through exp of logits up to 30.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_picks_follow_the_distribution():
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125, 0.0001]], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_k=4, seed=0), 1)
    counts = np.bincount([sampler.pick(logits, [[]])[0] for _ in range(4000)], minlength=5)
    # Five standard deviations of a count of 4000 draws are at most 5 * sqrt(4000 / 4).
    assert np.abs(counts - 4000 * np.array([0.5, 0.25, 0.125, 0.125, 0])).max() < 159
    assert counts[4] == 0


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_takes_the_likeliest(penalty: float):
    logits = np.array([[1, 5, 4.9, -1], [2, -3, 1, 1.9]], dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=penalty), 2)
    assert sampler.pick(logits, [[1, 1], [0]]) == ([1, 0] if penalty == 1 else [2, 3])
    assert logits[0, 1] == 5  # the caller's array stays


def test_ties_beyond_top_k_stay_and_in_top_p_are_cut():
    scores = np.zeros(6, dtype=np.float32)
    assert candidates(scores, Sampling(temperature=1.0, top_k=2))[0].tolist() == [*range(6)]
    assert candidates(scores, Sampling(temperature=1.0, top_p=0.5))[0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e300])
def test_extreme_temperature_stays_finite(temperature: float):
    logits = np.array([[3, 1, 2]], dtype=np.float32)
    picked = Sampler(Sampling(temperature=temperature, seed=1), 1).pick(logits, [[]])
    assert picked == [0] if temperature < 1 else picked[0] in (0, 1, 2)


def draws(sampling: Sampling, rows: int, row: int) -> list[int]:
    """Ten picks of one row among others whose logits differ with the number of rows."""
    sampler = Sampler(sampling, rows)
    rng = np.random.default_rng(rows)
    own = np.random.default_rng(7).standard_normal((10, 50)).astype(np.float32)
    picked = []
    for logits in own:
        batch = rng.standard_normal((rows, 50)).astype(np.float32)
        batch[row] = logits
        picked.append(sampler.pick(batch, [[]] * rows)[row])
    return picked


def test_row_depends_on_seed_and_place_alone():
    sampling = Sampling(temperature=1.0, seed=5)
    assert draws(sampling, 1, 0) == draws(sampling, 4, 0)
    assert draws(sampling, 3, 2) == draws(sampling, 9, 2)
    assert draws(sampling, 3, 2) != draws(sampling, 3, 1)
    assert draws(sampling, 1, 0) != draws(Sampling(temperature=1.0, seed=6), 1, 0)
    unseeded = Sampling(temperature=1.0)
    assert draws(unseeded, 1, 0) != draws(unseeded, 1, 0)


def test_some_rows_alone_pick_as_in_the_batch():
    logits = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    sampling = Sampling(temperature=1.0, seed=5)
    whole = Sampler(sampling, 4).pick(logits, [[]] * 4)
    part = Sampler(sampling, 4).pick(logits[[1, 3]], [[]] * 2, [1, 3])
    assert part == [whole[1], whole[3]]


def test_seeded_picks_are_the_same_on_every_machine():
    logits = np.linspace(-1, 1, 100, dtype=np.float32)[None].repeat(2, 0)
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=2024), 2)
    picked = [sampler.pick(logits, [[], []]) for _ in range(4)]
    assert picked == [[84, 42], [77, 72], [47, 41], [84, 84]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(value: float, temperature: float):
    logits = np.zeros((3, 5), dtype=np.float32)
    logits[1, 2] = value
    with pytest.raises(SamplingError, match=r"^logits: those of row 6 hold NaN or Inf"):
        Sampler(Sampling(temperature=temperature), 9).pick(logits, [[]] * 3, [4, 6, 8])


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "temperature": [-0.1, math.nan, math.inf, -math.inf, None, "1", True, 10**400],
        "top_k": [0, -1, 1.5, True, "5"],
        "top_p": [0, 0.0, 1.01, -1, math.nan, math.inf, "1", False],
        "min_p": [-0.01, 1.01, math.nan, True],
        "repetition_penalty": [0, -1.0, 1000, math.nan, math.inf, None, True],
        "seed": [-1, 1.0, "x", True],
    }.items(),
)
def test_option_out_of_range_is_refused(name: str, values: list):
    for value in values:
        with pytest.raises(ArgumentError, match=rf"^{name} is .*; accepted: an? ") as caught:
            Sampling(**{"temperature": 1.0, name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_option_without_effect_is_refused(option: dict):
    with pytest.raises(SamplingError, match=rf"^{next(iter(option))}: does nothing"):
        Sampling(**option)


# generation_config.json -> what it asks for.
ASKED: list[tuple[dict, Sampling]] = [
    ({}, Sampling()),
    ({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, Sampling()),
    ({"do_sample": True}, Sampling(temperature=1.0)),
    ({"do_sample": True, "top_k": 0, "top_p": None}, Sampling(temperature=1.0)),
    (
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0},
        Sampling(temperature=0.6, top_k=20, top_p=0.95, min_p=0.0),
    ),
    ({"temperature": 0.6}, Sampling(temperature=0.6)),
    ({"top_p": 0.8}, Sampling(temperature=1.0, top_p=0.8)),
    ({"top_k": 0}, Sampling()),
    ({"do_sample": True, "temperature": 0.0, "top_p": 0.8}, Sampling()),
    ({"repetition_penalty": 1.05}, Sampling(repetition_penalty=1.05)),
    (
        {"do_sample": True, "repetition_penalty": 1.1, "num_beams": 1, "typical_p": 1.0},
        Sampling(temperature=1.0, repetition_penalty=1.1),
    ),
    ({"eos_token_id": 3, "max_new_tokens": 9, "bad_words_ids": None}, Sampling()),
]


@pytest.mark.parametrize(("given", "wanted"), ASKED, ids=str)
def test_generation_config_asks_for(given: dict, wanted: Sampling):
    assert of_generation_config(given) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams is 4, which is not done here"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p is 0.9"),
        ({"suppress_tokens": [3]}, r"suppress_tokens is \[3\]"),
        ({"do_sample": True, "top_p": 1.5}, "generation_config.json: top_p is 1.5; accepted"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; true or false"),
        ({"temperature": "hot"}, "generation_config.json: temperature is 'hot'; accepted"),
    ],
)
def test_generation_config_that_is_not_done_is_refused(given: dict, message: str):
    with pytest.raises(SamplingError, match=message):
        of_generation_config(given)
    sampling, said = choose_sampling(given, None, {})
    assert (sampling, bool(said)) == (Sampling(), True)
    assert choose_sampling(given, "greedy", {}) == (Sampling(), "")
    assert choose_sampling(given, None, {"top_p": 0.5, "temperature": 1.0})[1] == ""


def test_neutral_values_are_the_defaults_of_transformers():
    defaults = GenerationConfig._get_default_generation_params()
    for key, neutral in NEUTRAL.items():
        assert defaults.get(key) in (None, *neutral), key
