"""Options of commands that build TensorRT plans."""

from typing import Any

import click


def plan_options(command: Any) -> Any:
    """Add what TensorRT plans are built for."""
    for option in (
        click.option(
            "--widen", is_flag=True, help="Weights of 4 bits as 8 where a GPU lacks them; no loss."
        ),
        click.option("--opt-tokens", type=int, help="Of a usual prompt.  [default: 128]"),
        click.option("--opt-batch", type=int, help="Usual rows of a call.  [default: 1]"),
        click.option("--max-tokens", type=int, help="Most of one call.  [default: 2048]"),
        click.option("--max-context", type=int, help="Tokens of a row.  [default: 4096]"),
        click.option("--max-batch", type=int, help="Rows of a call.  [default: 1]"),
        click.option("--sm", metavar="89,120", help="GPUs of a plan.  [default: the one here]"),
    ):
        command = option(command)
    return command


def of_plan(sm: str | None, sizes: dict[str, int | None]) -> dict[str, Any]:
    """Return what plan_options gave, as export and build take it."""
    from lmcast.exporter.backends.tensorrt.request import Sizes, parse_sms

    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    return {"sms": parse_sms(sm) if sm else (), "sizes": Sizes(**given)}
