"""Sampling of the next token from logits, as Hugging Face's logits processors define it.

Letters: B rows, V vocabulary.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np

from lmcast.plugins.annotations import Range, Seed
from lmcast.plugins.arguments import checked, checked_fields
from lmcast.plugins.errors import InputError

FIRST_CANDIDATES = 256  # tokens looked at first for top_p: mostly enough, and fast to sort


class SamplingError(InputError):
    """A sampling option that does nothing or is not done here, or logits that hold no
    distribution."""


Share = Annotated[float, Range(sys.float_info.min, 1.0), "a number above 0, at most 1"]


@checked_fields
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling options, applied in the order repetition_penalty, temperature, top_k, top_p, min_p.

    temperature 0 takes the most likely token. None: not applied.
    """

    temperature: Annotated[float, Range(0.0, sys.float_info.max), "a number of at least 0"] = 0.0
    top_k: Annotated[int, Range(1, 1 << 31)] | None = None
    top_p: Share | None = None
    min_p: Annotated[float, Range(0.0, 1.0)] | None = None
    # Hugging Face takes any number above 0; far from 1 the logits would overflow.
    repetition_penalty: Annotated[float, Range(0.01, 100.0)] = 1.0
    seed: Seed | None = None

    def options(self) -> str:
        """Return what is set, as a person reads it: 'temperature 0.6, top_p 0.95'."""
        set_ = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [f"{n} {v:g}" for n, v in set_.items() if v != getattr(Sampling, n) and n != "seed"]
        return ", ".join(shown) or "greedy"

    def __post_init__(self) -> None:
        if self.temperature == 0:
            for name in ("top_k", "top_p", "min_p"):
                if getattr(self, name) is not None:
                    raise SamplingError(
                        f"{name}: does nothing at temperature 0, which takes the likeliest token; "
                        "leave it out or give a temperature above 0"
                    )


# What generation_config.json says of how tokens are picked: key -> values that change nothing.
# Other keys say where to end, what to keep and return, or how beams and assistants search.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),
    "penalty_alpha": (),
    "guidance_scale": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0.0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "dola_layers": (),
    "watermarking_config": (),
}
OPTIONS = ("temperature", "top_k", "top_p", "min_p")


def of_generation_config(given: Mapping[str, Any]) -> Sampling:
    """Return the sampling that a generation_config.json asks for; greedy where it asks for none.

    `do_sample` false is greedy; where it is missing, a temperature, top_k, top_p or min_p asks for
    sampling, as vLLM reads it. What the file does not say is not added: transformers would take the
    50 likeliest tokens. Raises SamplingError for what is not done here, and for wrong values.
    """
    for key, neutral in NEUTRAL.items():
        value = given.get(key)
        if value is not None and value not in neutral:
            raise SamplingError(
                f"generation_config.json: {key} is {value!r:.80}, which is not done here; give"
                " options such as --temperature instead"
            )
    said = {k: given[k] for k in OPTIONS if given.get(k) is not None}
    penalty = given.get("repetition_penalty")
    kept = {} if penalty is None else {"repetition_penalty": penalty}
    sampled = given.get("do_sample")
    if not isinstance(sampled, bool | None):
        raise SamplingError(
            f"generation_config.json: do_sample is {sampled!r:.80}; true or false is"
        )
    if said.get("top_k") == 0:  # there: every token
        del said["top_k"]
    if not (bool(said) if sampled is None else sampled) or said.get("temperature") == 0:
        said = {}
    elif "temperature" not in said:
        said["temperature"] = 1.0
    try:
        return Sampling(**said, **kept)
    except InputError as error:
        raise SamplingError(f"generation_config.json: {error}") from None


@checked
def choose_sampling(
    generation: Mapping[str, Any],
    asked: Literal["model", "greedy"] | None,
    given: Mapping[str, Any],
) -> tuple[Sampling, str]:
    """Return the sampling of a command, and what to say about it: '' for nothing.

    generation: generation_config.json. asked: "model" for its sampling, "greedy", or None for
    greedy with a word about what it asks for. given: options of their own, which count first.
    """
    if asked == "model":
        of_model = of_generation_config(generation)
        if given.get("temperature") == 0:
            return replace(of_model, temperature=0.0, top_k=None, top_p=None, min_p=None), ""
        return replace(of_model, **given), ""
    sampling = Sampling(**given)
    if asked is not None or given.keys() - {"seed"}:
        return sampling, ""
    try:
        wanted = of_generation_config(generation)
    except SamplingError as error:
        return sampling, str(error)
    if wanted == Sampling():
        return sampling, ""
    return sampling, (
        f"generation_config.json asks for {wanted.options()}; --sampling model takes that, this is"
        " greedy (--sampling greedy says so)"
    )


class Sampler:
    """Samples tokens for a batch; each row has a random stream of its own.

    The stream of row i follows from the seed and i alone, and each pick takes one number from it,
    so a row's tokens do not depend on its neighbours.
    """

    def __init__(self, sampling: Sampling, rows: int):
        self._sampling = sampling
        entropy = np.random.SeedSequence(sampling.seed)
        self._streams = [
            np.random.Generator(np.random.PCG64(child)) for child in entropy.spawn(rows)
        ]

    def pick(
        self,
        logits: np.ndarray,
        histories: Sequence[Sequence[int]],
        rows: Sequence[int] | None = None,
    ) -> list[int]:
        """logits float32 B,V and each row's tokens so far, prompt included -> the next token ids.

        rows: which rows of the batch these are, where they are not all of it. Raises SamplingError
        for logits that are NaN or infinite.
        """
        rows = range(len(logits)) if rows is None else rows
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            row = rows[int(finite.argmin())]
            raise SamplingError(
                f"logits: those of row {row} hold NaN or Inf, so the computation overflowed; "
                "export with --dtype float32"
            )
        return [
            self._pick(scores, history, row)
            for scores, history, row in zip(logits, histories, rows, strict=True)
        ]

    def _pick(self, logits: np.ndarray, history: Sequence[int], row: int) -> int:
        s = self._sampling
        scores = penalize(logits, history, s.repetition_penalty)
        if s.temperature == 0:
            return int(scores.argmax())
        kept, weights = candidates(scores, s)
        cumulative = weights.cumsum()
        at = self._streams[row].random() * cumulative[-1]
        # Rounding may give the very end: then the last token that has any weight.
        at = min(at, np.nextafter(cumulative[-1], 0))
        return int(kept[cumulative.searchsorted(at, side="right")])


def penalize(logits: np.ndarray, history: Sequence[int], penalty: float) -> np.ndarray:
    """Return V logits with those of tokens in the history lowered, if penalty is above 1."""
    if penalty == 1:
        return logits
    seen = np.asarray(history, dtype=np.int64)
    seen = seen[seen < len(logits)]  # an embedding may have more rows than the head
    scores = logits.astype(np.float64)
    values = scores[seen]
    scores[seen] = np.where(values < 0, values * penalty, values / penalty)
    return scores


def candidates(scores: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that can be sampled, ascending, with unnormalized float64 probabilities."""
    kept = np.arange(len(scores))
    if s.top_k is not None and s.top_k < len(scores):
        # As many more as tie with the last one.
        kept = np.flatnonzero(scores >= np.partition(scores, -s.top_k)[-s.top_k])
    wide = scores[kept].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose weight is 0
        weights = np.exp((wide - wide.max()) / s.temperature)
    if s.top_p is not None and s.top_p < 1:
        inside = nucleus(weights, s.top_p)
        kept, weights = kept[inside], weights[inside]
    if s.min_p is not None:
        inside = np.flatnonzero(weights >= s.min_p * weights.max())
        kept, weights = kept[inside], weights[inside]
    return kept, weights


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Return in ascending order the positions of the largest weights: as few as make up top_p."""
    wanted = top_p * weights.sum()
    count = FIRST_CANDIDATES
    while True:
        count = min(count, len(weights))
        least = np.partition(weights, -count)[-count]
        largest = np.flatnonzero(weights >= least)
        if count == len(weights) or weights[largest].sum() >= wanted:
            break
        count *= 8
    # Of equal weights the one with the higher id goes first, so that all machines agree.
    order = largest[np.lexsort((largest, weights[largest]))[::-1]]
    above = weights[order].cumsum() - weights[order]
    return np.sort(order[above < wanted])
