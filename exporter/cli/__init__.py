"""The command line: each command parses, calls one function, prints.

What a command needs is imported inside it, so that --help answers at once and engines run where
nothing is installed that casts them.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from lmcast.exporter.cli.calibrate import calibrate
from lmcast.exporter.cli.export import build, export
from lmcast.exporter.cli.files import diff, inspect, pack, sign, verify
from lmcast.exporter.cli.options import CHECK_FAILED, WRONG_INPUT
from lmcast.exporter.cli.prove import parity, quality
from lmcast.exporter.cli.run import bench, generate
from lmcast.exporter.extras import remedy
from lmcast.exporter.interrupts import INTERRUPTED, say
from lmcast.plugins.errors import CheckFailed, InputError, printable

COMMANDS = (
    export, build, generate, bench, parity, quality, inspect, diff, verify, sign, pack, calibrate,
)  # fmt: skip
UNREAD = 128 + signal.SIGPIPE  # exit status, as shells report it


class Commands(click.Group):
    """The group, with an interrupt that is said in one line, and a reader that is gone in none."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Abort from None  # before click writes an empty line
        except BrokenPipeError:  # of which click makes 1, a check that failed
            silence()
            raise SystemExit(UNREAD) from None


@click.group(
    cls=Commands,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="lmcast")
def cli() -> None:
    """Cast a language-model checkpoint into a verified engine, ahead of time.

    \b
    lmcast export ./Qwen3-0.6B -o engine
    lmcast generate engine "The capital of France"
    lmcast parity engine --against ./Qwen3-0.6B
    """


def told(error: click.ClickException) -> str:
    """Return what click found wrong, and where the command says what is right."""
    text = error.format_message()
    if not (isinstance(error, click.UsageError) and error.ctx):
        return text
    return f"{text}{'' if text[-1:] in '.?)' else '.'} See `{error.ctx.command_path} --help`."


def end(word: str, message: str, status: int) -> NoReturn:
    """Say in one line why a command ends; where nobody can be told, the status alone does."""
    with suppress(OSError):
        click.echo(f"{word}: {printable(' '.join(message.split()))}", err=True)
    silence()
    sys.exit(status)


def silence() -> None:
    """Drop what a stream does not take: Python tries again at its end, and makes it another status
    and other lines."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main() -> None:
    """Run the command line; an InputError is one line and exit status 2."""
    try:
        # Named here: `python -m` would have its own name in the usage.
        cli.main(prog_name="lmcast", standalone_mode=False)
    except click.exceptions.Abort:
        say()
        sys.exit(INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(WRONG_INPUT)
    except click.ClickException as error:
        end("error", told(error), WRONG_INPUT)
    except (InputError, OSError) as error:
        end("error", str(error), WRONG_INPUT)
    except CheckFailed as error:
        end("failed", str(error), CHECK_FAILED)
    except ModuleNotFoundError as error:
        advice = remedy(error)
        if advice is None:
            raise
        end("error", advice, WRONG_INPUT)
