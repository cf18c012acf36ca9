"""Tokenizers, chat templates and streamed text."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from lmcast.exporter.runtime import chat_worker
from lmcast.exporter.runtime.chat import TextError
from lmcast.exporter.runtime.text import Text
from lmcast.plugins.errors import InputError

CORPUS = [
    "The capital of France is Paris.",
    "naïve café über 日本語 こんにちは 👩‍👩‍👧 🎉",
    "a  b   c",
] * 3
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
HELLO = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Who’s <b>é</b>?"},
]


def with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    # Spelled with characters outside the byte-level alphabet, and not special.
    tokenizer.add_tokens([AddedToken("<think er>", normalized=False), "émoji"])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """As in GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return with_special(tokenizer)


def sentencepiece(*steps: decoders.Decoder) -> Tokenizer:
    """As in Llama 2 and Gemma: spaces are '▁', and bytes such as <0xE4> spell the unknown."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["", "▁", "▁▁", "▁The", "▁a", "a", "b", "é", ".", "▁.", "<0xZZ>", "日本", "##c"]
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    if steps:
        tokenizer.decoder = decoders.Sequence(list(steps))
    return with_special(tokenizer)


SPACE, BYTES, FUSE = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
TOKENIZERS = {
    "byte_level": byte_level(),
    "llama2": sentencepiece(SPACE, BYTES, FUSE, decoders.Strip(" ", 1, 0)),
    "gemma": sentencepiece(SPACE, BYTES, FUSE),
    "strip_more": sentencepiece(SPACE, BYTES, FUSE, decoders.Strip(" ", 3, 0)),
    "metaspace": sentencepiece(decoders.Metaspace()),
    "bytes_metaspace": sentencepiece(BYTES, decoders.Metaspace()),
    "word_piece": sentencepiece(decoders.WordPiece()),
    "none": sentencepiece(),
    # What follows decides: these are given out at the end.
    "word_ends": sentencepiece(decoders.BPEDecoder("b")),
    "fused_replace": sentencepiece(FUSE, decoders.Replace("▁a", "!")),
}


def text_of(name: str, template: str | None = None) -> Text:
    templates = {} if template is None else {"default": template}
    return Text(TOKENIZERS[name].to_str().encode(), templates, SPECIAL)


# GPT-2's table by its definition: a byte that prints is itself, the others follow from 256 on.
PRINTS = [chr(byte).isprintable() and not chr(byte).isspace() for byte in range(256)]
BYTE_LEVEL = [
    chr(byte) if PRINTS[byte] else chr(256 + PRINTS[:byte].count(False)) for byte in range(256)
]
TEXTS = {name: text_of(name) for name in TOKENIZERS}


def streamed(text: Text, ids: list[int]) -> list[str]:
    stream = text.stream()
    return [*map(stream.push, ids), stream.finish()]


# Two ids more than there are: padded vocabularies have rows that no token names.
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stream_joins_to_decode(name: str, data: st.DataObject):
    text = TEXTS[name]
    size = TOKENIZERS[name].get_vocab_size()
    # Mostly the later ids, where the interesting tokens are; the first ones are all bytes.
    id = st.integers(0, size + 1) | st.integers(max(0, size - 20), size + 1)
    ids = data.draw(st.lists(id, max_size=25))
    assert "".join(streamed(text, ids)) == text.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "llama2", "bytes_metaspace"])
@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
def test_stream_of_split_bytes(name: str, raw: bytes):
    """One token a byte, valid UTF-8 or not: no replacement character that later ids resolve."""
    tokenizer, text = TOKENIZERS[name], TEXTS[name]
    spelling = BYTE_LEVEL if name == "byte_level" else [f"<0x{byte:02X}>" for byte in range(256)]
    ids = [tokenizer.token_to_id(spelling[byte]) for byte in raw]
    stream = text.stream()
    shown = ""
    for id in ids:
        shown += stream.push(id)
        assert text.decode(ids).startswith(shown)
    assert shown + stream.finish() == text.decode(ids)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("byte_level", "The café 🎉 日本語 is  naïve"),
        ("llama2", "The a日本é. 🎉 a"),
        ("gemma", "The a日本é. 🎉 a"),
    ],
)
def test_stream_is_prompt(name: str, source: str):
    """Each character is out once the tokens spell it; only byte runs wait for their end."""
    text = TEXTS[name]
    ids = text.encode(source)
    shown, stream = "", text.stream()
    for i, id in enumerate(ids):
        shown += stream.push(id)
        whole = text.decode(ids[: i + 1])
        token = TOKENIZERS[name].id_to_token(id)
        if not whole.endswith("\ufffd") and not token.startswith("<0x"):
            assert shown == whole
    assert (shown + stream.finish()).strip() == source


def test_only_byte_fallback_waits_for_the_end_of_byte_tokens():
    for name, waits in (("llama2", True), ("metaspace", False)):
        piece = TEXTS[name].stream().push(TOKENIZERS[name].token_to_id("<0x41>"))
        assert piece == ("" if waits else "<0x41>")


@pytest.mark.parametrize("name", ["byte_level", "llama2", "word_piece"])
def test_stream_costs_the_same_per_token(name: str, monkeypatch: pytest.MonkeyPatch):
    """No decode ever sees more than the last few ids, however long the text and its byte runs."""
    ids = [TOKENIZERS[name].token_to_id("a"), TOKENIZERS[name].token_to_id("b")] * 500
    stream = TEXTS[name].stream()
    seen: list[int] = []
    decoder = stream._decoder
    if hasattr(decoder, "_decode"):
        decode = decoder._decode
        monkeypatch.setattr(decoder, "_decode", lambda ids: (seen.append(len(ids)), decode(ids))[1])
    assert "".join(map(stream.push, ids)) == TEXTS[name].decode(ids)
    assert max(seen, default=0) <= 2


def test_long_runs_take_linear_time():
    """20,000 bytes that never become text: quadratic work would take minutes."""
    for name, token in (("byte_level", "¤"), ("llama2", "<0xE4>")):
        id = TOKENIZERS[name].token_to_id(token)
        start = time.process_time()
        assert "".join(streamed(TEXTS[name], [id] * 20_000)) == TEXTS[name].decode([id] * 20_000)
        assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["byte_level", "llama2"])
def test_encode_adds_special_tokens_once(name: str):
    text, tokenizer = TEXTS[name], TOKENIZERS[name]
    assert text.encode("a")[0] == tokenizer.token_to_id("<s>")
    assert text.decode(text.encode("The a.")) == "The a."
    chat = text_of(name, "{{ bos_token }}{{ messages[0].content }}")
    ids = chat.chat([{"role": "user", "content": "a"}])
    assert ids == text.encode("a")
    assert ids.count(tokenizer.token_to_id("<s>")) == 1


def test_stored_truncation_and_padding_are_off():
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    text = Text(tokenizer.to_str().encode(), {}, {})
    assert text.encode("The capital of France") == TEXTS["byte_level"].encode(
        "The capital of France"
    )


@pytest.mark.parametrize("stored", [b"", b"{}", b"[1]", b"\xff", b'{"model": {}}', b"null"])
def test_broken_tokenizer_is_refused(stored: bytes):
    with pytest.raises(TextError, match=r"^tokenizer\.json: not a tokenizer: .+$"):
        Text(stored, {}, {})


def test_broken_unicode_is_refused():
    with pytest.raises(TextError, match="character 2 is half of a surrogate pair"):
        TEXTS["byte_level"].encode("ab\udc80")


TEMPLATES = {
    "chatml": CHATML,
    "special": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}"
    "{% endfor %}{{ pad_token }}{{ tools is none }}{{ documents }}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "loop": "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
    "{{ m.content }}\n{% endfor %}",
    "generation": "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}"
    "{{ m.content }}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "namespace": "{% set n = namespace(last='', self=1) %}{% for m in messages %}"
    "{% set n.last = m.role %}{% endfor %}{{ n.last }}{{ dict(a=1) }}{{ n.self }}",
    "macro": "{% macro say(m) %}<{{ m['role'] }}>{{ caller() }}{% endmacro %}"
    "{% call say(messages[0]) %}{{ messages[0].content[::-1] }}{% endcall %}",
    "blocks": "  {% if add_generation_prompt %}\n  yes\n  {% endif %}\n  end\n",
    "date": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_is_that_of_transformers(name: str):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS["byte_level"], **SPECIAL
    )
    expected = theirs.apply_chat_template(
        HELLO, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
    )
    assert text_of("byte_level", TEMPLATES[name]).chat(HELLO) == expected


def test_many_chats_need_few_workers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmcast.exporter.runtime.chat.CHATS_PER_WORKER", 3)
    text = text_of("byte_level", CHATML)
    conversations = [[{"role": "user", "content": f"{i} é"}] for i in range(7)]
    together = text.chats(conversations)
    assert together[::6] == [text.chat(conversations[0]), text.chat(conversations[6])]
    assert [text.decode(ids) for ids in together] == [f"user\n{i} é\nassistant\n" for i in range(7)]
    assert text.chats([]) == []


WRONG = {
    "{{ raise_exception('roles must\nalternate') }}": "roles must alternate",
    "{% if %}": "line 1: ",
    "{% for m in messages %}\n{{ m.content": "line 2: ",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ ''.__class__.__mro__ }}": "__class__",
    "{{ messages.append(1) }}": "not safely callable|unsafe|not callable",
    "{% set n = namespace(__class__=1) %}": "may not begin with '_'",
    "{% set n = namespace() %}{% set n._x = 1 %}": "may not begin with '_'",
    "{{ lipsum.__globals__['os'].open('/etc/passwd', 0) }}": "__globals__",
    "{% include '/etc/passwd' %}": "no loader",
}


@pytest.mark.parametrize("template", WRONG)
def test_wrong_template_is_refused(template: str):
    with pytest.raises(TextError, match=rf"^chat template: .*({WRONG[template]})") as caught:
        text_of("byte_level", template).chat(HELLO)
    assert "\n" not in str(caught.value)


# Each would take hours or gigabytes; the limits end it.
BOMBS = {
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat_list": "{{ [1] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "center": "{{ 'x' | center(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "indent": "{{ messages | tojson(indent=10**10) }}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "nested": "{% for i in range(9**5) %}{% for j in range(9**5) %}{% for k in range(9**5) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}",
    "replace": "{% set n = namespace(s='aa') %}{% for i in range(9) %}"
    "{% set n.s = n.s | replace('a', n.s) %}{% endfor %}{{ n.s }}",
    "output": "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "fibonacci": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "deep": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "regex": "{{ ('a' * 200000) | urlize }}{{ ('<' * 90000) | striptags }}{{ 'x' * 10**8 }}",
}


# In a process of their own: a child counts as large as its parent until it runs a program, and the
# process of all tests is larger than the bound. What is counted of memory is the largest child so
# far: beyond the bound it stays there for all that follow.
SET_OFF = """
import json, resource
from test_text import BOMBS, HELLO, TextError, text_of
before, found = 0, {}
for name, template in BOMBS.items():
    try:
        message = str(text_of("byte_level", template).chat(HELLO))[:20]
    except TextError as error:
        message = str(error)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    found[name] = [message, seconds - before, used.ru_maxrss << 10]
    before = seconds
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exploded() -> dict[str, tuple[str, float, int]]:
    """Return what became of each bomb: its message, the seconds of CPU it took, and the memory."""
    command = [sys.executable, "-c", SET_OFF]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_in_bounded_time_and_memory(exploded, name: str):
    message, seconds, peak = exploded[name]
    assert message.startswith("chat template: ")
    assert "\n" not in message
    # One second is the grain of the limit on CPU time.
    assert seconds < chat_worker.CPU_SECONDS + 1
    assert peak <= chat_worker.MEMORY_BYTES


def test_waiting_worker_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmcast.exporter.runtime.chat.WALL_SECONDS", 0.01)
    with pytest.raises(TextError, match=r"takes more than 0\.01 s"):
        text_of("byte_level", CHATML).chat(HELLO)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ("hello", "accepted: a list, each item a mapping"),
        (["hello"], "accepted: a list, each item a mapping"),
        ([{"role": "user"}, {"content": "x"}], 'message 1 is not an object with a "role"'),
        ([{"role": "user", "content": b"x"}], "not JSON serializable; give plain JSON values"),
    ],
)
def test_wrong_messages_are_refused(messages, message: str):
    with pytest.raises(InputError, match=f"^messages(:| is) .*{message}"):
        text_of("byte_level", CHATML).chat(messages)


def test_chat_without_template_is_refused():
    with pytest.raises(TextError, match="chat template: the checkpoint has none"):
        TEXTS["byte_level"].chat(HELLO)


def test_unknown_decoder_streams_at_the_end():
    stream = TEXTS["word_ends"].stream()
    ids = TEXTS["word_ends"].encode("a b")
    assert [stream.push(id) for id in ids] == [""] * len(ids)
    assert stream.finish() == TEXTS["word_ends"].decode(ids) != ""
