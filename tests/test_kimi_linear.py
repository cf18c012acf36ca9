"""Kimi Linear: settings, names, lengths around a chunk, saved states, padding, bytes of state."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import case, defined, gap, logits, oracle, oracle_model, ours, prompt, read
from tiny_kimi_linear import FULL, LINEAR, on_the_hub
from tiny_llama import DROP, WEIGHTS

from lmcast.exporter import Engine, export, load
from lmcast.exporter.inspection import inspect
from lmcast.graphs import ConfigError, WeightError, define, fill

HUB, PLAIN = "kimi_linear/Kimi-Linear-48B-A3B", "kimi_linear/plain"
GROUPS = "kimi_linear/by default, groups, two taps"
LATENT, ALONE = "kimi_linear/queries of latents, bias, gelu", "kimi_linear/linear alone, one tap"
NESTED = "linear_attn_config"
LISTS = case(HUB).settings[NESTED]


def nested(**changes: Any) -> dict[str, Any]:
    """Return the linear_attn_config of the released config with changes."""
    return {NESTED: {k: v for k, v in (LISTS | changes).items() if v is not DROP}}


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | change).items() if value is not DROP}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN = [
    (HUB, {"moe_renormalize": False}),
    (HUB, {"routed_scaling_factor": 1.0}),
    (HUB, {"num_experts_per_token": 3}),
    (HUB, {"rms_norm_eps": 0.05}),
    (GROUPS, {"num_expert_group": 2}),
    (GROUPS, {"topk_group": 3}),
    (LATENT, {"hidden_act": "silu"}),
    (LATENT, {"rms_norm_eps": 1e-5}),
    (LATENT, {"routed_scaling_factor": 1.0}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, dict[str, Any]]] = [
    (HUB, {"head_dim": 7, "rope_theta": 5.0}),
    (HUB, {"num_key_value_heads": None}),
    (HUB, {"first_k_dense_replace": DROP}),
    (HUB, {"first_k_dense_replace": 3, "mlp_layer_types": ["dense"] + ["sparse"] * 4}),
    (HUB, {"max_position_embeddings": DROP}),
    (HUB, {"moe_router_activation_func": DROP, "scoring_func": "sigmoid"}),
    (HUB, {"mla_use_nope": DROP, "use_grouped_topk": DROP, "rope_parameters": None}),
    (HUB, {"num_experts": DROP, "num_local_experts": 8}),
    (HUB, {"num_experts_per_token": DROP, "num_experts_per_tok": 2}),
    (HUB, {"moe_renormalize": DROP, "norm_topk_prob": True}),
    (HUB, {"layer_types": [LINEAR] * 3 + [FULL] * 2}),
    (HUB, {**nested(full_attn_layers=DROP, kda_layers=DROP),
           "layer_types": [LINEAR] * 3 + [FULL] * 2}),
    (HUB, {**nested(head_dim=DROP), "linear_head_dim": 12}),
    (HUB, nested(short_conv_kernel_size=DROP)),
    (GROUPS, {"layer_types": None}),
    (PLAIN, {NESTED: {"full_attn_layers": [4], "kda_layers": [3, 1, 2], "num_heads": 3}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), SILENT)
def test_settings_that_mean_the_same(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert torch.equal(logits(changed(config, change), values), logits(config, values))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (HUB, {"mla_use_nope": False}, "mla_use_nope is False"),
    (HUB, {"use_grouped_topk": False}, "use_grouped_topk is False"),
    (HUB, {"moe_router_activation_func": "softmax"}, "scoring_func is 'softmax'"),
    (HUB, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    (HUB, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = .*nothing reads"),
    (HUB, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters is .*'default'"),
    (HUB, {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    (HUB, {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    (HUB, {"model_max_length": 64}, "max_position_embeddings is 1048576, but model_max_length"),
    (HUB, {"linear_head_dim": 16}, f"linear_head_dim is 16, but {NESTED}.head_dim.* is 12"),
    (HUB, {"layer_types": [LINEAR] * 5}, f"layer_types is .*, but {NESTED}.full_attn_layers, "),
    (HUB, {"layer_types": [LINEAR] * 4, **nested(full_attn_layers=DROP, kda_layers=DROP)},
     "layer_types has 4 entries; num_hidden_layers is 5"),
    (HUB, {NESTED: [1]}, rf"{NESTED} is \[1\]; accepted: an object"),
    (HUB, nested(gate_rank=8), f"sets {NESTED}.gate_rank = 8.*--inert {NESTED}.gate_rank"),
    (HUB, nested(kda_layers=DROP), r"full_attn_layers is \[4, 5\] and kda_layers is None"),
    (HUB, nested(kda_layers=[0, 1, 2]), r"kda_layers is \[0, 1, 2\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3, 4]), r"kda_layers is \[1, 2, 3, 4\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3.0]), r"kda_layers is \[1, 2, 3.0\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3, 6]), "layer_types has 6 entries; num_hidden_layers is 5"),
    (HUB, nested(num_heads=0), "linear_num_heads is 0; accepted: 1"),
    (PLAIN, {"layer_types": [LINEAR, "mamba", LINEAR, FULL]}, r"layer_types\[1\] is 'mamba'"),
    (PLAIN, {"mlp_layer_types": ["sparse"]}, "mlp_layer_types has 1 entries"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ConfigError, match=f"^kimi_linear: config.json: .*{message}") as error:
        defined(changed(config, change), values)
    assert "\n" not in str(error.value)


def test_a_nested_key_named_as_inert_is_passed_over(checkpoint):
    config, values = read(checkpoint(HUB))
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    config |= nested(gate_rank=8)
    assert define(config, shapes, [f"{NESTED}.gate_rank"]).config.linear_head_dim == 12


@pytest.mark.parametrize("name", [HUB, LATENT])
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    config, values = read(checkpoint(name))
    model = ours(config, values)
    before, silent = model(prompt()), []
    for parameter, value in model.named_parameters():
        kept = value.clone()
        value.copy_(kept.flatten().flip(0).view_as(kept))
        if gap(model(prompt()), before) < 1e-5:
            silent.append(parameter)
        value.copy_(kept)
    assert not silent


# Names


def as_saved(name: str, directory: Path, to: Path) -> dict[str, torch.Tensor]:
    """Return what save_pretrained writes."""
    oracle_model(case(name), directory).save_pretrained(to)
    return load_file(to / WEIGHTS)


def as_modules(name: str, directory: Path, to: Path) -> dict[str, torch.Tensor]:
    """Return the tensors as Hugging Face's modules hold them: convolutions and experts in one."""
    oracle_model(case(name), directory).save_pretrained(to, save_original_format=False)
    return load_file(to / WEIGHTS)


@pytest.mark.parametrize("form", [as_saved, as_modules])
@pytest.mark.parametrize("name", [HUB, LATENT])
def test_other_names_of_the_same_tensors_are_read(name, form, checkpoint, tmp_path):
    config, values = read(checkpoint(name))
    other = form(name, checkpoint(name), tmp_path)
    assert other.keys() != values.keys()
    want = ours(config, values).state_dict()
    for parameter, value in ours(config, other).state_dict().items():
        assert torch.equal(value, want[parameter]), parameter


def test_two_names_of_the_same_are_refused(checkpoint):
    config, values = read(checkpoint(HUB))
    name = "model.layers.0.block_sparse_moe.up_proj.weight"
    assert on_the_hub(name) in values
    with pytest.raises(WeightError, match=f"{name} are forms of the same"):
        defined(config, values | {name: values[on_the_hub(name)]})


# Roundings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_what_is_computed_in_fp32_beside_shorter_numbers(dtype, checkpoint):
    config, values = read(checkpoint(PLAIN))
    kept = ("A_log", "dt_bias", "e_score_correction_bias")
    stored = {n: t if n.endswith(kept) else t.to(dtype) for n, t in values.items()}
    found = defined(config, stored)
    fill(found, found.model, stored.__getitem__, dtype)
    mixer = found.model.layers[0].mixer
    assert {n for n, p in mixer.named_parameters() if p.dtype == torch.float32} == {
        "decay.A_log", "decay.dt_bias",
    }  # fmt: skip
    theirs = oracle_model(case(PLAIN), checkpoint(PLAIN), dtype).model.layers[0].self_attn
    for name in ("A_log", "dt_bias"):
        setattr(theirs.forget_gate, name, mixer.decay.get_parameter(name))
    generator = torch.Generator().manual_seed(0)
    x, gate = (torch.randn(40, 5, 3, 12, generator=generator).to(dtype) for _ in range(2))
    assert torch.equal(mixer.norm(x, gate), theirs.o_norm(x, gate))
    x = torch.randn(2, 50, 32, generator=generator).to(dtype)
    decay = mixer.decay(x)
    assert decay.dtype == torch.float32
    # Theirs is the rate times log(1 + exp(x)), whose sum is rounded to a multiple of 2**-23.
    rounding = mixer.decay.A_log.exp().max().item() * 2**-23
    want = theirs.forget_gate(x).flatten(-2)
    torch.testing.assert_close(decay, want, atol=rounding, rtol=1e-6)


# Lengths, saved states, padding


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = tmp_path_factory.mktemp("kimi_linear") / "engine"
    export(checkpoint(HUB), directory, parity=False, tokenizer=False)
    return load(directory, threads=1)


def limit(theirs: torch.Tensor, exact: torch.Tensor) -> float:
    """Four times what Hugging Face's fp32 is off, and 2e-5: the bound of the main job."""
    return min(1e-3, 4 * gap(theirs, exact) + 2e-5)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])  # their chunks have 64 tokens
@torch.no_grad()
def test_lengths_around_a_chunk(tokens, checkpoint, engine, report):
    directory, ids = checkpoint(HUB), prompt(2, tokens)
    theirs = oracle(case(HUB), directory, ids)
    bound = limit(theirs, oracle(case(HUB), directory, ids, torch.float64))
    mine = gap(ours(*read(directory))(ids), theirs)
    built = gap(torch.from_numpy(engine.logits(ids)), theirs)
    row = {"tokens": tokens, "eager": mine, "engine": built, "bound": bound}
    report("Kimi Linear against Hugging Face, fp32", row)
    assert max(mine, built) <= bound


@torch.no_grad()
def test_steps_follow_hugging_faces(checkpoint, engine):
    directory, ids = checkpoint(HUB), prompt(2, 75)
    theirs, session, cache = oracle_model(case(HUB), directory), engine.session(2), None
    exact = oracle(case(HUB), directory, ids, torch.float64)
    bound = limit(oracle(case(HUB), directory, ids), exact)
    model, lengths = ours(*read(directory)), torch.zeros(2, dtype=torch.int64)
    past = model.empty_states(2, 80)
    for start, end in ((0, 65), *((i, i + 1) for i in range(65, 75))):
        counts = torch.full((2,), end - start)
        out = theirs(ids[:, start:end], past_key_values=cache, use_cache=True)
        mine, past = model.step(ids[:, start:end], lengths, counts, past)
        built = torch.from_numpy(session.append(ids[:, start:end]))
        cache, lengths = out.past_key_values, lengths + counts
        assert gap(mine, out.logits) <= bound
        assert gap(built, out.logits[:, -1]) <= bound


def test_a_saved_state_is_resumed(engine, tmp_path):
    ids = prompt(2, 90)
    session = engine.session(2)
    session.append(ids[:, :67])
    np.savez(tmp_path / "states.npz", lengths=session.lengths, **dict(session.reserve(0)))
    want = [session.append(ids[:, 67:80]), *(session.append(ids[:, i : i + 1]) for i in (80, 81))]
    saved = np.load(tmp_path / "states.npz")
    again = engine.session(2)
    for name, state in again.reserve(90):
        state[...] = saved[name]
    again.lengths[:] = saved["lengths"]
    got = [again.append(ids[:, 67:80]), *(again.append(ids[:, i : i + 1]) for i in (80, 81))]
    np.testing.assert_array_equal(got, want)
    for name, state in again.reserve(90):  # each of them counts
        state[...] = 0
        assert not np.array_equal(saved[name], state), name


@torch.no_grad()
def test_padded_rows_equal_rows_alone(checkpoint, engine):
    directory, ids = checkpoint(HUB), prompt(3, 70)
    bound = limit(
        oracle(case(HUB), directory, ids), oracle(case(HUB), directory, ids, torch.float64)
    )
    together, alone = engine.session(3), [engine.session(1) for _ in ids]
    taken = [0, 0, 0]
    for counts in ((65, 64, 1), (1, 1, 1), (2, 5, 66)):
        fed = torch.full((3, max(counts)), 3)  # padding that would show if it were read
        for row, count in enumerate(counts):
            fed[row, :count] = ids[row, taken[row] : taken[row] + count]
            taken[row] += count
        got = together.append(fed, counts)
        want = [s.append(fed[row : row + 1, : counts[row]]) for row, s in enumerate(alone)]
        assert np.abs(got - np.concatenate(want)).max() <= bound
    for row, session in enumerate(alone):
        for (name, mine), (_, one) in zip(together.reserve(0), session.reserve(0), strict=True):
            held = taken[row] if name.endswith("latent") else None
            assert np.abs(mine[row, :held] - one[0, :held]).max() <= bound, name


# State

HEADS, WIDTH, TAPS, LATENTS = 3, 12, 4, 16 + 8  # of the released config's small twin
FIXED = 3 * (HEADS * WIDTH * WIDTH + 3 * (TAPS - 1) * HEADS * WIDTH) * 4  # of three layers, in fp32


def test_only_latents_grow_with_the_context(checkpoint, engine):
    for path in (checkpoint(HUB), engine.directory):
        short, long = (inspect(path, context=n).state for n in (1000, 1_000_000))
        assert short.fixed_bytes_per_sequence == long.fixed_bytes_per_sequence == FIXED
        assert short.elements_per_token == long.elements_per_token == 2 * LATENTS
        assert long.bytes - short.bytes == 999_000 * 2 * LATENTS * 4


def test_without_latents_nothing_grows(checkpoint, tmp_path):
    config, values = read(checkpoint(ALONE))
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config | {"model_max_length": 1 << 20}))
    save_file(values, source / WEIGHTS, {"format": "pt"})
    export(source, tmp_path / "engine", parity=False, tokenizer=False)
    for path in (source, tmp_path / "engine"):
        short, long = (inspect(path, context=n).state for n in (1000, 1_000_000))
        assert short.bytes == long.bytes == 3 * 3 * 20 * 20 * 4  # one tap: no inputs are carried
