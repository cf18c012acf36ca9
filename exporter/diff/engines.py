"""`lmcast diff`: what differs between two engines, in sections."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmcast.exporter.diff.graphs import formats, graph_changes, versions
from lmcast.exporter.diff.numbers import Numbers, compare
from lmcast.exporter.diff.tokenizers import changed_entries, changed_rules
from lmcast.exporter.diff.values import ABSENT, Change, changes
from lmcast.exporter.engine.graph_file import read_graph
from lmcast.exporter.engine.names import (
    GENERATION,
    GRAPH,
    GRAPHS,
    MODEL,
    PARITY,
    SIGNATURE,
    STORED,
    TEMPLATE,
    TEMPLATES,
    TOKENIZER,
    TOWERS,
    WEIGHTS,
    own_files,
)
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.runtime.engine import Engine
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import escaped

SHOWN, MOST = 20, 1000  # of a section, for a person and in JSON
# Sections that fields of engine.json belong to; all others are of "engine".
SECTIONS = {
    "weights": "formats", "dtype": "formats", "recipe": "formats", "activations": "formats",
    "special_tokens": "texts", "eos_ids": "settings",
}  # fmt: skip


@dataclass(frozen=True)
class Lines:
    """A text that differs, as lines of a unified diff."""

    place: str
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"place": self.place, "diff": list(self.lines)}

    def text(self) -> str:
        """Return it in lines."""
        return "\n".join((f"{self.place}:", *self.lines[:SHOWN]))


Found = Change | Numbers | Lines


@dataclass(frozen=True)
class Difference:
    """What differs between two engines. sections: all that were compared, empty where equal."""

    before: str
    after: str
    sections: Mapping[str, tuple[Found, ...]]

    @property
    def equal(self) -> bool:
        return not any(self.sections.values())

    def as_json(self) -> dict[str, Any]:
        """Return the first MOST of each section, with how many there are."""
        return {
            "before": self.before,
            "after": self.after,
            "equal": self.equal,
            "sections": {
                name: {"count": len(found), "changes": [one.as_json() for one in found[:MOST]]}
                for name, found in self.sections.items()
            },
        }

    def text(self) -> str:
        """Return the first of each section for a person."""
        if self.equal:
            return f"{self.before} and {self.after} are equal in {', '.join(self.sections)}"
        lines = []
        for name, found in self.sections.items():
            equal = "equal"
            if name == "numbers" and self.sections["formats"]:
                equal += " in weights of the same format"  # those of other shapes have no pairs
            lines.append(f"{name}: {f'{len(found):,} changes' if found else equal}")
            for one in found[:SHOWN]:
                lines += [f"  {escaped(line)}" for line in one.text().split("\n")]
            if len(found) > SHOWN:
                lines.append(f"  and {len(found) - SHOWN:,} more")
        return "\n".join(lines)


@checked
def diff(before: Path, after: Path, progress: Progress = silent) -> Difference:
    """Compare two engines, linked ones too: graph, numbers, formats, texts, settings, versions.

    Where linked weights lie, and when they were written, is no difference. Weights are read in
    full, a few megabytes at a time. Raises EngineError for what is no whole engine.
    """
    old, new = Engine(before), Engine(after)
    graphs = _graphs(old), _graphs(new)
    values = _values(old, graphs[0]), _values(new, graphs[1])
    sections: dict[str, list[Found]] = {
        "graph": list(_graph_changes(*graphs)),
        "numbers": list(_numbers(_weights(graphs[0]), _weights(graphs[1]), progress)),
        "formats": [],
        "texts": list(_texts(old, new)),
    }
    for name in values[0]:
        sections.setdefault(name, []).extend(changes(values[0][name], values[1][name]))
    for change in changes(_fields(old), _fields(new)):
        field = re.split(r"[.\[]", change.place)[0]
        sections[SECTIONS.get(field, "engine")].append(change)
    found = {name: tuple(each) for name, each in sections.items()}
    return Difference(str(before), str(after), found)


def _graphs(engine: Engine) -> dict[str, ir.Model]:
    """Return the graphs of an engine by what they are called here: '' the one that all have."""
    held = (TOWERS[name] for name in TOWERS if engine.manifest.fields.get(name))
    files = {"": MODEL} | {file: file for file in held}
    return {name: read_graph(engine.manifest, file) for name, file in files.items()}


def _graph_changes(
    before: Mapping[str, ir.Model], after: Mapping[str, ir.Model]
) -> Iterator[Found]:
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            yield Change(name, *("present" if name in side else ABSENT for side in (before, after)))
            continue
        for change in graph_changes(before[name], after[name]):
            yield replace(change, place=_within(name, change.place))


def _within(graph: str, name: str) -> str:
    """Return a name of a graph as it is told apart from that of another."""
    return f"{graph}: {name}" if graph else name


def _weights(graphs: Mapping[str, ir.Model]) -> dict[str, ir.Value]:
    return {
        _within(graph, name): value
        for graph, model in graphs.items()
        for name, value in model.graph.initializers.items()
    }


def _values(engine: Engine, graphs: Mapping[str, ir.Model]) -> dict[str, Any]:
    """Return the sections that are compared as values of JSON."""
    fields = engine.manifest.fields
    contracts = {"": fields["graph"], **{file: fields.get(n) for n, file in TOWERS.items()}}
    each = [(name, contracts[name] or {}, graph) for name, graph in graphs.items()]
    return {
        "formats": {
            _within(graph, name): format
            for graph, model in graphs.items()
            for name, format in formats(model).items()
        },
        "settings": engine.generation_config,
        "versions": {
            "lmcast": engine.manifest.lmcast,
            **{_within(name, "onnxruntime"): c.get("onnxruntime") for name, c, _ in each},
            **{_within(name, "graph"): versions(graph) for name, _, graph in each},
        },
        "engine": {},  # fields of engine.json, later
        "measured": _measured(engine),
        "files": _other_files(engine),
    }


def _measured(engine: Engine) -> dict[str, Any]:
    """Return parity.json, its results by their scenarios."""
    measured = dict(engine.summary().parity or {})
    measured |= {each["scenario"]: each for each in measured.pop("results", ())}
    return measured


def _numbers(
    old: Mapping[str, ir.Value], new: Mapping[str, ir.Value], progress: Progress
) -> Iterator[Found]:
    both = [name for name in new if name in old]
    sizes = (tensor.nbytes for name in both if (tensor := new[name].const_value) is not None)
    with progress.stage("comparing weights", sum(sizes)) as step:
        for name in both:
            if (found := compare(old[name], new[name], step)) is not None:
                yield found


def _texts(before: Engine, after: Engine) -> Iterator[Found]:
    held = [{name: e.read(name) for name in _names(e) if _is_text(name)} for e in (before, after)]
    for name in sorted(held[0].keys() | held[1].keys()):
        old, new = (side.get(name) for side in held)
        if old is None or new is None:
            yield Change(name, *(ABSENT if side is None else "present" for side in (old, new)))
        elif old != new and name == TOKENIZER:
            found = [*changed_entries(old, new), *changed_rules(old, new)]
            yield from (Change(f"{name}: {c.place!r}", c.before, c.after) for c in found)
            if not found:
                yield Change(name, "written in one way", "in another")
        elif old != new:
            lines, other = (data.decode(errors="replace").split("\n") for data in (old, new))
            told = difflib.unified_diff(lines, other, "before", "after", lineterm="")
            yield Lines(name, tuple(told))


def _names(engine: Engine) -> list[str]:
    return [file.path for file in engine.manifest.files]


def _is_text(name: str) -> bool:
    return name in (TOKENIZER, TEMPLATE) or name.startswith(f"{TEMPLATES}/")


def _fields(engine: Engine) -> dict[str, Any]:
    """Return the fields of engine.json that no other section has."""
    fields = json.loads(json.dumps(dict(engine.manifest.fields)))
    for contract in (fields["graph"], *(fields.get(name) or {} for name in TOWERS)):
        for name in ("onnxruntime", "opsets"):
            contract.pop(name, None)
    fields["graph"]["states"] = {s.pop("name"): s for s in fields["graph"]["states"]}
    for linked in fields["linked"]:
        linked.pop("path")
        linked.pop("mtime_ns")
    return dict(fields)


def _other_files(engine: Engine) -> dict[str, str]:
    """Return the hashes of files that no other section has read, and of the signature."""
    read = {*GRAPHS, PARITY, GENERATION}
    kinds = (STORED, *(f"{own_files(graph)}{GRAPH}" for graph in GRAPHS))
    weights = tuple(f"{WEIGHTS}/{kind}-" for kind in kinds)
    found = {
        file.path: file.sha256
        for file in engine.manifest.files
        if not (file.path in read or _is_text(file.path) or file.path.startswith(weights))
    }
    signed = engine.directory / SIGNATURE
    return found | ({SIGNATURE: engine.read(SIGNATURE).hex()} if signed.exists() else {})
