"""`lmcast calibrate`."""

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=PATH)
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
@click.option("--inert", multiple=True, metavar="KEY",
              help="Ignore a key of config.json that nothing reads. Repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def calibrate(
    checkpoint: Path,
    output: Path,
    recipe: str | None,
    data: Path | None,
    seed: int,
    observer: str | None,
    inert: tuple[str, ...],
    bits: float | None,
    budget: str | None,
    head: bool,
    kv: str | None,
    as_json: bool,
    **sizes: int | None,
) -> None:
    """Choose low-precision weights for CHECKPOINT by what it does with text.

    Example: lmcast calibrate ./SmolLM2-135M-Instruct --recipe mxfp4 -o recipe

    A run that was interrupted goes on where it was when the same command is given again.
    """
    from lmcast.exporter.calibrate.calibrate import calibrate as run
    from lmcast.exporter.cli import report
    from lmcast.exporter.progress import Terminal

    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    found = run(
        checkpoint,
        output,
        recipe=recipe,
        data=data,
        seed=seed,
        observer=observer,
        inert=inert,
        bits=bits,
        most_kl=None if budget is None else most_kl(budget),
        head=head,
        kv=kv,
        progress=Terminal(),
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
