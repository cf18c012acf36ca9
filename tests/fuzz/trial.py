"""One trial: a child process under limits handles spoiled input, and its parent judges.

Input must be refused in one line, or accepted and right. Anything else is a fault: another
exception, a crash, a hang, memory above twice that of good input, a file left by what was refused.
"""

import faulthandler
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmcast.plugins.errors import InputError

INPUT, TEMPORARY, HOME = "in", "tmp", "home"  # folders of a trial
LONGEST = 2000  # characters of an error: one line that a person reads
# Beside what the process has mapped when it begins: what asks for more is ended by the kernel
# before the machine suffers, and is a fault in any case.
ADDRESS_SPACE = 8 << 30
# Reading the clock of memory is coarse: allocators keep pages, and the parent's own are counted.
SLACK = 64 << 20  # bytes
PEAK: list[int] = []  # KiB, of the trial in this process, once it is counted


class Part(Protocol):
    """A kind of input.

    name: on the command line. about: for --help.
    """

    name: str
    about: str

    def prepare(self, folder: Path) -> None:
        """Make what trials begin with; called once, in the parent."""
        ...

    def edits(self, chance: Any) -> Sequence[Any]:
        """Return the edits of one trial, drawn from a random.Random; each has a short str.

        Any subset of them is a trial, too; none of them is good input, which is accepted.
        """
        ...

    def run(self, edits: Sequence[Any], work: Path) -> str | None:
        """Handle the input in the child; return what is wrong with what was accepted, or None.

        Raises InputError where it is refused. work: a folder, in which `INPUT` may be made, and in
        which nothing else may be left by what is refused.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """Of one trial: seconds of CPU and of the clock, and bytes of memory."""

    cpu: int = 60
    wall: int = 120
    memory: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: refused with a message, or accepted; fault is None where both is right.

    peak: bytes of resident memory, at most at any time.
    """

    refusal: str | None
    fault: str | None
    peak: int


def attempt(part: Part, edits: Sequence[Any], work: Path, limits: Limits) -> Outcome:
    """Run one trial in a fork, in an empty folder `work`."""
    for name in (TEMPORARY, HOME):
        (work / name).mkdir(parents=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(part, edits, work, limits, writer)
    os.close(writer)
    said, ended = _listen(reader, time.monotonic() + limits.wall)
    counted, _, said = said.partition(" ")
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    _end_group(child)
    kind, _, text = said.partition(":")
    peak = (int(counted) if counted else usage.ru_maxrss) << 10
    refusal = text if kind == "refused" else None
    if not ended:
        fault: str | None = f"no end after {limits.wall} s"
    elif kind not in ("refused", "accepted", "fault"):
        fault = f"the process ended by {_ending(status)}: {_last_words(work)}"
    elif kind == "fault":
        fault = text
    elif limits.memory is not None and peak > limits.memory:
        fault = f"memory: {peak >> 20} MiB, above the {limits.memory >> 20} allowed"
    else:
        fault = None if refusal is None else _bad_refusal(refusal) or _left(work)
    return Outcome(refusal, fault, peak)


def _child(part: Part, edits: Sequence[Any], work: Path, limits: Limits, writer: int) -> None:
    """Run the trial, write one message, and end without what the parent registered for its end."""
    PEAK.clear()
    message = "fault:no message"
    try:
        os.setsid()
        _confine(work, limits)
        try:
            wrong = part.run(edits, work)
            message = "accepted:" if wrong is None else f"fault:accepted and wrong: {wrong}"
        except InputError as error:
            message = f"refused:{error}"
        except BaseException as error:  # noqa: BLE001 (what this looks for)
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            message = f"fault:{type(error).__name__} in {place}: {error!s:.300}"
        with open(writer, "wb") as pipe:
            pipe.write(f"{''.join(map(str, PEAK))} {message}".encode(errors="replace"))
    finally:
        os._exit(0)


def others_follow() -> None:
    """Count the memory of this trial up to here: what follows asks others what is right."""
    PEAK[:] = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]


def _confine(work: Path, limits: Limits) -> None:
    os.chdir(work)
    faulthandler.disable()  # a crash is said by its signal
    os.environ.update(HOME=str(work / HOME), TMPDIR=str(work / TEMPORARY))
    tempfile.tempdir = None  # of the parent
    output = os.open(work / HOME / "output", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))


def _listen(reader: int, until: float) -> tuple[str, bool]:
    """Return what the child wrote, and whether it ended or closed its end by then."""
    data = b""
    with open(reader, "rb", buffering=0) as pipe:
        while (left := until - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                break
            chunk = pipe.read(1 << 16)
            if not chunk:
                return data.decode(errors="replace"), True
            data += chunk
    return "", False


def _end_group(child: int) -> None:
    """End what a trial started and did not wait for."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def _last_words(work: Path) -> str:
    return " ".join((work / HOME / "output").read_text(errors="replace").split())[-300:]


def _bad_refusal(text: str) -> str | None:
    if "\n" in text:
        return f"an error of more than one line: {text!r:.300}"
    if not text or len(text) > LONGEST:
        return f"an error of {len(text)} characters: {text:.200}"
    return None


def _left(work: Path) -> str | None:
    """Say which files a refusal left, beside its input and what it printed."""
    found = [path.relative_to(work) for path in sorted(work.rglob("*"))]
    known = {Path(INPUT), Path(TEMPORARY), Path(HOME), Path(HOME) / "output"}
    left = [path for path in found if path not in known and path.parts[0] != INPUT]
    return f"left behind: {', '.join(map(str, left[:5]))}" if left else None


def minimize(
    part: Part, edits: Sequence[Any], work: Path, limits: Limits, fault: str
) -> Sequence[Any]:
    """Drop edits, one after the other, without which the same kind of fault stays."""
    kept = list(edits)
    for edit in edits:
        fewer = [one for one in kept if one is not edit]
        if not fewer:
            continue
        found = attempt(part, fewer, work / f"{len(kept)}-{edits.index(edit)}", limits).fault
        if found is not None and found.split(":")[0] == fault.split(":")[0]:
            kept = fewer
    return kept


def peak_of_good_input(part: Part, work: Path, limits: Limits) -> int:
    """Return the memory that a trial without edits takes; raises ValueError where it fails."""
    good = attempt(part, (), work, limits)
    if good.refusal is not None or good.fault is not None:
        raise ValueError(f"{part.name}: good input fails: {good.refusal or good.fault}")
    return good.peak


if sys.platform == "win32":
    raise ImportError("trials fork: they run on Linux and macOS")
