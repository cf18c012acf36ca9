"""Write what other programs need beside an engine's own graph: theirs, over the same weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmcast.exporter import targets
from lmcast.exporter.checkpoint.tokenizers import FILE_BYTES
from lmcast.exporter.clients import genai, hub
from lmcast.exporter.clients.adapt import Adapting
from lmcast.exporter.clients.contract import Contract, Texts
from lmcast.exporter.diff.tokenizers import ids_of
from lmcast.exporter.engine.description import Description
from lmcast.exporter.engine.manifest import read_file
from lmcast.exporter.engine.names import MODEL, TEMPLATE, TEMPLATES, TOKENIZER, templates
from lmcast.exporter.graph.requirements import require
from lmcast.exporter.runtime.chat import as_template
from lmcast.plugins import records
from lmcast.plugins.plugin import DOMAIN

WRITTEN: tuple[Contract, ...] = (genai.contract, hub.contract)  # by every export
FIELD = "clients"  # of engine.json


def write_clients(
    directory: Path, fields: Mapping[str, Any], graph: ir.Model | None = None
) -> dict[str, Any]:
    """Write the graphs and files of WRITTEN into an engine; return its field of engine.json: why
    there are none for a program, '' where there are.

    fields: of engine.json, complete but for this one. graph: in place of the engine's own. Weights
    are not read.
    """
    about = records.read(Description, {**fields, FIELD: {}})
    if why := unfit(about):
        return {FIELD: {contract.name: why for contract in WRITTEN}}
    texts = texts_in(directory, about)
    found = {}
    for contract in WRITTEN:
        model = read(directory, about) if graph is None else graph.clone()
        require(model, anew_beyond=about.graph.anew_beyond)
        found[contract.name] = write_client(directory, about, contract, model, texts)
    return {FIELD: found}


def unfit(about: Description) -> str:
    """Say why no other program opens an engine, '' where one may."""
    if not targets.get(about.target).clients:
        able = ", ".join(t.name for t in targets.TARGETS.values() if t.clients)
        return f"they open engines of target {able}"
    if about.graph.weights == "link":
        return "they look for weights beside the graph: `lmcast pack` copies them into the engine"
    return ""


def write_client(
    directory: Path,
    about: Description,
    contract: Contract,
    graph: ir.Model,
    texts: Texts,
) -> str:
    """Write a graph and files, or return why there are none."""
    if why := unable(graph, about):
        return why
    adapting = Adapting(graph, about.graph.states, contract)
    if why := contract.refuse(adapting.held, about):
        return why
    data = ir.to_proto(adapting.run()).SerializeToString(deterministic=True)
    put(directory / contract.graph, data)
    for name, content in contract.files(about, adapting.ports, texts).items():
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        put(directory / name, text.encode())
    return ""


def put(path: Path, data: bytes) -> None:
    """Write a file anew: what lies there may be a hard link into another engine."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def read(directory: Path, about: Description) -> ir.Model:
    """Return the graph of an engine with what it requires of a runner."""
    graph = ir.load(directory / MODEL)
    require(graph, anew_beyond=about.graph.anew_beyond)
    return graph


def unable(graph: ir.Model, about: Description) -> str:
    """Say why no other program runs a graph, '' where one may."""
    bodies = {function.name for function in graph.functions.values()}
    own = {node.op_type for node in graph.graph if node.domain == DOMAIN} - bodies
    if own:
        names = ", ".join(sorted(own))
        return (
            f"its graph has operators that only lmcast has kernels for, {names}; `lmcast export"
            f" --target {about.target} --weights copy` writes theirs with the bodies of those"
        )
    if about.graph.anew_beyond and about.graph.total_length:
        beyond = about.graph.anew_beyond[0]
        return f"rows that grow beyond {beyond} tokens begin anew, which a GPU would not refuse"
    return ""


def texts_in(directory: Path, about: Description) -> Texts:
    """Return the texts that lie in an engine; raises InputError for damaged ones."""
    file, folder = directory / TOKENIZER, directory / TEMPLATES
    known = ids_of(read_file(file, FILE_BYTES)) if file.exists() else {}
    ids = {name: known[token] for name, token in about.special_tokens.items() if token in known}
    paths = [directory / TEMPLATE, *(folder.iterdir() if folder.exists() else ())]
    found = templates(str(path.relative_to(directory)) for path in paths if path.exists())
    held = {name: directory / path for name, path in found.items()}
    chats = {name: as_template(read_file(path, FILE_BYTES), path) for name, path in held.items()}
    return Texts(file.exists(), ids, chats)
