"""Parity: does the engine compute what eager PyTorch computes? Errors from fp64, in units of
eager's.

Letters: B rows, T tokens, V vocabulary.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from lmcast.exporter.checkpoint import identified
from lmcast.exporter.checkpoint.hub import revision_of
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.engine.names import MODEL
from lmcast.exporter.one_at_a_time import one_at_a_time
from lmcast.exporter.passes.nbits_matmul import rounded_products
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.prove.bisect import find_divergence
from lmcast.exporter.prove.eager_pass import full_pass
from lmcast.exporter.prove.parity_report import FLOOR, TIMES, Report, Result
from lmcast.exporter.prove.recorded import measure_again, recorded
from lmcast.exporter.prove.rounding import (
    exact_engine,
    unrounded,
    with_rounding,
    without_rounding,
)
from lmcast.exporter.prove.texts import compare_texts
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.runtime.generate import read_prompts
from lmcast.exporter.weights.recipe_files import recipe_of
from lmcast.graphs import Definition, defined
from lmcast.graphs.matformer import sliced
from lmcast.plugins.annotations import Count
from lmcast.plugins.arguments import checked

MOST_PROMPTS = 256  # of a file: all go through one pass in fp64
SHORT, LONG = 24, 64  # tokens: at export, and for `lmcast parity`
PAST_WINDOW = 16  # tokens beyond a window that is exceeded at all
WIDEST_WINDOW = 512  # a wider one would take minutes to exceed; the report says so


def check(
    engine: Engine,
    found: Definition,
    source: Checkpoint,
    prompts: Sequence[Sequence[int]] | None = None,
    tokens: int = SHORT,
    widest: int = SHORT,
) -> Report:
    """Run the engine in each way a session can, and compare with the eager definition.

    prompts: token ids; None: drawn with a fixed seed, `tokens` long, or longer so as to exceed the
    model's windows up to `widest`.

    Where inputs of products are rounded to low precision, by a recipe or by kernels, eager rounds
    them too: its error from fp64, which does not round, then bounds the engine's. That all else is
    right is shown by the same graph without rounding: 'exact'.
    """
    windows = {s.window for carried in found.model.states() for s in carried if s.window}
    lengths = [w + PAST_WINDOW for w in windows if w <= widest]
    length = min(
        max([tokens, *lengths]), engine.session(1).context, found.same_up_to or sys.maxsize
    )
    rows = [list(p) for p in prompts] if prompts else drawn(engine.vocab_size, length)
    format, anew = DTYPES[engine.manifest.about.dtype], found.anew_beyond(engine.context)
    reference = _reference(unrounded(found), source, rows, format.torch)
    results = []
    graph = ir.load(engine.directory / MODEL)
    products = {} if engine.runs_plan else rounded_products(graph)
    if products or without_rounding(graph):
        if not engine.runs_plan:
            got = _one_by_one(exact_engine(engine.directory, engine.threads), rows)
            got = _as_whole(got, rows, anew)
            results.append(_compare("exact", got, reference, format.name))
        reference = _rounding(with_rounding(found, products), source, reference, rows, format.torch)
    for name, run in (("prefill", _prefill), ("step by step", _steps), ("ragged batch", _ragged)):
        got = run(engine, rows) if run is _prefill else _as_whole(run(engine, rows), rows, anew)
        results.append(_compare(name, got, reference, format.name))
    longest = max(map(len, rows))
    beyond = longest > max(windows) if windows else None
    ran = "plan" if engine.runs_plan else "graph"
    return Report(format.name, longest, beyond, tuple(results), ran=ran)


def drawn(vocab: int, length: int) -> list[list[int]]:
    """Return three rows of different lengths; the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(0))
    lengths = (length, max(1, length // 2), max(1, min(length - 3, SHORT)))
    return [rng.integers(0, vocab, n).tolist() for n in lengths]


def watched(length: int) -> list[int]:
    """Return the positions of a row to compare: all of a short one, else the end and a few."""
    if length <= LONG:
        return list(range(length))
    spread = np.linspace(0, length - 1, PAST_WINDOW, dtype=int).tolist()
    return sorted({*spread, *range(length - 2 * PAST_WINDOW, length)})


@dataclass(frozen=True)
class _Reference:
    """One row's logits at its watched positions: R,V float64."""

    at: list[int]
    exact: np.ndarray
    eager: np.ndarray  # in the engine's format, as float64


def _reference(
    found: Definition, source: Checkpoint, rows: list[list[int]], dtype: torch.dtype
) -> list[_Reference]:
    """Return the eager logits of every row, in one pass over the weights."""
    logits = _logits(found, source, rows, (torch.float64, dtype))
    exact, eager = logits[torch.float64].numpy(), logits[dtype].double().numpy()
    ats = [watched(len(row)) for row in rows]
    return [_Reference(at, exact[r], eager[r]) for r, at in enumerate(ats)]


def _rounding(
    found: Definition,
    source: Checkpoint,
    reference: list[_Reference],
    rows: list[list[int]],
    dtype: torch.dtype,
) -> list[_Reference]:
    """Return the reference with what eager computes by another definition."""
    eager = _logits(found, source, rows, (dtype,))[dtype].double().numpy()
    return [replace(row, eager=eager[r]) for r, row in enumerate(reference)]


def _logits(
    found: Definition,
    source: Checkpoint,
    rows: list[list[int]],
    dtypes: tuple[torch.dtype, ...],
) -> dict[torch.dtype, torch.Tensor]:
    """Return the logits of every row at its watched positions, padded: B,R,V for each dtype."""
    counts = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(counts.max()), dtype=torch.int64)
    ats = [watched(len(row)) for row in rows]
    wanted = torch.zeros(len(rows), max(map(len, ats)), dtype=torch.int64)
    for r, (row, at) in enumerate(zip(rows, ats, strict=True)):
        ids[r, : len(row)] = torch.tensor(row)
        wanted[r, : len(at)] = torch.tensor(at)
    return full_pass(found, source, ids, counts, dtypes, wanted)


Got = list[tuple[int, int, np.ndarray]]  # row, position, logits V


def _prefill(engine: Engine, rows: list[list[int]]) -> Got:
    """Each row alone, all at once."""
    got: Got = []
    for r, row in enumerate(rows):
        at = np.array([watched(len(row))])
        logits = engine.session(1).run(np.array([row]), np.array([len(row)]), at)[0]
        got += [(r, t, logits[i]) for i, t in enumerate(at[0].tolist())]
    return got


def _one_by_one(engine: Engine, rows: list[list[int]]) -> Got:
    """Each row alone, token by token.

    For one token, ONNX Runtime's fp32 MatMulNBits sums as exactly as torch. For several at once,
    1.31 sums in one chain, with up to 2.8 times the error (K = 1536).
    """
    got: Got = []
    for r, row in enumerate(rows):
        session, at = engine.session(1), set(watched(len(row)))
        for t, token in enumerate(row):
            logits = session.append([[token]])[0]
            if t in at:
                got.append((r, t, logits))
    return got


def _steps(engine: Engine, rows: list[list[int]]) -> Got:
    """The start of a row at once, three tokens at once, the rest one by one."""
    got: Got = []
    for r, row in enumerate(rows):
        first = max(1, len(row) - PAST_WINDOW)
        cuts = sorted({first, *range(min(first + 3, len(row)), len(row) + 1)})
        session, start = engine.session(1), 0
        for cut in cuts:
            got.append((r, cut - 1, session.append([row[start:cut]])[0]))
            start = cut
    return got


def _ragged(engine: Engine, rows: list[list[int]]) -> Got:
    """All rows in one batch, padded; the rest of each in single tokens.

    A plan for fewer rows gets them in several batches.
    """
    limits = engine.runner.limits
    if limits is not None and limits.rows < len(rows):
        most, got = limits.rows, list[tuple[int, int, np.ndarray]]()
        for start in range(0, len(rows), most):
            part = _ragged(engine, rows[start : start + most])
            got += [(start + r, t, logits) for r, t, logits in part]
        return got
    held = min(4, min(map(len, rows)) - 1)
    heads = [row[: len(row) - held] for row in rows]
    counts = np.array([len(head) for head in heads])
    ids = np.zeros((len(rows), int(counts.max())), np.int64)
    for r, head in enumerate(heads):
        ids[r, : len(head)] = head
    session = engine.session(len(rows))
    logits = session.append(ids, counts)
    got = [(r, int(counts[r]) - 1, logits[r]) for r in range(len(rows))]
    for step in range(held):
        logits = session.append([[row[len(row) - held + step]] for row in rows])
        got += [(r, int(counts[r]) + step, logits[r]) for r in range(len(rows))]
    return got


def _as_whole(got: Got, rows: list[list[int]], anew: tuple[int, ...]) -> Got:
    """Return what single tokens gave, but for those whose row begins anew after them: one pass over
    all of it says nothing of those."""

    def apart(row: int, position: int) -> bool:
        return any(position < length < len(rows[row]) for length in anew)

    return [found for found in got if not apart(*found[:2])]


def _compare(scenario: str, got: Got, reference: list[_Reference], format: str) -> Result:
    ours = np.stack([logits for _, _, logits in got]).astype(np.float64)
    places = [(reference[r], reference[r].at.index(t)) for r, t, _ in got]
    exact = np.stack([row.exact[i] for row, i in places])
    eager = np.stack([row.eager[i] for row, i in places])
    eager_error = float(np.abs(eager - exact).max())
    return Result(
        scenario=scenario,
        positions=len(got),
        error=float(np.abs(ours - exact).max()),
        eager_error=eager_error,
        bound=TIMES * eager_error + FLOOR[format],
        top1=float((ours.argmax(-1) == exact.argmax(-1)).mean()),
        kl=float(_kl(exact, ours).mean()),
    )


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of softmax(q) from softmax(p), N,V -> N, never below 0."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    divergence: np.ndarray = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0)
    return divergence


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    normalized: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return normalized


def _check_options(engine: Engine, prompts: Path | None, tokens: int | None, bisect: bool) -> None:
    if prompts is not None and tokens is not None:
        raise EngineError("tokens is the length of drawn prompts; leave it out, or the prompts")
    if bisect and engine.runs_plan:
        raise EngineError(
            f"{engine.directory}: a plan shows none of its inner values to --bisect; those of the"
            " portable graph can be compared (--portable)"
        )
    if bisect and engine.target.machine_code is not None:
        raise EngineError(
            f"{engine.directory}: --bisect runs graphs on a CPU, and one of target"
            f" {engine.target.name} runs on GPUs alone; export with another --target to compare"
        )
    if tokens is not None and tokens > engine.context:
        raise EngineError(f"tokens is {tokens}; accepted: 1 to {engine.context}")


def _check_rows(engine: Engine, found: Definition, longest: int) -> None:
    """Refuse rows that one pass says nothing of, before an eager pass over all of them."""
    engine.session(1).check_room(longest)
    if found.same_up_to is not None and longest > found.same_up_to:
        raise EngineError(
            f"tokens or prompts of {longest}: beyond {found.same_up_to}, 'dynamic' rotary scaling"
            " depends on the calls that a row is cut into, and one pass shows none of it; accepted:"
            f" up to {found.same_up_to}"
        )


@checked
@one_at_a_time
def parity(
    engine: Path,
    against: str | PathLike[str],
    prompts: Path | None = None,
    tokens: Count | None = None,
    bisect: bool = False,
    progress: Progress = silent,
    portable: bool = False,
    recipe: Path | None = None,
    revision: str | None = None,
    quality: bool = False,
) -> Report:
    """Compare an engine directory, and its texts, with the checkpoint it was made from.

    against: a path or a model of the Hub, of `revision`: by default that of the engine. prompts: a
    file as `lmcast generate --file` reads it; None for `tokens` drawn ids. portable: as for Engine.
    recipe: the one that the engine was made with. quality: where that is computed, compare what it
    has lost with the recipe's record. Raises InputError where they do not belong together.
    """
    loaded = Engine(engine, portable=portable)
    _check_options(loaded, prompts, tokens, bisect)
    fields, about = loaded.manifest.fields, loaded.manifest.about
    source, identities = identified(against, revision or revision_of(against, fields), progress)
    if about.config != json.loads(json.dumps(dict(source.config))):
        raise EngineError(f"{engine}: was made from another config.json than that of {against}")
    found = defined(source.config, source.tensors, about.inert, about.untie)
    if about.matformer is not None:
        found = sliced(found, about.matformer)
    files = recipe_of(engine, about.recipe, recipe, identities, progress)
    unquantized, lost = (found, source), recorded(loaded, files) if quality else None
    if files is not None:
        found, source = files.take(found, source)
    found.model.limit(loaded.context)
    rows = loaded.encode(read_prompts(prompts, MOST_PROMPTS)) if prompts else None
    _check_rows(loaded, found, max(map(len, rows)) if rows else tokens or 0)
    with progress.stage("comparing"):
        texts = compare_texts(loaded, source, identities)
        report = check(loaded, found, source, rows, tokens or LONG, WIDEST_WINDOW)
    report = replace(report, texts=texts)
    if lost is not None and files is not None and report.computes:
        report = replace(report, quality=measure_again(loaded, *unquantized, files, lost, progress))
    elif lost is not None:
        progress.warn("its KL is not measured, as it does not compute what its recipe says")
    if report.computes or not bisect:
        return report
    with progress.stage("bisecting"):
        row = (rows or drawn(loaded.vocab_size, report.tokens))[0]
        return replace(
            report, bisection=find_divergence(loaded, unrounded(found), source, row, TIMES)
        )
