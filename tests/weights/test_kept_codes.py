"""A GGUF's weights of few bits stay what they are: one engine with every kind, and its weight."""

import json
from itertools import cycle
from pathlib import Path

import onnx_ir as ir
import pytest
from files.gguf import HIDDEN, LAYERS, MATRICES, VOCAB, random_blocks, tiny_gguf

from lmcast.exporter.checkpoint.gguf import open_gguf
from lmcast.exporter.engine.manifest import EngineError, read_manifest
from lmcast.exporter.engine.names import MODEL, PARITY
from lmcast.exporter.pipeline import export
from lmcast.exporter.targets import TARGETS
from lmcast.exporter.weights.kept_codes import keep_codes
from lmcast.graphs import defined
from lmcast.graphs.layouts.ggml import KINDS
from lmcast.graphs.weights.sources import Packed

# Bits of a number with its scales: of the file, and of the engine where that is over 1.1 times as
# much, as docs/checkpoints.md says. Codes of 5 and 6 bits and of tables take 8, of 2 and 3 bits 4.
WIDER = {
    "Q5_0": (5.5, 8.5), "Q5_1": (6, 9), "Q5_K": (5.5, 8.625), "Q6_K": (6.5625, 8.5625),
    "Q2_K": (2.625, 5.125), "Q3_K": (3.4375, 4.5625),
    "IQ4_NL": (4.5, 8.5), "IQ4_XS": (4.25, 8.3125),
}  # fmt: skip
NAMES = [f"blk.{layer}.{part}.weight" for layer in range(LAYERS) for part in MATRICES]


def few_bits(path: Path) -> Path:
    """A Llama whose matrices are of all kinds by turns, its embedding of one with minima."""
    tensors, kinds = {}, cycle(KINDS)
    for name in NAMES:
        kind, (rows, columns) = next(kinds), MATRICES[name.split(".")[2]]
        size = 1e-4 if KINDS[kind].scheme.over else 2e-3
        tensors[name.replace(".", "__")] = random_blocks(kind, rows, columns, size), kind
    embedding = random_blocks("Q4_K", VOCAB, HIDDEN, 1e-3), "Q4_K"
    return tiny_gguf(path, "llama", "F32", token_embd__weight=embedding, **tensors)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("kept")
    file = few_bits(folder / "a.gguf")
    export(file, folder / "engine", tokenizer=False)
    return file, folder / "engine"


def test_an_engine_computes_what_the_file_means(made: tuple[Path, Path]):
    """Against eager with the numbers that llama.cpp means, without rounded inputs and with them."""
    results = {
        one["scenario"]: one for one in json.loads((made[1] / PARITY).read_text())["results"]
    }
    assert {"exact", "prefill", "step by step", "ragged batch"} == results.keys()
    assert all(one["error"] <= one["bound"] for one in results.values())


def test_an_engine_weighs_what_the_file_does(made: tuple[Path, Path]):
    weights = read_manifest(made[1]).fields["weights"]
    assert weights.keys() == KINDS.keys() | {"float32"}
    numbers = dict.fromkeys(KINDS, 0) | {"Q4_K": VOCAB * HIDDEN}
    for name, kind in zip(NAMES, cycle(KINDS), strict=False):
        rows, columns = MATRICES[name.split(".")[2]]
        numbers[kind] += rows * columns
    for kind, known in KINDS.items():
        of_file = 8 * known.size / known.width
        of_engine = 8 * weights[kind]["bytes"] / numbers[kind]
        assert (of_file, of_engine) == WIDER[kind] if kind in WIDER else of_engine < 1.1 * of_file


def test_gpus_keep_what_they_have_kernels_for(made: tuple[Path, Path], tmp_path: Path):
    export(made[0], tmp_path / "e", "cuda", "bfloat16", parity=False, tokenizer=False, sms=(90,))
    assert read_manifest(tmp_path / "e").fields["weights"].keys() >= KINDS.keys()
    graph = ir.load(tmp_path / "e" / MODEL).graph
    # Sizes that are joined would be a node on the CPU, and refused at load.
    joined = [value for n in graph if n.op_type == "Concat" for value in n.inputs if value]
    makers = [value.producer() for value in joined]
    assert not [maker for maker in makers if maker and maker.op_type == "Shape"]


@pytest.mark.parametrize("target", TARGETS)
def test_targets_keep_what_they_have_kernels_for(target: str, made: tuple[Path, Path]):
    source = open_gguf(made[0])
    kept, raw = keep_codes(defined(source.config, source.tensors), source, TARGETS[target])
    kinds = {name.rpartition(".")[2] for name in raw.tensors.keys() - source.tensors.keys()}
    assert kinds == (KINDS.keys() if target in ("cpu", "cuda") else {"Q4_0"})
    assert sum(isinstance(one, Packed) for one in kept.binding.sources.values()) >= len(kinds)


def test_wider_if_asked(made: tuple[Path, Path], tmp_path: Path):
    export(made[0], tmp_path / "e", widen=True, parity=False, tokenizer=False)
    assert read_manifest(tmp_path / "e").fields["weights"].keys() == {"float32"}
    plain = tiny_gguf(tmp_path / "b.gguf", "llama", "F16")
    with pytest.raises(EngineError, match="--widen changes nothing: "):
        export(plain, tmp_path / "f", widen=True, parity=False, tokenizer=False)
    assert not (tmp_path / "f").exists()
