"""README.md: the card of an engine as a repository of the Hugging Face Hub, and for people."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmcast.exporter.clients.write import WRITTEN, put
from lmcast.exporter.dtypes import COMPUTED
from lmcast.exporter.engine.description import Description, Parity
from lmcast.exporter.engine.manifest import read_parity
from lmcast.exporter.engine.names import CARD, PARITY, TEMPLATE, TOKENIZER
from lmcast.plugins import records

OWN = "lmcast"
TAGS = {"genai": ("onnxruntime-genai",), "hub": ("optimum", "transformers.js")}


def write_card(
    directory: Path, fields: Mapping[str, Any], to: Path | None = None, library: str = OWN
) -> bool:
    """Write an engine's README.md, from engine.json and parity.json; return whether there is one.

    fields: of engine.json. to: the folder to write into; None for the engine itself. library: the
    Hub's name of the one that opens what lies there. An engine that no other program opens stays
    without, as one of linked weights: it is no repository.
    """
    about = records.read(Description, fields)
    able = [name for name, why in about.clients.items() if not why]
    if not able:
        return False
    path = directory / PARITY
    parity = read_parity(path) if path.exists() else None
    lines = ["---", *metadata(about, able, library), "---", "", *body(about, parity, library)]
    lines += ["", "## Run it", "", *RUN[library](directory, about)]
    if library == OWN:
        lines += ["", *opened_by(about)]
    put((to or directory) / CARD, ("\n".join(lines) + "\n").encode())
    return True


def metadata(about: Description, able: list[str], library: str) -> Iterator[str]:
    """Yield the lines of YAML that the Hub reads; a JSON text is one of YAML."""
    yield f"library_name: {library}"
    sees = library == OWN and about.vision is not None
    yield f"pipeline_tag: {'image-text-to-text' if sees else 'text-generation'}"
    if about.hub is not None:
        yield f"base_model: {json.dumps(about.hub.repository)}"
        if few_bits(about):
            yield "base_model_relation: quantized"
    yield "tags:"
    tags = ["onnx", *(tag for name in able for tag in TAGS[name]), about.architecture, "lmcast"]
    yield from (f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags))


def few_bits(about: Description) -> list[str]:
    """Return the formats of weights that are not plain floats, in which norms are as a rule."""
    return sorted(name for name in about.weights if name not in COMPUTED)


def body(about: Description, parity: Parity | None, library: str) -> Iterator[str]:
    """Yield the text: what the engine is, and how close it is."""
    name = about.architecture if about.hub is None else about.hub.repository
    yield f"# {name}, an lmcast engine"
    yield ""
    yield f"{about.parameters:,} parameters, of which a token uses {about.active_parameters:,};"
    for tower, what in ((about.vision, "pictures"), (about.audio, "sounds")):
        if tower is not None and library == OWN:
            yield f"{tower.parameters:,} for {what} besides;"
    yield f"rows of up to {about.context:,} tokens; computes in {about.dtype}, for {about.target}."
    if about.hub is not None:
        yield f"Made from revision `{about.hub.revision}` of `{about.hub.repository}`."
    yield from ("", "| weights | tensors | bytes |", "| --- | --- | --- |")
    for format, stored in sorted(about.weights.items()):
        yield f"| {format} | {stored.tensors:,} | {stored.bytes:,} |"
    yield from ("", *measured(about, parity))


def opened_by(about: Description) -> Iterator[str]:
    """Yield a line for each other program: what it opens, or why it does not."""
    for contract in WRITTEN:
        if why := about.clients.get(contract.name):
            yield f"- not {contract.about}: {why}"
        elif contract.name in about.clients:
            of = "" if about.vision is None else ", for text alone"
            yield f"- {contract.about}: `{contract.graph}`{of}"


def by_lmcast(engine: Path, about: Description) -> list[str]:
    say = "'Why is the sky blue?'" if (engine / TEMPLATE).exists() else "'Once upon a time'"
    given = say if (engine / TOKENIZER).exists() else "--ids 1,2,3"
    lines = [f"lmcast generate . {given}"]
    if about.vision is not None and (engine / TOKENIZER).exists():
        lines.append("lmcast generate . 'What is this?' --image cat.jpg")
    return ["```bash", *lines, "```"]


def by_transformers_js(engine: Path, about: Description) -> list[str]:
    return [
        "```js",
        "import { pipeline } from '@huggingface/transformers';",
        "",
        "const write = await pipeline('text-generation', 'NAME OF THIS REPOSITORY');",
        "console.log(await write('Once upon a time', { max_new_tokens: 20 }));",
        "```",
    ]


RUN: Mapping[str, Callable[[Path, Description], list[str]]] = {
    OWN: by_lmcast,
    "transformers.js": by_transformers_js,
}


def measured(about: Description, parity: Parity | None) -> Iterator[str]:
    """Yield what was measured at export: parity with eager PyTorch, and what rounding costs."""
    if parity is None:
        yield "Parity with PyTorch was not measured at export."
    else:
        yield f"Logits against an fp64 reference, in {parity.dtype}, {parity.tokens} tokens a row:"
        yield from ("", "| scenario | error | eager PyTorch | allowed | KL |", "| --- " * 5 + "|")
        for r in parity.results:
            numbers = f"{r.error:.1e} | {r.eager_error:.1e} | {r.bound:.1e} | {r.kl:.1e}"
            yield f"| {r.scenario} | {numbers} |"
        if cost := parity.rounding:
            yield ""
            yield f"Rounding inputs of products to int8 costs KL {cost.kl:.2g} nats over"
            yield f"{cost.tokens} tokens of {cost.text}."
    if about.recipe is not None and (lost := about.recipe.quality):
        yield ""
        yield f"The recipe of its weights loses KL {lost.kl:.3g} nats from the checkpoint over"
        yield f"{lost.tokens:,} tokens of {lost.text}."
