"""Where an engine or a recipe may be written: not into what it is made of, nor over another's."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmcast.exporter.engine.manifest import EngineError, is_engine, is_recipe
from lmcast.exporter.engine.names import ENGINE_JSON, RECIPE_JSON
from lmcast.exporter.engine.sealed import DamagedError, parse_object, read_regular

FORCE = "--force replaces it; or give another path"


def check_output(
    output: Path,
    checkpoint: Path,
    kind: str,
    source: Sequence[Mapping[str, Any]],
    force: bool,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Refuse an output in a checkpoint, or one that holds it, one in an engine or a recipe, and,
    unless by force, an engine or a recipe of another checkpoint; raises EngineError.

    checkpoint: its directory or file. kind: ENGINE_JSON or RECIPE_JSON, of what is written. source:
    names, sizes and headers of its files, as both record them. config: its config.json, by which
    an engine is known too.
    """
    check_outside(output)
    check_apart(output, checkpoint)
    if not force:
        check_replaced(output, kind, source, config)


def check_outside(output: Path) -> None:
    """Refuse what is to be written into an engine or a recipe; links are followed."""
    for above in Path(os.path.realpath(output)).parents:
        if is_engine(above) or is_recipe(above):
            raise EngineError(
                f"{output}: is inside {above}, which holds what was written into it and nothing"
                " else; give a path outside of it"
            )


def check_apart(output: Path, checkpoint: Path, what: str = "checkpoint") -> None:
    """Refuse an output that is in a checkpoint, or holds it; links are followed.

    What lies in a checkpoint is read as part of it, and what is replaced goes with all it holds: of
    an engine, too, that others are made of. what: which of them it is, for people.
    """
    ours, theirs = (Path(os.path.realpath(path)) for path in (output, checkpoint))
    if ours == theirs or ours in theirs.parents:
        found = f"is the {what}" if ours == theirs else f"holds the {what} {checkpoint}"
    elif theirs in ours.parents:
        found = f"is inside the {what} {checkpoint}"
    else:
        return
    raise EngineError(f"{output} {found}: give a path outside of it")


def check_replaced(
    output: Path,
    kind: str,
    source: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any] | None,
) -> None:
    """Refuse to replace what is of another checkpoint, or of another kind; '': of neither.

    What is damaged tells nothing, and is replaced: to export again is the advice.
    """
    engine = is_engine(output)
    if not engine and not is_recipe(output):
        return  # staged says what may be replaced
    there = ENGINE_JSON if engine else RECIPE_JSON
    what = "an engine" if engine else "a recipe"
    if kind != there:
        raise EngineError(f"{output} is {what}, not what is to be written there: {FORCE}")
    try:
        fields = parse_object(read_regular(output / there))
    except (OSError, DamagedError):
        return
    same = fields.get("source") == json.loads(json.dumps(list(source)))
    if engine and config is not None:
        same |= fields.get("config") == json.loads(json.dumps(dict(config)))
    if not same:
        of = f" ({fields.get('architecture')}, {fields.get('parameters')} parameters)"
        raise EngineError(f"{output} is {what} of another checkpoint{of * engine}: {FORCE}")
