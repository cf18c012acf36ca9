"""How an engine lies for a program: as it is, or in places where the program looks for files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from lmcast.exporter.clients import genai, hub, triton
from lmcast.exporter.clients.card import write_card
from lmcast.exporter.clients.contract import Contract
from lmcast.exporter.clients.names import Program
from lmcast.exporter.engine.manifest import read_manifest, read_object
from lmcast.exporter.engine.names import GENERATION, TEMPLATE, TOKENIZER
from lmcast.exporter.engine.staging import carry

TEXTS = (
    GENERATION, TEMPLATE, TOKENIZER, "special_tokens_map.json", "tokenizer_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What a program opens.

    contract: of its graph.
    place: (engine with that contract's files, empty directory) -> None; None: the engine itself.
        Files are hard links where they can be.
    """

    contract: Contract
    place: Callable[[Path, Path], None] | None = None


def place_js(engine: Path, directory: Path) -> None:
    """Lay out a repository for transformers.js: in a browser it finds weights by their names.

    onnx/model.onnx, and beside it model.onnx_data, model.onnx_data_1 ...; config.json says how
    many.
    """
    folder, name = directory / "onnx", hub.contract.graph
    folder.mkdir()
    graph = ir.load(engine / name)
    places: dict[str, str] = {}
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        number = len(places)
        place = places.setdefault(
            str(tensor.location), f"{name}_data{f'_{number}' if number else ''}"
        )
        value.const_value = ir.ExternalTensor(
            place, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape,
            name=str(value.name), base_dir=str(folder),
        )  # fmt: skip
    for location, place in places.items():
        carry(engine / location, folder / place)
    data = ir.to_proto(graph).SerializeToString(deterministic=True)
    (folder / name).write_bytes(data)
    config = read_object(engine / "config.json")
    config["transformers.js_config"]["use_external_data_format"] = {name: len(places)}
    text = json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    write_card(engine, read_manifest(engine).fields, directory, "transformers.js")
    for text_file in TEXTS:
        if (engine / text_file).exists():
            carry(engine / text_file, directory / text_file)


LAYOUTS: Mapping[Program, Layout] = {
    "genai": Layout(genai.contract),
    "hub": Layout(hub.contract),
    "js": Layout(hub.contract, place_js),
    "triton": Layout(hub.contract, triton.place),
}
