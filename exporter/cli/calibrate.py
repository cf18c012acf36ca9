"""`lmcast calibrate`."""

from pathlib import Path
from typing import Any

import click

from lmcast.exporter.cli.options import (
    CHECKPOINT,
    PATH,
    as_json,
    force,
    inert,
    report,
    revision,
    untie,
)


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("-o", "--output", type=PATH, required=True, help="Recipe directory to write.")
@click.option("--recipe", metavar="NAME",
              help="Format: fp8, mxfp4, nvfp4, int8, int4; a wrong name lists all. With --kv it may"
              " be left out: weights then stay as they are.")  # fmt: skip
@click.option("--data", type=PATH, metavar="FILE",
              help="Text in a .txt or .jsonl.  [default: Python's own manual]")  # fmt: skip
@click.option("--tokens", type=int, help="To calibrate on.  [default: 32768]")
@click.option("--chunk", type=int, help="Tokens of one piece of text.  [default: 512]")
@click.option("--seed", type=int, default=0, show_default=True, help="Which pieces.")
@click.option("--observer", metavar="maximum|percentile|mse|entropy",
              help="How static scales are chosen.  [default: maximum]")  # fmt: skip
@click.option("--bits", type=float, metavar="N",
              help="Of a weight on average, with scales: some get more than others.")  # fmt: skip
@click.option("--budget", metavar="kl=N",
              help="The fewest bits with at most that KL: up to 4 whole calibrations.")  # fmt: skip
@click.option("--head", is_flag=True, help="Quantize the output head or tied embedding too.")
@click.option("--kv", metavar="fp8", help="Hold keys and values in FP8, by scales from the text.")
@inert
@untie
@revision
@force
@as_json
def calibrate(
    checkpoint: str,
    output: Path,
    tokens: int | None,
    chunk: int | None,
    budget: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Choose low-precision weights by what they do to text.

    Example: lmcast calibrate ./SmolLM2-135M-Instruct --recipe mxfp4 -o recipe

    A run that was interrupted goes on where it was when the same command is given again. The recipe
    keeps some of the text, 2,048 tokens or one chunk, for `lmcast parity --quality`.
    """
    from lmcast.exporter.calibrate.calibrate import calibrate as run
    from lmcast.exporter.progress import Terminal

    sizes: dict[str, Any] = {"tokens": tokens, "chunk": chunk}
    found = run(
        checkpoint,
        output,
        most_kl=None if budget is None else most_kl(budget),
        progress=Terminal(),
        **{name: size for name, size in sizes.items() if size is not None},
        **given,
    )
    report(found, as_json)


def most_kl(budget: str) -> float:
    """Return the number of 'kl=N'."""
    try:
        what, number = budget.split("=")
        if what == "kl":
            return float(number)
    except ValueError:
        pass
    raise click.BadParameter(f"{budget!r:.40}; accepted: kl= and a number, as kl=0.01")
