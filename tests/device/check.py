"""Runs the steps of the check on this machine's GPU, with what pack.py has put into a folder.

    python tests/device/check.py FOLDER [--record] [STEP ...]

Prints a JSON line for each result, and one for each step that ends badly; exit status 1 where any
says that something is not as it must be, 2 without the folder. --record writes
tests/benchmarks/GPU.md. Nothing is installed: FOLDER has the packages, this repository lmcast.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
Line = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds (default: %(default)s)")
    asked = parser.parse_args(arguments)
    if not any(asked.folder.glob("*.tar.xz")) and not (asked.folder / TREE).is_dir():
        print(f"{asked.folder}: no parts of tests/device/pack.py are there", file=sys.stderr)
        return 2
    tree = unpacked(asked.folder)
    lines = []
    for line in checked(tree, asked.steps, asked.limit, environment(tree)):
        print(json.dumps(line), flush=True)
        lines.append(line)
    if asked.record:
        RECORD.write_text(recorded(lines), encoding="utf-8")
    return 0 if all(line["ok"] for line in lines) else 1


def unpacked(folder: Path) -> Path:
    """Return the folder with the content of all parts, each unpacked once."""
    tree = (folder / TREE).absolute()
    tree.mkdir(exist_ok=True)
    for part in sorted(folder.glob("*.tar.xz")):
        done = tree / f".{part.name}"
        if not done.exists():
            with tarfile.open(part) as archive:
                archive.extractall(tree, filter="data")
            done.touch()
    (tree / "packages/lmcast").mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        link = tree / "packages/lmcast" / room
        if not link.is_symlink():
            link.symlink_to(ROOT / room)
    return tree


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
) -> Iterator[Line]:
    """Run steps in processes of their own, until the time is over; yield what each says."""
    sys.path.insert(0, str(ROOT / "tests"))
    from device.steps import STEPS as KNOWN

    end = time.monotonic() + limit
    for name, (_, most) in KNOWN.items():
        if names and name not in names:
            continue
        left = min(most, end - time.monotonic())
        if left <= 0:
            yield failed(name, f"not begun: {limit:g} s are over")
            continue
        good = True
        for line in said(name, tree, left, variables):
            good &= bool(line["ok"])
            yield line
        if name == FIRST and not good:
            return


def said(name: str, tree: Path, limit: float, variables: Mapping[str, str]) -> Iterator[Line]:
    """Yield the lines of one step, and one more if it does not end well."""
    log = tree / f"{name}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-X", "faulthandler", str(STEPS), name, str(tree)],
            env=dict(variables), stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            output, late = process.communicate(timeout=limit)[0], False
        except subprocess.TimeoutExpired:
            process.kill()
            output, late = process.communicate()[0], True
    for line in output.decode(errors="replace").splitlines():
        if line.startswith('{"step"'):
            yield json.loads(line)
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
    if late:
        yield failed(name, f"stopped after {limit:.0f} s; it last said: {last}")
    elif process.returncode:
        yield failed(name, f"ended with {process.returncode}; it last said: {last}")


def failed(name: str, why: str) -> Line:
    return {"step": name, "ok": False, "why": why}


def recorded(lines: Sequence[Line]) -> str:
    """Return the text of GPU.md."""
    day = time.strftime("%Y-%m-%d")
    text = ["# On a GPU", "", f"`python tests/device/check.py FOLDER --record`, {day}."]
    text += ["What each step checks is in tests/device/steps.py."]
    for name in dict.fromkeys(line["step"] for line in lines):
        text += ["", f"## {name}", "", "```json"]
        text += [json.dumps(line) for line in lines if line["step"] == name]
        text += ["```"]
    return "\n".join([*text, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
