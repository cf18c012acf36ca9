"""From a checkpoint and text to a recipe: which weights are quantized, by which algorithm.

Layer by layer, with one layer in fp32 in memory beside what it is packed into. Three models run
side by side: the one that is not quantized; the one that is kept, whose weights are chosen by what
they see behind all that is quantized before them; and the base, of the ladder's first algorithm
alone. On held-out text the divergence of either from the first decides which is written: errors of
layers do not tell.
"""

import dataclasses
import hashlib
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from lmcast.calib.observers import OBSERVERS
from lmcast.calib.presets import PRESETS, Preset
from lmcast.exporter.calibrate.layer import Settings
from lmcast.exporter.calibrate.run import Run, bits
from lmcast.exporter.calibrate.units import left_over
from lmcast.exporter.calibrate.work import Work, joined
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.comparison import Measured
from lmcast.exporter.corpus import chunks, read_corpus, text_of
from lmcast.exporter.lock import Place
from lmcast.exporter.pipeline import identified, understand
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.recipe_files import identity, write_recipe
from lmcast.exporter.staging import staged
from lmcast.graphs import Definition
from lmcast.plugins.errors import InputError

TOKENS, CHUNK = 32768, 512
HELD_OUT = 4  # chunks that are calibrated on for each that is held out
FEWEST_TOKENS = 64  # of an expert
OBSERVER = "maximum"


class CalibrationError(InputError):
    """What cannot be calibrated as asked."""


@dataclass(frozen=True)
class Calibration:
    """What was found; `report` is that of the recipe."""

    output: Path
    report: Mapping[str, Any]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {"output": str(self.output), "seconds": round(self.seconds, 3), **self.report}

    def text(self) -> str:
        """Return what matters of it, for a person."""
        report = self.report
        counted = Counter(record["algorithm"] for record in report["weights"])
        lines = [
            f"{self.output}: {report['recipe']}, {report['bits']:.2f} bits a quantized weight;"
            f" {report['tokens']:,} tokens, {self.seconds:.0f} s",
            "chosen: " + ", ".join(f"{name} {n}" for name, n in counted.most_common()),
            f"{'':12}{'KL':>10}{'top-1':>8}{'perplexity':>12}",
            f"{'checkpoint':12}{'':18}{report['perplexity']:>12.3f}",
        ]
        for name, row in report["models"].items():
            mark = "  written" if name == report["written"] else ""
            lines.append(
                f"{row['name']:12}{row['kl']:>10.2e}{row['top1']:>8.1%}"
                f"{row['perplexity']:>12.3f}{mark}"
            )
        if report["left"]:
            lines.append(f"left as they are: {len(report['left'])} matrices; see the report")
        return "\n".join(lines)


def calibrate(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    *,
    recipe: str | Preset,
    data: str | PathLike[str] | None = None,
    tokens: int = TOKENS,
    chunk: int = CHUNK,
    seed: int = 0,
    observer: str | None = None,
    ids: tuple[Tensor, Tensor] | None = None,
    fewest_tokens: int = FEWEST_TOKENS,
    inert: Collection[str] = (),
    progress: Progress = silent,
) -> Calibration:
    """Write a recipe for `checkpoint` to the directory `output`, and return what it is.

    recipe: a name of PRESETS, or another Preset. data: text as read_corpus takes it. tokens, chunk,
    seed: how many to calibrate on, in pieces of which length, which ones. observer: of OBSERVERS,
    for static inputs. ids: token ids C,T int64 to calibrate on and others, held out, instead of
    text. fewest_tokens: that an expert must see to be calibrated on its own. inert: config keys to
    ignore. A run that was killed goes on where it was when it is started again with the same
    arguments. Raises InputError for what cannot be done; then nothing is written.
    """
    started = time.monotonic()
    preset = _preset(recipe, observer) if isinstance(recipe, str) else recipe
    with progress.stage("reading headers"):
        source, identities = identified(Path(checkpoint))
        found = understand(source, inert, tokenizer=False)
    with progress.stage("reading text"):
        sample = ids or _text(source, data, tokens, chunk, seed)
    _check(found, sample)
    with (
        staged(Path(output), progress) as directory,
        Work(Place(directory.parent / Path(output).absolute().name), source, identities) as work,
    ):
        work.begin(_key(preset, sample, identities, [observer, fewest_tokens]))
        settings = Settings(lambda _: preset, observer or OBSERVER, fewest_tokens, work.folder)
        run = Run(found, source, sample, settings, work)
        measured = run.all(progress)
        name = recipe if isinstance(recipe, str) else recipe.weights
        report = _report(name, preset, run, measured)
        _warn(report, fewest_tokens, progress)
        for file in identities:
            file.check()
        published = work.publish(report["written"], run.layers, directory)
        write_recipe(directory, dataclasses.replace(published, report=report), identities)
    return Calibration(Path(output), report, time.monotonic() - started)


def _key(
    preset: Preset, sample: Iterable[Tensor], identities: Iterable[SourceFile], options: list[Any]
) -> dict[str, Any]:
    """Return all that the layers of a run depend on."""
    return {
        "lmcast": version("lmcast"),
        "source": identity(identities),
        "recipe": dataclasses.asdict(preset),
        "text": [[*ids.shape, hashlib.sha256(ids.numpy().tobytes()).hexdigest()] for ids in sample],
        "options": options,
    }


def _preset(name: str, observer: str | None) -> Preset:
    if name not in PRESETS:
        raise CalibrationError(f"recipe {name!r:.80} is unknown; accepted: {', '.join(PRESETS)}")
    if observer is not None and observer not in OBSERVERS:
        raise CalibrationError(
            f"observer {observer!r:.80} is unknown; accepted: {', '.join(OBSERVERS)}"
        )
    if observer is not None and not PRESETS[name].inputs.static:
        static = [known for known, preset in PRESETS.items() if preset.inputs.static]
        raise CalibrationError(
            f"recipe {name} has no static scales to observe; those have: {', '.join(static)}"
        )
    return PRESETS[name]


def _text(
    source: Checkpoint, data: str | PathLike[str] | None, tokens: int, chunk: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return chunks C,T to calibrate on, and such that are held out."""
    if tokens < 1 or chunk < 2:
        raise CalibrationError(f"{tokens} tokens in chunks of {chunk}; accepted: from 1, from 2")
    text, samples = text_of(source), read_corpus(None if data is None else Path(data))
    count = math.ceil(tokens / chunk)
    held = math.ceil(count / HELD_OUT)
    return (
        chunks(samples, text, chunk, count, seed=seed),
        chunks(samples, text, chunk, held, "choice", seed=seed),
    )


def _check(found: Definition, sample: tuple[Tensor, Tensor]) -> None:
    for ids in sample:
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


def _report(
    recipe: str, preset: Preset, run: Run, measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """Return what the recipe says of itself; nothing in it differs from run to run."""
    written = "kept" if measured["kept"].kl.value < measured["base"].kl.value else "base"
    parts = run.recipes(written)
    whole = joined(parts)
    reasons = {name: why for part in parts for name, why in part.report["left"].items()}
    other = "is no linear layer or expert of a decoder layer"
    return {
        "recipe": recipe,
        "tokens": run.reference[0].ids.numel(),
        "held_out_tokens": run.reference[1].ids.numel(),
        "written": written,
        "bits": bits(whole, run.found),
        "perplexity": measured["kept"].reference_perplexity.value,
        "models": {
            variant: {
                "name": "calibrated" if variant == "kept" else preset.ladder[0],
                "kl": of.kl.value,
                "kl_error": of.kl.error,
                "top1": of.top1.value,
                "perplexity": of.perplexity.value,
                "bytes": of.bytes,
            }
            for variant, of in measured.items()
        },
        "weights": [
            record
            if written == "kept"
            else record | {"algorithm": preset.ladder[0], "error": record["base_error"]}
            for part in parts
            for record in part.report["weights"]
        ],
        "experts": [stack for part in parts for stack in part.report["experts"]],
        "left": {
            name: reasons.get(name, other)
            for name in left_over(run.found.model, frozenset(whole.weights))
        },
    }


def _warn(report: Mapping[str, Any], fewest: int, progress: Progress) -> None:
    experts = [count for stack in report["experts"] for count in stack["tokens"]]
    pooled = sum(len(stack["pooled"]) for stack in report["experts"])
    alone = sum(len(stack["weight_only"]) for stack in report["experts"])
    if pooled or alone:
        progress.warn(
            f"{pooled + alone} of {len(experts)} experts see fewer than {fewest} tokens, one of"
            f" them {min(experts)}: {pooled} are calibrated on tokens of their whole layer,"
            f" {alone} on none; give more text with --tokens"
        )
    if not report["weights"]:
        progress.warn("no weight of this model can be quantized so; the recipe changes nothing")
