"""What each format costs in quality, nearest rounding beside calibration: a table, and quality.png.

    python tests/benchmarks/quality.py WORK CHECKPOINT... [--only mxfp4,int4] [--data FILE]
    python tests/benchmarks/quality.py WORK CHECKPOINT... --algorithms --only mxfp4
    python tests/benchmarks/quality.py WORK CHECKPOINT... --formats

Checkpoints as samples/smollm2.sh and samples/gemma3.sh fetch them hold weights of 4 bits, which
flatters formats of 4 bits: rescale.py first turns them into others of the same function, which lie
on no grid. Divergences are from those in fp32, on text that neither calibration nor its choices
saw, with standard errors over chunks.

Every row is kept in WORK/rows, under a name made of all that it depends on, the code of calibration
too: what was interrupted goes on, and what has changed is measured anew.
"""

import argparse
import fcntl
import glob
import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rescale
import torch
from quality_table import (
    MODELOPT,
    UNTURNED,
    Found,
    draw,
    mean,
    text,
    text_of_algorithms,
    text_of_formats,
)

import lmcast.calib
from lmcast.calib.algorithms import ALGORITHMS
from lmcast.calib.formats import WEIGHTS
from lmcast.calib.presets import PRESETS, Preset
from lmcast.exporter.calibrate.calibrate import calibrate
from lmcast.exporter.checkpoint import identified
from lmcast.exporter.pipeline import understand
from lmcast.exporter.prove.corpus import chunks, read_corpus, text_of
from lmcast.exporter.prove.divergence import Comparison
from lmcast.exporter.prove.quality import eager_quality
from lmcast.exporter.weights.recipe_files import open_recipe
from lmcast.graphs.blocks.quantized import InputFormat

sys.path.append(str(Path(__file__).parents[1]))
from files import rounded

CODE = Path(lmcast.calib.__file__).parents[1]
# What a recipe depends on: calibration itself, the formats, and how inputs are rounded.
PARTS = (
    "calib",
    "exporter/calibrate",
    "exporter/calibrate/calibrate.py",
    "graphs/weights/quantized.py",
    "graphs/blocks/quantized.py",
    "plugins/rounding.py",
    "plugins/quantize/quantize_input.py",
)


@dataclass(frozen=True)
class Sample:
    """ids C,T int64: to calibrate on, to choose by, and to measure with."""

    calibration: torch.Tensor
    choice: torch.Tensor
    measuring: torch.Tensor

    def digest(self) -> str:
        whole = torch.cat([each.flatten() for each in asdict(self).values()])
        return hashlib.sha256(whole.numpy().tobytes()).hexdigest()


def sample(checkpoint: Path, options: argparse.Namespace) -> Sample:
    text, corpus = text_of(identified(checkpoint)[0]), read_corpus(options.data)
    counts = {
        "calibration": options.calibration,
        "choice": options.calibration // 4,
        "measuring": options.tokens,
    }
    return Sample(
        *(
            chunks(corpus, text, options.chunk, math.ceil(tokens / options.chunk), part)
            for part, tokens in counts.items()
        )
    )


def calibrated(checkpoint: Path, preset: Preset, given: Sample, folder: Path) -> dict[str, Any]:
    """Calibrate, and measure what was written; say which weights and layers that changes."""
    source, identities = identified(checkpoint)
    found, started = understand(source, (), False), time.perf_counter()
    made = calibrate(checkpoint, folder, recipe=preset, ids=(given.calibration, given.choice))
    seconds = time.perf_counter() - started
    files = open_recipe(folder, identities)
    measured = eager_quality(found, source, *files.take(found, source), given.measuring)
    named = {layer: f"{layer}.input_scale" for layer in files.recipe.inputs}
    extended = files.extend(source)
    return {
        "measured": measured.as_json(),
        "seconds": seconds,
        "algorithms": Counter(each["algorithm"] for each in made.report["weights"]),
        "weights": sorted(files.recipe.weights),
        "layers": {
            layer: extended.read(name).item() if name in files.tensors else None
            for layer, name in named.items()
        },
    }


def nearest(
    checkpoint: Path, preset: Preset, of: dict[str, Any], given: Sample, folder: Path
) -> dict[str, Any]:
    """Round the weights of a calibrated recipe to nearest by their largest values, and measure.

    Inputs are rounded as they come, neither turned nor smoothed; static scales are the recipe's.
    """
    source, identities = identified(checkpoint)
    found, weights = understand(source, (), False), set(of["weights"])
    inputs = dict.fromkeys(of["layers"], replace(preset.inputs, rotation=0, smooth=False))
    if preset.inputs.format is None:  # such layers are there for their smoothing alone
        inputs = {}
    scales = {
        f"{layer}.input_scale": torch.tensor(scale)
        for layer, scale in of["layers"].items()
        if scale is not None
    }
    started = time.perf_counter()
    rounded.round_weights(
        checkpoint,
        folder,
        lambda name, _: preset.weights if name in weights else None,
        inputs,
        scales,
    )
    seconds = time.perf_counter() - started
    quantized = open_recipe(folder, identities).take(found, source)
    measured = eager_quality(found, source, *quantized, given.measuring)
    return {"measured": measured.as_json(), "seconds": seconds}


def modelopt(checkpoint: Path, given: Sample, folder: Path) -> dict[str, Any]:
    """Quantize Hugging Face's model as ModelOpt does by default, and measure against itself."""
    import modelopt.torch.quantization as mtq
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    reference, started = load(), time.perf_counter()

    def forward(model: Any) -> None:
        for row in given.calibration:
            model(row[None], logits_to_keep=1, use_cache=False)

    with torch.no_grad():
        quantized = mtq.quantize(load(), mtq.FP8_DEFAULT_CFG, forward)
        seconds = time.perf_counter() - started
        assert not quantized.lm_head.weight_quantizer.is_enabled  # as ours leaves it
        compared = Comparison(given.measuring)
        for chunk, row in enumerate(given.measuring):
            both = [model(row[None], use_cache=False).logits[0] for model in (reference, quantized)]
            for at in torch.arange(len(row)).split(32):
                compared.add(chunk, int(at[0]), *(logits[at] for logits in both))
    # Bytes of a model that computes as if it were quantized would say nothing.
    return {"measured": compared.measured(0, 0).as_json(), "seconds": seconds}


class Rows:
    """Results on disk, each under a digest of what it depends on."""

    def __init__(self, work: Path, keep: bool):
        """keep: take the last result of a name, whatever it depends on."""
        self.folder, self.keep = work / "rows", keep
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [f for part in PARTS for f in ([CODE / part] if part.endswith(".py") else
                 sorted((CODE / part).rglob("*.py")))]  # fmt: skip
        self.code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def get(self, name: str, depends: Any, make: Callable[[Path], dict[str, Any]]) -> Any:
        """Return a row, made where it is not there; `make` gets a path for what it writes."""
        text = json.dumps([depends, self.code], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        file = self.folder / f"{name} {key}.json"
        there = self.folder.glob(f"{glob.escape(name)} {'[0-9a-f]' * 12}.json")
        if self.keep and (last := max(there, key=lambda path: path.stat().st_mtime, default=None)):
            file = last
        elif not file.exists():
            made = make(self.folder / f"{name} {key}")
            file.with_suffix(".new").write_text(json.dumps(made))
            file.with_suffix(".new").replace(file)
            shutil.rmtree(self.folder / f"{name} {key}", ignore_errors=True)
        row = json.loads(file.read_text())
        kl = row["measured"]["kl"]
        print(f"{name}: KL {mean(kl).text('.3g')}, {row['seconds']:.0f} s", flush=True)
        return row


def rescaled(checkpoint: Path, work: Path) -> Path:
    """Return a checkpoint of the same function with weights that lie on no grid."""
    name = re.sub(r"[^\w.-]", "-", checkpoint.name.removesuffix(".gguf"))
    made = work / name
    if not made.exists():
        shutil.rmtree(unfinished := work / f"{name}.new", ignore_errors=True)
        rescale.write(checkpoint, unfinished)
        require_equal(checkpoint, unfinished)
        unfinished.replace(made)
    return made


def require_equal(checkpoint: Path, other: Path) -> None:
    """Raise where two checkpoints are not one function, up to what fp32 rounds of it."""
    pairs = []
    for path in (checkpoint, other):
        source, _ = identified(path)
        pairs += [understand(source, (), False), source]
    ids = chunks(read_corpus(None), text_of(pairs[1]), 64, 2, "measuring")
    kl = eager_quality(*pairs, ids).kl.value
    if kl > 1e-9:  # what fp32 leaves of both models is below 1e-11
        raise RuntimeError(f"{other}: is not the function that {checkpoint} is: KL {kl:.3g}")


def opened(
    checkpoint: Path, options: argparse.Namespace
) -> tuple[Path, Rows, Sample, list[object]]:
    """Return a rescaled checkpoint, its rows, text for it, and what all rows of both depend on."""
    made = rescaled(checkpoint, options.work)
    given, stored = sample(made, options), (made / "model.safetensors").stat()
    of = [made.name, stored.st_size, stored.st_mtime_ns, given.digest()]
    return made, Rows(options.work, options.keep), given, of


def measure(checkpoint: Path, options: argparse.Namespace) -> Found:
    made, rows, given, of = opened(checkpoint, options)
    found = Found()
    for name in options.only or PRESETS:
        preset = PRESETS[name]
        depends = [*of, asdict(preset)]
        best = rows.get(
            f"{made.name} {name} calibrated",
            depends,
            partial(calibrated, made, preset, given),
        )
        base = rows.get(
            f"{made.name} {name} nearest",
            [*depends, best["weights"], best["layers"]],
            partial(nearest, made, preset, best, given),
        )
        found[name] = {"nearest": base, "calibrated": best}
    if "fp8" in found:
        name = f"{made.name} {MODELOPT}"
        found["fp8"][MODELOPT] = rows.get(name, of, partial(modelopt, made, given))
    return found


def measure_algorithms(checkpoint: Path, options: argparse.Namespace) -> Found:
    """Return, for every recipe, a row for each algorithm: alone, where it is better than rounding.

    All smooth, turn and round inputs as the recipe says.
    """
    made, rows, given, of = opened(checkpoint, options)
    found = Found()
    for name in options.only or PRESETS:
        preset = PRESETS[name]
        ways = {"rtn": replace(preset, ladder=("rtn",))}
        if preset.inputs.rotation:
            ways[UNTURNED] = replace(ways["rtn"], inputs=replace(preset.inputs, rotation=0))
        for each in ALGORITHMS:
            ways.setdefault(each, replace(preset, ladder=("rtn", each)))
        for algorithm, preset in ways.items():
            found.setdefault(name, {})[algorithm] = rows.get(
                f"{made.name} {name} {algorithm} alone",
                [*of, asdict(preset)],
                partial(calibrated, made, preset, given),
            )
    return found


def measure_formats(checkpoint: Path, options: argparse.Namespace) -> Found:
    """Return, for every format, a row for weights rounded to nearest; inputs stay as they are."""
    made, rows, given, of = opened(checkpoint, options)
    found = Found()
    for name in options.only or WEIGHTS:
        preset = Preset(name, InputFormat(), ("rtn",))
        found[name] = {
            "nearest": rows.get(
                f"{made.name} weights in {name}",
                [*of, asdict(preset)],
                partial(calibrated, made, preset, given),
            )
        }
    return found


# What is measured, and what prints it.
TABLES = {
    None: (measure, text),
    "algorithms": (measure_algorithms, text_of_algorithms),
    "formats": (measure_formats, text_of_formats),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path, help="holds what was made and measured; can go on")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--only", type=lambda names: names.split(","), help="of the recipes")
    parser.add_argument("--data", type=Path, help="text; by default Python's manual")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--tokens", type=int, default=4096, help="to measure with")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    for table, said in (
        ("algorithms", "one by one, instead of the recipes' choices"),
        ("formats", "of weights alone, rounded to nearest"),
    ):
        parser.add_argument(
            f"--{table}", action="store_const", const=table, dest="table", help=said
        )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="rows that are there as they are, also of other options and other code",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    make, shown = TABLES[options.table]
    with (options.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{options.work}: another run writes there; give this one another directory")
        every = {checkpoint.name: make(checkpoint, options) for checkpoint in options.checkpoints}
    print()
    print("\n\n".join(shown(model, found) for model, found in every.items()))
    if options.table is None:
        draw(every)


if __name__ == "__main__":
    main()
