"""The measurement of an engine: what it reports adds up, and what it refuses."""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from tiny.llama import CONFIG, HEAD, config, shapes, tensors, tiny_llama

from lmcast.exporter import Engine, export
from lmcast.exporter.bench import BenchError, BenchReport, bench, weight_bytes_per_step
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.plugins.errors import InputError


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("bench")
    tiny_llama(folder / "checkpoint")
    return export(folder / "checkpoint", folder / "engine", parity=False)


def test_measures_in_a_process_without_torch(engine):
    found = bench(engine.directory, prompt_tokens=8, new_tokens=4, batch=2, threads=1, runs=1)
    assert found.as_json().keys() == {field.name for field in fields(BenchReport)}
    assert found.first_token_seconds > found.load_seconds > 0
    assert found.prefill_tokens_per_second > 0
    assert found.decode_tokens_per_second > 0
    steps = found.decode_tokens_per_second / found.batch
    read = steps * found.weight_bytes_per_step
    assert found.bandwidth_share == pytest.approx(read / found.read_bandwidth)
    # torch alone takes over 100 MB of anonymous memory.
    assert 10e6 < found.peak_private < 100e6
    assert found.peak_private < found.peak_rss
    assert "median of 1" in found.text()


@pytest.mark.parametrize(("tied", "target"), [(True, "cpu"), (False, "cpu"), (False, "onnx")])
def test_weights_read_in_a_step(tmp_path: Path, tied: bool, target: str):
    tiny_llama(tmp_path / "checkpoint")
    config(tie_word_embeddings=tied)(tmp_path / "checkpoint")
    if tied:
        tensors(lambda values: values.pop(HEAD))(tmp_path / "checkpoint")
    made = export(tmp_path / "checkpoint", tmp_path / "engine", target=target, parity=False)
    numbers = sum(rows * (*rest, 1)[0] for rows, *rest in shapes().values())
    # Of the embedding a step reads one row, or all of it where it is the head too.
    numbers -= CONFIG["vocab_size"] * CONFIG["hidden_size"]
    assert weight_bytes_per_step(made) == 4 * numbers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": 0}, "runs is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"prompt_tokens": 128}, "128 prompt_tokens and 32 new_tokens are more"),
    ],
)
def test_refuses(engine, changes, words):
    with pytest.raises(InputError, match=words):
        bench(engine.directory, **changes)


def test_says_why_the_engine_does_not_run(engine, tmp_path):
    broken = tmp_path / "engine"
    shutil.copytree(engine.directory, broken)
    path = broken / "engine.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    write_manifest(broken, read_manifest(broken).fields)  # else its hash says so, and it is not run
    with pytest.raises(BenchError, match="refuses it") as caught:
        bench(broken, prompt_tokens=8, new_tokens=4)
    assert "\n" not in str(caught.value)
