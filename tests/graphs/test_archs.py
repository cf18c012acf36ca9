"""Every definition against Hugging Face's eager code, on tiny random checkpoints."""

from importlib import import_module
from typing import Any

import pytest
import torch
from tiny import CASES, case, gap, oracle, oracle_model, ours, prompt, read

from lmcast.graphs import ConfigError, WeightError, archs, define
from lmcast.graphs.blocks.rope import rotate, rotate_wide

BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@BY_CASE
def test_logits_match_hugging_face(case, checkpoint, report):
    directory, ids = checkpoint(case), prompt()
    exact = oracle(case, directory, ids, torch.float64)
    theirs = oracle(case, directory, ids)
    with torch.no_grad():
        mine = ours(*read(directory))(ids)
    bound = min(1e-3, 4 * gap(theirs, exact) + 2e-5)
    row = {"case": case.name, "error": gap(mine, theirs), "oracle fp32 to fp64": gap(theirs, exact)}
    report("Eager logits against Hugging Face, fp32", {**row, "bound": bound})
    assert mine.shape == theirs.shape
    assert theirs.std() > 0.1  # logits that could hide nothing
    assert gap(mine, theirs) <= bound


# Tokens taken by each row in each call: ragged, beyond the window, and none at all.
CALLS = ((11, 4, 9), (1, 1, 1), (13, 0, 3), (1, 1, 1), (1, 1, 1), (10, 16, 14))
# Their frequencies depend on the length of the call, so a cached pass differs by definition.
BY_LENGTH = ("llama/dynamic", "llama/longrope, long", "gemma3_text/untied, dynamic")


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in BY_LENGTH], ids=lambda c: c.name
)
@torch.no_grad()
def test_ragged_steps_equal_one_pass(case, checkpoint):
    model = ours(*read(checkpoint(case)), torch.float64)
    ids, padding = prompt(batch=3), prompt(batch=3, seed=1)
    whole = model(ids)
    past, lengths = model.empty_states(3, 64), torch.zeros(3, dtype=torch.int64)
    for call in CALLS:
        counts, tokens = torch.tensor(call), max(call)
        fed = padding[:, :tokens].clone()
        for row, (start, count) in enumerate(zip(lengths.tolist(), call, strict=True)):
            fed[row, :count] = ids[row, start : start + count]
        logits, past = model.step(fed, lengths, counts, past)
        for row, (start, count) in enumerate(zip(lengths.tolist(), call, strict=True)):
            if count:  # fp64 leaves about 1e-14; anything above is another computation
                assert gap(logits[row, :count], whole[row, start : start + count]) < 1e-10
        lengths = lengths + counts
    assert lengths.max() == 37


@pytest.mark.parametrize("name", BY_LENGTH)
@torch.no_grad()
def test_frequencies_that_depend_on_length_follow_hugging_face_step_by_step(name, checkpoint):
    from transformers import AutoModelForCausalLM

    directory, ids = checkpoint(case(name)), prompt()
    theirs = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    model = ours(*read(directory))
    past, cache, lengths = model.empty_states(2, 64), None, torch.zeros(2, dtype=torch.int64)
    for start, end in ((0, 12), (12, 30), (30, 31), (31, 37)):
        counts = torch.full((2,), end - start)
        mine, past = model.step(ids[:, start:end], lengths, counts, past)
        out = theirs(ids[:, start:end], past_key_values=cache, use_cache=True)
        cache, lengths = out.past_key_values, lengths + counts
        assert gap(mine, out.logits) < 1e-4  # fp32 noise of both sides; see the table for its size


FLIPS = {
    # What a setting changes must show in the logits, or the comparison above proves nothing.
    "llama/llama3": ("rope_parameters", {"rope_theta": 100.0}),
    "llama/linear": ("rope_parameters", {"rope_theta": 100.0}),
    "llama/dynamic": ("rope_parameters", {"rope_theta": 100.0}),
    "llama/yarn": ("rope_parameters", {"rope_theta": 100.0}),
    "llama/longrope, long": ("rope_parameters", {"rope_theta": 100.0}),
    "llama/proportional": ("rope_parameters", {"rope_theta": 100.0}),
    "llama/MQA, eps": ("rms_norm_eps", 1e-6),
    "mistral/window": ("sliding_window", None),
    "ministral3/yarn": (
        "rope_parameters",
        {"rope_type": "yarn", "rope_theta": 100.0, "llama_4_scaling_beta": 0.0, "factor": 4.0,
         "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5},
    ),
    "qwen3/window from layer 1": ("layer_types", ["full_attention"] * 3),
    "qwen3/layer types": ("sliding_window", 9),
    "smollm3/plain": ("no_rope_layers", [1, 1, 1, 1]),
    "smollm3/window": ("sliding_window", 7),
    "olmo3/derived types": ("sliding_window", 7),
    "olmo3/yarn on full": ("rope_parameters", None),
    "gemma2/other caps, bias": ("attn_logit_softcapping", 50.0),
    "gemma2/plain": ("layer_types", ["sliding_attention"] * 3),
    "gemma2/scalar, layer types, gelu": ("query_pre_attn_scalar", 8),
    "gemma3_text/final cap, bias, scalar": ("final_logit_softcapping", None),
    "gemma3_text/gemma-3-1b-it": ("rope_local_base_freq", 5000),
    "gemma3_text/layer types, linear": ("rope_parameters", None),
}  # fmt: skip


@pytest.mark.parametrize("name", FLIPS)
@torch.no_grad()
def test_settings_show_in_the_logits(name, checkpoint):
    config, tensors = read(checkpoint(case(name)))
    key, value = FLIPS[name]
    assert config.get(key) != value
    ids = prompt()
    assert gap(ours(config, tensors)(ids), ours({**config, key: value}, tensors)(ids)) > 1e-3


@pytest.mark.parametrize(
    "name", ["llama/biases, tied", "olmo2/bias, tied", "gemma2/other caps, bias"]
)
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    config, tensors = read(checkpoint(case(name)))
    ids = prompt()
    whole = ours(config, tensors)(ids)
    silent = [
        key
        for key, tensor in tensors.items()
        if gap(ours(config, {**tensors, key: tensor.flip(0)})(ids), whole) < 1e-5
    ]
    assert not silent


def test_settings_that_apply_to_nothing_are_accepted(checkpoint):
    config, tensors = read(checkpoint(case("gemma3_text/final cap, bias, scalar")))
    ids = prompt()
    without = ours({**config, "attn_logit_softcapping": None}, tensors)
    assert torch.equal(ours(config, tensors)(ids), without(ids))


@pytest.mark.parametrize("name", sorted(archs.NAMES))
def test_every_architecture_has_cases_in_both_spellings(name):
    assert {case.as_written for case in CASES if case.architecture == name} == {True, False}


def test_every_activation_is_hugging_faces():
    from transformers.activations import ACT2FN

    from lmcast.graphs.blocks.ffn import ACTIVATIONS

    assert set(ACTIVATIONS) == set(ACT2FN) - {"prelu", "xielu"}  # those carry parameters
    x = torch.linspace(-30, 30, 4001)
    for name, function in ACTIVATIONS.items():
        # 1e-6: two roundings of values up to 6, where theirs multiply in another order
        torch.testing.assert_close(function(x), ACT2FN[name](x), atol=1e-6, rtol=1e-6)


# Ours, Hugging Face's: modules whose roundings differ from family to family.
ROUNDINGS = [
    ("llama/plain", "final.norm", "model.norm"),
    ("qwen3/plain", "layers.0.mixer.q_norm", "model.layers.0.self_attn.q_norm"),
    ("olmo2/plain", "final.norm", "model.norm"),
    ("olmo3/derived types", "layers.0.mixer.k_norm", "model.layers.0.self_attn.k_norm"),
    ("gemma2/plain", "layers.0.post_ffn", "model.layers.0.post_feedforward_layernorm"),
    ("gemma3_text/derived types", "layers.0.mixer.k_norm", "model.layers.0.self_attn.k_norm"),
    ("gemma3n_text/one of each shared", "layers.0.pre_ffn",
     "model.layers.0.pre_feedforward_layernorm"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "path", "theirs"), ROUNDINGS, ids=[f"{n} {p}" for n, p, _ in ROUNDINGS]
)
@torch.no_grad()
def test_norms_round_where_hugging_faces_do(name, path, theirs, dtype, checkpoint):
    directory = checkpoint(case(name))
    norm = ours(*read(directory), dtype).get_submodule(path)
    other = oracle_model(case(name), directory, dtype).get_submodule(theirs)
    width = norm.norm.weight.shape[0] if hasattr(norm, "norm") else norm.weight.shape[0]
    x = torch.randn(200, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(norm(x), other(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_embedding_factor_is_rounded_as_hugging_faces(dtype, checkpoint):
    directory = checkpoint(case("gemma3_text/derived types"))
    embed = ours(*read(directory), dtype).embed
    other = oracle_model(case("gemma3_text/derived types"), directory, dtype).model.embed_tokens
    assert torch.equal(embed(prompt()), other(prompt()))


@pytest.mark.parametrize(("family", "rotation"), [("llama", rotate), ("olmo2", rotate_wide)])
def test_rotation_rounds_where_hugging_faces_does(family, rotation):
    theirs = import_module(f"transformers.models.{family}.modeling_{family}").apply_rotary_pos_emb
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3 * 8, generator=generator).bfloat16()
    angle = 9 * torch.rand(2, 5, 4, generator=generator)
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    if family == "llama":
        cos, sin = cos.bfloat16(), sin.bfloat16()
    expected, _ = theirs(*[x.unflatten(-1, (3, 8)).transpose(1, 2)] * 2, cos, sin)
    mine = rotation(x, angle.cos(), angle.sin(), 3)
    assert torch.equal(mine, expected.transpose(1, 2).flatten(-2))


# Base case, what is changed in config.json, what the message must name.
BAD_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("llama/plain", {"model_type": "nonesuch"}, "model_type"),
    ("llama/plain", {"clip_qkv": 8.0}, "clip_qkv"),
    ("llama/plain", {"is_causal": False}, "is_causal"),
    ("llama/plain", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("llama/plain", {"sliding_window": 8}, "sliding_window"),
    ("llama/plain", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama/plain", {"hidden_act": "swiglu"}, "hidden_act"),
    ("llama/plain", {"hidden_size": None}, "hidden_size"),
    ("llama/plain", {"hidden_size": "32"}, "hidden_size"),
    ("llama/plain", {"hidden_size": 32.0}, "hidden_size"),
    ("llama/plain", {"hidden_size": True}, "hidden_size"),
    ("llama/plain", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama/plain", {"num_hidden_layers": 4000}, "num_hidden_layers"),
    ("llama/plain", {"num_attention_heads": 5, "head_dim": None}, "num_attention_heads"),
    ("llama/plain", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama/plain", {"num_key_value_heads": 0}, "num_key_value_heads"),
    ("llama/plain", {"head_dim": 7}, "head_dim"),
    ("llama/plain", {"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    ("llama/plain", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama/plain", {"attention_bias": 1}, "attention_bias"),
    ("llama/plain", {"rope_theta": 7.0}, "rope_theta"),
    ("llama/plain", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama/plain", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama/plain", {"rope_parameters": {"rope_type": "su"}}, "rope_type"),
    ("llama/plain", {"rope_parameters": {"rope_type": "yarn", "type": "linear"}}, "rope_type"),
    ("llama/plain", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ("llama/plain", {"rope_parameters": {"factor": 2.0}}, "factor"),
    ("llama/plain", {"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
    ("llama/plain", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_theta"),
    ("llama/plain", {"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section"),
    ("llama/plain", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
    ("llama/plain", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    (
        "llama/longrope, long",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "short_factor",
    ),
    ("mistral/window", {"sliding_window": 0}, "sliding_window"),
    ("mistral/window", {"sliding_window": -8}, "sliding_window"),
    ("mistral/window", {"attention_bias": True}, "attention_bias"),
    ("mistral/window", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("ministral3/yarn", {"rope_parameters": {"rope_type": "default"}}, "llama_4_scaling_beta"),
    (
        "ministral3/yarn",
        {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
        "original_max_position_embeddings",
    ),
    ("qwen3/layer types", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ("qwen3/layer types", {"layer_types": []}, "layer_types"),
    ("qwen3/layer types", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
    ("qwen3/layer types", {"use_sliding_window": False}, "sliding_window"),
    ("smollm3/plain", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("smollm3/plain", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers"),
    ("smollm3/plain", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "interval"),
    ("olmo2/plain", {"clip_qkv": 8.0}, "clip_qkv"),
    ("olmo3/derived types", {"sliding_window": None}, "sliding_window"),
    ("olmo3/derived types", {"rope_parameters": {"rope_type": "default"}}, "rope_type"),
    ("olmo3/Olmo-3-7B", {"rope_theta": 10000}, "rope_theta"),
    (
        "olmo3/derived types",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "truncate": False}}},
        "truncate",
    ),
    ("gemma2/plain", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
    ("gemma2/plain", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2/plain", {"hidden_act": "relu"}, "hidden_act"),
    ("gemma3_text/derived types", {"use_bidirectional_attention": True}, "use_bidirectional"),
    ("gemma3_text/derived types", {"sliding_window_pattern": 2}, "sliding_window_pattern"),
    ("gemma3_text/gemma-3-1b-it", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("gemma3_text/derived types", {"rope_local_base_freq": 7.0}, "rope_theta"),
]


@pytest.mark.parametrize(
    ("name", "change", "named"), BAD_CONFIGS, ids=[f"{n} {c}"[:60] for n, c, _ in BAD_CONFIGS]
)
def test_a_config_that_does_not_fit_is_refused_by_name(name, change, named, checkpoint):
    config, tensors = read(checkpoint(case(name)))
    with pytest.raises(ConfigError, match=named) as error:
        ours({**config, **change}, tensors)
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [c.name for c in CASES if c.as_written])
def test_weights_that_do_not_fit_are_refused_by_name(name, checkpoint):
    config, tensors = read(checkpoint(case(name)))
    key = next(
        k
        for k, t in sorted(tensors.items())
        if "layers.1." in k and t.dim() > 1 and t.shape[-1] != t.shape[-2]
    )
    without = {k: v for k, v in tensors.items() if k != key}
    with pytest.raises(WeightError, match=key):
        ours(config, without)
    with pytest.raises(WeightError, match=key):
        ours(config, {**tensors, key: tensors[key].mT.contiguous()})
    for surplus in (f"{key.rpartition('.')[0]}.surplus", key.replace("layers.1", "layers.9")):
        with pytest.raises(WeightError, match=surplus):
            ours(config, {**tensors, surplus: torch.zeros(32)})


@torch.no_grad()
def test_a_tied_head_may_be_stored_too(checkpoint):
    config, tensors = read(checkpoint(case("llama/biases, tied")))
    embed = tensors["model.embed_tokens.weight"]
    assert "lm_head.weight" not in tensors
    both = {**tensors, "lm_head.weight": embed}
    binding = define(config, {name: tuple(t.shape) for name, t in both.items()}).binding
    assert binding.copies == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert torch.equal(ours(config, both)(prompt()), ours(config, tensors)(prompt()))
