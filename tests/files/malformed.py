"""A table of checkpoints that must be refused, each one change away from a good one."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tiny.llama import (
    DROP,
    EMBED,
    GATE,
    HEAD,
    INDEX,
    K1,
    Q0,
    WEIGHTS,
    Build,
    bind_socket,
    config,
    edit_json,
    entry,
    header,
    index,
    keep_single,
    poke,
    raw_header,
    remove,
    replace_by,
    set_tensor,
    shards,
    sparse,
    steps,
    tensors,
    tiny_llama,
    write,
)

__all__ = ["MALFORMED", "Malformed", "tiny_llama"]

DEEP = 200_000  # levels of nesting
FIRST_SHARD = "model-1.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
ADAPTER = write("adapter_config.json", "{}")


@dataclass(frozen=True)
class Malformed:
    """`build` spoils the checkpoint that tiny_llama made; the message must match `message`."""

    name: str
    build: Build
    message: str  # regular expression
    stage: Literal["open", "export"]  # what refuses it: open_checkpoint, or something later


def _rope(**scaling: object) -> Build:
    return config(rope_scaling=scaling)


def _link_to(name: str) -> Callable[[Path], None]:
    """Return what makes a link to a file that lies beside the checkpoint directory."""

    def make(path: Path) -> None:
        (path.parent.parent / name).write_text("{}")
        path.symlink_to(Path("..") / name)

    return make


def _first(change: dict[str, str]) -> Build:
    """Change where the index places the first tensor (in FIRST_SHARD)."""
    return index(lambda m: m.update(change))


def _everything(name: str) -> Build:
    """Let the index place all tensors in one file."""
    return index(lambda m: m.update(dict.fromkeys(m, name)))


def _tokenizer_text(old: str, new: str) -> Build:
    def build(folder: Path) -> None:
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace(old, new, 1))

    return build


def _vocabulary(change: Callable[[dict[str, int]], Any]) -> Build:
    def build(folder: Path) -> None:
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        change(model["vocab"])
        edit_json("tokenizer.json", model=model)(folder)

    return build


def _added(*tokens: tuple[int, str]) -> Build:
    """Let tokenizer.json, whose vocabulary has 97 tokens, add these ids and tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    listed = [{"id": id, "content": content, **flags} for id, content in tokens]
    return edit_json("tokenizer.json", added_tokens=listed)


def _named(*classes: object, **keys: object) -> Build:
    return config(architectures=list(classes), **keys)


FILES: list[tuple[str, Build, str]] = [
    ("path_missing", shutil.rmtree, "cannot be opened: No such file"),
    ("path_is_a_file", steps(shutil.rmtree, lambda d: d.write_text("x")), "neither a directory"),
    ("path_is_a_fifo", steps(shutil.rmtree, os.mkfifo), "neither a directory"),
    ("directory_empty", steps(shutil.rmtree, lambda d: d.mkdir()), "directory is empty"),
    ("config_missing", remove("config.json"), "no config.json"),
    ("config_is_empty", write("config.json", ""), "config.json: is not valid JSON"),
    ("config_cut_off", write("config.json", '{"model_type": "llama"'), "config.json.*JSON"),
    ("config_is_a_list", write("config.json", "[]"), "config.json: holds a list"),
    ("config_not_utf8", write("config.json", b'{"a": "\xff"}'), "config.json: is not UTF-8"),
    ("config_utf16", write("config.json", '{"a": 1}'.encode("utf-16")), "is not UTF-8"),
    ("config_byte_order_mark", write("config.json", b"\xef\xbb\xbf{}"), "config.json.*BOM"),
    ("config_key_twice", write("config.json", '{"a": 1, "a": 2}'), "'a' occurs twice"),
    ("config_inner_key_twice", write("config.json", '{"b": {"a": 1, "a": 1}}'), "'a' occurs twice"),
    ("config_nan", write("config.json", '{"rms_norm_eps": NaN}'), "NaN is no JSON"),
    ("config_infinity", write("config.json", '{"a": [-Infinity]}'), "-Infinity is no JSON"),
    ("config_overflow", write("config.json", '{"a": 1e999}'), "1e999 is too large"),
    (
        "config_digits",
        write("config.json", '{"a": %s}' % ("9" * 5000)),
        "config.json: holds a number of thousands",
    ),
    ("config_surrogate", write("config.json", r'{"\ud800": 1}'), "config.json: is not UTF-8"),
    ("config_deep", write("config.json", '{"a":' + "[" * DEEP), "config.json: is nested too"),
    ("config_deep_objects", write("config.json", '{"a":' * DEEP), "config.json: is nested too"),
    ("config_4_gb", sparse("config.json"), "config.json: is 4294967296 bytes"),
    ("config_fifo", replace_by("config.json", os.mkfifo), "config.json: is a FIFO"),
    ("config_socket", replace_by("config.json", bind_socket), "config.json: is a socket"),
    ("config_directory", replace_by("config.json", os.mkdir), "config.json: is a directory"),
    (
        "config_link_to_another_kind",
        replace_by("config.json", _link_to("notes.txt")),
        "config.json: is a link to .*notes.txt, outside .*another .json file",
    ),
    (
        "template_link_to_a_secret",
        replace_by("chat_template.jinja", _link_to("id_ed25519")),
        "chat_template.jinja: is a link to .*id_ed25519, outside",
    ),
    (
        "config_link_device",
        replace_by("config.json", lambda p: p.symlink_to("/dev/zero")),
        "config.json: is a link to /dev/zero",
    ),
    (
        "config_link_broken",
        replace_by("config.json", lambda p: p.symlink_to("nothing")),
        r"config.json \(a link to nothing\): cannot be found",
    ),
    (
        "config_link_loop",
        replace_by("config.json", lambda p: p.symlink_to("config.json")),
        "config.json .*cannot be found",
    ),
    ("config_git_lfs", write("config.json", LFS), "config.json: is a Git LFS pointer"),
    ("weights_missing", remove(WEIGHTS), "no weights"),
    (
        "pickle_only",
        steps(remove(WEIGHTS), write("pytorch_model.bin", b"\x80\x02")),
        r"pickle only \(pytorch_model.bin\).*save_pretrained",
    ),
    (
        "pickle_consolidated",
        steps(remove(WEIGHTS), write("consolidated.00.pth", b"\x80\x02")),
        "consolidated.00.pth.*save_pretrained",
    ),
    ("adapter_only", steps(remove(WEIGHTS, "config.json"), ADAPTER), "adapter.*merge"),
    ("adapter_beside_model", ADAPTER, "adapter.*merge"),
    (
        "gguf_two",
        steps(remove(WEIGHTS), write("a.gguf", "GGUF"), write("b.gguf", "GGUF")),
        "2 GGUF files",
    ),
]

HEADERS: list[tuple[str, Build, str]] = [
    ("weights_empty", write(WEIGHTS, b""), "model.safetensors: is 0 bytes"),
    ("weights_five_bytes", write(WEIGHTS, b"\1\0\0\0\0"), "is 5 bytes"),
    ("weights_git_lfs", write(WEIGHTS, LFS), "model.safetensors: is a Git LFS pointer"),
    ("weights_html", write(WEIGHTS, "<!DOCTYPE html><html>"), "states a header of"),
    ("weights_fifo", replace_by(WEIGHTS, os.mkfifo), "model.safetensors: is a FIFO"),
    ("weights_directory", replace_by(WEIGHTS, os.mkdir), "model.safetensors: is a directory"),
    (
        "header_4_gb",
        sparse(WEIGHTS, 8 << 30, struct.pack("<Q", 4 << 30)),
        "states a header of 4294967296 bytes",
    ),
    ("header_longest", write(WEIGHTS, b"\xff" * 64), "states a header of 18446744073709551615"),
    ("header_cut_off", write(WEIGHTS, struct.pack("<Q", 1000) + b"{}"), "truncated in its header"),
    (
        "header_zeros",
        sparse(WEIGHTS, 9 << 20, struct.pack("<Q", 8 << 20)),
        r"begins with b'\\+x00'",
    ),
    ("header_not_utf8", raw_header(lambda h: h.replace(b"lm_", b"\xff__")), "is not UTF-8"),
    ("header_list", raw_header(lambda h: b"[]"), r"begins with b'\['; the format demands"),
    ("header_space_in_front", raw_header(lambda h: b" " + h), "begins with b' '; the format"),
    ("header_two_values", raw_header(lambda h: h + b"{}"), "is not valid JSON"),
    ("header_padded_by_zeros", raw_header(lambda h: h + b"\0" * 8), "is not valid JSON"),
    ("header_deep", raw_header(lambda h: b'{"a":' + b"[" * DEEP), "is nested too deeply"),
    ("header_brackets", raw_header(lambda h: b'{"a":[' + b"[]," * 4_000_000), "more than 4000000"),
    (
        "header_name_twice",
        raw_header(lambda h: h.replace(HEAD.encode(), EMBED.encode())),
        f"'{EMBED}' occurs twice",
    ),
    ("header_no_tensors", steps(write(WEIGHTS, struct.pack("<Q", 2) + b"{}")), "hold no tensor"),
    ("metadata_number", header(lambda h: h.update(__metadata__={"a": 1})), "__metadata__ must map"),
    ("metadata_list", header(lambda h: h.update(__metadata__=[])), "__metadata__ must map"),
    ("entry_is_null", header(lambda h: h.update({Q0: None})), "q_proj.*has None"),
    ("entry_without_dtype", header(lambda h: h[Q0].pop("dtype")), "q_proj.*exactly"),
    ("entry_with_more", entry(compressed="zstd"), "q_proj.*'compressed'.*exactly"),
    ("dtype_unknown", entry(dtype="F7"), "q_proj.*dtype is 'F7'; accepted"),
    ("dtype_fp4", entry(dtype="F4"), "q_proj.*dtype is 'F4'; accepted"),
    ("dtype_number", entry(dtype=32), "q_proj.*dtype is 32"),
    ("dtype_list", entry(dtype=["F32"]), r"q_proj.*dtype is \['F32'\]"),
    ("dtype_of_other_size", entry(dtype="F16"), "q_proj.*takes 2048 bytes.*hold 4096"),
    ("shape_negative", entry(shape=[-32, -32]), "q_proj.*shape is"),
    ("shape_bool", entry(shape=[True, 1024]), "q_proj.*shape is"),
    ("shape_float", entry(shape=[32.0, 32]), "q_proj.*shape is"),
    ("shape_string", entry(shape="32"), "q_proj.*shape is"),
    ("shape_null", entry(shape=None), "q_proj.*shape is"),
    ("shape_huge", entry(shape=[2**40, 2**40]), "q_proj.*more than"),
    ("shape_huge_and_empty", entry(shape=[2**62, 2**62, 0]), "q_proj.*more than"),
    ("shape_many_axes", entry(shape=[1] * 1000), "q_proj.*shape is"),
    ("shape_other", entry(shape=[32, 31]), "q_proj.*takes 3968 bytes.*hold 4096"),
    ("offsets_reversed", entry(data_offsets=[4096, 0]), "q_proj.*data_offsets is"),
    ("offsets_negative", entry(data_offsets=[-4096, 0]), "q_proj.*data_offsets is"),
    ("offsets_bool", entry(data_offsets=[False, True]), "q_proj.*data_offsets is"),
    ("offsets_three", entry(data_offsets=[0, 1, 2]), "q_proj.*data_offsets is"),
    ("offsets_past_the_end", entry(data_offsets=[2**40, 2**40 + 4096]), "is truncated"),
    ("offsets_overlap", header(lambda h: h[Q0].update(h[GATE], shape=[48, 32])), "overlaps tensor"),
    ("offsets_hole", header(lambda h: h.pop(Q0)), "4096 bytes before tensor .* no holes"),
    ("data_truncated", raw_header(bytes, lambda d: d[:-10]), "is truncated.* 10 of them"),
    ("data_missing", raw_header(bytes, lambda d: b""), "is truncated"),
    ("data_surplus", raw_header(bytes, lambda d: d + b"1234567"), "has 7 bytes after its last"),
]

INDEXES: list[tuple[str, Build, str]] = [
    ("index_not_json", write(INDEX, "{"), "index.json: is not valid JSON"),
    ("index_4_gb", sparse(INDEX), "index.json: is 4294967296 bytes"),
    ("index_fifo", replace_by(INDEX, os.mkfifo), "index.json: is a FIFO"),
    ("index_without_map", write(INDEX, "{}"), "weight_map is missing"),
    ("index_map_list", write(INDEX, '{"weight_map": ["a"]}'), "weight_map is missing"),
    ("index_map_empty", write(INDEX, '{"weight_map": {}}'), "weight_map is missing or empty"),
    (
        "index_key_twice",
        write(INDEX, '{"weight_map": {"a": "b", "a": "c"}}'),
        "'a' occurs twice",
    ),
    ("shard_name_number", index(lambda m: m.update({HEAD: 1})), "head.weight'] is 1"),
    ("shard_name_empty", _everything(""), "names the file"),
    ("shard_parent", _first({HEAD: "../" + FIRST_SHARD}), r"names the file '\.\./"),
    ("shard_parent_inside", _first({HEAD: "a/../" + FIRST_SHARD}), "names the file 'a/"),
    ("shard_absolute", _everything("/etc/passwd"), "names the file '/etc/passwd'"),
    ("shard_backslash", _everything("..\\m.safetensors"), "names the file"),
    ("shard_zero_byte", _everything("m\0.safetensors"), "names the file"),
    ("shard_missing", steps(shards(), remove(FIRST_SHARD)), "'model-1.safetensors'.*is missing"),
    (
        "shard_truncated",
        steps(shards(), lambda d: os.truncate(d / FIRST_SHARD, 9000)),
        r"model-1.safetensors: is truncated.*missing",
    ),
    (
        "shard_fifo",
        steps(shards(), replace_by(FIRST_SHARD, os.mkfifo)),
        "model-1.safetensors: is a FIFO",
    ),
    ("index_invents_tensor", _first({"new.weight": FIRST_SHARD}), "'new.weight' is not in model-1"),
    ("index_omits_tensor", index(lambda m: m.pop(Q0)), f"holds tensor '{Q0}', which"),
    ("index_other_shard", _first({HEAD: "model-2.safetensors"}), "model-1.*holds tensor 'lm_head"),
    (
        "tensor_in_two_shards",
        steps(shards(), lambda d: shutil.copy(d / FIRST_SHARD, d / "model-2.safetensors")),
        "model-2.safetensors: holds tensor .*places in model-1",
    ),
    ("shards_without_index", steps(shards(), remove(INDEX)), "2 safetensors files"),
    (
        "shard_alone",
        lambda d: (d / WEIGHTS).rename(d / "model-00001-of-00002.safetensors"),
        "one of 2 shards",
    ),
    ("single_misses_tensor", keep_single(tensors(lambda t: t.pop(Q0))), f"{Q0}' is only in"),
    (
        "single_other_dtype",
        keep_single(set_tensor(Q0, lambda t: t[Q0].half())),
        f"disagree: tensor '{Q0}' has another dtype",
    ),
    (
        "single_beside_some_shards",
        keep_single(remove(FIRST_SHARD)),
        "'model-1.safetensors' that it names is missing",
    ),
    ("single_other_values", keep_single(poke(HEAD, 5, 7.0)), "disagree: tensor 'lm_head.*values"),
]

TEXTS: list[tuple[str, Build, str]] = [
    ("tokenizer_not_json", write("tokenizer.json", "{"), "tokenizer.json: the tokenizers library"),
    ("tokenizer_list", write("tokenizer.json", "[]"), "tokenizer.json: the tokenizers library"),
    ("tokenizer_empty_model", edit_json("tokenizer.json", model={}), "tokenizer.json"),
    ("tokenizer_not_utf8", write("tokenizer.json", b"\xff"), "tokenizer.json: is not UTF-8"),
    ("tokenizer_4_gb", sparse("tokenizer.json"), "tokenizer.json: is 4294967296 bytes"),
    ("tokenizer_fifo", replace_by("tokenizer.json", os.mkfifo), "tokenizer.json: is a FIFO"),
    ("tokenizer_id_of_two", _vocabulary(lambda v: v.update({"!": 4})), "the id 4 has two tokens"),
    ("tokenizer_by_chance", _tokenizer_text('"dropout":null', '"dropout":0.5'), "dropout is 0.5"),
    ("tokenizer_token_twice", _tokenizer_text('"!":', '"~": 3, "!":'), "'~' occurs twice"),
    (
        "tokenizer_piece_twice",
        edit_json(
            "tokenizer.json",
            added_tokens=[],
            model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0], ["a", -2.0]]},
        ),
        "the token 'a' has two ids: 0 and 2",
    ),
    ("added_id_of_two", _added((97, "new"), (97, "newer")), "the id 97 has two added tokens"),
    ("added_id_taken", _added((5, "new")), "added token 'new' has id 5, but .* 97: 5 is that of"),
    ("added_token_twice", _added((97, "new"), (98, "new")), "'new' has id 98, but .* gives it 97"),
    ("added_id_elsewhere", _added((2, "</s>")), "added token '</s>' has id 2, but .* gives it 1"),
    ("added_after_a_hole", _added((99, "new")), "has id 99, but .* gives it 97: in the order of"),
    (
        "added_out_of_order",
        _added((98, "new"), (97, "newer")),
        "it 97: 98 is that of 'newer'",
    ),
    ("tokenizer_config_list", write("tokenizer_config.json", "[]"), "tokenizer_config.json: holds"),
    (
        "template_number",
        edit_json("tokenizer_config.json", chat_template=3),
        "chat_template is a int",
    ),
    (
        "template_name_twice",
        edit_json("tokenizer_config.json", chat_template=[{"name": "default", "template": ""}] * 2),
        "chat_template has one name twice",
    ),
    ("template_not_utf8", write("chat_template.jinja", b"\xff"), "chat_template.jinja: is not UTF"),
    (
        "special_token_number",
        edit_json("tokenizer_config.json", eos_token=2),
        "tokenizer_config.json: eos_token is 2",
    ),
    (
        "special_token_without_content",
        write("special_tokens_map.json", '{"pad_token": {}}'),
        "special_tokens_map.json: pad_token is",
    ),
    ("generation_list", write("generation_config.json", "[]"), "generation_config.json: holds a"),
]

GENERATES = r"lmcast exports decoders that generate text: \.\.\.ForCausalLM"
# What config.json says of the model's class.
CLASSES: list[tuple[str, Build, str]] = [
    ("class_classifier", _named("LlamaForSequenceClassification"),
     f"'LlamaForSequenceClassification', by its name a cl.*reward models.*{GENERATES}"),
    ("class_reward", _named("InternLM2ForRewardModel"), f"a reward model; {GENERATES}"),
    ("class_token_classifier", _named("Qwen3ForTokenClassification"), "a classifier of tokens"),
    ("class_answers", _named("LlamaForQuestionAnswering"), "a finder of answers"),
    ("class_choices", _named("BertForMultipleChoice", model_type="bert"), "a chooser among"),
    ("class_trunk", _named("Qwen3Model"), f"'Qwen3Model', by its name a mo.*{GENERATES}"),
    ("class_encoder", _named("BertForMaskedLM", model_type="bert"), "BertForMaskedLM', by its"),
    ("class_embedder", _named("NomicBertModel", model_type="nomic_bert"), "a model without a"),
    ("class_pretraining", _named("BertForPreTraining"), "its heads of training"),
    ("class_draft", _named("LlamaForCausalLMEagle3"), f"none of the classes .*; {GENERATES}"),
    ("class_second", _named("LlamaForCausalLM", "LlamaModel"), "'LlamaModel', by its name a"),
    ("class_seq2seq",
     _named("T5ForConditionalGeneration", model_type="t5", is_encoder_decoder=True),
     rf"is_encoder_decoder is true \(T5ForConditionalGeneration\).*{GENERATES}"),
    ("class_speech", _named("WhisperForConditionalGeneration", is_encoder_decoder=True),
     "a text is read by an encoder"),
    ("class_unnamed", config(architectures=DROP, is_encoder_decoder=True), "is true: a text"),
    ("class_string", config(architectures="LlamaForCausalLM"), "architectures is 'Ll.*a list of"),
    ("class_number", _named(7), r"architectures is \[7\]; accepted: a list of class names"),
    ("class_object", config(architectures={"LlamaModel": 1}), "architectures is {.*a list of"),
    ("class_before_weights", steps(_named("BertModel"), remove(WEIGHTS)), "'BertModel'"),
    ("class_no_tokenizer", steps(_named("BertModel"), remove("tokenizer.json")), "'BertModel'"),
]  # fmt: skip

EXPORT: list[tuple[str, Build, str]] = [
    ("model_type_unknown", config(model_type="llama9"), "model_type.*llama9|llama9"),
    ("model_type_missing", config(model_type=DROP), "model_type"),
    ("model_type_number", config(model_type=3), "model_type"),
    ("model_type_null", config(model_type=None), "model_type"),
    ("key_unread", config(brand_new_switch=True), "brand_new_switch"),
    (
        "keys_unread_at_every_depth",
        config(one=1, rope_scaling={"rope_type": "default", "two": 2}, three={"four": 4}),
        r"sets one = 1, three = {'four': 4}, rope_parameters.two = 2, which nothing reads; pass"
        r" --inert one,three,rope_parameters.two to ignore",
    ),
    ("encoder_decoder_as_text", config(is_encoder_decoder="yes"), "is_encoder_decoder = 'yes'"),
    ("vocab_size_missing", config(vocab_size=DROP), "vocab_size"),
    ("hidden_size_missing", config(hidden_size=DROP), "hidden_size"),
    ("layers_missing", config(num_hidden_layers=DROP), "num_hidden_layers"),
    ("layers_billion", config(num_hidden_layers=10**9), "num_hidden_layers|model.layers.2"),
    ("layers_negative", config(num_hidden_layers=-1), "num_hidden_layers"),
    ("layers_more_than_stored", config(num_hidden_layers=3), r"model\.layers\.2"),
    ("layers_fewer_than_stored", config(num_hidden_layers=1), r"model\.layers\.1"),
    ("hidden_size_zero", config(hidden_size=0), "hidden_size"),
    ("hidden_size_bool", config(hidden_size=True), "hidden_size"),
    ("hidden_size_string", config(hidden_size="32"), "hidden_size"),
    ("hidden_size_float", config(hidden_size=32.5), "hidden_size"),
    ("hidden_size_null", config(hidden_size=None), "hidden_size"),
    ("hidden_size_list", config(hidden_size=[32]), "hidden_size"),
    ("hidden_size_huge", config(hidden_size=2**62), "hidden_size|embed_tokens"),
    ("vocab_size_negative", config(vocab_size=-97), "vocab_size"),
    ("vocab_size_other", config(vocab_size=98), "embed_tokens|lm_head"),
    ("intermediate_size_zero", config(intermediate_size=0), "intermediate_size"),
    ("intermediate_size_other", config(intermediate_size=64), r"mlp\.(gate|up|down)_proj"),
    ("heads_zero", config(num_attention_heads=0), "num_attention_heads"),
    ("kv_heads_zero", config(num_key_value_heads=0), "num_key_value_heads"),
    ("heads_not_divisible", config(num_key_value_heads=3), "num_(key_value|attention)_heads"),
    ("head_dim_odd", config(head_dim=7), "head_dim"),
    ("head_dim_negative", config(head_dim=-8), "head_dim"),
    ("eps_string", config(rms_norm_eps="small"), "rms_norm_eps"),
    ("eps_null", config(rms_norm_eps=None), "rms_norm_eps is None; accepted: a finite number"),
    ("bias_null", config(attention_bias=None), "attention_bias is None; accepted: true or false"),
    ("eps_of_digits", config(rms_norm_eps=10**400), "rms_norm_eps is 1000.*a finite number"),
    ("eps_negative", config(rms_norm_eps=-1e-5), "rms_norm_eps"),
    ("activation_unknown", config(hidden_act="wavelet"), "hidden_act.*wavelet"),
    ("positions_zero", config(max_position_embeddings=0), "max_position_embeddings"),
    ("rope_theta_zero", config(rope_theta=0.0), "rope_theta"),
    ("rope_theta_null", config(rope_theta=None), "rope_theta is None; leave it out"),
    ("rope_theta_of_digits", config(rope_theta=2**60), "rope_theta is 11529.*a finite number"),
    ("rope_type_null", _rope(rope_type=None), "rope_parameters.rope_type is None; leave it out"),
    ("rope_truncate_null", _rope(rope_type="yarn", factor=2.0, truncate=None), "truncate is None"),
    ("rope_theta_string", config(rope_theta="10000"), "rope_theta"),
    ("rope_factor_zero", _rope(rope_type="linear", factor=0.0), "factor"),
    ("rope_factor_missing", _rope(rope_type="linear"), "factor"),
    ("rope_type_unknown", _rope(rope_type="spiral", factor=2.0), "spiral"),
    ("rope_scaling_list", config(rope_scaling=[2.0]), "rope_scaling"),
    ("quantization_unknown", config(quantization_config={"quant_method": "magic"}), "quantization"),
    ("tensor_removed", tensors(lambda t: t.pop(Q0)), "layers.0.self_attn.q_proj"),
    ("norm_removed", tensors(lambda t: t.pop("model.norm.weight")), r"model\.norm"),
    ("head_removed", tensors(lambda t: t.pop(HEAD)), "lm_head"),
    (
        "tensor_surplus",
        set_tensor("model.layers.0.self_attn.q_norm.weight", lambda t: torch.ones(8)),
        "q_norm",
    ),
    (
        "bias_surplus",
        set_tensor("model.layers.0.self_attn.q_proj.bias", lambda t: torch.ones(32)),
        "q_proj.bias",
    ),
    ("tensor_transposed", set_tensor(K1, lambda t: t[K1].T), "layers.1.self_attn.k_proj"),
    ("tensor_flat", set_tensor(Q0, lambda t: t[Q0].reshape(-1)), "layers.0.self_attn.q_proj"),
    ("tensor_integers", set_tensor(Q0, lambda t: t[Q0].int()), "layers.0.self_attn.q_proj"),
    ("weights_nan", poke(GATE, 700, float("nan")), "gate_proj.*nan.*700"),
    ("weights_inf", poke(HEAD, 97 * 32 - 1, float("inf")), "lm_head.*inf.*3103"),
    ("weights_minus_inf", poke(EMBED, 0, float("-inf")), "embed_tokens.*-inf.* 0"),
    ("tied_head_differs", config(tie_word_embeddings=True), "lm_head"),
    ("tokenizer_missing", remove("tokenizer.json"), "tokenizer.json"),
]

MALFORMED = [
    *(Malformed(*row, stage="open") for row in FILES + HEADERS + INDEXES + TEXTS + CLASSES),
    *(Malformed(*row, stage="export") for row in EXPORT),
]
