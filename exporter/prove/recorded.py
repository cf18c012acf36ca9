"""What calibration has measured a recipe to lose, and whether an engine made with it loses more.

Engine and eager PyTorch both read the recipe: parity, which compares the two, cannot see that
something is wrong with it. The unquantized checkpoint, and a number from when the recipe was made,
can.
"""

import torch
from torch import Tensor

from lmcast.calib.recipe import Quality, RecipeError
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.progress import Progress
from lmcast.exporter.prove.divergence import Comparison, Measured
from lmcast.exporter.prove.parity_report import QualityCheck
from lmcast.exporter.prove.quality import POSITIONS, begin, run_layers, weight_bytes
from lmcast.exporter.prove.rounding import unrounded
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.weights.recipe_files import RecipeFiles
from lmcast.graphs import Definition

MOST_TOKENS = 2048  # recorded, but for one longer chunk: what `lmcast quality` takes, too


def record(ids: Tensor, measured: Measured, text: str) -> Quality:
    """Return what a recipe records of a measurement: the first of its chunks.

    ids: C,T int64, all of them. text: where they are from.
    """
    chunks = max(1, MOST_TOKENS // ids.shape[1])
    kl = torch.tensor(measured.by_chunk[:chunks], dtype=torch.float64).mean().item()
    return Quality(text, tuple(map(tuple, ids[:chunks].tolist())), "float32", kl)


def recorded(engine: Engine, files: RecipeFiles | None) -> Quality:
    """Return what the recipe of an engine has recorded; raises InputError where that cannot be
    measured again."""
    if files is None:
        raise EngineError(
            f"{engine.directory}: was made without a recipe, which would say what it has lost:"
            " parity compares it with the checkpoint itself; leave out --quality, or give"
            " `lmcast quality` the model before it was quantized"
        )
    if files.recipe.quality is None:
        raise RecipeError(
            f"{files.path}: does not say what it has lost, which --quality measures again;"
            " calibrate again"
        )
    longest = len(files.recipe.quality.ids[0])
    if longest > engine.context:
        raise EngineError(
            f"{engine.directory}: takes {engine.context} tokens, and {files.path} was measured in"
            f" chunks of {longest}; leave out --quality, or export with --context {longest} or more"
        )
    return files.recipe.quality


def measure_again(
    engine: Engine,
    found: Definition,
    source: Checkpoint,
    files: RecipeFiles,
    quality: Quality,
    progress: Progress,
) -> QualityCheck:
    """Measure what an engine has lost on the tokens of its recipe's record.

    found, source: the checkpoint without the recipe. Memory holds one part of it, and of the
    quantized model, at a time.
    """
    ids = torch.tensor(quality.ids)
    with progress.stage("running the checkpoint", weight_bytes(found.binding, source)) as step:
        reference = begin(unrounded(found), source, ids, step)
        eager = begin(*files.take(found, source), ids)
        run_layers(len(found.model.layers), reference, None, eager)
    lost, moved = Comparison(ids), Comparison(ids)
    with progress.stage("comparing"), reference.final() as unquantized, eager.final() as quantized:
        for row, sample in enumerate(ids):
            logits = torch.from_numpy(engine.logits(sample[None].numpy())[0])
            for at in torch.arange(ids.shape[1]).split(POSITIONS):
                begins, got = int(at[0]), logits[at]
                lost.add(row, begins, unquantized(reference.hidden[row], at[None])[0], got)
                moved.add(row, begins, quantized(eager.hidden[row], at[None])[0], got)
    kl, from_recipe = (float(each.kl().mean()) for each in (lost, moved))
    return QualityCheck(quality.text, quality.tokens, kl, quality.kl, from_recipe)
