"""Chats through an engine: templates by name, their arguments, the model's sampling, prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.llama import edit_json, tiny_llama, write
from transformers import PreTrainedTokenizerFast

from lmcast.exporter import Chat, export, load
from lmcast.exporter.runtime.sampling import Sampling, of_generation_config
from lmcast.plugins.errors import InputError

DEFAULT = (
    "{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %}off {% endif %}"
    "{% if documents %}{{ documents | tojson }}{% endif %}{{ reasoning_effort }}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
TOOLS = "{{ tools | tojson }}{{ messages[-1].content }}"
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.9}
HELLO = [{"role": "user", "content": "hello"}]
BEGUN = [*HELLO, {"role": "assistant", "content": "well "}]
TOOL = {"name": "f", "parameters": {}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("chat")
    tiny_llama(folder / "checkpoint")
    write("chat_template.jinja", DEFAULT)(folder / "checkpoint")
    (folder / "checkpoint/additional_chat_templates").mkdir()
    write("additional_chat_templates/tool_use.jinja", TOOLS)(folder / "checkpoint")
    write("additional_chat_templates/short.jinja", "{{ messages[0].content }}")(
        folder / "checkpoint"
    )
    edit_json("generation_config.json", **SAMPLING)(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    torch.set_num_threads(before)
    return folder / "engine"


@pytest.fixture(scope="module")
def theirs(engine: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(engine.parent / "checkpoint")


ARGUMENTS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    (HELLO, {}),
    (HELLO, {"enable_thinking": False}),
    (HELLO, {"tools": [TOOL]}),
    (HELLO, {"chat_template": "short"}),
    (HELLO, {"documents": [{"text": "é"[:0] + "doc"}], "reasoning_effort": "low"}),
    (BEGUN, {"continue_final_message": True}),
]


@pytest.mark.parametrize(("messages", "given"), ARGUMENTS, ids=str)
def test_an_engine_encodes_as_transformers(messages, given, engine, theirs):
    """In Python, as one chat, as a Chat of its own, and tokenized like the checkpoint."""
    wanted = theirs.apply_chat_template(
        messages,
        add_generation_prompt="continue_final_message" not in given,
        return_dict=False,
        **given,
    )
    loaded = load(engine)
    assert loaded.encode(messages, chat_kwargs=given) == [wanted]
    assert loaded.encode([messages, Chat.of(messages, given)], chat_kwargs={})[1:] == [wanted]
    assert loaded.text.chat(messages, **given) == wanted


@pytest.mark.parametrize(("messages", "given"), ARGUMENTS, ids=str)
def test_a_file_of_chats_is_that(messages, given, engine, tmp_path: Path, lmcast):
    (ids,) = load(engine).encode(messages, chat_kwargs=given)
    line = json.dumps({"messages": messages, **given}) + "\n"
    (tmp_path / "p.jsonl").write_text(line)
    command = ["generate", engine, "-n", 1, "--json", "--sampling", "greedy"]
    status, out, error = lmcast(*command, "--file", tmp_path / "p.jsonl")
    assert (status, error) == (0, "")
    assert json.loads(out)["prompt"] == ids
    if messages is HELLO:
        name = given.get("chat_template")
        options = ["--template", name] if name else ["--chat-kwargs", json.dumps(given)]
        assert json.loads(lmcast(*command, "hello", *options)[1]) == json.loads(out)


def test_one_prompt_is_meant_where_one_is_given(engine: Path):
    loaded = load(engine)
    one = loaded.encode(["hello"])
    assert loaded.encode("hello") == loaded.encode(HELLO) == loaded.encode(Chat(HELLO)) == one
    assert loaded.encode([5, 6, 7]) == loaded.encode([[5, 6, 7]]) == [[5, 6, 7]]
    assert loaded.encode(torch.tensor([5, 6]).numpy()) == [[5, 6]]
    assert loaded.encode([[5], "hello", HELLO]) == [[5], *one, *one]
    whole = loaded.generate("hello", max_new_tokens=8)
    letter = whole[0].text[2]
    assert loaded.generate("hello", max_new_tokens=8, stop=letter) == loaded.generate(
        ["hello"], max_new_tokens=8, stop=(letter,)
    )


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("hello", {"enable_thinkng": True}, "it reads no enable_thinkng; leave that out"),
        ("hello", {"chat_template": "rag"}, "none named 'rag'; there is default, short, tool_use"),
        ([5], {"enable_thinking": True}, "chat_kwargs: enable_thinking is for chats; no prompt is"),
        ({"role": "user"}, {}, "prompts is {'role': 'user'}; accepted: texts, lists of messages"),
        ([3.5], {}, "prompts is [3.5]; accepted: texts"),
        ([None], {}, "prompts is [None]; accepted: texts"),
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused(prompt, given, message, engine):
    with pytest.raises(InputError) as caught:
        load(engine).generate(prompt, chat_kwargs=given)
    assert message in str(caught.value)


BAD: list[tuple[list[str], str]] = [
    (["hi", "--chat-kwargs", "{"], "--chat-kwargs is not JSON"),
    (["hi", "--chat-kwargs", '{"a": 1, "a": 2}'], "the key 'a' occurs twice"),
    (["hi", "--chat-kwargs", "[1]"], "--chat-kwargs needs a JSON object"),
    (["hi", "--chat-kwargs", '{"chat_template": "x"}', "--template", "short"], "give one"),
    (["hi", "--template", "x"], "there is none named 'x'"),
    (["hi", "--chat-kwargs", '{"tolls": []}'], "it reads no tolls"),
    (["5 6", "--ids", "--template", "short"], "chat_template is for chats; no prompt is one"),
    (["hi", "--no-chat", "--template", "short"], "no prompt is one"),
    (["hi", "--no-chat", "--system", "be"], "--system is for chats"),
    (["5 6", "--ids", "--system", "be"], "--system is for chats"),
    (["5 6", "--ids", "--chat"], "leave out --chat"),
    (["hi", "--sampling", "beam"], "'beam' is not one of"),
    (["hi", "--sampling", "greedy", "--top-k", "3"], "top_k: does nothing at temperature 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_generate_refuses(options, message, engine, lmcast):
    status, out, error = lmcast("generate", engine, *options)
    assert (status, out) == (2, "")
    assert message in error


def test_the_models_sampling_is_said_once_and_used_when_asked(engine: Path, lmcast):
    def run(*options: Any) -> tuple[list[int], str]:
        status, out, error = lmcast("generate", engine, "hello", "-n", 9, "--json", *options)
        assert status == 0
        return json.loads(out)["ids"], error

    greedy, said = run()
    assert said.count("\n") == 1
    assert "asks for temperature 0.5, top_k 20, top_p 0.9; --sampling model takes that" in said
    assert run("--sampling", "greedy") == (greedy, "")
    own = ("--temperature", 0.5, "--top-k", 20, "--top-p", 0.9, "--seed", 3)
    model = ("--sampling", "model", "--seed", 3)
    assert run(*model) == run(*own)
    assert run(*model, "--temperature", 4.0) == run(*own, "--temperature", 4.0)
    assert run(*model, "--temperature", 0) == (greedy, "")
    loaded = load(engine)
    asked = of_generation_config(loaded.generation_config)
    assert asked == Sampling(temperature=0.5, top_k=20, top_p=0.9)
    drawn = {tuple(loaded.generate("hello", max_new_tokens=9, sampling="model")[0].ids)
             for _ in range(9)}  # fmt: skip
    assert len(drawn) > 1


def test_a_sampling_that_is_none_is_refused(engine: Path):
    with pytest.raises(InputError, match=r"sampling is 'beam'; accepted: .*model, greedy"):
        load(engine).generate("hello", sampling="beam")


def test_a_prompt_with_a_system(engine: Path, lmcast):
    _, out, _ = lmcast("generate", engine, "hello", "--system", "be", "-n", 1, "--json")
    system = [{"role": "system", "content": "be"}, *HELLO]
    assert [json.loads(out)["prompt"]] == load(engine).encode(system)


def test_templates_travel_with_the_engine(engine: Path, tmp_path: Path, lmcast):
    assert load(engine).chat_templates.keys() == {"default", "tool_use", "short"}
    assert (engine / "additional_chat_templates/short.jinja").exists()
    assert lmcast("verify", engine)[0] == 0
    assert "a tokenizer, chat templates: default, short, tool_use" in lmcast("inspect", engine)[1]
    checkpoint = engine.parent / "checkpoint"
    assert "chat templates: default, short, tool_use" in lmcast("inspect", checkpoint)[1]
    export(checkpoint, tmp_path / "ids", parity=False, tokenizer=False)
    assert load(tmp_path / "ids").chat_templates == {}
    with pytest.raises(InputError, match="no tokenizer; give token ids"):
        load(tmp_path / "ids").generate("hello")
