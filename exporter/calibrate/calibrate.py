"""From a checkpoint and text to a recipe: which weights are quantized, by which algorithm.

One layer at a time is in memory, in fp32, beside what it is packed into. Three models run side by
side: the unquantized one; the quantized one, whose weights are chosen for the inputs they get
behind all layers quantized before; and the base, quantized by the ladder's first algorithm alone.
The divergence of either from the first on held-out text decides which is written: errors of single
layers do not tell.
"""

import dataclasses
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lmcast.calib.observers import OBSERVERS
from lmcast.calib.presets import PRESETS, Preset
from lmcast.calib.recipe import FP8_CACHE
from lmcast.exporter.calibrate.attempts import Attempts, CalibrationError, Subject
from lmcast.exporter.calibrate.caches import check_caches
from lmcast.exporter.calibrate.head import check_head
from lmcast.exporter.calibrate.report import lines, warn
from lmcast.exporter.checkpoint import identified
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.lock import Place
from lmcast.exporter.engine.names import RECIPE_JSON
from lmcast.exporter.engine.output import check_output
from lmcast.exporter.engine.staging import staged
from lmcast.exporter.one_at_a_time import one_at_a_time
from lmcast.exporter.pipeline import understand
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.prove.corpus import chunks, name_of, read_corpus, text_of
from lmcast.exporter.weights.place import check_copies
from lmcast.exporter.weights.recipe_files import hashed, identity, write_recipe
from lmcast.plugins.annotations import Count, OneOf, Range, Seed
from lmcast.plugins.arguments import checked

TOKENS, CHUNK = 32768, 512
HELD_OUT = 4  # chunks to calibrate on for each held-out one
FEWEST_TOKENS = 64  # of an expert
Bits = Annotated[float, Range(1e-6, 1000)]  # a format says which are possible
Kl = Annotated[float, Range(1e-12, 1000)]


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration; `report` is that of the recipe."""

    output: Path
    report: Mapping[str, Any]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {"output": str(self.output), "seconds": round(self.seconds, 3), **self.report}

    def text(self) -> str:
        """Return what matters of it, for a person."""
        report = self.report
        what = "weights as they are"
        if report["bits"]:
            what = f"{report['recipe']}, {report['bits']:.2f} bits a quantized weight"
        first = f"{self.output}: {what}; {report['tokens']:,} tokens, {self.seconds:.0f} s"
        return "\n".join([first, *lines(report)])


@checked
@one_at_a_time
def calibrate(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    *,
    recipe: Annotated[str, OneOf(PRESETS)] | Preset | None = None,
    data: str | PathLike[str] | None = None,
    tokens: Count = TOKENS,
    chunk: Annotated[int, Range(2, 1 << 31)] = CHUNK,
    seed: Seed = 0,
    observer: Annotated[str, OneOf(OBSERVERS)] | None = None,
    ids: tuple[Tensor, Tensor] | None = None,
    fewest_tokens: Annotated[int, Range(0, 1 << 31)] = FEWEST_TOKENS,
    inert: Collection[str] = (),
    untie: bool = False,
    revision: str | None = None,
    bits: Bits | None = None,
    most_kl: Kl | None = None,
    head: bool = False,
    kv: Annotated[str, OneOf((FP8_CACHE,))] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Calibration:
    """Calibrate `checkpoint`, and write the recipe to the directory `output`.

    recipe: a name of PRESETS, or another Preset; None quantizes no weights. data: text, as
    read_corpus takes it; ids: C,T int64 instead, to calibrate on and held out. tokens, chunk, seed:
    how many tokens to calibrate on, in chunks of how many, and which.
    observer: of OBSERVERS, for static scales. inert, untie, revision: as for `export`.
    fewest_tokens: that an expert must see to be calibrated on its own.
    bits: budget per weight, scales included, on average: some are then wider than the recipe's, or
        unquantized. most_kl: find the fewest bits with this divergence at most, on held-out text.
    head: quantize the output head (or tied embedding) too; it is in no budget, and twice in memory.
    kv: FP8_CACHE: keys and values in FP8. force: replace a recipe of another checkpoint, an engine.

    A run that was killed continues when started again with the same arguments. Raises InputError
    for what cannot be done, CheckFailed if most_kl is not reached; then nothing is written.
    """
    started = time.monotonic()
    _check_options(preset := _preset(recipe, observer, kv), bits, most_kl, head, kv)
    source, identities = identified(checkpoint, revision, progress)
    found = understand(source, inert, tokenizer=False, untie=untie, text_only=True)
    check_copies(found.binding, source)
    check_output(Path(output), source.path, RECIPE_JSON, identity(identities), force)
    with progress.stage("reading text"):
        sample = _sample(source, ids, data, tokens, chunk, seed)
    name = recipe.weights if isinstance(recipe, Preset) else recipe
    how = (identities, sample, _whence(ids, data), name, preset, observer, fewest_tokens, head, kv)
    _check(subject := Subject(found, source, *how))
    report = _write(subject, Path(output), bits, most_kl, progress)
    return Calibration(Path(output), report, time.monotonic() - started)


def _write(
    subject: Subject, output: Path, bits: float | None, most_kl: float | None, progress: Progress
) -> dict[str, Any]:
    """Calibrate within the budget, write the recipe, and return its report."""
    subject = dataclasses.replace(subject, identities=hashed(subject.identities, progress))
    with staged(output, progress) as directory:
        place = Place(directory.parent / output.absolute().name)
        with Attempts(subject, place, progress) as attempts:
            if bits is not None:
                made = attempts.at_bits(bits)
            elif most_kl is not None:
                made = attempts.within(most_kl)
            else:
                made = attempts.once()
            warn(made.report, subject.fewest_tokens, progress)
            for file in subject.identities:
                file.check()
            published, hashes = made.work.publish(made.report["written"], made.parts, directory)
            whole = dataclasses.replace(published, report=made.report, quality=made.quality)
            write_recipe(directory, whole, subject.identities, hashes)
    return made.report


def _check_options(
    preset: Preset | None, bits: float | None, most_kl: float | None, head: bool, kv: str | None
) -> None:
    if preset is None and not kv:
        raise CalibrationError("neither a recipe nor --kv: there is nothing to calibrate")
    if preset is None and (head or bits is not None or most_kl is not None):
        raise CalibrationError("--head, --bits and --budget are for weights: give --recipe, too")
    if bits is not None and most_kl is not None:
        raise CalibrationError("both bits and a KL are given; accepted: one of them")


def _preset(recipe: str | Preset | None, observer: str | None, kv: str | None) -> Preset | None:
    return _named(recipe, observer, kv) if isinstance(recipe, str) else recipe


def _named(name: str, observer: str | None, kv: str | None) -> Preset:
    if observer is not None and kv is None and not PRESETS[name].inputs.static:
        static = [known for known, preset in PRESETS.items() if preset.inputs.static]
        raise CalibrationError(
            f"recipe {name} has no static scales to observe; those have: {', '.join(static)}, and"
            " any with --kv"
        )
    return PRESETS[name]


def _sample(
    source: Checkpoint,
    ids: tuple[Tensor, Tensor] | None,
    data: str | PathLike[str] | None,
    tokens: int,
    chunk: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return chunks of token ids, C,T each, given or of a text: to calibrate on, and held out."""
    if ids is not None:
        if data is not None:
            raise CalibrationError("both ids and data are given; accepted: one of them")
        return ids
    text, samples = text_of(source), read_corpus(None if data is None else Path(data))
    count = math.ceil(tokens / chunk)
    held = math.ceil(count / HELD_OUT)
    return (
        chunks(samples, text, chunk, count, seed=seed),
        chunks(samples, text, chunk, held, "choice", seed=seed),
    )


def _whence(ids: tuple[Tensor, Tensor] | None, data: str | PathLike[str] | None) -> str:
    return "given token ids" if ids else name_of(data)


def _check(subject: Subject) -> None:
    found = subject.found
    if subject.head and subject.preset:
        check_head(found.model, subject.preset)
    if subject.kv:
        check_caches(found.model)
    for ids in subject.sample:
        if ids.dtype != torch.int64:
            raise CalibrationError(f"token ids are {ids.dtype}; accepted: {torch.int64}")
        if ids.dim() != 2 or not ids.numel() or ids.shape[1] < 2:
            raise CalibrationError(
                f"token ids of shape {list(ids.shape)}; accepted: chunks of at least 2 tokens"
            )
        if ids.shape[1] > found.context:
            raise CalibrationError(
                f"chunks of {ids.shape[1]} tokens; the model was made for at most {found.context}:"
                " give a smaller --chunk"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < found.config.vocab_size:
            raise CalibrationError(
                f"token ids from {int(ids.min())} to {int(ids.max())}; accepted: 0 to"
                f" {found.config.vocab_size - 1}"
            )
