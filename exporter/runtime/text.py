"""Text to token ids and back: tokenizer, chat template, and text as it streams."""

import json
import signal
import subprocess
import sys
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcast.exporter.runtime import chat_worker
from lmcast.plugins.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WALL_SECONDS = 20  # the worker limits its own CPU time to less; this ends one that waits
CHATS_PER_WORKER = 64  # a worker takes 0.09 s to start and has CPU_SECONDS for all of its chats


class TextError(InputError):
    """Text, or a checkpoint's tokenizer or chat template, that cannot be used."""


def one_line(message: object) -> str:
    """Fold to one line of at most 300 characters: the message may come from a checkpoint."""
    return " ".join(str(message).split())[:300]


class Text:
    """The tokenizer and the chat template of one checkpoint."""

    def __init__(
        self, tokenizer: bytes, chat_template: str | None, special_tokens: Mapping[str, str]
    ):
        """tokenizer: contents of tokenizer.json; special_tokens: bos_token and so on, by name."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer)
        except ValueError as error:
            raise TextError(f"tokenizer.json: not a tokenizer: {one_line(error)}") from error
        # Limits stored for training would cut prompts short.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens)

    def encode(self, text: str) -> list[int]:
        """Return token ids, with the special tokens that the tokenizer puts around a text."""
        return self._encode(text, special=True)

    def prefix(self) -> list[int]:
        """Return the special tokens that the tokenizer puts before a text: BOS, or none."""
        encoded = self._tokenizer.encode("x")
        marks = enumerate(encoded.special_tokens_mask)
        return encoded.ids[: next((i for i, special in marks if not special), 0)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and ids that the tokenizer lacks give none."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return token ids of the messages in the chat template, ending where an answer begins."""
        return self.chats([messages])[0]

    def chats(self, conversations: Iterable[Sequence[Mapping[str, Any]]]) -> list[list[int]]:
        """Return what `chat` does for each conversation, in far less time than one by one."""
        texts = render_chats(self.chat_template, self.special_tokens, list(conversations))
        # The template has written the special tokens already.
        return [self._encode(text, special=False) for text in texts]

    def stream(self) -> "TextStream":
        """Return a fresh detokenizer for one sequence of ids."""
        return TextStream(self._tokenizer)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"text: character {error.start} is half of a surrogate pair, not Unicode text; "
                "give text that was valid UTF-8"
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=special).ids


def render_chats(
    template: str | None,
    special_tokens: Mapping[str, str],
    conversations: Sequence[Sequence[Mapping[str, Any]]],
) -> list[str]:
    """Return the text of each conversation, ending where an answer begins.

    The template runs in a sandbox in a process of its own with little time and memory; whatever it
    does wrong is a TextError.
    """
    if template is None:
        raise TextError("chat template: the checkpoint has none; give a plain prompt")
    # The variables that transformers' apply_chat_template sets.
    constant = {"tools": None, "documents": None, "add_generation_prompt": True, **special_tokens}
    chats = []
    for messages in conversations:
        check_messages(messages)
        chats.append({**constant, "messages": list(messages)})
    texts: list[str] = []
    for start in range(0, len(chats), CHATS_PER_WORKER):
        part = chats[start : start + CHATS_PER_WORKER]
        try:
            request = json.dumps({"template": template, "chats": part})
        except (TypeError, ValueError, RecursionError) as error:
            raise TextError(f"messages: {one_line(error)}; give plain JSON values") from error
        texts += run_worker(request)
    return texts


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


class TextStream:
    """Incremental detokenizer, in constant time per token.

    What `push` has returned, with `finish` at the end, is `Text.decode` of all ids. Text is
    returned once it is certain: later ids change no character of it.
    """

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}
        self._decoder = choose_decoder(tokenizer)

    def push(self, id: int) -> str:
        """Return the text that became certain, often empty."""
        token = self._tokenizer.id_to_token(id)
        if token is None or token in self._special:
            return ""
        return self._decoder.push(id, token)

    def finish(self) -> str:
        """Return the rest of the text; call it once, after the last id."""
        return self._decoder.finish()


def choose_decoder(tokenizer: "Tokenizer") -> "ByteLevelStream | PieceStream | WholeStream":
    """Choose how to stream from the steps of the tokenizer's decoder."""
    # Its state is its part of tokenizer.json; the tokenizer's own would hold the whole vocabulary.
    decoder = tokenizer.decoder
    steps = flatten(json.loads(decoder.__getstate__())) if decoder is not None else []
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelStream()
    fuse = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    # Steps on single tokens; after the fuse, only what changes nothing but the beginning.
    single = {"Replace", "ByteFallback", "Metaspace", "WordPiece", "Strip"}
    leading = all(step["type"] == "Strip" and step["stop"] == 0 for step in steps[fuse + 1 :])
    if single.issuperset(kinds[:fuse]) and leading:
        return PieceStream(tokenizer, "ByteFallback" in kinds)
    return WholeStream(tokenizer)


def flatten(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of nested sequences in order."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in flatten(part)]


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


class ByteLevelStream:
    """Tokens of byte-level BPE: each spells bytes, whose UTF-8 is the text."""

    def __init__(self) -> None:
        self._alphabet = byte_alphabet()
        self._utf8 = getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int, token: str) -> str:
        try:
            data = bytes([self._alphabet[character] for character in token])
        except KeyError:  # an added token, spelled as it is
            data = token.encode()
        return self._utf8.decode(data)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class PieceStream:
    """Tokens are pieces of text, decoded one by one except at the beginning of the text.

    With byte fallback, a run of tokens like <0xE4> is text only as a whole, and is delayed until
    another token ends it.
    """

    def __init__(self, tokenizer: "Tokenizer", bytes_fall_back: bool):
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._bytes_fall_back = bytes_fall_back
        # Decoded again before each piece, which is then not the beginning.
        self._before: list[int] = []
        self._before_text = ""
        self._held: list[int] = []

    def push(self, id: int, token: str) -> str:
        self._held.append(id)
        if self._bytes_fall_back and len(token) == 6 and token.startswith("<0x"):
            return ""
        return self.finish()

    def finish(self) -> str:
        held, self._held = self._held, []
        if not held:
            return ""
        text = self._decode(self._before + held)[len(self._before_text) :]
        if last := self._decode(held[-1:]):
            self._before, self._before_text = held[-1:], last
        elif not self._before_text:
            # A strip at the beginning has taken from these, and may take more.
            self._before, self._before_text = self._before + held, text
        return text


class WholeStream:
    """Decodes everything at the end: for decoders whose text depends on later tokens without
    bound."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def push(self, id: int, token: str) -> str:
        self._ids.append(id)
        return ""

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids)
