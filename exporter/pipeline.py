"""The pipeline from a checkpoint to an engine, stage by stage."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import torch

from lmcast.exporter import targets
from lmcast.exporter.activations import ACTIVATIONS, chosen
from lmcast.exporter.backends.tensorrt.request import Request, Sizes, Sm
from lmcast.exporter.cast import cast
from lmcast.exporter.checkpoint import CheckpointError, identified
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.processors import PICTURES, WHOLE
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.checkpoint.tokenizers import KINDS
from lmcast.exporter.clients.finish import finish
from lmcast.exporter.dtypes import COMPUTED, DType, computed
from lmcast.exporter.engine.contract import describe, tower_contracts
from lmcast.exporter.engine.manifest import read_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, PARITY
from lmcast.exporter.engine.output import check_output
from lmcast.exporter.engine.sealed import digests
from lmcast.exporter.engine.staging import staged
from lmcast.exporter.one_at_a_time import one_at_a_time
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.prove.parity import check
from lmcast.exporter.prove.rounding_cost import rounding_cost
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.targets import Target
from lmcast.exporter.texts import check_vocabulary, without_texts, write_texts
from lmcast.exporter.vision.files import read_processor
from lmcast.exporter.vision.processor import Processor
from lmcast.exporter.weights.freed import give_back
from lmcast.exporter.weights.kept_codes import lay_out
from lmcast.exporter.weights.place import Mode, Placement, check_copies, place
from lmcast.exporter.weights.quantized_forms import without_kernel
from lmcast.exporter.weights.recipe_files import identity, open_recipe
from lmcast.graphs import Definition, defined
from lmcast.graphs.matformer import sliced
from lmcast.plugins.annotations import OneOf, Range
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import CheckFailed

SLICE_BYTES = 1 << 20  # of the description of a slice: a few numbers for each layer
MOST_TOKENS = 1 << 24  # positions are exact in fp32 up to here


@checked
@one_at_a_time
def export(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    target: Annotated[str, OneOf(targets.TARGETS)] = targets.DEFAULT,
    dtype: Annotated[str, OneOf(COMPUTED)] | None = None,
    weights: Mode | None = None,
    parity: bool = True,
    *,
    inert: Collection[str] = (),
    untie: bool = False,
    revision: str | None = None,
    context: Annotated[int, Range(1, MOST_TOKENS)] | None = None,
    full_check: bool | None = None,
    tokenizer: bool = True,
    matformer: str | PathLike[str] | None = None,
    recipe: str | PathLike[str] | None = None,
    activations: Annotated[str, OneOf(ACTIVATIONS)] | None = None,
    sms: tuple[Sm, ...] = (),
    sizes: Sizes | None = None,
    widen: bool = False,
    clients: bool = True,
    text_only: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Engine:
    """Write `checkpoint`, as for open_checkpoint, as an engine at `output`; return it loaded.

    dtype: None: lossless. weights: None: linked if possible. parity: prove it if it runs here.
    inert, untie, text_only: as for `define`. context: None: of config.json. full_check: read all
    linked weights, None: up to 8 GiB. tokenizer: False for ids alone. widen: few bits of GGUF.
    clients: for others. force: replace another's. Raises InputError, CheckFailed: none written."""
    (made_for := targets.get(target)).require_options(sms, sizes, activations)
    source, identities = opened(checkpoint, revision, tokenizer, progress)
    found = understand(source, inert, tokenizer, untie, text_only)
    processor = processor_of(found, source)
    found, source, part = take_parts(found, source, matformer, recipe, identities, progress)
    own = part | choices(found, inert, untie, context, made_for.choose(sms), progress)
    plan = made_for.order(sms, own["context"], sizes)
    format = choose_format(found, source, made_for, dtype, parity)
    kept, raw, mode = lay_out(found, source, made_for, format, weights, matformer, parity, widen)
    with staged(free(Path(output), source, identities, force), progress) as where:
        placed = place_weights(kept, raw, format, mode, made_for, where, full_check, progress)
        made, placed = cast(kept, raw, made_for, format, placed, where, own, activations, progress)
        fields = own | describe(found, source, target, format, placed, made, identities)
        fields |= tower_contracts(made, found, processor) | chosen(made.text, activations)
        fields |= write_texts(source, where, identities, found.config.vocab_size, progress)
        fields |= made_for.compile(where, fields, plan, progress)
        proof = partial(prove, where, found, source, format, made_for, plan, progress)
        finish(where, made.text, fields, placed.hashes, clients, proof if parity else None)
    return Engine(Path(output))


def opened(
    checkpoint: str | PathLike[str], revision: str | None, tokenizer: bool, progress: Progress
) -> tuple[Checkpoint, list[SourceFile]]:
    """Return a checkpoint, without its texts where no tokenizer is wanted, and its files."""
    source, identities = identified(checkpoint, revision, progress)
    return source if tokenizer else without_texts(source), identities


def free(output: Path, source: Checkpoint, identities: Sequence[SourceFile], force: bool) -> Path:
    """Return an output that an engine of this checkpoint may be written to, else EngineError."""
    check_output(output, source.path, ENGINE_JSON, identity(identities), force, source.config)
    return output


def understand(
    source: Checkpoint,
    inert: Collection[str],
    tokenizer: bool,
    untie: bool = False,
    text_only: bool = False,
) -> Definition:
    """Define a checkpoint's model; raises InputError, also where a required tokenizer is
    missing."""
    if tokenizer and source.texts.problem is not None:
        raise CheckpointError(
            f"{source.texts.problem}; or pass --no-tokenizer for an engine that takes token ids"
        )
    if tokenizer and source.texts.tokenizer is None:
        raise CheckpointError(
            f"{source.path}: tokenizer.json is missing, and {', '.join(KINDS)} too; add one of"
            " them, or pass --no-tokenizer for an engine that takes token ids"
        )
    found = defined(source.config, source.tensors, inert, untie, text_only)
    check_vocabulary(source, found.config.vocab_size)
    return found


def processor_of(found: Definition, source: Checkpoint) -> Processor | None:
    """Return how pictures are made for the tower of a definition, None without one.

    Raises CheckpointError where the checkpoint does not say, or says what lmcast does not do.
    """
    if found.tower is None:
        return None
    if not source.texts.processors:
        raise CheckpointError(
            f"{source.path}: {PICTURES} is missing, and {WHOLE} too, which say how pictures are"
            " prepared; add one of them, or pass --text-only for an engine that takes text alone"
        )
    try:
        heard = None if found.sounds is None else found.sounds.config
        return read_processor(found.arch.name, found.tower.config, source.texts, heard)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source.path}: {error}; or pass --text-only for an engine that takes text alone"
        ) from None


def take_parts(
    found: Definition,
    source: Checkpoint,
    matformer: str | PathLike[str] | None,
    recipe: str | PathLike[str] | None,
    identities: Sequence[SourceFile],
    progress: Progress = silent,
) -> tuple[Definition, Checkpoint, dict[str, Any]]:
    """Apply a slice and a recipe, where they are given; return their fields of engine.json too."""
    found, fields = take_slice(found, matformer)
    found, source = take_recipe(found, source, recipe, identities, fields, progress)
    return found, source, fields


def take_slice(
    found: Definition, file: str | PathLike[str] | None
) -> tuple[Definition, dict[str, Any]]:
    """Return the slice of a model that a file describes, and its field of engine.json."""
    if file is None:
        return found, {}
    given = parse_object(read_capped(Path(file), SLICE_BYTES), Path(file))
    return sliced(found, given, str(file)), {"matformer": given}


def take_recipe(
    found: Definition,
    source: Checkpoint,
    recipe: str | PathLike[str] | None,
    identities: Sequence[SourceFile],
    fields: dict[str, Any],
    progress: Progress = silent,
) -> tuple[Definition, Checkpoint]:
    """Apply a recipe: return the quantized definition and the checkpoint with the recipe's
    tensors; add the recipe's summary for engine.json to `fields`."""
    if recipe is None:
        return found, source
    files = open_recipe(Path(recipe), identities, progress=progress)
    fields["recipe"] = files.summary(found)
    return files.take(found, source)


def place_weights(
    found: Definition,
    source: Checkpoint,
    format: DType,
    mode: Mode,
    target: Target,
    directory: Path,
    full_check: bool | None,
    progress: Progress,
) -> Placement:
    """Check the weights, and link or write them; raises InputError for what is wrong with them.

    Before the graph is made: that is said without waiting for a trace.
    """
    check_copies(found.weights, source)
    if found.left_out:
        progress.warn(f"left out {found.left_out}")
    total = sum(source.tensors[tensor].nbytes for tensor in found.weights.tensors())
    shapes = {name: tuple(one.shape) for name, one in found.named_parameters().items()}
    name = "checking weights" if mode == "link" else "writing weights"
    with progress.stage(name, total) as step:
        placement = place(
            found.weights, shapes, source, format, mode, directory,
            form=target.carried.weight_form, full_check=full_check, advance=step,
        )  # fmt: skip
    give_back()
    if placement.finite is None:
        return placement
    if placement.finite.mode == "sampled":
        progress.warn("looked for NaN in a sample of every tensor; --check full reads all")
        return placement
    files = sorted({placed.file for placed in placement.placed.values()})
    size = sum(os.stat(file).st_size for file in files)
    with progress.stage("hashing weights", size) as step:
        hashes = digests([Path(file) for file in files], step)
    return replace(placement, linked_hashes=dict(zip(files, hashes, strict=True)))


def provable(
    directory: Path,
    found: Definition,
    format: DType,
    target: Target,
    plan: Request | None,
    progress: Progress,
) -> bool:
    """Say whether an engine can run here, its plan or its portable graph; warn where neither can.

    On a CPU, choose_format has refused what cannot.
    """
    if why := target.absent(read_manifest(directory)):
        progress.warn(f"parity is not proven: {why}; run `lmcast parity` on the device")
        return False
    if not plan or plan.here:
        return True
    why, remedy = "", ""
    if format.torch == torch.bfloat16:
        why, remedy = "no bfloat16", ", or give --dtype float16"
    if strange := without_kernel(found.weights):
        why, remedy = f"no kernel for {strange}", ""
    if why:
        progress.warn(
            "parity is not proven: no GPU of the plan is here, and ONNX Runtime's CPU has"
            f" {why}; run `lmcast parity` on the device{remedy}"
        )
    return not why


def prove(
    directory: Path,
    found: Definition,
    source: Checkpoint,
    format: DType,
    target: Target,
    plan: Request | None,
    progress: Progress,
) -> bool:
    """Write parity.json if the engine can run here; raises CheckFailed if parity fails.

    Of an engine with a plan for other GPUs than the one at hand, the portable graph is run.
    """
    if not provable(directory, found, format, target, plan, progress):
        return False
    portable = plan is not None and not plan.here
    with progress.stage("proving parity"), one_thread():
        threads = 1 if portable or "threads" in target.loads else None
        report = check(engine := Engine(directory, threads, portable=portable), found, source)
        if report.passed and engine.manifest.about.activations == "int8":
            report = replace(report, rounding=rounding_cost(engine, source))
    if not report.passed:
        raise CheckFailed(f"the engine is not equal to eager PyTorch: {report.worst()}")
    text = json.dumps(report.as_json(timed=False), indent=1, sort_keys=True) + "\n"
    (directory / PARITY).write_text(text, encoding="utf-8")
    return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: another order of summation would make parity.json depend on the
    machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_format(
    found: Definition, source: Checkpoint, target: Target, asked: str | None, runs: bool
) -> DType:
    """Return the format to compute in, which must run here if `runs`.

    Raises InputError for what the target refuses, and where weights are no plain floats.
    """
    # Every accepted format fits into float32.
    name = asked or target.dtype or stored_format(found, source)
    target.refuse(found.weights, name, runs)
    quantized = found.weights.layouts  # of which all dtypes are right
    for tensor in found.weights.tensors():
        stored = source.tensors[tensor]
        if tensor in quantized or computed(stored.dtype):
            continue
        if asked and stored.dtype == torch.float64:
            continue
        raise CheckpointError(
            f"{stored.file}: tensor {stored.name} is {stored.dtype}"
            f"{' without a scale that is read' if stored.dtype == torch.float8_e4m3fn else ''};"
            f" accepted: {', '.join(COMPUTED)}{'' if asked else ' (float64 with --dtype)'}"
        )
    return COMPUTED[name]


def stored_format(found: Definition, source: Checkpoint) -> str:
    """Return the format that most bytes of the weights are in; of FP8 and MXFP4, bfloat16.

    Quantized weights do not count where there are others.
    """
    sizes = Counter[str]({"bfloat16": 0})
    quantized = found.weights.layouts
    for tensor in found.weights.tensors():
        if tensor in quantized:
            continue
        stored = source.tensors[tensor]
        format = computed(stored.dtype)
        sizes[format.name if format else "bfloat16"] += stored.nbytes
    return sizes.most_common(1)[0][0]


def choices(
    found: Definition,
    inert: Collection[str],
    untie: bool,
    context: int | None,
    sms: Collection[int],
    progress: Progress,
) -> dict[str, Any]:
    """Return what was chosen for an engine, as its engine.json has it."""
    most = choose_context(found, context, progress)
    of_gpus = {"sms": list(sms)} if sms else {}
    return {"inert": sorted(inert), "untie": untie, "context": most} | of_gpus


def choose_context(found: Definition, asked: int | None, progress: Progress = silent) -> int:
    """Return the most tokens that a row may hold; warn of more than the model was made for.

    Raises ConfigError for more than rows of this model can grow to.
    """
    found.anew_beyond(asked or found.context)
    if asked is None:
        return found.context
    if asked > found.context:
        progress.warn(
            f"the context is {asked} tokens, beyond the {found.context} of config.json: nothing is"
            " known of what the model makes of positions that it was not trained for"
        )
    return asked
