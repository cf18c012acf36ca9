"""Parity: does the engine compute what eager PyTorch computes? Errors from fp64, in units of
eager's.

Letters: B rows, T tokens, V vocabulary.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import onnx_ir as ir

from lmcast.calib.recipe import Quality
from lmcast.exporter.checkpoint import identified
from lmcast.exporter.checkpoint.hub import revision_of
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.engine.names import MODEL
from lmcast.exporter.one_at_a_time import one_at_a_time
from lmcast.exporter.passes.nbits_matmul import rounded_products
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.prove.baseline import read_baseline, require_same, subject_of, with_changes
from lmcast.exporter.prove.bisect import find_divergence, inner_errors, of_layers
from lmcast.exporter.prove.compare import compare
from lmcast.exporter.prove.decided import decided_rows
from lmcast.exporter.prove.parity_report import TIMES, Report, Result
from lmcast.exporter.prove.picked import Picked, pick
from lmcast.exporter.prove.pictures import compare_pictures, prepared
from lmcast.exporter.prove.recorded import measure_again, recorded
from lmcast.exporter.prove.references import (
    LONG,
    PAST_WINDOW,
    SHORT,
    Chain,
    Logits,
    Reference,
    Row,
    drawn,
    padded,
    ragged,
    references,
    steps,
    watched,
)
from lmcast.exporter.prove.rounding import (
    FP8,
    run_exactly,
    unrounded,
    with_rounding,
    without_rounding,
)
from lmcast.exporter.prove.scenarios import EXACT, PREFILL, RAGGED, STEPS
from lmcast.exporter.prove.texts import compare_texts
from lmcast.exporter.prove.through import CLIENTS, Through
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.runtime.generate import read_prompts
from lmcast.exporter.vision.processor import Encoded
from lmcast.exporter.weights.recipe_files import RecipeFiles, recipe_of
from lmcast.graphs import Definition, defined
from lmcast.graphs.matformer import sliced
from lmcast.plugins.annotations import Count, OneOf
from lmcast.plugins.arguments import checked

MOST_PROMPTS = 256  # of a file: all go through one pass in fp64
WIDEST_WINDOW = 512  # a wider one would take minutes to exceed; the report says so


def check(
    engine: Engine,
    found: Definition,
    source: Checkpoint,
    prompts: Sequence[Sequence[int]] | None = None,
    tokens: int = SHORT,
    widest: int = SHORT,
    client: str | None = None,
    shown: Sequence[Encoded] = (),
) -> Report:
    """Run the engine in each way a session can, and compare with the eager definition.

    prompts: token ids; None: drawn with a fixed seed, `tokens` long, or longer so as to exceed the
    model's windows up to `widest`. Where rounding decides so much of those that any logits would be
    allowed, others are drawn, of which it does not (decided_rows).

    Where inputs of products are rounded to low precision, by a recipe or by kernels, eager rounds
    them too, and its error from fp64, which does not, bounds the engine's. That all else is right
    is shown by the same graph without rounding: 'exact'. client: of CLIENTS: its graph is run.
    shown: pictures for the tower; none: drawn.
    """
    windows = {s.window for carried in found.model.states() for s in carried if s.window}
    lengths = [w + PAST_WINDOW for w in windows if w <= widest]
    format, anew = DTYPES[engine.manifest.about.dtype], found.anew_beyond(engine.context)
    most = [engine.session(1).context, found.same_up_to or sys.maxsize]
    most += anew if client is not None else ()  # beyond, a session begins a row anew, and they fail
    length = min(max([tokens, *lengths]), *most)
    rows = [list(p) for p in prompts] if prompts else drawn(engine.vocab_size, length)
    graph = ir.load(engine.directory / MODEL)
    products = {} if engine.runs_plan or engine.exact else rounded_products(graph)
    removable, plain = bool(products) or without_rounding(graph), unrounded(found)
    rough = with_rounding(found, products) if removable or _holds_codes(engine) else plain
    alone = removable and not engine.runs_plan

    def refer() -> dict[str, Reference]:
        ways = {PREFILL: [], STEPS: steps(rows), RAGGED: ragged(rows, engine.runner.limits)}
        return references(plain, rough, source, rows, ways, format.torch, anew, alone)

    reference = refer()
    if not prompts and not all(one.tells(format.name) for one in reference.values()):
        rows = decided_rows((plain, rough), source, rows, engine.vocab_size, format.torch)
        reference = refer()
    results = tuple(_results(engine, reference, rows, format.name, client))
    if client is None:  # no program gives a text pictures
        results += tuple(compare_pictures(engine, plain, rough, source, shown))
    longest = max(map(len, rows))
    beyond = longest > max(windows) if windows else None
    subject = subject_of(engine, prompts)
    return Report(format.name, longest, beyond, results, ran=ran(engine, client), subject=subject)


def _results(
    engine: Engine,
    reference: Mapping[str, Reference],
    rows: list[list[int]],
    format: str,
    client: str | None,
) -> Iterator[Result]:
    """Run what is asked for in each way, and compare."""
    every, longest = client is None or CLIENTS[client].every, max(map(len, rows))
    for name, expected in reference.items():
        ask = partial(_run, rows=rows, chains=expected.chains, every=every)
        begin = perf_counter()
        if client is not None:
            got = ask(Through(engine, client, longest, exact=name == EXACT))
        else:
            got = run_exactly(engine, ask) if name == EXACT else ask(engine)
        seconds = perf_counter() - begin
        yield replace(compare(name, got, expected, format), seconds=seconds)


def ran(engine: Engine, client: str | None) -> str:
    """Return what of an engine is compared, as reports say it."""
    return client or ("plan" if engine.runs_plan else "graph")


def _holds_codes(engine: Engine) -> bool:
    """Say whether states are in FP8: ONNX Runtime's own attention then rounds, and nothing else."""
    return any(state.dtype == FP8 for state in engine.manifest.about.graph.states)


def _run(
    engine: Engine | Through, rows: list[Row], chains: Sequence[Chain], every: bool = True
) -> Logits:
    """Each chain in a session of its own; without any, each row alone, all at once.

    every: whether there are logits of all positions of a row, else of the last.
    """
    got: Logits = {}
    for r, row in () if chains else enumerate(rows):
        at = np.array([watched(len(row))])[:, 0 if every else -1 :]
        logits = engine.session(1).run(np.array([row]), np.array([len(row)]), at)[0]
        got |= {(r, t): logits[i] for i, t in enumerate(at[0].tolist())}
    for chain in chains:
        session = engine.session(len(chain.rows))
        for call, places in zip(chain.calls, chain.places(), strict=True):
            logits = session.append(*padded(call))
            got |= {place: logits[i] for i, place in enumerate(places)}
    return got


def shows_inner_values(engine: Engine) -> bool:
    """Whether its graph runs on a CPU, where any value can be made an output."""
    return not engine.runs_plan and engine.target.machine_code is None


def _check_options(
    engine: Engine, prompts: Path | None, tokens: int | None, bisect: bool, both: bool
) -> None:
    if both:
        raise EngineError("baseline and image: a baseline is of drawn pictures; give one of them")
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


def _check_client(client: str | None, **given: bool) -> None:
    """Refuse options for the engine's own graph, where another program's is run."""
    for name in given if client is not None else ():
        if given[name]:
            raise EngineError(
                f"client and {name}: {name} is for the engine's own graph; give one of them"
            )


def _lossy(
    report: Report,
    engine: Engine,
    unquantized: tuple[Definition, Checkpoint],
    files: RecipeFiles,
    lost: Quality,
    progress: Progress,
) -> Report:
    """Add what an engine has lost beside what its recipe records, where it computes that."""
    if report.computes:
        return replace(report, quality=measure_again(engine, *unquantized, files, lost, progress))
    progress.warn("its KL is not measured, as it does not compute what its recipe says")
    return report


def _picked(
    report: Report, engine: Engine, client: str | None, rows: Sequence[Sequence[int]]
) -> Picked | None:
    """Return what another program picks, where one was asked for and its graph is right."""
    if client is None or not report.computes:
        return None
    slack = max(result.bound for result in report.results)
    return pick(engine, CLIENTS[client].library, rows, slack)


def _check_rows(engine: Engine, found: Definition, longest: int) -> None:
    """Refuse rows that one pass says nothing of, before an eager pass over all of them."""
    engine.session(1).check_room(longest)
    if found.same_up_to is not None and longest > found.same_up_to:
        raise EngineError(
            f"tokens or prompts of {longest}: beyond {found.same_up_to}, 'dynamic' rotary scaling"
            " depends on the calls that a row is cut into, and one pass shows none of it; accepted:"
            f" up to {found.same_up_to}"
        )


def _made_from(
    loaded: Engine, against: str | PathLike[str], revision: str | None, progress: Progress
) -> tuple[Checkpoint, list[SourceFile], Definition]:
    """Return the checkpoint of an engine, and what it defines; raises EngineError for another."""
    fields, about = loaded.manifest.fields, loaded.manifest.about
    source, identities = identified(against, revision or revision_of(against, fields), progress)
    if about.config != json.loads(json.dumps(dict(source.config))):
        raise EngineError(
            f"{loaded.directory}: was made from another config.json than that of {against}"
        )
    alone = about.vision is None
    found = defined(source.config, source.tensors, about.inert, about.untie, text_only=alone)
    if about.matformer is not None:
        found = sliced(found, about.matformer)
    return source, identities, found


def _inner(
    report: Report,
    engine: Engine,
    found: Definition,
    source: Checkpoint,
    row: list[int],
    bisect: bool,
    layers: bool,
) -> Report:
    """Add what differs within the graph, where that is asked for and can be seen."""
    bisect = bisect and not report.computes
    if not (bisect or (layers and shows_inner_values(engine))):
        return report
    values = inner_errors(engine, unrounded(found), source, row)
    if bisect:
        report = replace(report, bisection=find_divergence(values, TIMES))
    return replace(report, layers=of_layers(values)) if layers else report


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
    exact: bool = False,
    baseline: Path | None = None,
    layers: bool = False,
    client: Annotated[str, OneOf(CLIENTS)] | None = None,
    images: Sequence[Path] = (),
) -> Report:
    """Compare an engine directory, and its texts, with the checkpoint it was made from.

    against: a path or a model of the Hub, of `revision`: by default that of the engine. prompts: a
    file as `lmcast generate --file` reads it; None for `tokens` drawn ids. portable, exact: as for
    Engine. recipe: the one that the engine was made with. quality: where that is computed, compare
    what it has lost with the recipe's record. baseline: a report of before, which says by default
    how many tokens; what has become worse fails. layers: say what each layer is off by, where a
    graph shows it. client: run the graph of another program, and that itself where it is installed.
    images: for the tower; none: drawn. Raises InputError where they do not belong together.
    """
    _check_client(client, bisect=bisect, quality=quality, exact=exact, image=bool(images))
    loaded = Engine(engine, portable=portable, exact=exact)
    _check_options(loaded, prompts, tokens, bisect, bool(baseline and images))
    before, shown = read_baseline(baseline) if baseline else None, prepared(loaded, images)
    source, identities, found = _made_from(loaded, against, revision, progress)
    files = recipe_of(engine, loaded.manifest.about.recipe, recipe, identities, progress)
    unquantized, lost = (found, source), recorded(loaded, files) if quality else None
    found, source = files.take(found, source) if files is not None else (found, source)
    found.model.limit(loaded.context)
    rows = loaded.encode(read_prompts(prompts, MOST_PROMPTS)) if prompts else None
    _check_rows(loaded, found, max(map(len, rows)) if rows else tokens or 0)
    if baseline and before:
        require_same(baseline, before, loaded, subject_of(loaded, rows), ran(loaded, client))
    length = tokens or (before.tokens if before else LONG)
    with progress.stage("comparing"):
        texts = compare_texts(loaded, source, identities)
        report = check(loaded, found, source, rows, length, WIDEST_WINDOW, client, shown)
        given = rows or drawn(loaded.vocab_size, report.tokens)
        report = replace(report, texts=texts, picked=_picked(report, loaded, client, given))
        report = _inner(report, loaded, found, source, given[0], bisect, layers and not client)
    if lost is not None and files is not None:
        report = _lossy(report, loaded, unquantized, files, lost, progress)
    return with_changes(report, baseline, before) if baseline and before else report
