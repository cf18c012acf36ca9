"""Every key of every architecture's tiny configs, replaced by values that it cannot mean:

    python tests/graphs/fuzz_configs.py                   # all of them: 20 minutes of CPU
    python tests/graphs/fuzz_configs.py llama qwen3_moe   # of these architectures
    python tests/graphs/fuzz_configs.py --values null absent  # 5 minutes of CPU

Null is also tried for keys that no case has, but a Config of ours or of Hugging Face.

Each must be refused in one line, or give the logits that Hugging Face gives from the same file.
What does neither is printed, and the exit status is then 1. test_fuzz_configs takes a sample.
"""

import argparse
import io
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import (
    CASES,
    CLASSES,
    Case,
    case,
    defined,
    gap,
    logits,
    make,
    oracle,
    oracle_model,
    prompt,
    read,
)
from torch import Tensor

from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.graphs import archs
from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.config.inert import INERT
from lmcast.graphs.config.older_spellings import ROPE_KEYS
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.weights.bind import WeightError, not_a_copy, require_zeros
from lmcast.graphs.weights.sources import alike
from lmcast.plugins.errors import InputError

ABSENT = object()
VALUES: dict[str, Any] = {
    "absent": ABSENT,
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
Answer = Callable[..., Tensor]


@dataclass(frozen=True)
class Trial:
    """One key of the config of a case, replaced."""

    case: Case
    path: Path_
    value: str  # of VALUES, or the JSON of another
    other: bool = False  # whether it is another

    def __str__(self) -> str:
        return f"{self.case.name}: {'.'.join(self.path)} = {self.value:.200}"

    @property
    def given(self) -> Any:
        return json.loads(self.value) if self.other else VALUES[self.value]

    def config(self, plain: dict[str, Any], floats: bool = False) -> dict[str, Any]:
        """Return a copy of `plain` with the key replaced; floats: by a float for an integer."""
        changed, value = deepcopy(plain), self.given
        if floats:
            value = as_floats(value)
        holder: Any = changed
        for key in self.path[:-1]:
            holder = holder.get(key)
            if not isinstance(holder, dict):  # another trial has replaced it
                return changed
        holder[self.path[-1]] = value
        if value is ABSENT:
            del holder[self.path[-1]]
        return changed


def as_floats(value: Any) -> Any:
    """Return a value with floats for the integers in it that floats are, too."""
    if isinstance(value, list):
        return [as_floats(each) for each in value]
    return float(value) if type(value) is int and abs(value) < 1 << 53 else value


def all_of(trials: Sequence[Trial], plain: dict[str, Any], floats: bool = False) -> dict[str, Any]:
    """Return a config with every trial in it, one after the other."""
    for trial in trials:
        plain = trial.config(plain, floats)
    return plain


def paths(config: dict[str, Any], within: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every key, also of nested objects."""
    for key, value in config.items():
        yield (*within, key)
        if isinstance(value, dict):
            yield from paths(value, (*within, key))


def trials(case: Case, directory: Path, seen: set[Path_] | None = None) -> list[Trial]:
    """Return the trials of a checkpoint's keys, and of null for those that it does not have,
    without those in `seen`, to which they are added."""
    seen = set() if seen is None else seen
    config = read(directory)[0]
    new = [path for path in paths(config) if path not in seen]
    seen.update(new)
    others = [path for path in optional(case, config) if path not in seen]
    seen.update(others)
    return [
        *(Trial(case, path, value) for path in new for value in VALUES),
        *(Trial(case, path, "null") for path in others),
    ]


def optional(case: Case, config: dict[str, Any]) -> Iterator[Path_]:
    """Yield the paths of the keys of the text that we, or Hugging Face, know."""
    import transformers

    within = ("text_config",) if "text_config" in config else ()
    text = config["text_config"] if within else config
    arch = archs.get(case.architecture)
    if isinstance(arch, Multimodal):
        arch = arch.texts[text.get("model_type", next(iter(arch.texts)))].arch
    theirs = getattr(transformers, CLASSES.get(arch.name, (case.config_class,))[0], arch.config)
    names = {field.name for cls in (arch.config, theirs) for field in fields(cls)}
    names |= {*ROPE_KEYS, "rope_scaling", "head_dim", *getattr(theirs, "attribute_map", ())}
    yield from ((*within, name) for name in sorted(names))
    if isinstance(text.get("rope_parameters"), dict):
        nested = text["rope_parameters"]
        kinds = [(kind,) for kind in nested if isinstance(nested[kind], dict)] or [()]
        own = sorted(field.name for field in fields(RopeParameters))
        yield from ((*within, "rope_parameters", *kind, key) for kind in kinds for key in own)


def of_table() -> list[Trial]:
    """Return trials of every key of INERT, in a config that lacks most of them."""
    plain = case("llama/plain")
    values = [value for value in VALUES if value != "absent"]
    return [Trial(plain, (key,), value) for key in sorted(INERT) for value in values]


def sample(among: list[Trial], count: int, seed: int) -> list[Trial]:
    """Return some of these trials, the same for the same seed."""
    return random.Random(f"{among[0].case.name} {seed}").sample(among, count)


def fault(trials: Sequence[Trial], directory: Path, work: Path, ask: Answer) -> str | None:
    """Return what is wrong with what trials of one case give together, or None.

    directory: the checkpoint of the case. work: an empty folder, in which Hugging Face reads.
    ask: gives Hugging Face's logits.
    """
    try:
        mine = our_logits(trials, directory)
    except InputError as error:
        return "more than one line" if "\n" in str(error) else None
    except Exception as error:  # noqa: BLE001 (what this looks for)
        return f"{type(error).__name__}: {error}"
    return differs(trials, mine, directory, work, ask)


def our_logits(trials: Sequence[Trial], directory: Path) -> Tensor:
    """Return our logits B,T,V; raises InputError where the config is refused."""
    plain, tensors = read(directory)
    text = json.dumps(all_of(trials, plain))
    with limited():
        config = parse_object(text.encode(), Path("config.json"))
        found = defined(config, tensors)
        assert found.context > 0 < found.active <= found.parameters
        assert isinstance(found.left_out, str)
        for copy, original in found.binding.copies:  # as whatever opens a checkpoint
            if not alike(tensors[copy], tensors[original]):
                raise WeightError(not_a_copy(copy, original))
        for name in found.binding.zeros:
            require_zeros(name, tensors[name])
        return logits(config, tensors)


def differs(
    trials: Sequence[Trial], mine: Tensor, directory: Path, work: Path, ask: Answer
) -> str | None:
    """Say how our logits are not those of Hugging Face, as for `fault`."""
    plain, tensors = read(directory)
    try:
        theirs = ask(trials, plain, directory, work)
    except Exception as error:  # noqa: BLE001 (whatever Hugging Face raises is its refusal)
        # A key of no effect has no meaning to differ.
        others = [trial for trial in trials if not changes_nothing(trial, plain, tensors)]
        if len(others) < len(trials):
            return fault(others, directory, work / "others", ask) if others else None
        said = " ".join(str(error).split())
        return f"accepted; Hugging Face refuses: {type(error).__name__}: {said:.200}"
    seen = before_pictures(all_of(trials, plain))
    if not seen:
        return None
    mine, theirs = mine[:, :seen], theirs[:, :seen]
    bound = TOLERANCE * theirs.abs().nan_to_num(1.0).max().clamp(min=1).item()
    if torch.allclose(mine, theirs, rtol=0, atol=bound, equal_nan=True):
        return None
    return f"other logits than Hugging Face's: by {gap(mine, theirs):.2g}"


def before_pictures(config: dict[str, Any]) -> int:
    """Return how many tokens of the prompt stand before the place of a picture or video, which
    some models embed otherwise and no text has."""
    ids, count = prompt(), prompt().shape[1]
    for place in (config.get("image_token_id"), config.get("video_token_id")):
        if type(place) is int and (found := (ids == place).any(0)).any():
            count = min(count, int(found.int().argmax()))
    return count


def hugging_faces(
    trials: Sequence[Trial], plain: dict[str, Any], directory: Path, work: Path
) -> Tensor:
    """Return Hugging Face's logits B,T,V; of a whole number where it takes none, those of the
    float: other writers of JSON leave the point out."""
    given = [trial.given for trial in trials]
    forms = [False, True] if repr(as_floats(given)) != repr(given) else [False]
    for i, floats in enumerate(forms):
        place = work / str(i)
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(all_of(trials, plain, floats)))
        (place / "model.safetensors").symlink_to(directory / "model.safetensors")
        try:
            with limited():
                return published(trials[0].case, place)
        except Exception:  # of the last form it says why there are none
            if i == len(forms) - 1:
                raise
    raise AssertionError("no form of a value")


def published(case: Case, directory: Path) -> Tensor:
    """Return Hugging Face's logits B,T,V, with the bounds of steps that the makers' own code takes
    of Nemotron-H: its takes another key for those of prompts (test_nemotron.py)."""
    if case.architecture != "nemotron_h":
        return oracle(case, directory, prompt())
    model = oracle_model(case, directory)
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            low, high = model.config.time_step_limit
            layer.mixer.time_step_limit = low, min(high, torch.finfo(torch.float32).max)
    with torch.no_grad():
        return model(prompt(), use_cache=False).logits


class Apart(Exception):
    """What ended a call in a process of its own."""


def apart(function: Answer) -> Answer:
    """Return a function that is called in a fork of this process; raises Apart for what it raises.

    What transformers changes of torch for a load, it puts back at its end; where the limit strikes
    in between, that would stay, and be the answer to all later trials.
    """

    def called(*arguments: Any) -> Tensor:
        reader, writer = os.pipe()
        if not (child := os.fork()):
            torch.set_num_threads(1)  # threads do not get into a fork
            try:
                said: Any = function(*arguments)
            except BaseException as error:  # noqa: BLE001 (the parent raises it)
                said = f"{type(error).__name__}: {error}"
            with os.fdopen(writer, "wb") as out:
                torch.save(said, out)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as given:
            data = given.read()
        _, status = os.waitpid(child, 0)
        if status:
            raise Apart(f"the process ended with status {os.waitstatus_to_exitcode(status)}")
        said = torch.load(io.BytesIO(data))
        if isinstance(said, str):
            raise Apart(said)
        return said

    return called


def changes_nothing(trial: Trial, plain: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether our definition says that the key changes nothing, at any value or of some type, or
    that nothing reads it and its value is empty."""
    path = ".".join(trial.path)
    found = defined(plain, tensors)
    inert = {*archs.get(trial.case.architecture).inert, *INERT, *found.arch.inert}
    if path in inert or path.removeprefix("text_config.") in inert:
        return True
    thing = replace(trial, value="an object", other=False).config(plain)
    try:
        defined(thing, tensors)
    except InputError as error:
        unread = f"sets {path} = " in str(error) and "which nothing reads" in str(error)
        return unread and trial.given in ("", [], {})
    return True


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


def run(found: list[Trial], directory: Path, folder: Path, ask: Answer = hugging_faces) -> int:
    """Print the faults of trials of one checkpoint; return how many there are."""
    faults = 0
    for i, trial in enumerate(found):
        work = folder / str(i)
        work.mkdir(parents=True)
        if said := fault([trial], directory, work, ask):
            faults += 1
            print(f"{trial}: {said}", flush=True)
    return faults


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("architectures", nargs="*", metavar="ARCHITECTURE")
    options.add_argument("--values", nargs="+", choices=VALUES, default=list(VALUES))
    chosen = options.parse_args()
    count = faults = 0
    for name in chosen.architectures or archs.NAMES:
        seen: set[Path_] = set()
        started = time.process_time()
        for one in (one for one in CASES if one.architecture == name):
            with tempfile.TemporaryDirectory() as folder:
                directory = make(one, Path(folder) / "checkpoint")
                found = trials(one, directory, seen)
                found += of_table() if one is case("llama/plain") else []
                found = [trial for trial in found if trial.value in chosen.values]
                faults += run(found, directory, Path(folder) / "work", apart(hugging_faces))
                count += len(found)
        print(f"{name}: {len(seen)} keys, {time.process_time() - started:.0f} s", flush=True)
    print(f"{count} trials, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
