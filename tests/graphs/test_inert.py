"""Keys of config.json that change nothing: those of the table, and those that a user names."""

from typing import Any

import pytest
from tiny import defined, read
from tiny.llama import config, tiny_llama

from lmcast import graphs
from lmcast.graphs import ConfigError
from lmcast.graphs.config.inert import GROUPS

LLAMA, MOE, GEMMA = "llama/Llama-3.1-8B", "qwen3_moe/plain", "gemma3/untied"


def put(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a config with a key of this path."""
    key, _, rest = path.partition(".")
    return config | {key: put(config.get(key, {}), rest, value) if rest else value}


def read_with(config: dict[str, Any], tensors: dict[str, Any], *inert: str) -> graphs.Definition:
    return graphs.defined(config, tensors, inert)


# A path in the file, and names of it that --inert takes: the file's, or that of the error.
NAMED = [
    (LLAMA, "switch", ["switch"]),
    (LLAMA, "rope_scaling.switch", ["rope_scaling.switch", "rope_parameters.switch"]),
    (LLAMA, "switches.one", ["switches", "switches.one"]),
    (LLAMA, "dotted.js_config", ["dotted.js_config"]),
    (MOE, "num_experts", ["num_experts"]),  # beside num_local_experts, which differs
    (GEMMA, "switch", ["switch"]),
    (GEMMA, "text_config.switch", ["text_config.switch"]),
    (GEMMA, "text_config.rope_parameters.sliding_attention.switch",
     ["text_config.rope_parameters.sliding_attention.switch"]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "path", "names"), NAMED, ids=[row[1] for row in NAMED])
def test_a_key_is_passed_over_by_its_path(case, path, names, checkpoint):
    plain, tensors = read(checkpoint(case))
    changed = put(plain, path, 3)
    leaf = path.rpartition(".")[2] if "switches" not in path else "switches"
    with pytest.raises(ConfigError, match=leaf):
        defined(changed, tensors)
    for name in names:
        assert read_with(changed, tensors, "other", name).config == defined(plain, tensors).config


def test_a_key_with_a_dot_in_its_name_is_passed_over(checkpoint):
    plain, tensors = read(checkpoint(LLAMA))
    changed = plain | {"switch.js": {"on": 1}}
    with pytest.raises(ConfigError, match=r"sets switch\.js = "):
        defined(changed, tensors)
    assert read_with(changed, tensors, "switch.js").config == defined(plain, tensors).config


def test_all_keys_that_nothing_reads_are_named_at_once(checkpoint):
    config, tensors = read(checkpoint(GEMMA))
    paths = [
        "one",
        "text_config.rope_parameters.full_attention.four",
        "text_config.three",
        "text_config.two",
        "zero",
    ]
    for path in paths:
        config = put(config, path, 3)
    with pytest.raises(ConfigError) as error:
        defined(config, tensors)
    message = str(error.value)
    named = ["one", "zero", "text_config.three", "text_config.two", paths[1]]
    listed = ", ".join(f"{path} = 3" for path in named)
    assert message.startswith(f"gemma3: config.json: sets {listed}, which nothing reads; pass ")
    assert f" --inert {','.join(named)} to ignore" in message
    assert "\n" not in message
    with pytest.raises(ConfigError, match=r"config\.json: sets zero = 3, which"):
        read_with(config, tensors, *(path for path in named if path != "zero"))
    read_with(config, tensors, *named)


def test_no_key_is_in_two_groups():
    keys = " ".join(GROUPS).split()
    assert len(keys) == len(set(keys))


# As fine-tunes have them: what wrote them, and the keys.
TUNED = {
    "unsloth": {"unsloth_version": "2026.4.2", "unsloth_fixed": True, "model_name": "unsloth/x"},
    "a vision model's text": {
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
    },
    "the first Llamas": {"max_sequence_length": 2048, "pad_token_id": -1},
    "LLaMA-Factory": {"group_size_ratio": 0.25},
    "a reward model's base": {"num_labels": 1, "classifier_dropout": 0.1, "id2label": {"0": "x"}},
    "older transformers": {"_flash_attn_2_enabled": True, "gradient_checkpointing": True},
    "makers": {"internal_version": "a", "model_max_length": 4096, "unk_token_id": 0},
    "a loss": {"loss_type": "ForCausalLM"},
}


@pytest.mark.parametrize("keys", TUNED.values(), ids=TUNED)
def test_bookkeeping_of_fine_tunes_is_passed_over(keys, checkpoint):
    plain, tensors = read(checkpoint(LLAMA))
    assert defined(plain | keys, tensors).config == defined(plain, tensors).config


def test_the_command_takes_lists_and_repeats(tmp_path, lmcast):
    source, engine = tmp_path / "checkpoint", tmp_path / "engine"
    tiny_llama(source)
    config(a=1, b=2, c=3, d=4)(source)
    status, _, said = lmcast("export", source, "-o", engine, "--inert", "a,b", "--inert", "c")
    assert status == 2
    assert said.endswith(
        "error: llama: config.json: sets d = 4, which nothing reads; pass --inert d to ignore it,"
        " only where that changes no result\n"
    )
    assert not engine.exists()
