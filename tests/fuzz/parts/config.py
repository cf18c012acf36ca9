"""Configs of every case of the tests, keys changed together: refused, or Hugging Face's logits."""

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzz_configs import VALUES, Trial, differs, hugging_faces, optional, our_logits, paths
from tiny import CASES, Case, case, make, read

from fuzz.edits import ODD, variants
from fuzz.trial import others_follow

PLAIN = "llama/plain"


class Configs:
    name = "config"
    about = "config.json, several keys at once: refused, or the logits that Hugging Face gives"

    def prepare(self, folder: Path) -> None:
        """Make no checkpoint but one: each is when the first trial draws its case."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # whose threads a fork does not have
        logging.set_verbosity_error()
        self.folder = folder
        self.pool = pool()
        self.checkpoint(case(PLAIN))

    def checkpoint(self, case: Case) -> Path:
        directory = self.folder / case.name
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as work:
                made = make(case, Path(work) / "checkpoint")
                directory.parent.mkdir(exist_ok=True)
                made.rename(directory)
        return directory

    def edits(self, chance: random.Random) -> Sequence[Trial]:
        drawn = chance.choice(CASES)
        config = read(self.checkpoint(drawn))[0]
        present = list(paths(config))
        absent = [path for path in optional(drawn, config) if path not in present]
        count = min(4, 1 + int(chance.expovariate(1)))
        found = [chance.choice(absent if chance.random() < 0.3 else present) for _ in range(count)]
        return [self._trial(drawn, config, path, chance) for path in found]

    def _trial(
        self, drawn: Case, config: dict[str, Any], path: tuple[str, ...], chance: random.Random
    ) -> Trial:
        kind = chance.choice(["listed", "near", "near", "known", "known", "odd"])
        if kind == "listed":
            name = chance.choice(sorted(VALUES))
            if name != "absent" or _value(config, path) is not None:
                return Trial(drawn, path, name)
        if kind == "known" and (known := self.pool.get(path[-1])):
            return Trial(drawn, path, chance.choice(known), other=True)
        near = variants(_value(config, path), chance) if kind != "odd" else ODD
        return Trial(drawn, path, json.dumps(chance.choice(near)), other=True)

    def run(self, edits: Sequence[Trial], work: Path) -> str | None:
        drawn = edits[0].case if edits else case(PLAIN)
        trials = edits or [Trial(drawn, ("model_type",), '"llama"', other=True)]
        directory = self.checkpoint(drawn)
        mine = our_logits(trials, directory)
        others_follow()  # the encoder of another config may be of any size
        with tempfile.TemporaryDirectory() as place:
            return differs(trials, mine, directory, Path(place), hugging_faces)


def pool() -> dict[str, list[str]]:
    """Return the JSON of every value that some case has, by the last key."""
    found: dict[str, set[str]] = {}
    for each in CASES:
        for key, value in _pairs(each.settings):
            found.setdefault(key, set()).add(json.dumps(value))
    return {key: sorted(values) for key, values in found.items()}


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _pairs(inner)


def _value(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config


PART = Configs()
