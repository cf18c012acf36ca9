"""A table of unusual checkpoints that must be accepted, each one change away from a usual one."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny.llama import (
    CONFIG,
    INDEX,
    Q0,
    WEIGHTS,
    Build,
    edit_json,
    header,
    index,
    keep_single,
    move_out,
    raw_header,
    remove,
    set_tensor,
    shards,
    steps,
    tensors,
    write,
)

SHARDS = "model-1.safetensors", "model-2.safetensors"
REVISION = "0123456789abcdef0123456789abcdef01234567"
# Padding is of training: no text of an engine is filled up.
ENDLESS = {
    "strategy": {"Fixed": 1 << 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "<s>",
}  # fmt: skip


@dataclass(frozen=True)
class Legal:
    """`build` changes the checkpoint that tiny_llama made and returns the path to open."""

    name: str
    build: Callable[[Path], Path]


def _there(build: Build) -> Callable[[Path], Path]:
    def in_place(folder: Path) -> Path:
        build(folder)
        return folder

    return in_place


def _odd_path(folder: Path) -> Path:
    return folder.rename(folder.parent / "模型 ü 'quoted' $HOME %s\nline")


def _linked_directory(folder: Path) -> Path:
    link = folder.parent / "link"
    link.symlink_to(folder)
    return link


def _cache(folder: Path) -> Path:
    """The layout of Hugging Face's cache: links from snapshots/revision into blobs."""
    repository = folder.parent / "models--lab--tiny"
    snapshot, blobs = repository / "snapshots" / REVISION, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(exist_ok=True)
        blob = blobs / f"{number:064x}"
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(folder)
    return snapshot


def _cached_shards(folder: Path) -> Path:
    shards(("parts/model-1.safetensors", "parts/model-2.safetensors"))(folder)
    return _cache(folder)


def _link_inside(folder: Path) -> Path:
    (folder / "store").mkdir()
    (folder / WEIGHTS).rename(folder / "store" / "data")
    (folder / WEIGHTS).symlink_to("store/data")
    return folder


def _old_local_dir(folder: Path) -> Path:
    """What huggingface_hub made before 0.23: a directory of links into the cache."""
    _cache(shutil.copytree(folder, folder.parent / "copy"))
    blobs = folder.parent / "models--lab--tiny" / "blobs"
    for number, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        file.unlink()
        file.symlink_to(blobs / f"{number:064x}")
    return folder


def _shared_blobs(folder: Path) -> Path:
    """What huggingface_hub makes since 2.0: blobs that are links to what repositories share."""
    snapshot = _cache(folder)
    for blob in (folder.parent / "models--lab--tiny" / "blobs").iterdir():
        shared = folder.parent / "blobs" / blob.name[:2] / blob.name
        shared.parent.mkdir(parents=True, exist_ok=True)
        blob.rename(shared)
        blob.symlink_to(os.path.relpath(shared, blob.parent))
    return snapshot


def _move_again(folder: Path) -> None:
    first = folder.parent / f"outside-{WEIGHTS}"
    first.rename(folder.parent / "elsewhere")
    first.symlink_to("elsewhere")


def _content_addressed(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "0123abcd")
    (folder / WEIGHTS).symlink_to("../0123abcd")


def _directory_link_out(folder: Path) -> Path:
    shards(("parts/model-1.safetensors", "parts/model-2.safetensors"))(folder)
    (folder / "parts").rename(folder.parent / "disk")
    (folder.parent / "way").symlink_to("disk")
    (folder / "parts").symlink_to("../checkpoint/../way")
    return folder


# Links that leave the directory; made here, so by who runs this.
LINKS_OUT = {
    "config": move_out("config.json"),
    "weights": move_out(WEIGHTS),
    "tokenizer": move_out("tokenizer.json"),
    "shard": steps(shards(), move_out(SHARDS[0])),
    "link_to_a_link": steps(move_out(WEIGHTS), _move_again),
    "weights_of_no_ending": _content_addressed,
    "directory": _directory_link_out,
    "old_local_dir": _old_local_dir,
}


def _read_only(folder: Path) -> Path:
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    return folder


def _hard_link(folder: Path) -> Path:
    os.link(folder / WEIGHTS, folder.parent / "other-name")
    return folder


def _pad_by(text: bytes) -> Callable[[Path], Path]:
    return _there(raw_header(lambda h: h.rstrip() + text))


EXTRA_FILES = steps(
    write("README.md", "hello"),
    write("pytorch_model.bin", b"\x80"),
    write("model.fp16.safetensors", "not looked at"),
    write("model-00003-of-00003.safetensors", "not looked at"),
    write("modeling_evil.py", "raise SystemExit('executed')"),
    lambda folder: os.mkfifo(folder / "pipe"),
)

LEGAL = [
    Legal("usual", lambda folder: folder),
    Legal("odd_path", _odd_path),
    Legal("linked_directory", _linked_directory),
    Legal("cache", _cache),
    Legal("cache_with_shards_below", _cached_shards),
    Legal("link_inside", _link_inside),
    Legal("hard_link", _hard_link),
    Legal("cache_with_shared_blobs", _shared_blobs),
    *(Legal(f"link_out_{name}", _there(build)) for name, build in LINKS_OUT.items()),
    Legal("read_only", _read_only),
    Legal("extra_files", _there(EXTRA_FILES)),
    Legal("header_unpadded", _pad_by(b"")),
    Legal("header_padded", _pad_by(b" " * 1001)),
    Legal("header_padded_by_newlines", _pad_by(b"\r\n\t\n")),
    Legal("no_metadata", _there(header(lambda h: h.pop("__metadata__", None)))),
    Legal("metadata_null", _there(header(lambda h: h.update(__metadata__=None)))),
    Legal("config_spread_out", _there(write("config.json", json.dumps(CONFIG, indent=9) + "\r\n"))),
    Legal("mixed_dtypes", _there(set_tensor(Q0, lambda t: t[Q0].bfloat16()))),
    Legal("empty_extra", _there(set_tensor("vision.empty.weight", lambda t: torch.ones(0, 4)))),
    Legal("scalar_extra", _there(set_tensor("vision.step", lambda t: torch.tensor(7)))),
    Legal(
        "inverse_frequencies",
        _there(
            set_tensor(
                "model.layers.0.self_attn.rotary_emb.inv_freq",
                lambda t: 10000.0 ** (-torch.arange(0, 8, 2) / 8),
            )
        ),
    ),
    Legal("shards", _there(shards())),
    Legal("shards_below", _there(shards(("a/m.safetensors", "b c/m.safetensors")))),
    Legal(
        "shards_dotted",
        _there(index(lambda m: m.update({k: f".//{v}" for k, v in m.items()}))),
    ),
    Legal("single_beside_same_shards", _there(keep_single(lambda folder: None))),
    Legal("single_beside_stale_index", _there(keep_single(remove(*SHARDS)))),
    Legal("single_of_other_name", _there(lambda d: (d / WEIGHTS).rename(d / "w.safetensors"))),
    Legal(
        "single_shard_without_index",
        _there(lambda d: (d / WEIGHTS).rename(d / "model-00001-of-00001.safetensors")),
    ),
    Legal(
        "index_of_the_single_file",
        _there(
            lambda d: (d / INDEX).write_text(
                json.dumps({"weight_map": dict.fromkeys(_names(d), WEIGHTS)})
            )
        ),
    ),
    Legal("no_tokenizer_config", _there(remove("tokenizer_config.json"))),
    Legal("no_generation_config", _there(remove("generation_config.json"))),
    Legal(
        "special_tokens_as_objects",
        _there(
            edit_json(
                "tokenizer_config.json",
                eos_token={"__type": "AddedToken", "content": "</s>", "lstrip": False},
                pad_token=None,
            )
        ),
    ),
    Legal("padding_beyond_all_memory", _there(edit_json("tokenizer.json", padding=ENDLESS))),
    Legal("untouched_tensor_order", _there(tensors(lambda t: None))),
]


def _names(folder: Path) -> list[str]:
    raw = (folder / WEIGHTS).read_bytes()
    return [n for n in json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]) if n[0] != "_"]
