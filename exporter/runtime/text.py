"""Text to token ids and back: tokenizer, chat template, and text as it streams."""

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from lmcast.exporter.checkpoint.tokenizer_trial import refusing
from lmcast.exporter.checkpoint.tokenizers.parts import byte_alphabet
from lmcast.exporter.runtime.chat import Chat, Messages, TextError, one_line, render_chats
from lmcast.plugins.annotations import Count, Range
from lmcast.plugins.arguments import checked

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def unusable(said: str) -> TextError:
    """Return the error for what the tokenizers library cannot do."""
    return TextError(f"tokenizer.json: the tokenizers library fails: {said}")


class Text:
    """The tokenizer and the chat templates of one checkpoint."""

    @checked
    def __init__(
        self, tokenizer: bytes, chat_templates: Mapping[str, str], special_tokens: Mapping[str, str]
    ):
        """tokenizer: contents of tokenizer.json; chat_templates: by name, "default" among them as a
        rule; special_tokens: bos_token and so on, by name."""
        from tokenizers import Tokenizer

        try:
            with refusing(unusable):
                self._tokenizer = Tokenizer.from_buffer(tokenizer)
        except ValueError as error:
            raise TextError(f"tokenizer.json: not a tokenizer: {one_line(error)}") from error
        # Limits stored for training would cut prompts short.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.chat_templates = dict(chat_templates)
        self.special_tokens = dict(special_tokens)

    @checked
    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return token ids, with the special tokens that the tokenizer puts around a text, or, as
        of one that a template has written them into, without."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"text: character {error.start} is half of a surrogate pair, not Unicode text; "
                "give text that was valid UTF-8"
            ) from error
        with refusing(unusable):
            return self._tokenizer.encode(text, add_special_tokens=special).ids

    def prefix(self) -> list[int]:
        """Return the special tokens that the tokenizer puts before a text: BOS, or none."""
        with refusing(unusable):
            encoded = self._tokenizer.encode("x")
        marks = enumerate(encoded.special_tokens_mask)
        return encoded.ids[: next((i for i, special in marks if not special), 0)]

    @checked
    def decode(self, ids: Sequence[Annotated[int, Range(0, (1 << 32) - 1)]]) -> str:
        """Return the text of ids; special tokens and ids that the tokenizer lacks give none."""
        with refusing(unusable):
            return self._tokenizer.decode(ids, skip_special_tokens=True)

    @checked
    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its spelling, None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def added_tokens(self) -> dict[int, str]:
        """Return the spelling by id of the tokens that are matched as a whole."""
        return {id: t.content for id, t in self._tokenizer.get_added_tokens_decoder().items()}

    @checked
    def chat(self, messages: Messages, **arguments: Any) -> list[int]:
        """Return token ids of the messages in the chat template, ending where an answer begins.

        arguments: as of transformers' apply_chat_template: tools, documents, chat_template (a
            name), continue_final_message, and variables that the template reads.
        """
        return self.chats([Chat.of(messages, arguments)])[0]

    @checked
    def chats(
        self, chats: Collection[Chat | Messages], most: Count | None = None
    ) -> list[list[int]]:
        """Return what `chat` does for each, in far less time than one by one.

        most: characters of each; None for any number that can be rendered.
        """
        return [self.encode(text, special=False) for text in self.rendered(chats, most)]

    @checked
    def rendered(self, chats: Collection[Chat | Messages], most: Count | None = None) -> list[str]:
        """Return the text of each chat, ending where an answer begins; most: as of `chats`."""
        given = [chat if isinstance(chat, Chat) else Chat(chat) for chat in chats]
        return render_chats(self.chat_templates, self.special_tokens, given, most=most)

    def stream(self) -> "TextStream":
        """Return a fresh detokenizer for one sequence of ids."""
        return TextStream(self._tokenizer)


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
