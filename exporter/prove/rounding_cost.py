"""What kernels that round inputs of products change in the text of an engine.

Letters: T tokens, R positions that are compared, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.prove.corpus import chunks, name_of, read_corpus, text_of
from lmcast.exporter.runtime.engine import Engine
from lmcast.plugins.errors import InputError

TOKENS, EVERY = 128, 4  # of the text, and which positions: logits of 262,144 are a megabyte each


@dataclass(frozen=True)
class RoundingCost:
    """kl: KL(engine that does not round || engine), in nats, mean over positions of a text."""

    text: str
    tokens: int
    kl: float


def rounding_cost(engine: Engine, source: Checkpoint) -> RoundingCost | None:
    """Measure an engine that rounds; None where there is no text that its model takes."""
    if source.texts.tokenizer is None or engine.context < TOKENS:
        return None
    try:
        ids = chunks(read_corpus(None), text_of(source), TOKENS, 1, "measuring").numpy()  # 1,T
    except InputError:  # a tokenizer to which English is nothing: the engine is right all the same
        return None
    at = np.arange(EVERY - 1, TOKENS, EVERY)[None]  # 1,R
    exact = Engine(engine.directory, engine.threads, portable=True, exact=True)
    p, q = (
        _log_softmax(each.session(1).run(ids, None, at)[0].astype(np.float64))
        for each in (exact, engine)
    )
    kl = np.maximum((np.exp(p) * (p - q)).sum(-1), 0)
    return RoundingCost(name_of(None), TOKENS, float(kl.mean()))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    normalized: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return normalized
