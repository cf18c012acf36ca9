"""Graphs of texts that take pictures, of each target that a CPU runs, against eager PyTorch."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from image_inputs import CALLS, TOKENS, cut, given, text_of
from tiny import case
from torch import Tensor

from lmcast.exporter import passes
from lmcast.exporter.backends.onnxruntime import value_of
from lmcast.exporter.graph.assemble import assemble
from lmcast.exporter.graph.capture import capture
from lmcast.exporter.graph.context import set_context
from lmcast.exporter.passes.attention_ahead import never_ahead
from lmcast.exporter.targets import TARGETS
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.step import ROWS

ROOM = 2 * TOKENS
# One of each kind of inputs, states and layers.
NAMES = ("gemma3/linear on full", "qwen3_5_text/plain", "qwen3_vl/bias", "mistral3/mistral, untied")
# Behind a prompt in pieces, steps: for either kind of rows, one alone and all in a batch.
WAYS = {"cpu": [[0], [1]], "onnx": [[0, 1]]}


def traced(model: Decoder) -> ir.Model:
    weightless = deepcopy(model).to("meta")
    return assemble(weightless, capture(weightless))


def built(model: Decoder, target: str) -> ort.InferenceSession:
    weights = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    graph = traced(model)
    for name, value in graph.graph.initializers.items():
        value.const_value = ir.tensor(weights[name], name=name)
    set_context(graph, ROOM)
    passes.run(graph, TARGETS[target].passes())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(graph).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class Rows:
    """Some rows of the batch, in one session whose states stay in place."""

    def __init__(self, session: ort.InferenceSession, model: Decoder, rows: list[int]):
        self.session, self.rows, self.batch = session, rows, given(model.image_width)
        self.lengths = torch.zeros(len(rows), dtype=torch.int64)
        names = [v.name.removesuffix(".past") for v in session.get_inputs() if ".past" in v.name]
        made = [state for layer in model.empty_states(len(rows), ROOM) for state in layer]
        self.states = dict(zip(names, (state.numpy() for state in made), strict=True))

    def run(self, counts: list[int]) -> np.ndarray:
        """Return the logits of all positions of a call B,T,V."""
        tokens, at = max(counts), torch.arange(max(counts))
        whole = {n: v if n == "image_features" else v[self.rows] for n, v in self.images.items()}
        part = cut(whole, self.lengths, tokens)
        places = (self.lengths[:, None] + at).clamp(max=TOKENS - 1)
        ids = self.batch.ids[self.rows].gather(1, places)
        feed: dict[str, Any] = {
            "input_ids": torch.where(part[ROWS] < 0, ids, 0), "cache_lengths": self.lengths,
            "token_counts": torch.tensor(counts), "logit_rows": at.repeat(len(counts), 1), **part,
        }  # fmt: skip
        binding = self.session.io_binding()
        binding.bind_output("logits", "cpu")
        for name in (v.name for v in self.session.get_inputs() if v.name in feed):
            binding.bind_ortvalue_input(name, value_of(np.ascontiguousarray(feed[name].numpy())))
        for name, state in self.states.items():
            binding.bind_ortvalue_input(f"{name}.past", value_of(state))
            binding.bind_ortvalue_output(f"{name}.present", value_of(state))
        self.session.run_with_iobinding(binding)
        self.lengths = self.lengths + torch.tensor(counts)
        out: np.ndarray = binding.get_outputs()[0].numpy()
        return out

    @property
    def images(self) -> dict[str, Tensor]:
        taken = {value.name for value in self.session.get_inputs()}
        return {name: value for name, value in self.batch.images.items() if name in taken}


@torch.no_grad()
def eager(model: Decoder) -> Tensor:
    """Return the logits of all tokens in one call, in fp32."""
    batch = given(model.image_width)
    images = {name: batch.images[name] for name in model.image_inputs}
    lengths = torch.zeros(len(batch.ids), dtype=torch.int64)
    states = model.empty_states(len(batch.ids), TOKENS)
    return model.step(batch.ids, lengths, lengths + TOKENS, states, images)[0]


@pytest.mark.parametrize("target", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_pieces_and_steps(name: str, target: str, checkpoint: Any):
    directory: Path = checkpoint(case(name))
    model = text_of(name, directory)
    wanted = eager(model).numpy()
    session = built(model, target)
    for rows in WAYS[target]:
        batch, held = Rows(session, model, rows), np.zeros(len(rows), int)
        for call in CALLS["pieces"]:
            counts = [call[row] for row in rows]
            if not max(counts):
                continue
            out = batch.run(counts)
            for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
                start = int(held[place])
                # Logits up to 10 of the same operations in other kernels, and delta rules in other
                # chunks; tests/graphs bound what fp32 itself is off by.
                np.testing.assert_allclose(
                    out[place, :count], wanted[row, start : start + count], atol=2e-4, rtol=0,
                    err_msg=f"{rows} {call}",
                )  # fmt: skip
                held[place] += count
        assert (held == TOKENS).all()


def test_steps_and_texts_take_the_causal_kernel(checkpoint: Any):
    """All attention of a graph for CPUs is in branches, one of which is the kernel."""
    model = text_of("gemma3/linear on full", checkpoint(case("gemma3/linear on full")))
    graph = traced(model)
    passes.run(graph, TARGETS["cpu"].passes())
    found = [node for node in graph.graph if node.op_type == "If"]
    assert len(found) == len(model.layers)
    for node in found:
        taken, other = (node.attributes[n].as_graph() for n in ("then_branch", "else_branch"))
        assert [inner.op_type for inner in taken] == ["GroupQueryAttention"]
        assert "Attention" in [inner.op_type for inner in other]
    assert len({node.inputs[0] for node in found}) == 1, "asked once in a call"
    # Programs that give no pictures get the kernel alone, and states that nothing else reads.
    assert never_ahead(graph) == len(model.layers) and not never_ahead(graph)
    left = [node.op_type for node in graph.graph]
    assert "If" not in left and left.count("GroupQueryAttention") == len(model.layers)
    assert "visible_ends" not in {v.name for node in graph.graph for v in node.inputs if v}
    pasts = [value for value in graph.graph.inputs if str(value.name).endswith(".past")]
    assert pasts and all(len(value.uses()) == 1 for value in pasts)
    names = [node.name for node in graph.graph]
    assert len(set(names)) == len(names)
