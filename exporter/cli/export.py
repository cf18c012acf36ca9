"""`lmcast export` and `lmcast build`: making engines."""

import gc
from pathlib import Path
from typing import Any

import click

from lmcast.exporter import targets
from lmcast.exporter.cli.options import (
    CHECKPOINT,
    PATH,
    as_json,
    force,
    inert,
    of_plan,
    plan_options,
    recipe,
    report,
    revision,
    text_only,
    untie,
)


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("-o", "--output", type=PATH, required=True, help="Engine directory to write.")
@click.option("--target", default=targets.DEFAULT, show_default=True,
              metavar="|".join(targets.TARGETS),
              help="; ".join(f"{t.name}: {t.about}" for t in targets.TARGETS.values()) + ".",
              )  # fmt: skip
@click.option("--dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
              help="What to compute in; auto: nothing narrower than the checkpoint.")  # fmt: skip
@click.option("--weights", type=click.Choice(["link", "copy"]),
              help="Point into the checkpoint, or copy it. Default: link if it can.")  # fmt: skip
@click.option("--parity/--no-parity", default=True, show_default=True,
              help="Prove the engine against eager PyTorch before it is published.")  # fmt: skip
@click.option("--context", type=int, help="Most tokens of a row. Default: from config.json.")
@inert
@untie
@revision
@click.option("--check", default="auto", show_default=True, type=click.Choice(["auto", "full"]),
              help="Read linked weights, for NaN and hashes; auto: a sample above 8 GiB.",
              )  # fmt: skip
@click.option("--no-tokenizer", is_flag=True, help="Make an engine that takes token ids.")
@click.option("--matformer-config", "matformer", type=PATH, metavar="FILE",
              help="Export a slice: JSON with intermediate_size, and layers or skip.")  # fmt: skip
@click.option("--activations", type=click.Choice(["int8", "exact"]),
              help="Inputs of 4- and 8-bit weights on a CPU: rounded by kernels, or not, which is"
              " slower.  [default: int8]")  # fmt: skip
@recipe
@plan_options
@click.option("--clients/--no-clients", default=True, show_default=True,
              help="Write what other programs need to open a self-contained engine.")  # fmt: skip
@text_only
@force
@as_json
def export(
    checkpoint: str,
    output: Path,
    dtype: str,
    check: str,
    no_tokenizer: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Cast CHECKPOINT into an engine.

    CHECKPOINT is a directory of Hugging Face's or Mistral's, a GGUF file, or the name of a model on
    the Hugging Face Hub, which is read by way of its cache.

    Example: lmcast export ./SmolLM2-135M-Instruct -o engine

    From the Hub: lmcast export Qwen/Qwen3-0.6B -o engine

    \b
    For NVIDIA GPUs, here or elsewhere:
    --target tensorrt-rtx --sm 89,120 --max-context 8192, or --target cuda --sm 80,90
    """
    # The objects of a trace live to its end: garbage collection took a fifth of an export.
    gc.disable()
    from lmcast.exporter.pipeline import export as run
    from lmcast.exporter.progress import Terminal

    widen = given["widen"]
    given["widen"] = widen and "sizes" in targets.get(given["target"]).options
    plan = of_plan(given)
    engine = run(
        checkpoint,
        output,
        widen=widen,
        dtype=None if dtype == "auto" else dtype,
        full_check=True if check == "full" else None,
        tokenizer=not no_tokenizer,
        progress=Terminal(),
        **plan,
        **given,
    )
    report(engine.summary(), as_json)


@click.command()
@click.argument("engine", type=PATH)
@click.option("--target", default=targets.DEFAULT_PLANS, show_default=True,
              metavar="|".join(targets.with_plans()))  # fmt: skip
@plan_options
@as_json
def build(engine: Path, target: str, as_json: bool, **given: Any) -> None:
    """Add a plan for NVIDIA GPUs to ENGINE, from its portable graph.

    For an engine of --target onnx, or one with plans for other GPUs.

    Example: lmcast build engine --target tensorrt-rtx --sm 89,120
    """
    from lmcast.exporter.build import build as run
    from lmcast.exporter.progress import Terminal

    result = run(engine, target, **of_plan(given), progress=Terminal())
    report(result.summary(), as_json)
