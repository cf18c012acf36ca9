"""`lmcast generate` without a PROMPT: standard input, or a chat on a terminal."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from lmcast.plugins.errors import InputError

if TYPE_CHECKING:
    from lmcast.exporter.runtime.engine import Engine

STDIN_BYTES = 64 << 20  # far more than a context holds
HELP = "/exit or Ctrl-D ends, /new begins another conversation"
SHOWING = "/image FILE shows a picture with the next message"


def is_chat(prompt: str | None, file: Path | None, chat: bool | None, other: bool) -> bool:
    """Say whether a person at a terminal wants to chat.

    chat: whether a template is asked for; other: whether token ids or JSON are.
    """
    if prompt is not None or file is not None:
        return False
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return False
    if chat is False or other:
        raise click.UsageError("give a PROMPT: --ids, --json and --no-chat are not for a chat.")
    return True


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a stream, None if closed, is a terminal."""
    return stream is not None and stream.isatty()


def read_stdin() -> str:
    """Return the text of standard input, without the end of its last line.

    Raises InputError for what is no text in UTF-8, or too long, UsageError where there is none.
    """
    data = sys.stdin.buffer.read(STDIN_BYTES + 1) if sys.stdin is not None else b""
    if len(data) > STDIN_BYTES:
        raise InputError(f"standard input is larger than {STDIN_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 at byte {error.start}") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise click.UsageError("give a PROMPT or --file, or a text on standard input; it is empty.")
    return text


@dataclass
class Shown:
    """The pictures that a person shows: those to come with the next message, and how large."""

    waiting: list[Any]
    max_pixels: int | None


def talk(engine: "Engine", system: str | None, options: dict[str, Any], shown: Shown) -> None:
    """Answer line by line until the end; what was said stays cached.

    options: of Engine.generate. Raises InputError for an engine that cannot chat.
    """
    from lmcast.exporter.runtime.chat import user

    if not engine.text.chat_templates:
        raise InputError(
            f"{engine.directory}: this engine has no chat template, so there is no chat; give a"
            " PROMPT, which is continued as it is"
        )
    with suppress(ImportError):
        import readline  # noqa: F401 (lines can be edited, and found again)
    help = f"{HELP}, {SHOWING}" if engine.has_tower else HELP
    click.echo(help, err=True)
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages, pictures, conversation = list(opening), list[Any](), engine.conversation()
    while True:
        try:
            line = input("> ")
        except EOFError:
            click.echo()
            return
        if line.strip() == "/exit":
            return
        if line.strip() == "/new":
            messages, pictures, conversation = list(opening), [], engine.conversation()
        elif (line.split() or [""])[0] == "/image":
            show(engine, line.strip().removeprefix("/image").strip(), shown)
        elif line.strip():
            said = [*messages, user(line, [picture.medium for picture in shown.waiting])]
            seen = [*pictures, *shown.waiting]
            given = options | {"images": seen or None, "conversation": conversation}
            if (text := answer(engine, said, given, help)) is not None:
                messages = [*said, {"role": "assistant", "content": text}]
                pictures, shown.waiting = seen, []


def show(engine: "Engine", file: str, shown: Shown) -> None:
    """Let a picture come with the next message; say what it takes, or why it cannot."""
    if not file:
        click.echo(f"error: which file? ({SHOWING})", err=True)
        return
    try:
        picture = engine.picture(Path(file).expanduser(), shown.max_pixels)
    except InputError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return
    shown.waiting.append(picture)
    click.echo(f"({picture.tokens} tokens, with the next message)", err=True)


def answer(
    engine: "Engine", messages: list[dict[str, Any]], options: dict[str, Any], help: str
) -> str | None:
    """Print the answer to the last message as it comes, and return it; None where it failed."""
    try:
        (result,) = engine.generate(
            [messages],
            **options,
            on_token=lambda _row, piece: click.echo(piece, nl=False),
        )
    except InputError as error:
        click.echo(f"error: {' '.join(str(error).split())} ({help})", err=True)
        return None
    click.echo()
    if result.finish_reason == "length":
        click.echo(f"(cut off at {len(result.ids)} tokens; -n takes more)", err=True)
    return result.text
