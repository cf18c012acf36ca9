"""What another program picks greedily with an engine, beside what the engine picks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcast.exporter.prove import libraries
from lmcast.exporter.runtime.engine import Engine

NEW_TOKENS = 8


@dataclass(frozen=True)
class Picked:
    """What a program picks greedily, beside the engine. version: None where it is not installed."""

    program: str
    version: str | None
    rows: int
    tokens: int
    problem: str | None

    def text(self) -> str:
        """Return it in a line."""
        if self.version is None:
            return f"{self.program} is not installed: its graph was run by ONNX Runtime alone"
        found = "equal" if self.problem is None else f"FAILED: {self.problem}"
        return f"{self.program} {self.version}: greedy tokens of {self.rows} rows: {found}"


def pick(
    engine: Engine,
    library: Callable[[Path], libraries.Opened],
    rows: Sequence[Sequence[int]],
    slack: float,
) -> Picked:
    """Let a program continue rows, each alone and all as one batch.

    slack: of two tokens whose logits are nearer than that either may be picked.
    """
    prompts = [list(row[: engine.context - NEW_TOKENS]) for row in rows]
    name, found = library.__name__, (len(rows), NEW_TOKENS)
    release = ""  # of a program that does not even open it
    try:
        opened = library(engine.directory)
        name, release = opened.name, opened.version
        *single, together = opened.greedy([*([row] for row in prompts), prompts], NEW_TOKENS)
    except ModuleNotFoundError as error:
        return Picked(str(error.name), None, 0, 0, None)
    except libraries.REFUSALS as error:
        told = " ".join(str(error).split())
        return Picked(name, release, *found, f"it refuses the engine: {told:.300}")
    wanted = [list(each.ids) for each in engine.generate(prompts, max_new_tokens=NEW_TOKENS)]
    for what, got in (("alone", [row for (row,) in single]), ("in one batch", together)):
        for number, (own, want) in enumerate(zip(got, wanted, strict=True)):
            if problem := _differs(engine, prompts[number], own, want, slack):
                return Picked(name, release, *found, f"row {number} {what}: {problem}")
    return Picked(name, release, *found, None)


def _differs(
    engine: Engine, prompt: list[int], got: Sequence[int], wanted: Sequence[int], slack: float
) -> str | None:
    """Say where a program has picked another token, None where it has not, or both are as good."""
    for at, want in enumerate(wanted):
        own = got[at] if at < len(got) else None
        if own == want:
            continue
        if own is not None:
            logits = engine.logits([[*prompt, *wanted[:at]]])[0, -1]
            if abs(float(logits[own]) - float(logits[want])) <= slack:
                return None
        return f"token {at} is {own}, and {want} of the engine"
    return None
