"""Options shared by commands, prompts as they are typed, and printing of results.

A group of options comes with a function that takes their values out of a command's keyword
arguments, and returns them under the names of the library's function.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lmcast.plugins.errors import InputError

CHECK_FAILED, WRONG_INPUT = 1, 2  # exit statuses
PATH = click.Path(path_type=Path)
Command = Callable[..., None]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
json_file = click.option("--json", "json_file", type=PATH, help="Write the report; - prints it.")
inert = click.option(
    "--inert",
    multiple=True,
    metavar="KEY",
    help="Ignore a key of config.json that nothing reads. Repeatable.",
)
recipe = click.option(
    "--recipe",
    type=PATH,
    metavar="DIR",
    help="Low-precision weights and inputs, as `lmcast calibrate` wrote them.",
)
portable = click.option(
    "--portable", is_flag=True, help="Run the graph on this CPU, where the engine has plans."
)


def run_options(command: Command) -> Command:
    """Add how an engine is loaded."""
    prepack = click.option(
        "--prepack",
        is_flag=True,
        help="Copy the weights for faster kernels: more memory and load time.",
    )
    threads = click.option(
        "--threads", type=int, help="At most the processors at hand.  [default: all]"
    )
    return threads(prepack(portable(command)))


def of_run(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of run_options, as load takes them; say so where threads are too many."""
    from lmcast.exporter.cores import limited
    from lmcast.exporter.progress import Terminal

    threads = limited(given.pop("threads"), lambda message: Terminal().warn(message))
    return {"threads": threads} | {name: given.pop(name) for name in ("prepack", "portable")}


SIZES = ("max_batch", "max_context", "max_tokens", "opt_batch", "opt_tokens", "widen")


def plan_options(command: Command) -> Command:
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


def of_plan(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of plan_options, as export and build take them."""
    from lmcast.exporter.backends.tensorrt.request import Sizes, parse_sms

    sm = given.pop("sm")
    sizes = {name: given.pop(name) for name in SIZES}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    return {"sms": parse_sms(sm) if sm else (), "sizes": Sizes(**sizes)}


def parse_ids(prompt: Any) -> list[int]:
    """Return the token ids of '1 15 27'."""
    words = prompt.replace(",", " ").split() if isinstance(prompt, str) else []
    if not words or not all(word.isdecimal() for word in words):
        raise click.UsageError(f"--ids needs token ids such as '1 15 27', got {prompt!r:.80}")
    return [int(word) for word in words]


def with_system(prompt: Any, system: str) -> list[dict[str, Any]]:
    """Return a prompt, text or messages, as messages behind one of the system."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *messages]


def report(result: Any, as_json: bool) -> None:
    """Print what a command found, for a machine or for a person."""
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else result.text())


def report_table(result: Any, file: Path | None) -> None:
    """Print a measurement as a table, and write it as JSON; the file '-' prints that instead."""
    text = json.dumps(result.as_json(), indent=1)
    if str(file) == "-":
        click.echo(text)
        return
    click.echo(result.table())
    if file:
        write(file, text.encode() + b"\n")


def write(path: Path, data: bytes) -> None:
    """Write a report; raises InputError where it cannot be."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
