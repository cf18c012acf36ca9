"""Every key of every architecture's tiny configs, replaced by values that it cannot mean:

    python tests/graphs/fuzz_configs.py                      # all of them: about 20 minutes
    python tests/graphs/fuzz_configs.py llama qwen3_moe      # of these architectures

Each must be refused in one line, or give the logits that Hugging Face gives from the same file.
What does neither is printed, and the exit status is then 1. test_fuzz_configs takes a sample.
"""

import argparse
import json
import math
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import CASES, Case, defined, gap, logits, make, oracle, prompt, read
from torch import Tensor

from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.graphs import archs
from lmcast.graphs.config.inert import INERT
from lmcast.plugins.errors import InputError

VALUES: dict[str, Any] = {
    "null": None,
    "-1": -1,
    "0": 0,
    "1e308": 1e308,
    "NaN": math.nan,
    "a string": "x",
    "a list": [1],
    "an object": {"x": 1},
    "a huge integer": 10**30,
    "one beyond all floats": 10**400,
}
SECONDS = 10  # of CPU, of one trial, on each side
# Of the largest logit: fp32 noise is below a thousandth of that, another computation above it.
TOLERANCE = 1e-3
Path_ = tuple[str, ...]  # keys, outermost first


@dataclass(frozen=True)
class Trial:
    """One key of the config of a case, replaced."""

    case: Case
    path: Path_
    value: str  # of VALUES

    def __str__(self) -> str:
        return f"{self.case.name}: {'.'.join(self.path)} = {self.value}"

    def config(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `plain` with the key replaced."""
        changed = deepcopy(plain)
        holder = changed
        for key in self.path[:-1]:
            holder = holder[key]
        holder[self.path[-1]] = VALUES[self.value]
        return changed


def paths(config: dict[str, Any], within: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every key, also of nested objects."""
    for key, value in config.items():
        yield (*within, key)
        if isinstance(value, dict):
            yield from paths(value, (*within, key))


def trials(case: Case, directory: Path, seen: set[Path_] | None = None) -> list[Trial]:
    """Return the trials of a checkpoint's keys, without those in `seen`, to which they are
    added."""
    seen = set() if seen is None else seen
    new = [path for path in paths(read(directory)[0]) if path not in seen]
    seen.update(new)
    return [Trial(case, path, value) for path in new for value in VALUES]


def sample(case: Case, directory: Path, count: int, seed: int) -> list[Trial]:
    """Return some trials of a checkpoint, the same for the same seed."""
    return random.Random(f"{case.name} {seed}").sample(trials(case, directory), count)


def fault(trial: Trial, directory: Path, work: Path) -> str | None:
    """Return what is wrong with what a trial gives, or None.

    directory: the checkpoint of its case. work: an empty folder, in which Hugging Face reads.
    """
    plain, tensors = read(directory)
    text = json.dumps(trial.config(plain))
    try:
        with limited():
            config = parse_object(text.encode(), Path("config.json"))
            found = defined(config, tensors)
            assert found.context > 0 < found.active <= found.parameters
            assert isinstance(found.left_out, str)
            mine = logits(config, tensors)
    except InputError as error:
        return "more than one line" if "\n" in str(error) else None
    except Exception as error:  # noqa: BLE001 (what this looks for)
        return f"{type(error).__name__}: {error}"
    (work / "config.json").write_text(text)
    (work / "model.safetensors").symlink_to(directory / "model.safetensors")
    try:
        with limited():
            theirs = oracle(trial.case, work, prompt())
    except Exception as error:  # noqa: BLE001 (whatever Hugging Face raises is its refusal)
        # Null has one meaning where our Config takes it; a key of no effect has none to differ.
        if trial.value == "null" or changes_nothing(trial, plain, tensors):
            return None
        said = " ".join(str(error).split())
        return f"accepted; Hugging Face refuses: {type(error).__name__}: {said:.200}"
    bound = TOLERANCE * theirs.abs().nan_to_num(1.0).max().clamp(min=1).item()
    if torch.allclose(mine, theirs, rtol=0, atol=bound, equal_nan=True):
        return None
    return f"other logits than Hugging Face's: by {gap(mine, theirs):.2g}"


def changes_nothing(trial: Trial, plain: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether our definition says that the key changes nothing, at any value or of some type."""
    path = ".".join(trial.path)
    found = defined(plain, tensors)
    inert = {*archs.get(trial.case.architecture).inert, *INERT, *found.arch.inert}
    if path in inert or path.removeprefix("text_config.") in inert:
        return True
    return is_accepted(replace(trial, value="an object").config(plain), tensors)


def is_accepted(config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    try:
        defined(config, tensors)
    except InputError:
        return False
    return True


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError in what takes longer than SECONDS."""

    def end(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("architectures", nargs="*", metavar="ARCHITECTURE")
    names = options.parse_args().architectures or archs.NAMES
    counts: Counter[str] = Counter()
    for name in names:
        seen: set[Path_] = set()
        started = time.process_time()
        for case in (case for case in CASES if case.architecture == name):
            with tempfile.TemporaryDirectory() as folder:
                directory = make(case, Path(folder) / "checkpoint")
                for i, trial in enumerate(trials(case, directory, seen)):
                    work = Path(folder) / str(i)
                    work.mkdir()
                    found = fault(trial, directory, work)
                    counts["trials"] += 1
                    if found:
                        counts["faults"] += 1
                        print(f"{trial}: {found}", flush=True)
        print(f"{name}: {len(seen)} keys, {time.process_time() - started:.0f} s", flush=True)
    print(f"{counts['trials']} trials, {counts['faults']} faults")
    return 1 if counts["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
