"""Runs the steps of the check on this machine's GPU, with what pack.py has put into a folder.

    python tests/device/check.py FOLDER [STEP ...] [--record [FILE]]

Prints a JSON line for each result, and one for each step that ends badly; exit status 1 where any
says that something is not as it must be, 2 without the folder. --record writes
tests/benchmarks/GPU.md after each step, with what FOLDER remembers of steps that ran before.
Nothing is installed: FOLDER has the packages, this repository lmcast.
"""

import argparse
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests/benchmarks/GPU.md"
TREE = "unpacked"
LIMIT = 540  # seconds, of all steps together
STEPS = Path(__file__).with_name("steps.py")
ROOMS = ("plugins", "graphs", "calib", "exporter")
FIRST = "load"  # without which no other is worth its time
REMEMBERED = "results.json"  # lines of each step, and the day
Line = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all")
    parser.add_argument(
        "--record", nargs="?", type=Path, const=RECORD, metavar="FILE",
        help=f"write {RECORD.relative_to(ROOT)}, or FILE",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds (default: %(default)s)")
    asked = parser.parse_args(arguments)
    if not any(asked.folder.glob("*.tar.xz")) and not (asked.folder / TREE).is_dir():
        print(f"{asked.folder}: no parts of tests/device/pack.py are there", file=sys.stderr)
        return 2
    lines, memory = [], remembered(asked.folder)
    tree, broken = unpacked(asked.folder)
    for step, found in [("unpack", iter(broken))] if broken else []:
        lines += kept(asked, memory, step, found)
    for step, found in checked(tree, asked.steps, asked.limit, environment(tree)):
        lines += kept(asked, memory, step, found)
    return 0 if all(line["ok"] for line in lines) else 1


def kept(asked: Any, memory: dict[str, Any], step: str, found: Iterator[Line]) -> list[Line]:
    """Print the lines of a step as they come, and write them down; return them."""
    lines = []
    for line in found:
        print(json.dumps(line), flush=True)
        lines.append(line)
    memory[step] = {"day": time.strftime("%Y-%m-%d"), "lines": lines}
    (asked.folder / REMEMBERED).write_text(json.dumps(memory), encoding="utf-8")
    if asked.record is not None:
        asked.record.write_text(recorded(memory), encoding="utf-8")
    return lines


def remembered(folder: Path) -> dict[str, Any]:
    """Return what earlier runs found, {} where that cannot be read."""
    try:
        found: dict[str, Any] = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
        recorded(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def unpacked(folder: Path) -> tuple[Path, list[Line]]:
    """Return the folder with the content of all parts, each unpacked once, and what is wrong."""
    tree, broken = (folder / TREE).absolute(), []
    tree.mkdir(exist_ok=True)
    for part in sorted(folder.glob("*.tar.xz")):
        done = tree / f".{part.name}"
        if done.exists() and done.read_text() == str(part.stat().st_size):
            continue
        try:
            with tarfile.open(part) as archive:
                archive.extractall(tree, filter="data")
            done.write_text(str(part.stat().st_size))
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            done.unlink(missing_ok=True)
            broken.append(failed("unpack", f"{part.name}: {error}; bring it again"))
    (tree / "packages/lmcast").mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        link = tree / "packages/lmcast" / room
        if not link.is_symlink() or link.resolve() != (ROOT / room).resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / room)
    return tree, broken


def environment(tree: Path) -> dict[str, str]:
    """Return the environment of a step: our packages first, CUDA's libraries from PyTorch's."""
    found = find_spec("nvidia")
    places = found.submodule_search_locations if found else None
    libraries = [str(path) for place in places or [] for path in sorted(Path(place).glob("*/lib"))]
    paths = [str(tree / "packages"), str(tree / "site"), str(ROOT / "tests")]

    def before(name: str, first: list[str]) -> str:
        return os.pathsep.join([*first, *filter(None, [os.environ.get(name, "")])])

    return os.environ | {
        "PYTHONPATH": before("PYTHONPATH", paths),
        # Behind those that are asked for: they may be of a fake GPU.
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, [os.environ.get("LD_LIBRARY_PATH", ""), *libraries])
        ),
        "ORT_DISABLE_TELEMETRY": "1",
    }


def checked(
    tree: Path, names: Sequence[str], limit: float, variables: Mapping[str, str]
) -> Iterator[tuple[str, Iterator[Line]]]:
    """Run steps in processes of their own, until the time is over; yield what each says."""
    sys.path.insert(0, str(ROOT / "tests"))
    from device.steps import STEPS as KNOWN

    end, good = time.monotonic() + limit, True
    for name, (_, most, part) in KNOWN.items():
        if names and name not in names:
            continue
        left = min(most, end - time.monotonic())
        if not good:
            lines = [failed(name, f"not begun: {FIRST} failed")]
        elif left <= 0:
            lines = [failed(name, f"not begun: {limit:g} s are over")]
        elif not (tree / f".{part}.tar.xz").exists():
            lines = [failed(name, f"not begun: {part}.tar.xz of tests/device/pack.py is missing")]
        else:
            lines = list(said(name, tree, left, variables))
        yield name, iter(lines)
        good = good and (name != FIRST or all(line["ok"] for line in lines))


def said(name: str, tree: Path, limit: float, variables: Mapping[str, str]) -> Iterator[Line]:
    """Yield the lines of one step, and one more if it does not end well.

    It writes into files: of a pipe, what it has started would keep an end open when it is killed.
    """
    log, out = tree / f"{name}.log", tree / f"{name}.out"
    with log.open("wb") as errors, out.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-X", "faulthandler", str(STEPS), name, str(tree)],
            env=dict(variables), stdout=output, stderr=errors, start_new_session=True,
        )  # fmt: skip
        late = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            ended(process)
    count = 0
    for text in out.read_text(errors="replace").splitlines():
        if (line := understood(name, text)) is not None:
            count += 1
            yield line
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
    if late:
        yield failed(name, f"stopped after {limit:.0f} s; it last said: {last}")
    elif process.returncode:
        yield failed(name, f"ended with {process.returncode}; it last said: {last}")
    elif not count:
        yield failed(name, f"found nothing; it last said: {last}")


def ended(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def understood(name: str, text: str) -> Line | None:
    """Return a line of a step; None for anything else that it has printed."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    right = isinstance(line, dict) and line.get("step") == name and "ok" in line
    return line if right else None


def failed(name: str, why: str) -> Line:
    return {"step": name, "ok": False, "why": why}


def recorded(memory: Mapping[str, Any]) -> str:
    """Return the text of GPU.md."""
    text = [
        "# On a GPU",
        "",
        "`python tests/device/check.py FOLDER --record`. What each step checks",
    ]
    text += ["is in tests/device/steps.py."]
    for name, found in memory.items():
        lines = found["lines"]
        bad = sum(not line["ok"] for line in lines)
        text += ["", f"## {name}", "", f"{found['day']}: {len(lines)} lines, {bad} of them bad."]
        text += ["", "```json", *map(json.dumps, lines), "```"]
    return "\n".join([*text, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
