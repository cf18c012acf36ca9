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
from lmcast.plugins.arguments import checked, checked_fields
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


def as_template(data: bytes, path: Path) -> str:
    """Return a chat template of an engine; raises TextError for what is no text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise TextError(f"{path}: is not UTF-8; export again") from None


def one_line(message: object) -> str:
    """Fold to one line of at most 300 characters: the message may come from a checkpoint."""
    return " ".join(str(message).split())[:300]


@checked_fields
@dataclass(frozen=True)
class Chat:
    """A conversation, and what its template is given beside it. Raises InputError for values that
    are not of their kind.

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

    def __post_init__(self) -> None:
        if not self.messages:
            raise TextError("messages: must be a list of at least one message")
        for i, message in enumerate(self.messages):
            if not isinstance(message.get("role"), str):
                raise TextError(
                    f'messages: message {i} is not an object with a "role"; '
                    'give {"role": "user", "content": "..."}'
                )

    @classmethod
    @checked
    def of(cls, messages: Messages, given: Mapping[str, Any]) -> "Chat":
        """Return a chat with arguments named as `apply_chat_template` names them.

        chat_template is the name of one of the checkpoint's. Raises InputError for those that
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
    @checked
    def from_json(cls, value: Mapping[str, Any]) -> "Chat":
        """Return the chat of an object with "messages" and any of CHAT_KEYS; it may hold others.

        Raises InputError for values that cannot be.
        """
        if "messages" not in value:
            raise TextError('chat: has no "messages", a list of at least one')
        given = {key: value[key] for key in CHAT_KEYS if key in value}
        more = given.pop("chat_kwargs", {})
        if not isinstance(more, dict):
            raise TextError(f"chat_kwargs: must be an object, not {more!r:.80}")
        return cls.of(value["messages"], more | given)

    def with_defaults(self, given: Mapping[str, Any]) -> "Chat":
        """Return this chat with arguments that it does not have itself."""
        other = Chat.of(self.messages, given)
        own = {
            name: value
            for name in ("tools", "documents", "template", "continue_final_message")
            if (value := getattr(self, name)) not in (None, False)
        }
        return replace(other, variables={**other.variables, **self.variables}, **own)

    def require_size(self, most: int) -> None:
        """Refuse a chat of more than `most` characters, keys and values, before it is rendered;
        raises TextError."""
        told = (self.messages, self.tools, self.documents, self.variables)
        try:
            room = _room(told, most)
        except RecursionError:
            raise TextError("chat: is nested too deeply; give plain JSON values") from None
        if room < 0:
            raise too_long(most)

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


def user(text: str, shown: Sequence[str] = ()) -> dict[str, Any]:
    """Return the message of a user; shown: kinds of what stands before its text, as "image"."""
    parts = [*({"type": kind} for kind in shown), {"type": "text", "text": text}]
    return {"role": "user", "content": parts if shown else text}


def as_chat(prompt: Any, given: Mapping[str, Any], shown: Sequence[str] = ()) -> Chat | list[Any]:
    """Return a prompt as a chat, where it is not a list of token ids; shown: as of `user`."""
    if isinstance(prompt, Chat):
        return prompt.with_defaults(given)
    if isinstance(prompt, str):
        return Chat.of([user(prompt, shown)], given)
    items = list(prompt)
    return Chat.of(items, given) if items and isinstance(items[0], Mapping) else items


def too_long(most: int) -> TextError:
    """Return the error for a text or a chat that no context holds."""
    return TextError(
        f"prompt: has more than {most:,} characters, the most that are read; shorten it"
    )


def _room(value: Any, room: int) -> int:
    """Return what a JSON value leaves of room for so many characters, keys and values; negative as
    soon as it has more. A list of itself ends with RecursionError."""
    if isinstance(value, str):
        return room - len(value)
    items = value.items() if isinstance(value, Mapping) else ()
    for item in items or (value if isinstance(value, list | tuple) else ()):
        if (room := _room(item, room)) < 0:
            return room
    return room - 1


def render_chats(
    templates: Mapping[str, str],
    special_tokens: Mapping[str, str],
    chats: Iterable[Chat],
    *,
    answer: bool = True,
    most: int | None = None,
) -> list[str]:
    """Return the text of each chat, ending where an answer begins (`answer`), or goes on.

    most: characters of a chat and of its text, None for any number that can be rendered.

    A template runs in a sandbox in a process of its own with little time and memory; whatever it
    does wrong is a TextError. So is an argument that it does not read.
    """
    chats = list(chats)
    by_template: dict[str, list[int]] = {}
    for i, chat in enumerate(chats):
        if most is not None:
            chat.require_size(most)
        by_template.setdefault(chat.choose(templates), []).append(i)
    texts = [""] * len(chats)
    for template, places in by_template.items():
        for start in range(0, len(places), CHATS_PER_WORKER):
            part = places[start : start + CHATS_PER_WORKER]
            rendered = _render(template, special_tokens, [chats[i] for i in part], answer)
            for i, text in zip(part, rendered, strict=True):
                texts[i] = text
    if most is not None and any(len(text) > most for text in texts):
        raise too_long(most)
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
