"""What only Gemma 3n has: layers that hand over tensors, spare weights, thresholds, roundings."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import case, gap, make, oracle_model, ours, prompt, read
from tiny.gemma3n import SHARED

from lmcast.exporter import targets
from lmcast.exporter.graph.assemble import assemble
from lmcast.exporter.graph.capture import capture
from lmcast.exporter.passes import run
from lmcast.graphs import WeightError, define
from lmcast.graphs.blocks.activation_sparsity import SparseMLP


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            found[name] = make(case(name), tmp_path_factory.mktemp("tiny"))
        return found[name]

    return get


def define_of(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    return define(config, {name: tuple(t.shape) for name, t in tensors.items()})


@torch.no_grad()
def test_weights_stored_for_layers_that_use_those_of_others_are_left_out(made):
    config, tensors = read(made(SHARED))
    hub = dict(tensors)
    for i in range(4, 8):
        for name, shape in (("k_proj", (16, 32)), ("v_proj", (16, 32)), ("k_norm", (8,))):
            hub[f"model.layers.{i}.self_attn.{name}.weight"] = torch.full(shape, torch.nan)
    found = define_of(config, hub)
    assert set(found.binding.ignored) == hub.keys() - tensors.keys()
    assert found.left_out.startswith("12 tensors")
    assert torch.equal(ours(config, hub)(prompt()), ours(config, tensors)(prompt()))


@pytest.mark.parametrize(
    "surplus",
    [
        "model.layers.3.self_attn.k_proj.bias",  # a layer that has such a module
        "model.layers.4.self_attn.q_proj.bias",
        "model.layers.4.altup.other",
        "model.layers.8.self_attn.k_proj.weight",  # no such layer
        "model.altup_projections.2.weight",
    ],
)
def test_other_surplus_weights_are_refused(surplus: str, made):
    config, tensors = read(made(SHARED))
    with pytest.raises(WeightError, match=surplus):
        ours(config, {**tensors, surplus: torch.zeros(4)})


@pytest.mark.parametrize("name", [SHARED, "gemma3n_text/gemma-3n-E2B (text)"])
@torch.no_grad()
def test_steps_are_hugging_faces_with_a_cache(name: str, made):
    """Theirs keeps windowed keys whole within a call, as ours does, but lays them out otherwise."""
    rough, fine = (oracle_model(case(name), made(name), d) for d in (torch.float32, torch.float64))
    model, ids = ours(*read(made(name))), prompt()
    past, lengths = model.empty_states(2, 64), torch.zeros(2, dtype=torch.int64)
    caches: list[Any] = [None, None]
    gaps, noise = [], []
    for start, end in ((0, 12), (12, 13), (13, 30), (30, 31), (31, 37)):
        mine, past = model.step(ids[:, start:end], lengths, torch.full((2,), end - start), past)
        given = [{"past_key_values": cache, "use_cache": True} for cache in caches]
        outs = [m(ids[:, start:end], **g) for m, g in zip((rough, fine), given, strict=True)]
        caches, lengths = [out.past_key_values for out in outs], lengths + end - start
        gaps.append(gap(mine, outs[0].logits))
        noise.append(gap(outs[0].logits, outs[1].logits))
    # Two sides, each as far from the exact result as theirs is; 2e-5 where theirs is exact by luck.
    assert max(gaps) <= 2 * max(noise) + 2e-5, (gaps, noise)


def test_kinds_are_traced_once_and_states_belong_to_owners(made):
    model = define_of(*read(made("gemma3n_text/gemma-3n-E2B (text)"))).model.float()
    captured = capture(model)
    names = [call.part.name for call in captured.layers]
    # sparse windowed, its lender (the last two windowed differ by that), the full lender, borrowers
    assert [Counter(names)[n] for n in dict.fromkeys(names)] == [1, 1, 1, 2, 1]
    assert [len(call.states) for call in captured.layers] == [2, 2, 2, 0, 0, 0]
    assert captured.layers[1].gives == ("layers.1.keys", "layers.1.values", "layers.1.mask")
    taken = captured.layers[4].takes
    assert [n for n in taken if n.startswith("layers.")] == list(captured.layers[1].gives)
    assert "side.4.input" in taken


def test_layers_without_keys_of_their_own_write_no_cache(made):
    model = define_of(*read(made("gemma3n_text/gemma-3n-E2B (text)"))).model.float()
    graph = assemble(model, capture(model))
    states = [str(v.name) for v in graph.graph.outputs][1:]
    assert states == [f"layers.{i}.{n}.present" for i in range(3) for n in ("key", "value")]
    run(graph, targets.get("cpu").passes())
    counted = Counter(node.op_type for node in graph.graph)
    assert (counted["shared_attention"], counted["window_keys"]) == (4, 1)
    assert counted["GroupQueryAttention"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@torch.no_grad()
def test_model_rounds_where_hugging_faces_does(dtype: torch.dtype, made):
    """Layer by layer: what theirs makes of its own streams, ours makes of them too."""
    directory = made(SHARED)
    theirs = oracle_model(case(SHARED), directory, dtype).model
    model, ids = ours(*read(directory), dtype), prompt()
    x = model.embed(ids)
    seen: list[torch.Tensor] = []
    hook = theirs.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    theirs(ids, use_cache=False)
    hook.remove()
    assert torch.equal(x, torch.cat(list(seen[0]), -1))
    ffn = model.layers[0].ffn
    assert isinstance(ffn, SparseMLP)
    y = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(ffn(y), theirs.layers[0].mlp(y))
    assert torch.equal(model.layers[0].laurel(y), theirs.layers[0].laurel(y))
    predicted = theirs.layers[0].altup.predict(seen[0])
    mine = model.layers[0].altup.predict(x)
    torch.testing.assert_close(mine.unbind(2)[0], predicted[0], atol=0, rtol=2 * eps(dtype))


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def test_ids_beyond_the_table_of_layer_inputs_use_its_first_row(made):
    model = ours(*read(made(SHARED)))
    from lmcast.graphs.blocks.step import Step

    def inputs(ids: torch.Tensor) -> torch.Tensor:
        step = Step(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), 1)
        model.side(ids, torch.ones(1, 1, 96), step)
        return step.take(model.layers[3].own)[0]

    assert torch.equal(inputs(torch.tensor([[60]])), inputs(torch.tensor([[0]])))
    assert not torch.equal(inputs(torch.tensor([[59]])), inputs(torch.tensor([[0]])))


def test_thresholds_are_points_of_the_normal_distribution():
    from statistics import NormalDist

    for p in (0.95, 0.5, 0.1):
        point = SparseMLP(4, 4, act="relu", sparsity=p).points
        assert point is not None
        assert abs(point[torch.float32] - NormalDist().inv_cdf(p)) < 2e-6  # fp32
    assert SparseMLP(4, 4, act="relu", sparsity=0.0).points is None
