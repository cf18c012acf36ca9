"""Checkpoints: what is refused, what is accepted, and what is read."""

import dataclasses
import json
import os
import re
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from files.malformed import MALFORMED
from files.odd_but_legal import LEGAL, SHARDS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny.llama import (
    CONFIG,
    HEAD,
    INDEX,
    Q0,
    WEIGHTS,
    keep_single,
    remove,
    shapes,
    tiny_llama,
    weights,
    write,
)

from lmcast.exporter.checkpoint import CheckpointError, finite, open_checkpoint
from lmcast.exporter.checkpoint.finite import PATTERNS, check_block, check_finite
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.safetensors_header import parse_header
from lmcast.exporter.checkpoint.tensors import StoredTensor
from lmcast.exporter.dtypes import OF_SAFETENSORS
from lmcast.exporter.progress import Progress

SECONDS = 5  # how long a refusal may take
MEMORY = 64 << 20  # bytes that a refusal may allocate in Python; the largest input here is 12 MB

OPEN = [m for m in MALFORMED if m.stage == "open"]
LATER = [m for m in MALFORMED if m.stage == "export"]


@pytest.fixture
def folder(tmp_path):
    tiny_llama(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("case", OPEN, ids=lambda m: m.name)
def test_refuses(case, folder):
    case.build(folder)
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder)
        seconds, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert re.search(case.message, message)
    assert message.isprintable()  # so one line
    assert seconds < SECONDS
    assert peak < MEMORY


def test_table_of_refusals():
    names = [m.name for m in MALFORMED]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("case", LATER, ids=lambda m: m.name)
def test_later_stages_refuse_the_rest(case, folder):
    """These are well-formed as files: opening them succeeds, so that the export names the fault."""
    case.build(folder)
    assert open_checkpoint(folder).tensors


@pytest.mark.parametrize("case", LEGAL, ids=lambda c: c.name)
def test_accepts(case, folder):
    wanted = weights(folder)
    path = case.build(folder)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == CONFIG
    assert shapes().items() <= {n: t.shape for n, t in checkpoint.tensors.items()}.items()
    for name, values in wanted.items():
        stored = checkpoint.read(name)
        assert torch.equal(stored, values.to(stored.dtype)), name
    assert check_finite(checkpoint, checkpoint.tensors).mode == "full"


def test_a_stale_index_is_named(folder):
    """None of its shards is there: the whole file is read. With one of two there, neither is."""
    keep_single(remove(*SHARDS))(folder)
    told: list[str] = []
    progress = Progress()
    progress.warn = told.append
    assert open_checkpoint(folder, progress=progress).tensors[HEAD].file == folder / WEIGHTS
    (message,) = told
    assert str(folder / INDEX) in message and WEIGHTS in message


def test_a_model_that_embeds_is_named(folder):
    (folder / "modules.json").write_text("[]")
    told: list[str] = []
    progress = Progress()
    progress.warn = told.append
    open_checkpoint(folder, progress=progress)
    assert ["sentence-transformers" in message for message in told] == [True]


@pytest.mark.parametrize("name", OF_SAFETENSORS)
def test_reads_every_dtype_in_blocks(name, folder):
    dtype = OF_SAFETENSORS[name].torch
    random = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 2, (7, 3, 5 * dtype.itemsize), dtype=torch.uint8, generator=random)
    whole = raw.view(dtype)
    values = {"a": whole, "empty": torch.empty(0, 3, dtype=dtype), "one": whole[0, 0, 0]}
    save_file({n: v.clone() for n, v in values.items()}, folder / WEIGHTS)
    checkpoint = open_checkpoint(folder)
    for name, value in values.items():
        for limit in (1, 100, 1 << 20):
            got = torch.cat([b.reshape(-1) for b in checkpoint.blocks(name, limit)])
            assert got.view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()
        assert checkpoint.read(name).shape == value.shape
        assert checkpoint.read(name).dtype == dtype
    assert len(list(checkpoint.blocks("a", 2 * 15 * dtype.itemsize))) == 4  # 2, 2, 2 and 1 rows


def test_gguf_files_are_handed_on(folder, monkeypatch):
    handed = []
    monkeypatch.setattr("lmcast.exporter.checkpoint._open_gguf", handed.append)
    (folder / WEIGHTS).unlink()
    write("Model.GGUF", b"GGUF")(folder)
    open_checkpoint(folder)
    open_checkpoint(str(folder / "Model.GGUF"))
    assert handed == [folder.resolve() / "Model.GGUF", folder / "Model.GGUF"]


def test_unreadable_file(folder, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)  # root ignores permissions, so chmod would not do
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be opened: Permission denied"):
        open_checkpoint(folder)


def test_truncated_after_opening(folder):
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / WEIGHTS, checkpoint.tensors[HEAD].offset + 5)
    with pytest.raises(CheckpointError, match=r"ends \d+ bytes early"):
        checkpoint.read(HEAD)
    with pytest.raises(CheckpointError, match=r"ends \d+ bytes early"):
        check_finite(checkpoint, [HEAD])


def test_texts(folder):
    texts = open_checkpoint(folder).texts
    assert texts.tokenizer == (folder / "tokenizer.json").read_bytes()
    assert texts.generation == {"bos_token_id": 0, "eos_token_id": 1}
    (folder / "tokenizer.json").unlink()
    (folder / "generation_config.json").unlink()
    texts = open_checkpoint(folder).texts
    assert texts.tokenizer is None
    assert texts.generation == {}


FLOATS = [d for d in PATTERNS if d.itemsize > 1]


def _bits(dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern of a type of 8 or 16 bits, a spread of those of wider ones."""
    width = 8 * dtype.itemsize
    integer = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    low = torch.arange(-(2 ** min(15, width - 1)), 2 ** min(15, width - 1))
    if width <= 16:
        return low.to(integer).view(dtype)
    return torch.cat([low << (width - 16), (low << (width - 16)) + 1, low]).to(integer).view(dtype)


@pytest.mark.parametrize("dtype", PATTERNS, ids=str)
def test_every_bit_pattern(dtype):
    stored = StoredTensor("w", dtype, (1,), Path("f"), 0, dtype.itemsize)
    values = _bits(dtype)
    finite_ones = torch.isfinite(values.double())
    assert finite_ones.any()
    assert not finite_ones.all()
    raw = values.view(torch.uint8).view(-1, dtype.itemsize)
    check_block(stored, raw[finite_ones].view(dtype))
    for bits in raw[~finite_ones][:2000]:
        block = torch.zeros(4, dtype.itemsize, dtype=torch.uint8)
        block[3] = bits
        with pytest.raises(CheckpointError, match=r"'w' holds -?(nan|inf) at flat index 11;"):
            check_block(stored, block.view(dtype), 8)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("place", [0, 1_000_003, 1_999_999])
def test_finds_one_bad_value(dtype, full, place, folder):
    """Two million elements: several chunks of the full scan; the sample sees first and last."""
    values = torch.ones(2_000_000, dtype=dtype)
    values[place] = -torch.inf
    save_file({"good": torch.ones(5, dtype=dtype), "bad": values}, folder / WEIGHTS)
    checkpoint = open_checkpoint(folder)
    if not full and place == 1_000_003:
        report = check_finite(checkpoint, ["good", "bad"], full=False)
        assert (report.mode, report.tensors) == ("sampled", 2)
        assert report.bytes_read == dtype.itemsize * (5 + finite.RUN * finite.RUNS)
        return
    with pytest.raises(CheckpointError, match=f"'bad' holds -inf at flat index {place};"):
        check_finite(checkpoint, ["good", "bad"], full=full)
    assert check_finite(checkpoint, ["good"], full=full).bytes_read == 5 * dtype.itemsize


def test_policy_by_size(folder, monkeypatch):
    checkpoint = open_checkpoint(folder)
    total = sum(t.nbytes for t in checkpoint.tensors.values())
    counts: list[int] = []
    report = check_finite(checkpoint, checkpoint.tensors, progress=counts.append)
    assert (report.mode, report.bytes_read, report.bytes_total) == ("full", total, total)
    assert sum(counts) == total
    monkeypatch.setattr(finite, "FULL_BYTES", total - 1)
    assert check_finite(checkpoint, checkpoint.tensors).mode == "sampled"
    assert check_finite(checkpoint, checkpoint.tensors, full=True).mode == "full"


@pytest.mark.parametrize("full", [True, False])
def test_decoded_values_are_checked(full, folder):
    """A quantized tensor: its stored bytes mean nothing by themselves."""
    checkpoint = open_checkpoint(folder)
    plain = checkpoint.tensors[Q0]
    rows = 0

    def decode(raw):
        nonlocal rows
        values = torch.from_numpy(raw.copy()).view(torch.float32).reshape(-1, 32)
        assert len(values) % 2 == 0
        rows += len(values)
        return values / torch.where(values == 0, 0, 1)

    coded = dataclasses.replace(plain, decode=decode, row_multiple=2)
    decoded = dataclasses.replace(checkpoint, tensors={Q0: coded})
    assert check_finite(decoded, [Q0], full).bytes_read == plain.nbytes
    assert rows == 32
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(plain.offset + 4 * 77)
        file.write(b"\0" * 4)
    with pytest.raises(CheckpointError, match=f"'{Q0}' holds nan at flat index 77;"):
        check_finite(decoded, [Q0], full)


def test_source_identity(folder):
    file = folder / WEIGHTS
    source = SourceFile.of(file)
    source.check()
    status = file.stat()
    raw = file.read_bytes()

    def rewrite(data: bytes, time_ns: int = status.st_mtime_ns) -> None:
        file.write_bytes(data)
        os.utime(file, ns=(time_ns, time_ns))

    for data, time_ns, message in [
        (raw[:-1], status.st_mtime_ns, f"changed: size was {len(raw)}, is {len(raw) - 1};"),
        (raw, 5, f"changed: modification time .* was {status.st_mtime_ns}, is 5;"),
        (raw.replace(b'"F32"', b'"I32"', 1), status.st_mtime_ns, "changed: SHA-256 of its header"),
    ]:
        rewrite(data, time_ns)
        with pytest.raises(CheckpointError, match=message):
            source.check()
    rewrite(raw)
    source.check()
    file.unlink()
    with pytest.raises(CheckpointError, match="safetensors: moved"):
        source.check()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="is a FIFO"):
        source.check()


def test_one_block_of_a_source_that_is_not_safetensors(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(2 << 20))
    first = SourceFile.of(file)
    file.write_bytes(b"GGUF" + bytes((1 << 20) - 5) + b"x" + bytes(1 << 20))
    assert SourceFile.of(file).header_sha256 != first.header_sha256


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16"]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2).map(sorted) | JSON,
    }
)
HEADER = st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), ENTRY | JSON, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    raw=st.binary(max_size=64) | HEADER.map(lambda h: json.dumps(h).encode()),
    size=st.integers(0, 99),
)
def test_any_header_is_parsed_or_refused(raw, size):
    try:
        tensors = parse_header(raw, size, Path("f"), Path("f"))
    except CheckpointError:
        return
    assert sum(t.nbytes for t in tensors.values()) == size


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_file_is_refused_or_harmless(data, tmp_path_factory):
    """Bytes of a good file replaced, cut or added: never anything but the tensors or a refusal."""
    folder = tmp_path_factory.mktemp("damage")
    tiny_llama(folder)
    raw = bytearray((folder / WEIGHTS).read_bytes())
    limit = 8 + struct.unpack_from("<Q", raw)[0]
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, limit), st.integers(0, 255)))):
        raw[place] = byte
    end = data.draw(st.integers(0, 20))
    (folder / WEIGHTS).write_bytes(raw[:-end] if end > 10 else raw + bytes(end))
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError:
        return
    for name, stored in checkpoint.tensors.items():
        assert checkpoint.read(name).nbytes == stored.nbytes
