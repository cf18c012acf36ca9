"""Published models of full size, whose files are holes: what is printed of them, and linked."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import giants
import onnx
import pytest

from lmcast.exporter import export
from lmcast.exporter.engine.inspect import inspect

BY_NAME = pytest.mark.parametrize("name", giants.GIANTS)
UNITS = {"B": 10**9, "T": 10**12}


def text(name: str) -> dict[str, Any]:
    """Return the config of a giant's text."""
    config = giants.GIANTS[name][0]
    return config.get("text_config", config)


def layers(name: str) -> int:
    """Return how many layers have every kind that there is, and two at least."""
    config = text(name)
    full = config.get("linear_attn_config", {}).get("full_attn_layers", [1])[0]
    attention = config.get("hybrid_override_pattern", "*").index("*") + 1
    interval = config.get("full_attention_interval", 1)
    types = config.get("layer_types", [""])
    kinds = max(types.index(kind) for kind in set(types)) + 1
    return max(config.get("first_k_dense_replace", 1) + 1, full, attention, interval, kinds)


def short(count: int, published: str) -> set[str]:
    """Return a count in the unit and digits of `published`: rounded, and cut off as GLM's 40.8B."""
    unit, (_, _, digits) = published[-1], published[:-1].partition(".")
    scale = 10 ** len(digits)
    whole = count * scale / UNITS[unit]
    return {f"{n / scale:.{len(digits)}f}{unit}" for n in (round(whole), int(whole))}


@BY_NAME
def test_parameters_are_the_published_ones(name: str, tmp_path: Path):
    giants.make(name, tmp_path / name)
    _, _, total, active = giants.GIANTS[name]
    found = inspect(tmp_path / name)
    tower = (found.tower or {"parameters": 0})["parameters"]
    assert bool(tower) == ("vision_config" in giants.GIANTS[name][0])
    assert total in short(found.parameters + tower - giants.UNCOUNTED.get(name, 0), total)
    embeddings = text(name)["vocab_size"] * text(name)["hidden_size"]
    counted = embeddings if name in giants.EMBEDDED else 0
    assert active in short(found.active_parameters + counted, active)


@BY_NAME
def test_linked_export_points_at_every_byte(name: str, tmp_path: Path):
    giants.make(name, tmp_path / name, layers(name))
    # Holes are no NaN: reading 8 GiB of them would show nothing.
    options = {"dtype": "bfloat16", "weights": "link", "parity": False, "tokenizer": False}
    options |= {"full_check": False}
    engine = export(tmp_path / name, tmp_path / "engine", "onnx", **options)
    config, tensors, *_ = giants.GIANTS[name]
    expected = sum(map(giants.size, tensors(giants.cut(config, layers(name)))))
    text_graph, *towers = (
        onnx.load(engine.directory / file, load_external_data=False)
        for file in ("engine.onnx", "vision.onnx")
        if (engine.directory / file).exists()
    )
    assert bool(towers) == ("vision_config" in config)
    # Thousands if every expert were three of them.
    assert len(text_graph.graph.initializer) < 120
    linked = {
        (fields["location"], fields["offset"]): int(fields["length"])
        for graph in (text_graph, *towers)
        for weight in graph.graph.initializer
        for fields in [{entry.key: entry.value for entry in weight.external_data}]
    }
    assert sum(linked.values()) == expected
    assert {Path("/", location).parent for location, _ in linked} == {tmp_path / name}


def test_an_engine_larger_than_memory_loads(tmp_path: Path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    config, tensors, *_ = giants.GIANTS["Qwen3-235B-A22B"]
    one, two = (sum(map(giants.size, tensors(giants.cut(config, n)))) for n in (1, 2))
    count = memory // (2 * (two - one)) + 1  # in float32 they take twice as much
    giants.make("Qwen3-235B-A22B", tmp_path / "checkpoint", count, wide=True)
    options = {"parity": False, "tokenizer": False}
    engine = export(tmp_path / "checkpoint", tmp_path / "engine", **options)
    assert engine.linked
    assert engine.manifest.fields["weights"]["float32"]["bytes"] > memory
    assert engine.runner


def test_the_command_says_both_counts(tmp_path: Path):
    giants.make("gpt-oss-120b", tmp_path / "checkpoint", layers("gpt-oss-120b"))
    command = [
        str(Path(sys.executable).with_name("lmcast")),
        "inspect",
        str(tmp_path / "checkpoint"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = inspect(tmp_path / "checkpoint")
    line = f"{found.parameters:,}, of which a token uses {found.active_parameters:,}"
    assert line in done.stdout
    assert "mxfp4: 8 tensors" in done.stdout
