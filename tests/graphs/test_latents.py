"""Latent attention and its indexer: settings, both forms, chosen positions, state, predictors."""

from pathlib import Path
from typing import Any

import giants
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import operators
import pytest
import torch
from files.malformed_latents import GLM, tiny_glm
from safetensors.torch import load_file, save_file
from tiny import case, defined, logits, oracle_model, ours, prompt, read
from tiny.latents import GLM52, K2, SHARED, V3
from tiny.llama import WEIGHTS, tiny_llama, write_json
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.cast import trace
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.passes.latents_by_length import latents_by_length
from lmcast.graphs.blocks.mla import EPS
from lmcast.graphs.blocks.rope import rotate_interleaved
from lmcast.plugins.latent import sparse_attention, sparse_index
from lmcast.plugins.latent.onnx_body import Heads
from lmcast.plugins.onnx_builder import Builder, Value
from lmcast.plugins.plugin import REGISTRY, Plugin

OPTIONS: dict[str, Any] = {"parity": False, "tokenizer": False}


@torch.no_grad()
def test_norms_of_latents_have_an_epsilon_of_their_own(checkpoint):
    config, values = read(checkpoint(K2))
    mixer = ours(config | {"rms_norm_eps": 0.05}, values).layers[0].mixer
    assert mixer.q_norm.eps == mixer.kv_norm.eps == mixer_eps(K2, checkpoint) == EPS


def mixer_eps(name: str, checkpoint: Any) -> float:
    """Return what Hugging Face's own norm has."""
    attention = oracle_model(case(name), checkpoint(name)).model.layers[0].self_attn
    return attention.kv_a_layernorm.variance_epsilon


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pairs_are_rotated_as_hugging_face_does(dtype):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 8, generator=generator).to(dtype)
    angle = 9 * torch.rand(2, 5, 4, generator=generator)
    cos, sin = (torch.cat([f(angle), f(angle)], -1).to(dtype) for f in (torch.cos, torch.sin))
    turned, _ = theirs.apply_rotary_pos_emb_interleave(x, x, cos, sin, unsqueeze_dim=2)
    mine = rotate_interleaved(x.flatten(-2), angle.cos(), angle.sin(), 3).unflatten(-1, (3, 8))
    # They write the first of all pairs, then the second.
    assert torch.equal(torch.cat([mine[..., ::2], mine[..., 1::2]], -1), turned)


# The forms of attention


def run(model: ir.Model, args: tuple) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it tells that states which are not bound in place are copied
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    tensors = [arg.numpy() for arg in args if isinstance(arg, Tensor)]
    return session.run(None, dict(zip([i.name for i in proto.graph.input], tensors, strict=True)))


OPERATORS = [
    (plugin, i)
    for plugin in (REGISTRY[n] for n in ("mla_attention", "sparse_attention", "sparse_index"))
    for i in range(len(plugin.cases()))
]
EACH = pytest.mark.parametrize(("plugin", "i"), OPERATORS, ids=operators.label)


@EACH
def test_bodies_by_length_agree_with_eager(plugin: Plugin, i: int):
    args = plugin.cases()[i]
    model = ir.from_proto(operators.one_node(plugin, args))
    assert latents_by_length(model) == 1
    close = plugin.close[torch.float32]
    for got, want in zip(run(model, args), operators.eager(plugin, args), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, atol=close.atol, rtol=close.rtol)


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize(
    ("where", "choice", "operator"),
    [
        (Heads, "absorbs", "mla_attention"),
        (Heads, "absorbs", "sparse_attention"),
        (sparse_attention, "gathers", "sparse_attention"),
    ],
)
def test_every_form_agrees_with_eager_wherever_it_is_taken(
    where, choice, operator, taken, monkeypatch
):
    plugin, asked = REGISTRY[operator], []

    def forced(*given: Any) -> Value:
        asked.append(given)
        op = given[0] if isinstance(given[0], Builder) else given[0].op
        return op.constant(taken)

    monkeypatch.setattr(where, choice, forced)
    close = plugin.close[torch.float32]
    for args in plugin.cases():
        model = ir.from_proto(operators.one_node(plugin, args))
        for got, want in zip(run(model, args), plugin.eager(*args), strict=True):
            torch.testing.assert_close(
                torch.from_numpy(got), want, atol=close.atol, rtol=close.rtol
            )
    assert len(asked) == len(plugin.cases())


def test_decode_absorbs_and_prefill_expands():
    """The choice itself, at the sizes of DeepSeek V3: by T new tokens and S rows in all."""
    width, turned, rank, value = 128, 64, 512, 128

    def absorbs(tokens: int, rows: int) -> bool:
        absorbed = tokens * rows * (2 * rank + turned) + tokens * rank * (width + value)
        expanded = rows * rank * (width + value) + tokens * rows * (width + turned + value)
        return absorbed < expanded

    query = torch.zeros(1, 1, 1, width)
    for tokens, rows in ((1, 2), (1, 8192), (16, 8192), (170, 8192), (200, 8192), (64, 64)):
        args = (
            query.expand(1, tokens, 1, width), torch.zeros(1, tokens, 1, turned),
            torch.zeros(1, tokens, rank + turned), torch.zeros(1, rows, rank + turned),
            torch.tensor([rows - tokens]), torch.tensor([tokens]),
            torch.zeros(1, width, rank), torch.zeros(1, value, rank), 1.0,
        )  # fmt: skip
        model = ir.from_proto(operators.one_node(REGISTRY["mla_attention"], args))
        (body,) = model.functions.values()
        (choice,) = (node for node in body if node.op_type == "If")
        body.outputs[0] = choice.inputs[0]
        model.graph.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        model.graph.outputs[0].shape = ir.Shape([])
        assert bool(run(model, args)[0]) is absorbs(tokens, rows), (tokens, rows)
    assert [absorbs(1, 8192), absorbs(64, 64), absorbs(200, 8192)] == [True, False, False]


# Chosen positions


def test_equal_scores_go_to_the_earlier_position():
    query, key = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 4)
    weights, past = torch.ones(1, 1, 2), torch.randn(1, 9, 4)
    given = (query, weights, key, past, torch.tensor([7]), torch.tensor([1]))
    chosen, _ = sparse_index.eager(*given, 3)
    assert chosen.tolist() == [[[0, 1, 2]]]
    weights = torch.tensor([[[0.0, -1.0]]])  # of negative scores the zeros are best
    past[:, :7] = torch.tensor([1.0, 0, 0, 0])
    past[:, 5] = 0
    query[..., 1, 0] = 1
    chosen, _ = sparse_index.eager(query, weights, key, past, *given[4:], 3)
    assert chosen.tolist() == [[[0, 5, 7]]]


@torch.no_grad()
def test_layers_attend_where_the_last_indexer_chose(checkpoint):
    """Without the indexer of a layer that lends nothing, only that layer and later ones change."""
    config, values = read(checkpoint(SHARED))
    model = ours(config, values)
    assert [layer.mixer.indexer is not None for layer in model.layers] == [
        kind == "full" for kind in config["indexer_types"]
    ]
    lenders = [layer.mixer.chosen for layer in model.layers]
    assert lenders[0] is lenders[1] is lenders[2]
    assert lenders[3] is None
    assert lenders[4] is lenders[5]
    assert lenders[4] is not lenders[0]


def test_the_graph_hands_choices_down(checkpoint):
    config, values = read(checkpoint(SHARED))
    found = defined(config, values)
    graph = trace(found, open_checkpoint(checkpoint(SHARED)), DTYPES["float32"]).graph
    calls = {node.name: node for node in graph}
    handed = {
        value.name: user.node.name
        for node in calls.values()
        for value in node.outputs
        if value.name.endswith(".chosen")
        for user in value.uses()
    }
    assert set(handed) == {"layers.0.chosen", "layers.4.chosen"}
    kinds = {node.op_type for name, node in calls.items() if name.startswith("layers.")}
    assert len(kinds) == 4  # dense and lending; sparse and taking, on its own, and lending


# State


def test_state_is_exactly_the_latent(tmp_path: Path):
    giants.make("DeepSeek-V3", tmp_path / "checkpoint")
    found = inspect(tmp_path / "checkpoint")
    assert found.state.elements_per_token == 61 * 576
    assert found.state.bytes_per_token == 70_272
    assert found.state.fixed_bytes_per_sequence == 0
    assert "35,136 elements = 70,272 bytes in bfloat16" in found.text()


@pytest.mark.parametrize(("name", "each"), [(V3, [24] * 3), (GLM52, [40, 40, 24, 24, 24, 40, 24])])
def test_the_engine_holds_no_more(name, each, checkpoint, tmp_path):
    engine = export(checkpoint(name), tmp_path / "engine", **OPTIONS)
    session = engine.session(2)
    session.append(prompt())
    states = session.reserve(0)
    rows = {}
    for state, held in states:
        layer = int(state.split(".")[1])
        assert held.shape[:2] == (2, states[0][1].shape[1])
        rows[layer] = rows.get(layer, 0) + held.shape[2]
    assert [rows[layer] for layer in range(len(each))] == each  # rank + rope, and index_head_dim
    assert inspect(tmp_path / "engine").state.elements_per_token == sum(each)


# Predictors


def test_predictors_are_named_and_left_out(tmp_path: Path):
    source = tmp_path / "checkpoint"
    tiny_llama(source)
    tiny_glm(source)
    before = logits(GLM, load_file(source / WEIGHTS))
    tensors = load_file(source / WEIGHTS)
    behind = {
        n.replace("layers.2", "layers.3"): t + 1 for n, t in tensors.items() if "layers.2." in n
    }
    for name in ("eh_proj.weight", "enorm.weight", "shared_head.norm.weight"):
        behind[f"model.layers.3.{name}"] = torch.ones(32, 64)
    both = tensors | behind
    save_file(both, source / WEIGHTS, {"format": "pt"})
    write_json(source / "config.json", GLM)
    found = inspect(source)
    assert sorted(found.ignored) == sorted(behind)
    assert found.left_out == f"{len(behind)} tensors: {len(behind)} of model.layers.3"
    assert torch.equal(logits(GLM, both), before)
