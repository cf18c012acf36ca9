"""Texts of a checkpoint: templates, special and added tokens, as transformers reads the files."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny.llama import DROP, edit_json, remove, tiny_llama, write, write_json
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.checkpoint.tensors import Texts
from lmcast.exporter.runtime.text import Text
from lmcast.exporter.texts import beyond, check_vocabulary

CONFIG, MAP, LIST = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
JINJA, MORE = "chat_template.jinja", "additional_chat_templates"
NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path)
    return tmp_path


def texts_of(folder: Path) -> Texts:
    return open_checkpoint(folder).texts


def fill(folder: Path, files: dict[str, Any]) -> Path:
    """Write files; a dict changes keys of a JSON file that may be there."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict) and path.exists():
            edit_json(name, **content)(folder)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


# Files -> the templates, and what is said of those left out.
TEMPLATES: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {}, ""),
    ({CONFIG: {"chat_template": "C"}}, {"default": "C"}, ""),
    ({CONFIG: {"chat_template": NAMED}}, {"default": "D", "tool_use": "T"}, ""),
    ({CONFIG: {"chat_template": NAMED[:1]}}, {"tool_use": "T"}, "none of tool_use is the default"),
    ({JINJA: "F"}, {"default": "F"}, ""),
    ({JINJA: "F\n", CONFIG: {"chat_template": "F"}}, {"default": "F\n"}, ""),
    (
        {JINJA: "F", CONFIG: {"chat_template": "C"}},
        {"default": "F"},
        "that of chat_template.jinja is used; tokenizer_config.json has a different one (default)",
    ),
    (
        {JINJA: "F", CONFIG: {"chat_template": NAMED}},
        {"default": "F"},
        "tokenizer_config.json has a different one (tool_use, default)",
    ),
    ({JINJA: "F", f"{MORE}/rag.jinja": "R"}, {"default": "F", "rag": "R"}, ""),
    (
        {f"{MORE}/rag.jinja": "R", CONFIG: {"chat_template": "C"}},
        {"rag": "R"},
        "that of additional_chat_templates is used; tokenizer_config.json has a different one",
    ),
    ({"chat_template.json": {"chat_template": "P"}}, {"default": "P"}, ""),
    (
        {"chat_template.json": {"chat_template": "P"}, CONFIG: {"chat_template": "C"}},
        {"default": "C"},
        "that of tokenizer_config.json is used; chat_template.json has a different one",
    ),
    (
        {
            "chat_template.json": {"chat_template": "P"},
            "processor_config.json": {"chat_template": "Q", "processor_class": "X"},
        },
        {"default": "Q"},
        "that of processor_config.json is used; chat_template.json has a different one",
    ),
    ({"chat_template.json": {"chat_template": "C"}, CONFIG: {"chat_template": "C"}},
     {"default": "C"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("files", "wanted", "said"), TEMPLATES)
def test_templates_are_those_of_transformers(files, wanted, said, folder):
    texts = texts_of(fill(folder, files))
    assert texts.chat_templates == wanted
    assert said in " ".join(texts.notes)
    assert bool(said) == bool(texts.notes)
    theirs = AutoTokenizer.from_pretrained(folder).chat_template
    if isinstance(theirs, str):
        theirs = {"default": theirs}
    if theirs is None:  # a processor's
        assert not wanted or not {JINJA, MORE} & files.keys()
    else:
        assert theirs == wanted


TEMPLATES_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({CONFIG: {"chat_template": [{"name": "../x", "template": ""}]}}, "named '../x'"),
    ({CONFIG: {"chat_template": [{"name": "a"}]}}, "chat_template is a list"),
    ({JINJA: "F", f"{MORE}/default.jinja": "G"}, "is a second default beside"),
    ({"chat_template.json": {"template": "P"}}, r"has the keys \['template'\]; {\"chat_template\""),
    ({"chat_template.json": []}, "chat_template.json: holds"),
    ({"processor_config.json": {"chat_template": 3}}, "chat_template is a int"),
]


@pytest.mark.parametrize(("files", "message"), TEMPLATES_REFUSED)
def test_templates_refused(files, message, folder):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(fill(folder, files))


def test_a_template_that_is_linked_out_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "key.pem"
    outside.write_text("secret")
    (folder / MORE).mkdir()
    (folder / MORE / "x.jinja").symlink_to(outside)
    with pytest.raises(CheckpointError, match="accepted: one to another"):
        open_checkpoint(folder)


def flags(content: str, **others: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json writes it."""
    plain = dict.fromkeys(["lstrip", "normalized", "rstrip", "single_word", "special"], False)
    return {"content": content, **plain, **others}


BASE = {"0": flags("<s>", special=True), "1": flags("</s>", special=True)}
TOKEN = {"__type": "AddedToken", "content": "<pad>", "lstrip": True, "normalized": False}
# Files beside a tokenizer.json with 97 tokens, whose last is "~" (96).
TOKENS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "decoder": {CONFIG: {"added_tokens_decoder": BASE}},
    "a token more": {
        CONFIG: {"added_tokens_decoder": BASE | {"97": flags("<new>"), "98": flags("<two>")}}
    },
    "with flags": {
        CONFIG: {
            "added_tokens_decoder": BASE
            | {"97": flags("<a>", lstrip=True, special=True), "98": flags("<b>", rstrip=True)}
            | {"99": flags("Word", single_word=True), "100": flags("<c>", normalized=True)}
        }
    },
    "other flags": {
        CONFIG: {"added_tokens_decoder": {"0": flags("<s>"), "1": flags("</s>", rstrip=True)}}
    },
    "one of the vocabulary": {CONFIG: {"added_tokens_decoder": BASE | {"96": flags("~")}}},
    "a named one that is not special": {
        CONFIG: {"added_tokens_decoder": BASE | {"97": flags("<mask>")}, "mask_token": "<mask>"}
    },
    "listed": {LIST: {"<new>": 97, "<pad>": 98}, CONFIG: {"pad_token": "<pad>"}},
    "named as objects": {CONFIG: {"pad_token": TOKEN}},
    "named in the map": {MAP: {"pad_token": {**TOKEN, "__type": None}, "unk_token": "z"}},
    "both": {CONFIG: {"pad_token": "x", "eos_token": "</s>"}, MAP: {"pad_token": "y"}},
    "not listed as the decoder counts": {
        CONFIG: {"added_tokens_decoder": BASE, "pad_token": "x"},
        MAP: {"pad_token": "x"},
    },
    "a model's own": {CONFIG: {"image_token": "<img>", "audio_token": "a", "add_bos_token": True}},
    "a model's own as an object": {CONFIG: {"boi_token": {**TOKEN, "content": "<boi>"}}},
    "an object that says not what it is": {CONFIG: {"boi_token": {"content": "<boi>"}}},
    "own in the map": {MAP: {"image_token": "<img>"}, CONFIG: {"image_token": "<other>"}},
    "extra named": {CONFIG: {"extra_special_tokens": {"image_token": "<img>", "vision": "<v>"}}},
    "additional named": {CONFIG: {"additional_special_tokens": {"image_token": "<img>"}}},
    "extra": {CONFIG: {"extra_special_tokens": ["<x>", "~"], "additional_special_tokens": ["q"]}},
    "additional": {CONFIG: {"additional_special_tokens": ["<x>", TOKEN]}},
    "additional in the map": {MAP: {"additional_special_tokens": ["<x>", "~"]}},
}
SPELLED = (
    "a <s></s>  <new> <two> <a> <b> Word Words <c> <mask> <pad> <img> <other> <boi><x> ~xyzq<v>"
)


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_those_of_transformers(name, folder):
    """Names, ids, flags, encoding and decoding."""
    files = json.loads(json.dumps(TOKENS[name]))
    if isinstance(more := files.get(MAP, {}).get("pad_token"), dict):
        del more["__type"]
    texts = texts_of(fill(folder, files))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert texts.special_tokens == theirs.special_tokens_map
    assert texts.tokenizer is not None
    text = Text(texts.tokenizer, {}, texts.special_tokens)
    ids = theirs(SPELLED)["input_ids"]
    assert text.encode(SPELLED) == ids
    assert text.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    ours = PreTrainedTokenizerFast.from_pretrained(save(folder, texts))
    assert {i: repr(t) for i, t in ours.added_tokens_decoder.items()} == {
        i: repr(t) for i, t in theirs.added_tokens_decoder.items()
    }
    untouched = texts.tokenizer == (folder / "tokenizer.json").read_bytes()
    assert untouched == (name in ("nothing", "decoder", "an object that says not what it is"))


def save(folder: Path, texts: Texts) -> Path:
    """Write the tokenizer by itself, as an engine holds it."""
    (engine := folder / "engine").mkdir()
    (engine / "tokenizer.json").write_bytes(texts.tokenizer or b"")
    write_json(engine / CONFIG, {})
    return engine


NOTES: list[tuple[dict[str, Any], str]] = [
    (
        {CONFIG: {"added_tokens_decoder": BASE, "pad_token": "x"}, MAP: {"pad_token": "y"}},
        "special_tokens_map.json: pad_token is 'y', not 'x' as in tokenizer_config.json",
    ),
    (
        {CONFIG: {"added_tokens_decoder": BASE}, LIST: {"<new>": 97, "</s>": 1}},
        "added_tokens.json: '<new>' is 97, not None as in tokenizer_config.json",
    ),
    (
        {CONFIG: {"added_tokens_decoder": BASE}, LIST: {"<new>": "a\nb"}},
        r"added_tokens.json: '<new>' is 'a\nb', not None as in tokenizer_config.json",
    ),
    ({CONFIG: {"pad_token": "<pad>"}}, "pad_token '<pad>' is in no file with an id; it is 97"),
    (
        {CONFIG: {"add_bos_token": True}},
        "add_bos_token is true; tokenizer.json, which counts, puts",
    ),
    ({CONFIG: {"split_special_tokens": True}}, "split_special_tokens is set, which is not done"),
    ({CONFIG: {"fix_mistral_regex": True}}, "fix_mistral_regex is set, which is not done"),
]


@pytest.mark.parametrize(("files", "said"), NOTES)
def test_what_does_not_count_is_named(files, said, folder):
    (note,) = texts_of(fill(folder, files)).notes
    assert said in note


TOKENS_REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {CONFIG: {"added_tokens_decoder": BASE | {"96": flags("<new>")}}},
        "has '<new>' as token 96; in tokenizer.json 96 is '~' and '<new>' would be 97; make",
    ),
    (
        {CONFIG: {"added_tokens_decoder": BASE | {"99": flags("<gap>")}}},
        "has '<gap>' as token 99; in tokenizer.json 99 is no token and '<gap>' would be 97",
    ),
    ({CONFIG: {"added_tokens_decoder": {"0": flags("</s>")}}}, "has '</s>' as token 0"),
    ({LIST: {"<new>": 1}}, "added_tokens.json: has '<new>' as token 1; .* 1 is '</s>'"),
    ({LIST: {"<new>": "97"}}, "added_tokens.json: '<new>' is '97'; an id of its own is accepted"),
    ({LIST: {"<new>": 10**30}}, "'<new>' is 10+; an id of its own is accepted"),
    ({CONFIG: {"added_tokens_decoder": {"1" + "0" * 30: {}}}}, "an object by token id is accepted"),
    ({LIST: {"<new>": 97, "<two>": 97}}, "'<two>' is 97; an id of its own"),
    ({CONFIG: {"added_tokens_decoder": [1]}}, r"added_tokens_decoder is \[1\]; an object by token"),
    ({CONFIG: {"added_tokens_decoder": {"x": {}}}}, "an object by token id is accepted"),
    ({CONFIG: {"added_tokens_decoder": {"0": {"content": 3}}}}, "added_tokens_decoder: 0 is"),
    ({CONFIG: {"added_tokens_decoder": {"0": flags("<s>", special=3)}}}, "true or false as"),
    ({CONFIG: {"extra_special_tokens": "<x>"}}, "extra_special_tokens is '<x>'; a list of tokens"),
    ({CONFIG: {"extra_special_tokens": {"image_token": 4}}}, "image_token is 4"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), TOKENS_REFUSED)
def test_tokens_refused(files, message, folder):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(fill(folder, files))


@pytest.mark.parametrize(("pattern", "notes"), [(r"\p{L}+ü?|.", 0), (r"\p{L}+|.", 1)])
def test_a_tekken_that_splits_otherwise_is_named(pattern, notes, folder):
    made = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+ü?|."}, "behavior": "Isolated"}
    made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split | {"invert": False}]}
    fill(folder, {"tokenizer.json": made, "tekken.json": {"config": {"pattern": pattern}}})
    found = texts_of(folder).notes
    assert ["otherwise than tekken.json" in note for note in found] == [True] * notes


def test_a_tokenizer_larger_than_the_vocabulary(folder):
    decoder = BASE | {"97": flags("<new>")}
    source = open_checkpoint(fill(folder, {CONFIG: {"added_tokens_decoder": decoder}}))
    check_vocabulary(source, 97)
    assert beyond(source, 97) == ({}, {97: "<new>"})
    with pytest.raises(
        CheckpointError, match=r"has '~' \(96\), but .* ends at 95; .*--no-tokenizer"
    ):
        check_vocabulary(source, 96)
    with pytest.raises(
        CheckpointError, match="and 90 more tokens, but the model's vocabulary ends"
    ):
        check_vocabulary(source, 0)


A = {"Sequence": {"id": "A", "type_id": 0}}


def test_a_token_around_every_text_must_be_in_the_vocabulary(folder):
    made = json.loads((folder / "tokenizer.json").read_text())
    made["added_tokens"].append({"id": 97, **flags("<bos>", special=True)})
    made["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, A],
        "pair": [A, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [97], "tokens": ["<bos>"]}},
    }  # fmt: skip
    write("tokenizer.json", json.dumps(made))(folder)
    with pytest.raises(CheckpointError, match=r"the tokenizer has '<bos>' \(97\)"):
        check_vocabulary(open_checkpoint(folder), 97)


def test_a_token_around_every_text_must_be_one(folder):
    made = json.loads((folder / "tokenizer.json").read_text())
    made["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, A],
        "pair": [A, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<bos>", "ids": [0], "tokens": ["<s>"]}},
    }
    write("tokenizer.json", json.dumps(made))(folder)
    with pytest.raises(CheckpointError, match="the tokenizers library refuses it"):
        open_checkpoint(folder)


def test_without_a_tokenizer_nothing_is_checked(folder):
    remove("tokenizer.json")(folder)
    edit_json(CONFIG, added_tokens_decoder={"5": flags("<x>")}, eos_token=DROP)(folder)
    texts = texts_of(folder)
    assert (texts.tokenizer, texts.special_tokens) == (None, {"bos_token": "<s>"})
    check_vocabulary(open_checkpoint(folder), 2)  # ends of text are ids all the same
