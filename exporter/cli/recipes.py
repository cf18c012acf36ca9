"""The option of commands that take quantized weights."""

from pathlib import Path

import click

recipe = click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Weights and inputs in few bits, as `lmcast calibrate` wrote them.",
)
