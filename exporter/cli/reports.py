"""Files that commands write reports to: only over what they wrote themselves, never in an engine.

A report names its command in its first bytes, as "lmcast parity" in quotes, by which it is known.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from lmcast.exporter.cli.options import PATH, as_text, tell
from lmcast.plugins.errors import InputError

HEAD_BYTES = 1024
PRINTED = Path("-")

json_file = click.option("--json", "json_file", type=PATH, help="Write the report; - prints it.")
force = click.option("--force", is_flag=True, help="Write reports over files of others, too.")


def check_reports(files: Iterable[Path | None], force: bool, baseline: Path | None = None) -> None:
    """Refuse files that cannot be written, or must not be; before the work that they report.

    baseline: a report that they are compared with: over it, what has become worse would count as
    what was before in the next run.
    """
    given = [file for file in files if file is not None and file != PRINTED]
    if len({os.path.realpath(file) for file in given}) < len(given):
        raise InputError(f"{given[0]}: is given for two reports; give a file for each")
    for file in given:
        check_report(file, force)
        if baseline and os.path.realpath(file) == os.path.realpath(baseline) and not force:
            raise InputError(
                f"{file}: is the baseline; --force writes over it, or give another path"
            )


def check_report(file: Path, force: bool) -> None:
    """Refuse a file in an engine or a recipe, and one that is there and no report, unless by
    force; raises InputError."""
    from lmcast.exporter.engine.output import check_outside

    check_outside(file)
    try:
        mode = os.stat(file).st_mode
        head = read_head(file) if stat.S_ISREG(mode) else b""
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(file))  # of what a link points at
        if not os.path.isdir(folder):
            raise InputError(f"{file}: cannot be written: there is no {folder}") from None
        return
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise InputError(f"{file}: cannot be written: it is no file")
    if head and b'"lmcast ' not in head and not force:
        raise InputError(
            f"{file}: is there, and no report of lmcast; --force writes over it, or give another"
            " path"
        )


def read_head(file: Path) -> bytes:
    """Return the first bytes of a file."""
    with open(file, "rb") as opened:
        return opened.read(HEAD_BYTES)


def report(result: Any, command: str, file: Path | None, beside: Mapping[Path, bytes]) -> None:
    """Write a measurement as JSON, and other reports of it, then print it as a table; the file '-'
    prints the JSON instead.

    Devices and pipes come first: where one takes nothing, no file is changed and nothing printed.
    """
    text = as_text({"report": f"lmcast {command}", **result.as_json()})
    reports = dict(beside)
    if file is not None and file != PRINTED:
        reports[file] = text.encode() + b"\n"
    for path in sorted(reports, key=lambda path: path.is_file() or not path.exists()):
        write(path, reports[path])
    if file == PRINTED:
        click.echo(text)
    else:
        tell(result.table())


def write(path: Path, data: bytes) -> None:
    """Write a report that was checked; raises InputError where it cannot be."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
