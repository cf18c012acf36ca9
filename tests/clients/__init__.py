"""Engines of the tiny families in other programs: which of them make the tokens that lmcast does.

Each program is run by driver.py in an environment of its own that the Makefile makes; one process
opens many engines.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny import CASES, Case, make

from lmcast.exporter import Engine, export

HERE = Path(__file__).parent
ENVIRONMENTS = Path(sys.prefix) / "clients"
NEW_TOKENS = 20
LENGTHS = (5, 17, 30)  # of prompts: within the windows of tiny checkpoints, and beyond them
END = 1
ORDINARY = (8, 90)  # ids that are neither special tokens nor those that rows are padded with
SECONDS = 900  # for all engines in one program
Rows = list[list[int]]


@dataclass(frozen=True)
class Client:
    """A program that opens engines.

    name: of driver.py's programs. contract: whose files of an engine it reads, as engine.json names
    them. environment: the folder in ENVIRONMENTS that it is installed in, None for that of the
    tests.
    """

    name: str
    title: str
    contract: str
    environment: str | None = None

    @property
    def python(self) -> str:
        """The Python that has it; that of the tests for what node runs."""
        own = self.folder / "bin/python"
        return sys.executable if self.on_node or self.environment is None else str(own)

    @property
    def on_node(self) -> bool:
        return self.name == "js"

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.environment if self.environment else HERE

    @property
    def missing(self) -> str:
        """Why it cannot be run here; '' where it can."""
        needed = "node" if self.on_node else self.python
        if shutil.which(needed) is None:
            return f"{needed} is not installed; make test-clients does that"
        if self.on_node and not (self.folder / "node_modules").exists():
            return f"its packages are not installed in {self.folder}; make test-clients does that"
        return ""


CLIENTS = {
    client.name: client
    for client in (
        Client("genai", "onnxruntime-genai", "genai", "genai"),
        Client("optimum", "optimum-onnx", "hub", "optimum"),
        Client("js", "transformers.js", "hub", "js"),
        Client("onnxruntime", "ONNX Runtime alone", "hub"),
    )
}


@dataclass(frozen=True)
class Given:
    """An engine, prompts, and what lmcast continues them with."""

    engine: Engine
    prompts: Rows
    tokens: Rows

    def refused(self, contract: str) -> str:
        """Why the engine has no files for a contract, as its export said; '' where it has."""
        return self.engine.manifest.about.clients.get(contract, "export wrote nothing of it")


def first_cases() -> dict[str, Case]:
    """Return the first case of each family, in the order of their names."""
    by_name = {case.architecture: case for case in reversed(CASES)}
    return {name: by_name[name] for name in sorted(by_name)}


def given(case: Case, checkpoint: Path, folder: Path) -> Given:
    """Export a self-contained engine with its clients' files, as a user would; run its prompts."""
    make(case, checkpoint)
    # Which token ends a text is known of all that were released, and of few tiny ones.
    config = json.loads((checkpoint / "config.json").read_text())
    stated = [part.get("eos_token_id") for part in (config, config.get("text_config", {}))]
    if not any(isinstance(id, int) for id in stated):
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    export(checkpoint, folder, "cpu", None, "copy", False, tokenizer=False, text_only=True)
    engine = Engine(folder, threads=1)
    # Rows that outgrow a length of LongRoPE begin anew, which no other program does.
    beyond = max(engine.manifest.about.graph.anew_beyond, default=0)
    random = np.random.default_rng(3)
    lengths = [max(length, beyond + 1 + i) for i, length in enumerate(LENGTHS)]
    prompts = [random.integers(*ORDINARY, length).tolist() for length in lengths]
    made = engine.generate(prompts, max_new_tokens=NEW_TOKENS)
    return Given(engine, prompts, [list(row.ids) for row in made])


def drive(client: Client, engines: Mapping[str, Given], folder: Path) -> dict[str, dict[str, Any]]:
    """Run all engines in one process of a program; raises RuntimeError where that ends early."""
    request, answer = folder / f"{client.name}.request", folder / f"{client.name}.answer"
    request.write_text(
        json.dumps(
            {
                "new": NEW_TOKENS,
                "engines": {
                    name: {"directory": str(each.engine.directory), "prompts": each.prompts}
                    for name, each in engines.items()
                },
            }
        )
    )
    done = subprocess.run(
        [client.python, HERE / "driver.py", client.name, request, answer], cwd=client.folder,
        timeout=SECONDS, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{client.title} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, dict[str, Any]] = json.loads(answer.read_text())
    return found


def differs(each: Given, answer: Mapping[str, Any]) -> str:
    """Say how a program's tokens differ from lmcast's, '' where they do not.

    A row that ended is padded, which lmcast's is not: tokens are compared up to its end.
    """
    for how in ("single", "batch"):
        found = answer[how]
        if isinstance(found, str):
            return f"{how}: {found}"
        for number, (row, expected) in enumerate(zip(found, each.tokens, strict=True)):
            if row[: len(expected)] != expected:
                same = next(
                    (i for i, (a, b) in enumerate(zip(row, expected, strict=False)) if a != b),
                    len(row),
                )
                return f"{how}: row {number} differs from token {same} on"
    return ""


def outcomes(
    client: Client, engines: Mapping[str, Given], folder: Path, names: Iterable[str] | None = None
) -> dict[str, str]:
    """Return what came of each engine in a program: 'yes', the reason that its export gave for not
    writing files, or 'no: ' and what went wrong."""
    chosen = {name: engines[name] for name in names or engines}
    able = {name: each for name, each in chosen.items() if not each.refused(client.contract)}
    answers = drive(client, able, folder) if able else {}
    found = {}
    for name, each in chosen.items():
        if name in able:
            wrong = differs(each, answers[name])
            found[name] = f"no: {wrong}" if wrong else "yes"
        else:
            found[name] = each.refused(client.contract)
    return found
