"""The text of multimodal checkpoints: both layouts of names, tie flags, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import CASES, case, defined, gap, logits, oracle, ours, prompt, read
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.cli import main
from lmcast.exporter.texts import stated
from lmcast.graphs import ConfigError, WeightError, archs, define, load
from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.weights.text_names import HUB, MODULES, Layout

NAMES = ("gemma3/linear on full", "gemma3/untied", "mistral3/mistral, untied")
TIE = "tie_word_embeddings"
# Logits up to 15, whose last place is 1e-6, of the same operations: measured 0.
FP32 = 1e-5


def write(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def as_modules(name: str) -> str:
    """Return a name of the hub as Hugging Face's modules have it."""
    if name.startswith(HUB.trunk):
        return MODULES.trunk + name.removeprefix(HUB.trunk)
    return name.removeprefix(HUB.head) if name.startswith(HUB.head) else f"model.{name}"


def as_hub(name: str) -> str:
    """Return a name of Hugging Face's modules as the hub has it."""
    if name.startswith(MODULES.trunk):
        return HUB.trunk + name.removeprefix(MODULES.trunk)
    return name.removeprefix("model.") if name.startswith("model.") else HUB.head + name


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_of_names_are_read(name, checkpoint, tmp_path):
    config, tensors = read(checkpoint(name))
    assert all(n.startswith(("language_model.", "vision_tower.", "multi_modal")) for n in tensors)
    renamed = {as_modules(n): tensor for n, tensor in tensors.items()}
    assert torch.equal(logits(config, renamed), logits(config, tensors))
    # Hugging Face reads these names too, as the same model.
    theirs = oracle(case(name), write(tmp_path, config, renamed), prompt())
    torch.testing.assert_close(logits(config, renamed), theirs, atol=FP32, rtol=0)


@pytest.mark.parametrize("name", ["gemma3n/untied", "llama4/dense layers"])
def test_names_in_the_layout_of_the_other_family_are_read(name, checkpoint):
    config, tensors = read(checkpoint(name))
    other = as_hub if name.startswith("gemma3n") else as_modules
    renamed = {other(n): tensor for n, tensor in tensors.items()}
    assert not renamed.keys() & tensors.keys()
    assert torch.equal(logits(config, renamed), logits(config, tensors))


def test_an_engine_of_the_other_layout(checkpoint, tmp_path):
    config, tensors = read(checkpoint("gemma3/linear on full"))
    (tmp_path / "checkpoint").mkdir()
    source = write(tmp_path / "checkpoint", config, {as_modules(n): t for n, t in tensors.items()})
    engine = export(
        source, tmp_path / "engine", parity=True, tokenizer=False, context=64, text_only=True
    )
    assert engine.manifest.fields["architecture"] == "gemma3"
    with torch.no_grad():
        want = load(source)(prompt())
    # Logits up to 15, whose last place is 1e-6: measured 7e-6, and as much again for other kernels.
    torch.testing.assert_close(torch.from_numpy(engine.logits(prompt())), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("layout", ["hub", "modules"])
def test_other_models_are_named_and_left_out(layout, checkpoint):
    config, tensors = read(checkpoint("gemma3/untied"))
    if layout == "modules":
        tensors = {as_modules(n): tensor for n, tensor in tensors.items()}
    found = defined(config, tensors)
    others = [n for n in tensors if "vision_tower" in n or "multi_modal_projector" in n]
    assert sorted(found.binding.ignored) == sorted(others)
    before = "" if layout == "hub" else "model."
    towers = [n for n in others if "vision_tower" in n]
    projector = f"{len(others) - len(towers)} of {before}multi_modal_projector"
    assert found.left_out == (
        f"{len(others)} tensors: {projector}, {len(towers)} of {before}vision_tower"
    )
    unknown = defined(config, {**tensors, "audio_tower.conv.weight": torch.zeros(3)})
    assert "1 of audio_tower.conv" in unknown.left_out
    without = {n: tensor for n, tensor in tensors.items() if n not in others}
    assert defined(config, without).left_out == ""
    assert torch.equal(logits(config, without), logits(config, tensors))


def test_the_command_says_what_is_left_out(checkpoint, tmp_path, capsys, monkeypatch):
    source = checkpoint("mistral3/mistral, untied")
    arguments = ["export", source, "-o", tmp_path / "engine", "--no-tokenizer", "--no-parity"]
    arguments.append("--text-only")
    monkeypatch.setattr("sys.argv", ["lmcast", *map(str, arguments)])
    main()
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "of vision_tower" in lines[0]
    assert "of multi_modal_projector" in lines[0]


def with_flags(config: dict[str, Any], outer: bool | None, inner: bool | None) -> dict[str, Any]:
    """Return a config with the tie flag in these places; None: not there."""
    text = {k: v for k, v in config["text_config"].items() if k != TIE}
    rest = {k: v for k, v in config.items() if k != TIE}
    text |= {} if inner is None else {TIE: inner}
    return {**rest, **({} if outer is None else {TIE: outer}), "text_config": text}


@pytest.mark.parametrize("flags", [(False, False), (False, None), (None, False), (None, None)])
def test_an_untied_head_by_either_flag_or_by_being_there(flags, checkpoint):
    config, tensors = read(checkpoint("mistral3/mistral, untied"))
    assert torch.equal(logits(with_flags(config, *flags), tensors), logits(config, tensors))


@pytest.mark.parametrize("flags", [(True, False), (None, None)])
def test_hugging_face_uses_a_stored_head_too(flags, checkpoint, tmp_path):
    # What transformers 5 writes for Mistral Small 3.1, and what lies on the hub.
    config, tensors = read(checkpoint("mistral3/mistral, untied"))
    config = with_flags(config, *flags)
    theirs = oracle(case("mistral3/mistral, untied"), write(tmp_path, config, tensors), prompt())
    torch.testing.assert_close(logits(config, tensors), theirs, atol=FP32, rtol=0)


@pytest.mark.parametrize("flags", [(True, True), (True, None), (None, True), (None, None)])
def test_a_tied_head_by_either_flag_or_by_being_absent(flags, checkpoint):
    config, tensors = read(checkpoint("mistral3/ministral3, tied"))
    assert "language_model.lm_head.weight" not in tensors
    assert torch.equal(logits(with_flags(config, *flags), tensors), logits(config, tensors))
    both = {**tensors, "language_model.lm_head.weight": torch.zeros(97, 32)}
    embed = "language_model.model.embed_tokens.weight"
    copies = defined(with_flags(config, True, None), both).binding.copies
    assert copies == (("language_model.lm_head.weight", embed),)


@pytest.mark.parametrize("flags", [(True, False), (False, True)])
def test_flags_that_differ_without_a_stored_head_are_refused(flags, checkpoint):
    config, tensors = read(checkpoint("mistral3/ministral3, tied"))
    with pytest.raises(ConfigError, match=r"tie_word_embeddings.*text_config\.tie_word_embeddings"):
        defined(with_flags(config, *flags), tensors)


def test_an_untied_head_must_be_there(checkpoint):
    config, tensors = read(checkpoint("mistral3/ministral3, tied"))
    with pytest.raises(WeightError, match=r"language_model\.lm_head\.weight is missing"):
        defined(with_flags(config, False, None), tensors)


def test_what_text_config_leaves_out_is_hugging_faces_default(checkpoint):
    config, _ = read(checkpoint("gemma3/gemma-3-4b-it"))
    text = {k: v for k, v in config["text_config"].items() if k != "vocab_size"}
    with pytest.raises(WeightError, match="asks for \\[262208, 32\\]"):
        defined({**config, "text_config": text}, read(checkpoint("gemma3/gemma-3-4b-it"))[1])


def test_ids_that_end_a_text_lie_in_either_config(checkpoint, tmp_path):
    source = checkpoint("gemma3/gemma-3-4b-it")
    assert stated(open_checkpoint(source)) == [1, 96]
    config, tensors = read(source)
    text = {**config["text_config"], "eos_token_id": 7}
    inner = {**config, "eos_token_id": None, "text_config": text}
    assert stated(open_checkpoint(write(tmp_path, inner, tensors))) == [7]


TEXT = "language_model.model.layers.1.mlp.up_proj.weight"
BAD_NAMES = [
    ({TEXT: None}, f"{TEXT} is missing"),
    ({"model.language_model.norm.weight": torch.zeros(32)}, "named in two ways"),
    ({"lm_head.weight": torch.zeros(97, 32)}, r"lm_head\.weight.*named in two ways"),
    ({"model.vision_tower.x.weight": torch.zeros(3)}, "named in two ways"),
    ({"language_model.model.layers.1.mlp.bias": torch.zeros(3)}, "nothing reads it"),
]


@pytest.mark.parametrize(("change", "named"), BAD_NAMES, ids=[named for _, named in BAD_NAMES])
def test_tensors_that_do_not_fit_are_refused_by_name(change, named, checkpoint):
    config, tensors = read(checkpoint("gemma3/untied"))
    tensors = {n: t for n, t in {**tensors, **change}.items() if t is not None}
    with pytest.raises(WeightError, match=named):
        defined(config, tensors)


def text(**changes: Any) -> dict[str, Any]:
    return {"text_config": changes}


BAD_CONFIGS = [
    ({"new_key": 3}, r"sets new_key = 3, which nothing reads; pass --inert new_key to ignore it"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"text_config": None}, "text_config is None; accepted: an object"),
    (text(model_type="qwen3"), "text_config.model_type is 'qwen3'; accepted: gemma3_text"),
    (text(model_type=["gemma3_text"]), r"text_config\.model_type is \['gemma3_text'\]"),
    ({"tie_word_embeddings": None}, "config.json: tie_word_embeddings is None; accepted: true"),
    (text(tie_word_embeddings=None), "text_config.tie_word_embeddings is None; accepted: true"),
    ({"tie_word_embeddings": "no"}, "config.json: tie_word_embeddings is 'no'"),
    (text(tie_word_embeddings=0), "config.json: text_config.tie_word_embeddings is 0"),
    (text(new_key=3), r"sets text_config\.new_key = 3.*--inert text_config\.new_key"),
    (text(hidden_size="32"), r"text_config\.hidden_size is '32'"),
    (text(num_key_value_heads=3), r"config\.json: text_config\.num_attention_heads 4 is not"),
    (text(num_hidden_layers=4000), r"text_config\.num_hidden_layers is 4000"),
    (text(rope_theta=5.0), r"text_config\.rope_parameters\.full_attention\.rope_theta is"),
    (text(final_logit_softcapping=30.0), r"text_config\.final_logit_softcapping is 30\.0"),
    (text(use_bidirectional_attention=True), r"text_config\.use_bidirectional_attention is True"),
]


@pytest.mark.parametrize(("change", "named"), BAD_CONFIGS, ids=[str(c) for c, _ in BAD_CONFIGS])
def test_a_config_that_does_not_fit_is_refused_by_key(change, named, checkpoint):
    config, tensors = read(checkpoint("gemma3/untied"))
    if change.get("text_config"):
        change = {"text_config": {**config["text_config"], **change["text_config"]}}
    with pytest.raises(ConfigError, match=named) as error:
        defined({**config, **change}, tensors)
    assert str(error.value).removeprefix("gemma3: ").startswith("config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["new_key", "text_config.new_key"])
def test_a_key_named_as_inert_is_passed_over(key, checkpoint):
    config, tensors = read(checkpoint("gemma3/untied"))
    inner = {**config["text_config"], **({"new_key": 3} if "." in key else {})}
    changed = {**config, "text_config": inner, **({} if "." in key else {"new_key": 3})}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert define(changed, shapes, [key]).config.vocab_size == 97
    with pytest.raises(ConfigError, match="new_key"):
        define(changed, shapes, ["text_config.other"])


# Texts of a multimodal checkpoint, by themselves: the prefix of their tensors is found.
TEXTS = [name for name in archs.NAMES if not isinstance(archs.get(name), Multimodal)]
TAKEN_OUT = [(name, layout) for name in TEXTS for layout in (HUB, MODULES)]
TAKEN_OUT.remove(("nemotron_h", MODULES))  # below backbone, which no class has beside a tower
BESIDE = ("mtp.layers.0.mlp.up_proj.weight", "model.visual.blocks.0.attn.qkv.weight")


def taken_out(
    name: str, layout: Layout, checkpoint: Any
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return a text's config, its tensors, and these with the names of a multimodal checkpoint."""
    config, tensors = read(checkpoint(next(c for c in CASES if c.architecture == name)))
    return config, tensors, {layout(n): tensor for n, tensor in tensors.items()}


@pytest.mark.parametrize(("name", "layout"), TAKEN_OUT, ids=lambda x: getattr(x, "trunk", x))
def test_a_text_keeps_the_names_of_the_checkpoint_it_is_from(name, layout, checkpoint):
    config, tensors, renamed = taken_out(name, layout, checkpoint)
    others = dict.fromkeys(BESIDE, torch.zeros(3))
    found = defined(config, {**renamed, **others})
    want = [layout(n) for n in defined(config, tensors).binding.tensors()]
    assert found.binding.tensors() == want
    assert set(found.binding.ignored) >= set(BESIDE)
    assert "1 of model.visual" in found.left_out
    assert "1 of mtp" in found.left_out
    with pytest.raises(WeightError, match="named in two ways"):
        defined(config, {**renamed, **tensors})


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_5_moe_text", "gemma3n_text"])
def test_texts_that_hugging_face_reads_by_other_names(name, checkpoint, tmp_path):
    config, tensors, renamed = taken_out(name, MODULES, checkpoint)
    (model_class,) = config["architectures"]
    config["architectures"] = [model_class.replace("CausalLM", "ConditionalGeneration")]
    first = next(c for c in CASES if c.architecture == name)
    write(tmp_path, config, renamed)
    theirs = oracle(first, tmp_path, prompt())
    assert torch.equal(theirs, oracle(first, checkpoint(first), prompt()))
    assert torch.equal(logits(config, renamed), logits(config, tensors))


def in_stacks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the experts of a layer stacked, out-first and gate before up."""
    out = {n: tensor for n, tensor in tensors.items() if ".experts." not in n}
    for module in {n.partition(".experts.")[0] + ".experts" for n in tensors if ".experts." in n}:
        count = len([n for n in tensors if n.startswith(module) and n.endswith("down_proj.weight")])
        gate, up, down = (
            torch.stack([tensors[f"{module}.{e}.{part}_proj.weight"] for e in range(count)])
            for part in ("gate", "up", "down")
        )
        out |= {f"{module}.gate_up_proj": torch.cat([gate, up], 1), f"{module}.down_proj": down}
    return out


def test_experts_of_a_text_one_by_one_or_in_stacks(checkpoint):
    config, _, single = taken_out("qwen3_5_moe_text", MODULES, checkpoint)
    stacks = in_stacks(single)
    assert len(stacks) < len(single)
    assert torch.equal(logits(config, stacks), logits(config, single))


def one_by_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with Llama 4's stacks of experts, in-first, unfolded into matrices."""
    out = {n: tensor for n, tensor in tensors.items() if ".experts." not in n}
    for name, stack in tensors.items():
        module, _, leaf = name.rpartition(".")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        if not module.endswith(".experts"):
            continue
        for e, matrix in enumerate(stack):
            split = matrix.mT.chunk(len(parts[leaf]))
            for part, rows in zip(parts[leaf], split, strict=True):
                out[f"{module}.{e}.{part}.weight"] = rows.contiguous()
    return out


def test_experts_of_llama_4_one_by_one(checkpoint):
    config, tensors = read(checkpoint("llama4/dense layers"))
    single = one_by_one(tensors)
    assert len(single) > len(tensors)
    assert torch.equal(logits(config, single), logits(config, tensors))


@pytest.mark.parametrize(
    ("name", "model_class"),
    [("qwen3_5", "Qwen3_5ForCausalLM"), ("qwen3_5_moe", "Qwen3_5MoeForCausalLM")],
)
@torch.no_grad()
def test_a_text_that_hugging_face_takes_out_of_a_checkpoint(
    name, model_class, checkpoint, tmp_path
):
    import transformers

    whole = checkpoint(next(c for c in CASES if c.architecture == name))
    getattr(transformers, model_class).from_pretrained(whole).save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    assert config["model_type"] == f"{name}_text"
    assert f"{MODULES.trunk}layers.0.input_layernorm.weight" in tensors
    text, both = (ours(*read(d), torch.float64)(prompt()) for d in (tmp_path, whole))
    assert gap(text, both) < 1e-10  # fp64 leaves about 1e-14; anything above is another computation
