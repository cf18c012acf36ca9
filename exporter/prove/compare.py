"""What an engine is off by in one way of running it."""

import numpy as np

from lmcast.exporter.prove.parity_report import Result, bound
from lmcast.exporter.prove.references import Logits, Reference


def compare(scenario: str, got: Logits, reference: Reference, format: str) -> Result:
    """Return the result of one way of running an engine; format: that it computes in."""
    places = [place for place in got if place in reference.exact]
    errors, same, kl = [], [], []
    for place in places:  # one by one: of a large vocabulary each has megabytes of logits
        ours, exact = got[place].astype(np.float64), reference.exact[place]
        errors.append(np.abs(ours - exact).max())
        same.append(ours.argmax() == exact.argmax())
        kl.append(_kl(exact, ours))
    return Result(
        scenario=scenario,
        positions=len(places),
        error=float(np.max(errors)),
        eager_error=reference.error,
        bound=bound(reference.error, format),
        nothing=reference.nothing,
        top1=float(np.mean(same)),
        kl=float(np.mean(kl)),
        errors=tuple((*place, float(e)) for place, e in zip(places, errors, strict=True)),
    )


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of softmax(q) from softmax(p), ...,V -> ..., never below 0."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    divergence: np.ndarray = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0)
    return divergence


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    normalized: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return normalized
