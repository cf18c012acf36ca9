"""Chat templates of released families' kinds, rendered as transformers renders them."""

from typing import Any

import pytest
from files.chat_templates import ANSWER, CHATS, DOCUMENTS, SPECIAL, TEMPLATES, TOOLS, USER
from jinja2 import TemplateError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _get_template_variables

from lmcast.exporter.runtime.chat import Chat, TextError, render_chats
from lmcast.plugins.errors import InputError


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        extra_special_tokens={"image_token": "<img>"},
        bos_token="<s>",
        eos_token="</s>",
    )


def read_by(template: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments that a template reads, as transformers sees it."""
    read = {*_get_template_variables(template), "continue_final_message"}
    return {name: value for name, value in given.items() if name in read}


def theirs(oracle, template: str, messages: list[dict[str, Any]], given: dict) -> str | None:
    """Return what transformers renders, None for what it refuses."""
    try:
        return oracle.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=not given.get("continue_final_message"),
            tokenize=False,
            **given,
        )
    except (TemplateError, ValueError, TypeError):
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_those_of_transformers(name: str, oracle):
    """What transformers refuses, is refused; all else is equal to the character."""
    template = TEMPLATES[name]
    chats = {c: (messages, read_by(template, given)) for c, (messages, given) in CHATS.items()}
    wanted = {c: theirs(oracle, template, *chat) for c, chat in chats.items()}
    made = {c: Chat.of(*chats[c]) for c in chats}
    good = [c for c in chats if wanted[c] is not None]
    assert len(good) >= 0.6 * len(chats)
    rendered = render_chats({"default": template}, SPECIAL, [made[c] for c in good])
    assert dict(zip(good, rendered, strict=True)) == {c: wanted[c] for c in good}
    for chat in chats.keys() - set(good):
        with pytest.raises(TextError):
            render_chats({"default": template}, SPECIAL, [made[chat]])


def test_each_argument_is_read_and_changes_a_chat(oracle):
    for chat, (messages, given) in CHATS.items():
        for name in given:
            changed = [
                theirs(oracle, template, messages, arguments)
                != theirs(
                    oracle, template, messages, {n: v for n, v in arguments.items() if n != name}
                )
                for template in TEMPLATES.values()
                if name in (arguments := read_by(template, given))
            ]
            # An empty list of tools, and thinking where that is the default, change nothing.
            assert any(changed) or (changed and given[name] in ([], True)), (chat, name)


@pytest.mark.parametrize("name", ["qwen3", "llama3", "mistral", "gpt-oss", "smollm3", "kimi"])
def test_what_a_template_does_not_read_is_refused(name: str):
    chat = Chat.of([USER], {"documents": DOCUMENTS, "enable_thinkng": False})
    with pytest.raises(TextError, match="it reads no documents, enable_thinkng; leave that out"):
        render_chats({"default": TEMPLATES[name]}, SPECIAL, [chat])


NAMED = {"default": "D{{ tools }}", "tool_use": "T{{ tools | length }}", "rag": "R"}


def test_a_template_is_chosen_by_name_or_by_tools():
    chats = [
        Chat([USER]),
        Chat([USER], tools=TOOLS),
        Chat([USER], template="rag"),
        Chat([USER], tools=TOOLS, template="default"),
    ]
    texts = render_chats(NAMED, {}, chats)
    assert texts[:3] == ["DNone", "T2", "R"]
    assert texts[3].startswith("D[{")
    with pytest.raises(TextError, match="there is none named 'x'; there is default, rag, tool_use"):
        render_chats(NAMED, {}, [Chat([USER], template="x")])
    with pytest.raises(TextError, match="there is none named 'default'; there is rag"):
        render_chats({"rag": "R"}, {}, [Chat([USER])])


@pytest.mark.parametrize(
    ("messages", "given", "message"),
    [
        ([USER], {"tools": "f"}, "tools is 'f'; accepted: a list"),
        ([USER], {"tools": [print]}, "tools is .*; accepted: a list"),
        ([USER], {"documents": ["text"]}, "documents is .*; accepted: a list"),
        ([USER], {"messages": []}, "chat: messages is the chat itself"),
        ([USER], {"add_generation_prompt": True}, "to continue the last message, give"),
        ([USER], {"chat_template": 3}, "template is 3; accepted: a text"),
        ([USER], {"continue_final_message": 3}, "continue_final_message is 3; accepted: True or F"),
        ([USER], {"continue_final_message": "name"}, 'the last message has no text as "name"'),
        ([USER | {"odd": "x"}], {"continue_final_message": "odd"}, 'template reads no "odd"'),
        (
            [USER | {"content": [{"type": "image"}]}],
            {"continue_final_message": True},
            '"content" of the last message has no part with text',
        ),
        ([USER, ANSWER], {"continue_final_message": True, "cut": True}, "leaves the last message"),
        ([USER], {"continue_final_message": True, "twice": True}, "last message more than once"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(messages, given, message):
    template = (
        "{% for m in (messages[:-1] if cut else messages * 2 if twice else messages) %}"
        "{{ m.content }}{% endfor %}{{ cut }}"
    )
    with pytest.raises(InputError, match=message):
        render_chats({"default": template}, {}, [Chat.of(messages, given)])


def test_arguments_of_all_and_of_one():
    chat = Chat([USER], tools=TOOLS, variables={"a": 1})
    given = {"tools": [], "chat_template": "rag", "a": 2, "b": 3, "continue_final_message": True}
    assert chat.with_defaults(given) == Chat([USER], TOOLS, None, "rag", True, {"a": 1, "b": 3})
