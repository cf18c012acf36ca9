"""Every definition against Hugging Face's eager code, on tiny random checkpoints."""

from importlib import import_module

import pytest
import torch
from tiny import CASES, FAMILIES, case, defined, gap, oracle, oracle_model, ours, prompt, read
from tiny.configs import VOCABULARY

from lmcast.exporter.pipeline import choose_context
from lmcast.graphs import ConfigError, WeightError, define
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
BY_LENGTH = [name for family in FAMILIES for name in family.by_length]


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
    directory, ids = checkpoint(case(name)), prompt()
    theirs = oracle_model(case(name), directory)
    model = ours(*read(directory))
    past, cache, lengths = model.empty_states(2, 64), None, torch.zeros(2, dtype=torch.int64)
    for start, end in ((0, 12), (12, 30), (30, 31), (31, 37)):
        counts = torch.full((2,), end - start)
        mine, past = model.step(ids[:, start:end], lengths, counts, past)
        out = theirs(ids[:, start:end], past_key_values=cache, use_cache=True)
        cache, lengths = out.past_key_values, lengths + counts
        assert gap(mine, out.logits) < 1e-4  # fp32 noise of both sides; see the table for its size


LONG = {"rope_type": "longrope", "original_max_position_embeddings": 16}
TWO = {**LONG, "short_factor": [1.0, 1.0], "long_factor": [1.0, 4.0]}
SAME = {**LONG, "short_factor": [2.0] * 4, "long_factor": [2.0] * 4}
# case, changes, context -> lengths beyond which a row is computed anew, or what is said
ANEW = [
    ("phi3/longrope in part", {}, 17, (16,)),
    ("phi3/longrope in part", {}, 16, ()),
    ("llama/longrope, long", {}, 64, (16,)),
    ("llama/dynamic", {}, 64, ()),
    ("phi3/Phi-3.5-mini", {"rope_scaling": SAME}, 64, ()),
    ("bamba/Bamba-9B", {"rope_parameters": TWO}, 16, ()),
    ("bamba/Bamba-9B", {"rope_parameters": TWO}, None,
     "beyond 16 tokens, and layers that carry conv, state begin no row anew; accepted: --context"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "context", "want"), ANEW)
def test_rows_that_grow_beyond_a_length(name, changes, context, want, checkpoint):
    config, tensors = read(checkpoint(name))
    found = defined({**config, **changes}, tensors)
    if isinstance(want, tuple):
        assert found.anew_beyond(context) == want
        return
    with pytest.raises(ConfigError, match=want):
        choose_context(found, context)


UNKNOWN = [
    ("llama/plain", {"model_type": "nonesuch"}, "model_type is 'nonesuch'"),
    ("llama/plain", {"model_type": None}, "there is no model_type"),
    ("grok2/grok-2", {"model_type": "git", "architectures": ["GitForCausalLM"]}, "is 'git'"),
]


@pytest.mark.parametrize(("name", "change", "message"), UNKNOWN)
def test_an_unknown_architecture_is_refused(name, change, message, checkpoint):
    config, tensors = read(checkpoint(name))
    with pytest.raises(ConfigError, match=message) as error:
        ours(config | change, tensors)
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [[], None, ["FSDPLlamaForCausalLM"], ["LLaMAForCausalLM"]])
def test_classes_that_say_nothing_else_are_accepted(classes, checkpoint):
    config, tensors = read(checkpoint("llama/plain"))
    assert defined(config | {"architectures": classes}, tensors).config.vocab_size == VOCABULARY


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


@pytest.mark.parametrize("name", [c.name for c in CASES if c.as_written])
def test_weights_that_do_not_fit_are_refused_by_name(name, checkpoint):
    config, tensors = read(checkpoint(case(name)))
    key = next(
        k
        for k, t in sorted(tensors.items())
        if "layers.1." in k and t.dim() == 2 and t.shape[-1] != t.shape[-2]
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
