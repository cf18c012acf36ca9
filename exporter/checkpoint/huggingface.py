"""Directories of safetensors, one file or an index and its shards: Hugging Face's and Mistral's."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder, open_regular, read_capped, read_into
from lmcast.exporter.checkpoint.kinds import foreign
from lmcast.exporter.checkpoint.mistral import (
    PARAMS,
    hugging_face_config,
    hugging_face_tensors,
    processor_files,
)
from lmcast.exporter.checkpoint.mistral import SINGLE as CONSOLIDATED
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensor_parallel import is_split, read_split
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor
from lmcast.exporter.checkpoint.texts import read_texts
from lmcast.exporter.progress import Progress, silent
from lmcast.graphs.archs import known
from lmcast.graphs.config.model_classes import require_generator
from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.layouts.catalogue import KEY
from lmcast.graphs.layouts.modelopt import agreed, of_file

CONFIG_BYTES = 16 << 20  # 16 MiB; real ones have kilobytes
INDEX_BYTES = 100 << 20  # of a trillion parameters in small tensors: about 20 MB
SINGLE = "model.safetensors"
MODELOPT = "hf_quant_config.json"
EMBEDDING = "modules.json"  # of sentence-transformers: what is done with the hidden states
SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
COMPARED_BYTES = 4096  # of each tensor, between a single file and the shards beside it

Tensors = dict[str, StoredTensor]


def open_directory(path: Path, progress: Progress = silent) -> Checkpoint:
    """Read and validate a checkpoint directory, headers only; raises CheckpointError.

    progress: is warned of files that are there and not read.
    """
    folder = Folder.at(path)
    names = folder.names()
    require_checkpoint(folder.root, names)
    data = folder.read("config.json", CONFIG_BYTES)
    params = None if data is not None else folder.read(PARAMS, CONFIG_BYTES)
    if data is not None:
        config = parse_object(data, folder.root / "config.json")
        try:  # before the weights: those of other models are often in files that we do not read
            require_generator(config)
        except ConfigError as error:
            raise CheckpointError(f"{folder.root}/{error}") from None
        config = _quantized(folder, config)
        tensors = _tensors(folder, names, SINGLE, progress)
    elif params is not None:
        shown = folder.root / PARAMS
        config = hugging_face_config(parse_object(params, shown), shown)
        tensors = hugging_face_tensors(
            _tensors(folder, names, CONSOLIDATED, progress), config, shown
        )
    else:
        raise CheckpointError(f"{folder.root}: has no config.json; {_what_it_is(folder, names)}")
    if not tensors:
        raise CheckpointError(f"{folder.root}: its safetensors files hold no tensor")
    if EMBEDDING in names:
        progress.warn(
            f"{EMBEDDING}: this is a model of sentence-transformers, made to embed texts; what is"
            " read is its language model, whose logits are of the next token"
        )
    texts = read_texts(folder)
    if not texts.processors and (data is None or "vision_config" in config):
        said = config if data is None else _beside(folder)
        texts = replace(texts, processors=processor_files(said))
    return Checkpoint(folder.root, config, tensors, texts)


def _beside(folder: Folder) -> Mapping[str, Any]:
    """Return what Mistral's own file says beside a config.json: of Mistral Small 3.2 it alone tells
    how pictures are prepared."""
    data = folder.read(PARAMS, CONFIG_BYTES)
    return {} if data is None else parse_object(data, folder.root / PARAMS)


def _quantized(folder: Folder, config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with what ModelOpt says of quantization in a file of its own."""
    data = folder.read(MODELOPT, CONFIG_BYTES)
    if data is None:
        return config
    shown = folder.root / MODELOPT
    try:
        section = of_file(parse_object(data, shown), str(shown))
        given = config.get(KEY)
        if given:
            section = agreed(given, section, (str(folder.root / "config.json"), str(shown)))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    return {**config, KEY: section}


def _what_it_is(folder: Folder, names: list[str]) -> str:
    if not names:
        return "the directory is empty"
    if "snapshots" in names:
        return (
            "it is a repository of the Hugging Face cache: give one of its snapshots/ directories"
        )
    return (
        "give the directory that holds it (Mistral's own format: params.json) and the *.safetensors"
        " files, or a .gguf file"
    )


def require_checkpoint(root: Path, names: list[str]) -> None:
    """Refuse what names in a directory tell to be no checkpoint, and an adapter, which changes the
    weights of another model: either alone would be wrong."""
    if kind := foreign(names):
        raise CheckpointError(f"{root}: is {kind.what}, not a checkpoint; {kind.instead}")
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if name in names:
            raise CheckpointError(
                f"{root / name}: this is an adapter, not a whole model; merge it into its "
                "base model (peft: merge_and_unload(), then save_pretrained()) and export that"
            )


def _index(single: str) -> str:
    """Return the name of the index of the shards into which `single` is divided."""
    return f"{single}.index.json"


def weight_files(folder: Folder, names: list[str]) -> list[str]:
    """Return the files that weights are read from in a directory with these names, as `_tensors`
    reads them.

    folder: holds the texts of that directory, the index among them. Where config.json is missing,
    none. Raises CheckpointError where no weights can be read, ConfigError for a model that lmcast
    does not define.
    """
    data = folder.read("config.json", CONFIG_BYTES)
    if data is not None:
        known(parse_object(data, folder.root / "config.json"))
    elif PARAMS not in names:
        return []
    single = SINGLE if "config.json" in names else CONSOLIDATED
    if single not in names and is_split(names):
        return [name for name in names if is_split([name])]
    if _index(single) in names:
        shards = _weight_map(folder, _index(single)).values()
        return sorted({single, *shards} & set(names))
    return [single if single in names else _only_file(folder, names, single)]


def _tensors(folder: Folder, names: list[str], single: str, progress: Progress) -> Tensors:
    """Read the headers of `single`, of the shards of its index, or of the only file."""
    if single not in names and is_split(names):
        return read_split(folder, names, _from_file)
    if _index(single) not in names:
        return _from_file(folder, single if single in names else _only_file(folder, names, single))
    index = folder.root / _index(single)
    mapping = _weight_map(folder, index.name)
    if single not in names:
        return _from_index(folder, index, mapping)
    whole = _from_file(folder, single)
    if not any(folder.find(shard, str(index)) for shard in set(mapping.values())):
        progress.warn(f"{index}: none of its files is there; {single} beside it is read instead")
        return whole
    _require_agreement(folder, single, whole, _from_index(folder, index, mapping))
    return whole


def _from_file(folder: Folder, name: str, source: str = "") -> Tensors:
    file = folder.find(name, source)
    if file is None:
        raise CheckpointError(
            f"{source or folder.root}: the file {name!r} that it names is missing"
        )
    return read_header(file, folder.root / name)


def _only_file(folder: Folder, names: list[str], single: str) -> str:
    """The one safetensors file of another name, where it can be no part of something larger."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder.root}: has {len(found)} safetensors files ({found[0]}, {found[1]}, ...) but "
            f"neither {single} nor {_index(single)} to say which belong to the model"
        )
    if not found:
        raise CheckpointError(f"{folder.root}: {_no_weights(names)}")
    part = SHARD.search(found[0])
    if part and int(part[2]) != 1:
        raise CheckpointError(
            f"{folder.root / found[0]}: is one of {int(part[2])} shards, and {_index(single)} is"
            " missing; download the whole checkpoint"
        )
    return found[0]


def _no_weights(names: list[str]) -> str:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"has its weights as pickle only ({pickles[0]}), which can run code when it is read; "
            "where you trust it, load it with transformers and save_pretrained() it: that writes "
            "safetensors"
        )
    return "has no weights: no *.safetensors file; download the whole checkpoint"


def _weight_map(folder: Folder, index: str) -> dict[str, str]:
    """Tensor name -> shard, in one spelling; metadata is not read: total_size is often wrong."""
    file, shown = folder.find(index), folder.root / index
    if file is None:
        raise CheckpointError(f"{shown}: is missing")
    mapping = parse_object(read_capped(file, INDEX_BYTES, shown), shown).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{shown}: weight_map is missing or empty; tensor names are needed")
    for name, shard in mapping.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{shown}: weight_map[{name!r}] is {shard!r}, not a file name")
    spelled = {shard: str(PurePosixPath(shard)) for shard in set(mapping.values())}
    return {name: spelled[shard] for name, shard in mapping.items()}


def _from_index(folder: Folder, index: Path, mapping: dict[str, str]) -> Tensors:
    tensors: Tensors = {}
    for shard in sorted(set(mapping.values())):
        for name, stored in _from_file(folder, shard, str(index)).items():
            listed = mapping.get(name)
            if listed is None:
                raise CheckpointError(
                    f"{folder.root / shard}: holds tensor {name!r}, which {index.name} does not"
                    " list"
                )
            if listed != shard:
                raise CheckpointError(
                    f"{folder.root / shard}: holds tensor {name!r}, which {index.name} places in "
                    f"{listed}; one place is accepted"
                )
            tensors[name] = stored
    for name, shard in mapping.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: tensor {name!r} is not in {shard}, where it should be")
    return tensors


def _require_agreement(folder: Folder, single: str, whole: Tensors, sharded: Tensors) -> None:
    """Refuse a single file beside shards unless both say the same, as far as is cheap to see."""
    for name in sorted(whole.keys() | sharded.keys()):
        one, other = whole.get(name), sharded.get(name)
        if one is None or other is None:
            place = single if other is None else _index(single)
            difference = f"tensor {name!r} is only in {place}"
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            difference = f"tensor {name!r} has another dtype or shape in each"
        elif _start(one) != _start(other):
            difference = f"tensor {name!r} has other values in each"
        else:
            continue
        raise CheckpointError(
            f"{folder.root}: {single} and {_index(single)} disagree: {difference};"
            " remove the wrong one"
        )


def _start(stored: StoredTensor) -> bytes:
    data = bytearray(min(stored.nbytes, COMPARED_BYTES))
    with open_regular(stored.file) as descriptor:
        read_into(descriptor, memoryview(data), stored.offset, stored.file)
    return bytes(data)
