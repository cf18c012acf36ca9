"""Inspection of a checkpoint or an engine: parameters, weights by format, states, files."""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcast.exporter.dtypes import COMPUTED, DTYPES, computed, of_torch
from lmcast.exporter.engine.description import said_of
from lmcast.exporter.engine.manifest import is_engine, read_manifest
from lmcast.exporter.engine.names import TOKENIZER, templates
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.vision.processor import Processor, features
from lmcast.plugins.annotations import Count, Rows
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import InputError, escaped

if TYPE_CHECKING:
    from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor
    from lmcast.graphs import Definition
    from lmcast.graphs.weights.bind import Binding


SIDE = 1024  # pixels of a picture whose tokens are told
SQUARE = f"tokens_{SIDE}x{SIDE}"


class InspectError(InputError):
    """A request that inspection cannot answer."""


@dataclass(frozen=True)
class StateSize:
    """The decode state in numbers and bytes, divided into what grows per token and what does
    not."""

    format: str
    elements_per_token: int
    bytes_per_token: int
    fixed_bytes_per_sequence: int
    bytes: int  # at the batch and context asked for


@dataclass(frozen=True)
class Inspection:
    """The result of `lmcast inspect`."""

    path: str
    kind: str  # 'checkpoint' or 'engine'
    architecture: str
    parameters: int
    active_parameters: int  # those a token is multiplied with
    layers: int
    context: int
    vocab_size: int
    weights: dict[str, dict[str, int]]  # format -> tensors, bytes
    state: StateSize
    batch: int
    tokens: int
    files: list[dict[str, Any]]  # path, bytes, what
    target: str | None = None
    sms: tuple[int, ...] = ()  # GPUs that its graph has machine code for
    linked: bool | None = None
    tokenizer: bool = False
    hub: dict[str, str] | None = None  # repository, revision
    recipe: dict[str, Any] | None = None  # that an engine was made with, as MadeWith
    chat_templates: tuple[str, ...] = ()  # names, "default" among them as a rule
    tower: dict[str, int] | None = None  # its parameters, and the tokens of a square picture
    audio: int | None = None  # parameters of the tower that hears sounds
    ignored: tuple[str, ...] = ()
    left_out: str = ""  # the same in short
    clients: dict[str, str] | None = None  # other programs, as Description has them

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """Return the same for a person."""
        state = self.state
        lines = [
            f"{self.path}: {self.kind}",
            f"architecture  {self.architecture}, {self.layers} layers, {self.vocab_size:,} ids",
            f"parameters    {self.parameters:,}, of which a token uses {self.active_parameters:,}",
            *self._tower(),
            *(
                f"weights       {name}: {w['tensors']} tensors, {w['bytes']:,} bytes"
                for name, w in sorted(self.weights.items())
            ),
            f"context       {self.context:,} tokens",
            f"state         per token {state.elements_per_token:,} elements ="
            f" {state.bytes_per_token:,} bytes in {state.format}",
            f"              per sequence {state.fixed_bytes_per_sequence:,} bytes besides",
            f"              {state.bytes:,} bytes for {self.batch} x {self.tokens:,} tokens",
            f"text          {'a' if self.tokenizer else 'no'} tokenizer,"
            f" {'chat templates: ' if self.chat_templates else 'no chat template'}"
            f"{', '.join(self.chat_templates)}",
        ]
        if self.target:
            gpus = f" for {', '.join(f'SM{sm}' for sm in self.sms)}" if self.sms else ""
            kept = "linked" if self.linked else "self-contained"
            lines.append(f"target        {self.target}{gpus}, {kept}")
        clients = said_of(self.clients or {}, self.tower is not None)
        lines += [f"              {line}" for line in clients]
        if self.hub:
            lines.append(f"from the Hub  {self.hub['repository']}, {self.hub['revision']}")
        lines += self._recipe()
        if self.left_out:
            lines.append(f"left out      {self.left_out}")
        lines += [f"{f['what']:<14}{f['path']} ({f['bytes']:,} bytes)" for f in self.files]
        return "\n".join(map(escaped, lines))  # a line each, whatever files are called

    def _tower(self) -> list[str]:
        if self.tower is None:
            return []
        lines = [] if self.audio is None else [f"sounds        {self.audio:,} parameters besides"]
        lines += [f"pictures      {self.tower['parameters']:,} parameters besides"]
        if SQUARE in self.tower:
            lines.append(f"              {self.tower[SQUARE]:,} tokens for {SIDE} x {SIDE} pixels")
        return lines

    def _recipe(self) -> list[str]:
        if self.recipe is None:
            return []
        lines = [f"recipe        sha256 {self.recipe['sha256']}"]
        if lost := self.recipe["quality"]:
            where = f"{lost['tokens']:,} tokens of {lost['text']}"
            lines.append(f"              KL {lost['kl']:.3g} nats from the checkpoint over {where}")
        return lines


@checked
def inspect(
    path: str | PathLike[str],
    batch: Rows = 1,
    context: Count | None = None,
    *,
    inert: Collection[str] = (),
    untie: bool = False,
    revision: str | None = None,
    text_only: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Describe a checkpoint or an engine; state sizes are for `batch` rows of `context` tokens.

    path: also a model of the Hub. context None means the longest the model takes. inert, untie,
    revision, text_only: of a checkpoint, as for `export`. Raises InputError where the path is
    neither.
    """
    if not is_engine(Path(path)):
        return _checkpoint(path, batch, context, inert, untie, revision, progress, text_only)
    if inert or untie or revision is not None or text_only:
        raise InspectError(
            f"{path}: is an engine; --inert, --untie, --revision and --text-only are for"
            " checkpoints"
        )
    return _engine(Path(path), batch, context)


State = tuple[list[int | str], str]  # shape with "B" and "C", format


def _state_size(states: list[State], batch: int, tokens: int) -> StateSize:
    per_token = elements = fixed = 0
    formats = Counter(format for _, format in states)
    for shape, format in states:
        numbers = math.prod(n for n in shape if isinstance(n, int))
        size = numbers * DTYPES[format].bytes
        if "C" in shape:
            per_token += size
            elements += numbers
        else:
            fixed += size
    format = "+".join(sorted(formats)) or "float32"
    total = batch * (per_token * tokens + fixed)
    return StateSize(format, elements, per_token, fixed, total)


def _engine(path: Path, batch: int, context: int | None) -> Inspection:
    manifest = read_manifest(path)
    about = manifest.about
    states: list[State] = [(list(state.shape), state.dtype) for state in about.graph.states]
    tokens = _tokens(context, about.context)
    names = {file.path for file in manifest.files}
    files = [{"path": f.path, "bytes": f.size, "what": "engine"} for f in manifest.files]
    files += [{"path": s.path, "bytes": s.size, "what": "linked"} for s in about.linked]
    return Inspection(
        path=str(path),
        kind="engine",
        architecture=about.architecture,
        parameters=about.parameters,
        active_parameters=about.active_parameters,
        layers=about.layers,
        context=about.context,
        vocab_size=about.vocab_size,
        weights={name: asdict(stored) for name, stored in about.weights.items()},
        state=_state_size(states, batch, tokens),
        batch=batch,
        tokens=tokens,
        files=files,
        target=about.target,
        sms=about.sms,
        linked=about.graph.weights == "link",
        tokenizer=TOKENIZER in names,
        hub=None if about.hub is None else asdict(about.hub),
        recipe=None if about.recipe is None else asdict(about.recipe),
        chat_templates=tuple(sorted(templates(names))),
        clients=dict(about.clients),
        tower=None
        if about.vision is None
        else _tower(about.vision.parameters, about.vision.processor),
        audio=None if about.audio is None else about.audio.parameters,
    )


def _tower(parameters: int, processor: Processor | None) -> dict[str, int]:
    """Return what Inspection says of a tower."""
    tokens = None if processor is None else features(processor, SIDE, SIDE)
    return {"parameters": parameters} | ({} if tokens is None else {SQUARE: tokens})


def _checkpoint(
    path: str | PathLike[str],
    batch: int,
    context: int | None,
    inert: Collection[str],
    untie: bool,
    revision: str | None,
    progress: Progress,
    text_only: bool,
) -> Inspection:
    from lmcast.exporter.checkpoint import open_checkpoint

    # First: a wrong path is said without torch.
    source = open_checkpoint(path, revision, progress)
    from lmcast.exporter.checkpoint.hub import origin
    from lmcast.graphs import defined

    found = defined(source.config, source.tensors, inert, untie, text_only)
    found.model.limit(found.context)
    stored = [source.tensors[name] for name in found.weights.tensors()]
    weights = count_weights(stored, found.weights)
    plain = [name for name in weights if name in COMPUTED] or ["float32"]
    format = max(plain, key=lambda name: weights.get(name, {"bytes": 0})["bytes"])
    carried = (state for states in found.model.states() for state in states)
    states: list[State] = [
        (list(s.shape), of_torch(s.dtype).name if s.dtype else format) for s in carried
    ]
    tokens, sounds = _tokens(context, found.context), found.sounds
    return Inspection(
        path=str(path),
        kind="checkpoint",
        architecture=found.arch.name,
        parameters=found.parameters,
        active_parameters=found.active,
        layers=len(found.model.layers),
        context=found.context,
        vocab_size=found.config.vocab_size,
        weights=weights,
        state=_state_size(states, batch, tokens),
        batch=batch,
        tokens=tokens,
        files=_files(source),
        tokenizer=source.texts.tokenizer is not None,
        hub=origin(source.path),
        chat_templates=tuple(sorted(source.texts.chat_templates)),
        tower=_tower_of(found, source),
        audio=None if sounds is None else sounds.parameters,
        ignored=found.weights.ignored,
        left_out=found.left_out,
    )


def _files(source: "Checkpoint") -> list[dict[str, Any]]:
    sizes = {f: f.stat().st_size for t in source.tensors.values() for f in t.files}
    return [{"path": str(f), "bytes": n, "what": "weights"} for f, n in sorted(sizes.items())]


def _tower_of(found: "Definition", source: "Checkpoint") -> dict[str, int] | None:
    """Return what Inspection says of a checkpoint's tower: no tokens where there are no files of
    processors, which an export refuses."""
    from lmcast.exporter.vision.files import read_processor

    if found.tower is None:
        return None
    texts, own = source.texts, found.tower.config
    heard = None if found.sounds is None else found.sounds.config
    read = partial(read_processor, found.arch.name, own, texts, heard)
    return _tower(found.tower.parameters, read() if texts.processors else None)


def _tokens(asked: int | None, longest: int) -> int:
    if asked is not None and asked > longest:
        raise InspectError(f"context {asked} is above {longest}, the longest this model takes")
    return asked or longest


def count_weights(stored: "list[StoredTensor]", binding: "Binding") -> dict[str, dict[str, int]]:
    """Return tensors and bytes by stored format; quantized weights count with their scales."""
    layouts = binding.layouts
    counted: dict[str, dict[str, int]] = {}
    for tensor in stored:
        if tensor.name in layouts:
            name = layouts[tensor.name].format.name
        elif tensor.format is not None:
            name = tensor.format
        else:
            plain = computed(tensor.dtype)
            name = str(tensor.dtype) if plain is None else plain.name
        entry = counted.setdefault(name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.nbytes
    return counted
