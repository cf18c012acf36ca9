"""Chats to text: what a template is given, and rendering it as transformers does.

The result is that of transformers 5.23's `apply_chat_template`, with what a template says it needs.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmcast.exporter.runtime import chat_worker
from lmcast.plugins.errors import InputError

WALL_SECONDS = 20  # the worker limits its own CPU time to less; this ends one that waits
CHATS_PER_WORKER = 64  # a worker takes 0.09 s to start and has CPU_SECONDS for all of its chats
Messages = Sequence[Mapping[str, Any]]
# Names under which a message may hold its reasoning; templates read the first, gpt-oss's the next.
REASONING = ("reasoning_content", "thinking", "reasoning")
OURS = {  # arguments of apply_chat_template that are no variables -> why they cannot be given
    "messages": "is the chat itself",
    "conversation": "is the chat itself",
    "add_generation_prompt": "is always true: an answer begins; to continue the last message, give"
    " continue_final_message",
}
# What an object of JSON may hold beside its messages; chat_kwargs: all else that a template reads.
CHAT_KEYS = (
    "tools",
    "documents",
    "chat_template",
    "continue_final_message",
    "enable_thinking",
    "reasoning_effort",
    "chat_kwargs",
)
# Marks where the last message ends. The space behind it tells whether the template trims.
END_TAG = "LMCAST_CONTINUES_HERE "


class TextError(InputError):
    """Text, or a checkpoint's tokenizer or chat template, that cannot be used."""


def one_line(message: object) -> str:
    """Fold to one line of at most 300 characters: the message may come from a checkpoint."""
    return " ".join(str(message).split())[:300]


@dataclass(frozen=True)
class Chat:
    """A conversation, and what its template is given beside it.

    messages: objects with a "role", in order.
    tools: JSON schemas of functions that the model may call.
    documents: objects for a template that answers from them.
    template: the name of the template; None: "tool_use" where there are tools and such a template,
        else "default".
    continue_final_message: leave the last message open, so that the answer continues it: its
        "content", or what this names.
    variables: others that the template reads: enable_thinking, reasoning_effort, ...
    """

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None
    continue_final_message: bool | str = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Messages, given: Mapping[str, Any]) -> "Chat":
        """Return a chat with arguments named as `apply_chat_template` names them.

        chat_template is the name of one of the checkpoint's. Raises TextError for those that
        cannot be given.
        """
        for name, why in OURS.items():
            if name in given:
                raise TextError(f"chat: {name} {why}")
        own = {"tools", "documents", "continue_final_message"}
        return cls(
            messages,
            template=given.get("chat_template"),
            variables={k: v for k, v in given.items() if k not in own | {"chat_template"}},
            **{k: v for k, v in given.items() if k in own},
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Chat":
        """Return the chat of an object with "messages" and any of CHAT_KEYS; it may hold others.

        Raises TextError for values that cannot be.
        """
        given = {key: value[key] for key in CHAT_KEYS if key in value}
        more = given.pop("chat_kwargs", {})
        if not isinstance(more, dict):
            raise TextError(f"chat_kwargs: must be an object, not {more!r:.80}")
        chat = cls.of(value["messages"], more | given)
        chat.check()
        return chat

    def with_defaults(self, given: Mapping[str, Any]) -> "Chat":
        """Return this chat with arguments that it does not have itself."""
        other = Chat.of(self.messages, given)
        own = {
            name: value
            for name in ("tools", "documents", "template", "continue_final_message")
            if (value := getattr(self, name)) not in (None, False)
        }
        return replace(other, variables={**other.variables, **self.variables}, **own)

    def check(self) -> None:
        """Raise TextError for what is not of its kind."""
        check_messages(self.messages)
        for name in ("tools", "documents"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, list | tuple) and all(isinstance(v, Mapping) for v in value)
            ):
                raise TextError(f"{name}: must be a list of JSON objects, not {value!r:.80}")
        if not isinstance(self.continue_final_message, bool | str):
            raise TextError(
                "continue_final_message: must be true, false or the name of a part of the message,"
                f" not {self.continue_final_message!r:.80}"
            )
        if not isinstance(self.variables, Mapping):
            raise TextError(f"variables: must be an object, not {self.variables!r:.80}")
        if self.template is not None and not isinstance(self.template, str):
            raise TextError(f"chat_template: must be a name, not {self.template!r:.80}")

    def choose(self, templates: Mapping[str, str]) -> str:
        """Return the template to use; raises TextError where there is none."""
        if not templates:
            raise TextError("chat template: the checkpoint has none; give a plain prompt")
        name = self.template
        if name is None:
            name = "tool_use" if self.tools is not None and "tool_use" in templates else "default"
        if name not in templates:
            has = ", ".join(sorted(templates))
            raise TextError(f"chat template: there is none named {name!r:.80}; there is {has}")
        return templates[name]


def check_messages(messages: object) -> None:
    """Refuse what is not a list of objects that each have a role."""
    if not isinstance(messages, list | tuple) or not messages:
        raise TextError("messages: must be a list of at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TextError(
                f'messages: message {i} is not an object with a "role"; '
                'give {"role": "user", "content": "..."}'
            )


def render_chats(
    templates: Mapping[str, str],
    special_tokens: Mapping[str, str],
    chats: Iterable[Chat],
    *,
    answer: bool = True,
) -> list[str]:
    """Return the text of each chat, ending where an answer begins (`answer`), or goes on.

    A template runs in a sandbox in a process of its own with little time and memory; whatever it
    does wrong is a TextError. So is an argument that it does not read.
    """
    chats = list(chats)
    by_template: dict[str, list[int]] = {}
    for i, chat in enumerate(chats):
        chat.check()
        by_template.setdefault(chat.choose(templates), []).append(i)
    texts = [""] * len(chats)
    for template, places in by_template.items():
        for start in range(0, len(places), CHATS_PER_WORKER):
            part = places[start : start + CHATS_PER_WORKER]
            rendered = _render(template, special_tokens, [chats[i] for i in part], answer)
            for i, text in zip(part, rendered, strict=True):
                texts[i] = text
    return texts


def _render(
    template: str, special_tokens: Mapping[str, str], chats: Sequence[Chat], answer: bool
) -> list[str]:
    opened = [_open(chat, template) for chat in chats]
    needed = {name for chat in chats for name in chat.variables} | {
        name for chat in chats for name in ("tools", "documents") if getattr(chat, name) is not None
    }
    variables = [
        {
            **special_tokens,
            **chat.variables,
            "messages": messages,
            "tools": chat.tools,
            "documents": chat.documents,
            "add_generation_prompt": answer and not chat.continue_final_message,
        }
        for chat, (messages, _) in zip(chats, opened, strict=True)
    ]
    try:
        request = json.dumps({"template": template, "chats": variables, "needed": sorted(needed)})
    except (TypeError, ValueError, RecursionError) as error:
        raise TextError(f"messages: {one_line(error)}; give plain JSON values") from error
    texts = run_worker(request)
    return [
        text if final is None else _cut(text, final)
        for text, (_, final) in zip(texts, opened, strict=True)
    ]


def _open(chat: Chat, template: str) -> tuple[list[dict[str, Any]], str | None]:
    """Return the messages as a template is given them, and the text that is to be continued."""
    # Templates write None out as a word where they expect a key to be missing.
    messages = [{k: v for k, v in m.items() if v is not None} for m in chat.messages]
    for i, message in enumerate(messages):
        thought = next((message[k] for k in REASONING if k in message), None)
        if thought is not None:  # in the order of transformers, for templates that write JSON
            messages[i] = {"thinking": thought, **message, "reasoning_content": thought}
    if not chat.continue_final_message:
        return messages, None
    asked = chat.continue_final_message
    key = asked if isinstance(asked, str) else "content"
    last = messages[-1]
    if not isinstance(final := last.get(key), str | list | tuple):
        raise TextError(f'continue_final_message: the last message has no text as "{key}"')
    keys = [k for k in REASONING if last.get(k) == final] if key in REASONING else [key]
    if not any(k in template for k in keys):
        raise TextError(f'continue_final_message: the chat template reads no "{key}"')
    if isinstance(final, str):
        last |= dict.fromkeys(keys, final + END_TAG)
        return messages, final
    parts = [dict(part) if isinstance(part, Mapping) else part for part in final]
    for part in reversed(parts):
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            part["text"] = text + END_TAG
            last[key] = parts
            return messages, text
    raise TextError(f'continue_final_message: "{key}" of the last message has no part with text')


def _cut(rendered: str, final: str) -> str:
    """Return a rendered chat up to the end of its last message; spaces go where it trims them."""
    at = rendered.rfind(END_TAG.strip())
    if at < 0 or final.strip() not in rendered:
        raise TextError(
            "continue_final_message: the chat template leaves the last message out, or changes it,"
            " so that it cannot be continued"
        )
    text = rendered[:at]
    if END_TAG.strip() in text:
        raise TextError(
            "continue_final_message: the chat template writes the last message more than once, so"
            " that it is not clear where it ends"
        )
    return text if rendered.startswith(END_TAG, at) else text.rstrip()


def run_worker(request: str) -> list[str]:
    """Send a request to chat_worker; return the rendered texts."""
    specs = [find_spec(name) for name in ("jinja2", "markupsafe")]
    folders = [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
    # -I -S: no start-up files, no user packages, no variables of ours; only the folders above.
    command = [sys.executable, "-I", "-S", str(Path(chat_worker.__file__)), *folders]
    try:
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise TextError(f"chat template: takes more than {WALL_SECONDS} s to render") from error
    if -done.returncode in (signal.SIGKILL, signal.SIGXCPU):
        seconds = chat_worker.CPU_SECONDS
        raise TextError(f"chat template: takes more than {seconds} s of CPU time to render")
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise TextError(
            f"chat template: the renderer ended with status {done.returncode}: {one_line(last)}"
        )
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise TextError(f"chat template: {one_line(answer['error'])}")
    texts: list[str] = answer["texts"]
    return texts
