"""Hugging Face directories: config.json beside one safetensors file or an index and its shards."""

import re
from pathlib import Path, PurePosixPath

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder, open_regular, read_capped, read_into
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensor_parallel import is_split, read_split
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor
from lmcast.exporter.checkpoint.texts import read_texts

CONFIG_BYTES = 16 << 20  # 16 MiB; real ones have kilobytes
INDEX_BYTES = 100 << 20  # of a trillion parameters in small tensors: about 20 MB
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
COMPARED_BYTES = 4096  # of each tensor, between a single file and the shards beside it

Tensors = dict[str, StoredTensor]


def open_directory(path: Path) -> Checkpoint:
    """Read and validate a checkpoint directory, headers only; raises CheckpointError."""
    folder = Folder.at(path)
    names = folder.names()
    _require_whole_model(folder, names)
    data = folder.read("config.json", CONFIG_BYTES)
    if data is None:
        raise CheckpointError(f"{folder.root}: has no config.json; {_what_it_is(folder, names)}")
    config = parse_object(data, folder.root / "config.json")
    tensors = _tensors(folder, names)
    if not tensors:
        raise CheckpointError(f"{folder.root}: its safetensors files hold no tensor")
    return Checkpoint(folder.root, config, tensors, read_texts(folder))


def _what_it_is(folder: Folder, names: list[str]) -> str:
    if not names:
        return "the directory is empty"
    if "snapshots" in names:
        return (
            "it is a repository of the Hugging Face cache: give one of its snapshots/ directories"
        )
    return "give the directory that holds config.json and the *.safetensors files, or a .gguf file"


def _require_whole_model(folder: Folder, names: list[str]) -> None:
    """An adapter changes the weights of another model; exporting either alone would be wrong."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if name in names:
            raise CheckpointError(
                f"{folder.root / name}: this is an adapter, not a whole model; merge it into its "
                "base model (peft: merge_and_unload(), then save_pretrained()) and export that"
            )


def _tensors(folder: Folder, names: list[str]) -> Tensors:
    if SINGLE not in names and is_split(names):
        return read_split(folder, names, _from_file)
    if INDEX in names:
        sharded = _from_index(folder)
        if SINGLE not in names:
            return sharded
        single = _from_file(folder, SINGLE)
        _require_agreement(folder, single, sharded)
        return single
    return _from_file(folder, SINGLE if SINGLE in names else _only_file(folder, names))


def _from_file(folder: Folder, name: str, source: str = "") -> Tensors:
    file = folder.find(name, source)
    if file is None:
        raise CheckpointError(
            f"{source or folder.root}: the file {name!r} that it names is missing"
        )
    return read_header(file, folder.root / name)


def _only_file(folder: Folder, names: list[str]) -> str:
    """The one safetensors file of another name, where it can be no part of something larger."""
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder.root}: has {len(found)} safetensors files ({found[0]}, {found[1]}, ...) but "
            f"neither {SINGLE} nor {INDEX} to say which belong to the model"
        )
    if not found:
        raise CheckpointError(f"{folder.root}: {_no_weights(names)}")
    part = SHARD.search(found[0])
    if part and int(part[2]) != 1:
        raise CheckpointError(
            f"{folder.root / found[0]}: is one of {int(part[2])} shards, and {INDEX} is missing; "
            "download the whole checkpoint"
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


def _weight_map(folder: Folder, shown: Path) -> dict[str, str]:
    """Tensor name -> shard, in one spelling; metadata is not read: total_size is often wrong."""
    file = folder.find(INDEX)
    if file is None:
        raise CheckpointError(f"{shown}: is missing")
    mapping = parse_object(read_capped(file, INDEX_BYTES, shown), shown).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{shown}: weight_map is missing or empty; tensor names are needed")
    for name, shard in mapping.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{shown}: weight_map[{name!r}] is {shard!r}, not a file name")
    return {name: str(PurePosixPath(shard)) for name, shard in mapping.items()}


def _from_index(folder: Folder) -> Tensors:
    shown = folder.root / INDEX
    mapping = _weight_map(folder, shown)
    tensors: Tensors = {}
    for shard in sorted(set(mapping.values())):
        for name, stored in _from_file(folder, shard, str(shown)).items():
            listed = mapping.get(name)
            if listed is None:
                raise CheckpointError(
                    f"{folder.root / shard}: holds tensor {name!r}, which {INDEX} does not list"
                )
            if listed != shard:
                raise CheckpointError(
                    f"{folder.root / shard}: holds tensor {name!r}, which {INDEX} places in "
                    f"{listed}; one place is accepted"
                )
            tensors[name] = stored
    for name, shard in mapping.items():
        if name not in tensors:
            raise CheckpointError(f"{shown}: tensor {name!r} is not in {shard}, where it should be")
    return tensors


def _require_agreement(folder: Folder, single: Tensors, sharded: Tensors) -> None:
    """Refuse a single file beside shards unless both say the same, as far as is cheap to see."""
    for name in sorted(single.keys() | sharded.keys()):
        one, other = single.get(name), sharded.get(name)
        if one is None or other is None:
            place = SINGLE if other is None else INDEX
            difference = f"tensor {name!r} is only in {place}"
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            difference = f"tensor {name!r} has another dtype or shape in each"
        elif _start(one) != _start(other):
            difference = f"tensor {name!r} has other values in each"
        else:
            continue
        raise CheckpointError(
            f"{folder.root}: {SINGLE} and {INDEX} disagree: {difference}; remove the wrong one"
        )


def _start(stored: StoredTensor) -> bytes:
    data = bytearray(min(stored.nbytes, COMPARED_BYTES))
    with open_regular(stored.file) as descriptor:
        read_into(descriptor, memoryview(data), stored.offset, stored.file)
    return bytes(data)
