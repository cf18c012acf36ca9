"""Quality: what an engine, or a quantized model before its export, has lost against its
checkpoint."""

import copy
import dataclasses
import math
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from lmcast.exporter.checkpoint import identified
from lmcast.exporter.checkpoint.hub import revision_of
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.engine.names import TOKENIZER
from lmcast.exporter.one_at_a_time import one_at_a_time
from lmcast.exporter.progress import Progress, Step, silent
from lmcast.exporter.prove.corpus import chunks, read_corpus, text_of
from lmcast.exporter.prove.divergence import Comparison, LayerError, Mean, Measured
from lmcast.exporter.prove.eager_pass import Batch, Pass
from lmcast.exporter.prove.rounding import unrounded
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.weights.recipe_files import recipe_of
from lmcast.graphs import Definition, defined
from lmcast.graphs.matformer import sliced
from lmcast.graphs.weights.bind import Binding
from lmcast.plugins.annotations import Count
from lmcast.plugins.arguments import checked

__all__ = ["Measured", "eager_quality", "quality"]

TOKENS, CHUNK = 2048, 512
POSITIONS = 32  # compared at a time: of a vocabulary of 262,144, 64 MiB for each copy in fp64


@checked
@one_at_a_time
def quality(
    engine: Path,
    against: str | PathLike[str],
    data: Path | None = None,
    tokens: Count = TOKENS,
    chunk: Count = CHUNK,
    recipe: Path | None = None,
    portable: bool = False,
    progress: Progress = silent,
    revision: str | None = None,
    exact: bool = False,
) -> Measured:
    """Compare an engine with its eager fp32 checkpoint on held-out text.

    against: the checkpoint, a path or a model of the Hub, of `revision`: by default that of the
        engine; weights that it stores quantized count as their dequantized values.
    data: a file as read_corpus takes it.
    tokens, chunk: how many tokens at least, in chunks of how many.
    recipe: the directory that the engine was made with; only with it are layers compared.
    portable, exact: as for Engine.

    Raises InputError where these do not belong together.
    """
    loaded = Engine(engine, portable=portable, exact=exact)
    loaded.session(1).check_room(chunk)
    fields, about = loaded.manifest.fields, loaded.manifest.about
    source, identities = identified(against, revision or revision_of(against, fields), progress)
    found = _definition(loaded, source)
    files = recipe_of(engine, about.recipe, recipe, identities, progress) if recipe else None
    with progress.stage("reading text"):
        ids = _chunks(loaded, source, data, math.ceil(tokens / chunk), chunk)
    with progress.stage("running the checkpoint", weight_bytes(found.binding, source)) as step:
        reference = begin(unrounded(found), source, ids, step)
        alone = begin(*files.take(found, source), ids) if files else None
        layers = run_layers(len(found.model.layers), reference, alone)
    compared = Comparison(ids)
    with progress.stage("comparing"), reference.final() as final:
        for row, sample in enumerate(ids):
            logits = torch.from_numpy(loaded.logits(sample[None].numpy())[0])
            for at in torch.arange(chunk).split(POSITIONS):
                expected = final(reference.hidden[row], at[None])[0]
                compared.add(row, int(at[0]), expected, logits[at])
    bytes = sum(stored.bytes for stored in about.weights.values())
    return compared.measured(bytes, weight_bytes(found.weights, source), layers)


def eager_quality(
    found: Definition,
    source: Checkpoint,
    other: Definition,
    other_source: Checkpoint,
    ids: Tensor,
    with_layers: bool = False,
) -> Measured:
    """Compare a definition from `calib.recipe.apply` with its checkpoint's, both in fp32.

    found, source: the checkpoint's; other, other_source: the quantized one.
    ids: C,T int64, held-out chunks.
    with_layers: also compare each layer alone.

    Memory holds one part of each at a time.
    """
    reference = begin(unrounded(found), source, ids)
    measured = begin(_own(other), other_source, ids)
    alone = begin(_own(other), other_source, ids) if with_layers else None
    layers = run_layers(len(found.model.layers), reference, alone, measured)
    compared = Comparison(ids)
    with reference.final() as expect, measured.final() as give:
        for row in range(len(ids)):
            for at in torch.arange(ids.shape[1]).split(POSITIONS):
                expected = expect(reference.hidden[row], at[None])[0]
                compared.add(row, int(at[0]), expected, give(measured.hidden[row], at[None])[0])
    sizes = weight_bytes(other.weights, other_source), weight_bytes(found.weights, source)
    return compared.measured(*sizes, layers)


def weight_bytes(binding: Binding, source: Checkpoint) -> int:
    """Return the stored size of the tensors that parameters are made of."""
    return sum(source.tensors[tensor].nbytes for tensor in binding.tensors())


def _own(found: Definition) -> Definition:
    """Return a copy of a definition, which can have its weights while the original has its own."""
    return dataclasses.replace(found, model=copy.deepcopy(found.model.to("meta")))


def _definition(engine: Engine, source: Checkpoint) -> Definition:
    """Define a checkpoint's model, sliced as the engine is; raises EngineError for another model.

    The engine may come from a quantized copy of the checkpoint, with another config.json.
    """
    about = engine.manifest.about
    alone = about.vision is None
    found = defined(source.config, source.tensors, about.inert, about.untie, text_only=alone)
    if about.matformer is not None:
        found = sliced(found, about.matformer)
    for what, theirs, ours in (
        ("architecture", about.architecture, found.arch.name),
        ("vocab_size", about.vocab_size, found.config.vocab_size),
    ):
        if theirs != ours:
            raise EngineError(
                f"{engine.directory}: {what} is {theirs}, but {ours} in {source.path}; give the"
                " checkpoint that the engine was made from, or the one that was quantized for it"
            )
    return found


def _chunks(
    engine: Engine, source: Checkpoint, data: Path | None, count: int, tokens: int
) -> Tensor:
    """Return held-out chunks; raises EngineError where the two read text differently."""
    samples = read_corpus(data)
    ids = chunks(samples, text_of(source), tokens, count, "measuring")
    if (
        TOKENIZER in {file.path for file in engine.manifest.files}
        and engine.read(TOKENIZER) != source.texts.tokenizer
        and not torch.equal(ids, chunks(samples, engine.text, tokens, count, "measuring"))
    ):
        raise EngineError(
            f"{engine.directory}: its tokenizer.json gives other ids than that of {source.path};"
            " only models with one vocabulary can be compared"
        )
    return ids


def begin(
    found: Definition, source: Checkpoint, ids: Tensor, advance: Step = lambda done: None
) -> Pass:
    """Return a pass of chunks one by one, so that only one has its attention in memory."""

    def read(name: str) -> Tensor:
        advance(source.tensors[name].nbytes)
        return source.read(name)

    counts = torch.tensor([ids.shape[1]])
    batches = [Batch(row[None], counts) for row in ids]
    begun = Pass(found, source, batches, torch.float32, read)
    for name in begun.by_rows:
        advance(source.tensors[name].nbytes)
    return begun


def run_layers(
    layers: int, reference: Pass, alone: Pass | None, measured: Pass | None = None
) -> tuple[LayerError, ...] | None:
    """Run all layers; `alone`: each gets the reference's inputs, and is compared by itself."""
    errors = []
    for index in range(layers):
        outputs = reference.layer(index, reference.hidden)
        if alone is not None:
            got = zip(outputs, alone.layer(index, reference.hidden), strict=True)
            each = torch.stack([_relative(expected, other) for expected, other in got])
            errors.append(LayerError(index, Mean.of(each)))
        if measured is not None:
            measured.hidden = measured.layer(index, measured.hidden)
        reference.hidden = outputs
    return None if alone is None else tuple(errors)


def _relative(expected: Tensor, other: Tensor) -> Tensor:
    """Return |other - expected| / |expected|, of vectors along the last axis, mean over all."""
    size = expected.double().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    error: Tensor = (other.double() - expected.double()).norm(dim=-1) / size
    return error.mean()
