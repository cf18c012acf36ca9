"""What a Hugging Face directory says about text, in the precedence of transformers 5.23."""

from typing import Any

from tokenizers import Tokenizer

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Texts

TOKENIZER_BYTES = 256 << 20  # 256 MiB; the largest in use have about 35
JSON_BYTES = 16 << 20
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_texts(folder: Folder) -> Texts:
    """Read tokenizer, chat template, special tokens and generation settings; all are optional.

    Raises CheckpointError for a file that is present and unusable.
    """
    config = _object(folder, "tokenizer_config.json")
    return Texts(
        tokenizer=_tokenizer(folder),
        chat_template=_chat_template(folder, config),
        special_tokens=_special_tokens(folder, config),
        generation=_object(folder, "generation_config.json"),
    )


def _object(folder: Folder, name: str) -> dict[str, Any]:
    data = folder.read(name, JSON_BYTES)
    return {} if data is None else parse_object(data, folder.root / name)


def _text(data: bytes, folder: Folder, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{folder.root / name}: is not UTF-8 text") from None


def _tokenizer(folder: Folder) -> bytes | None:
    data = folder.read("tokenizer.json", TOKENIZER_BYTES)
    if data is None:
        return None
    text = _text(data, folder, "tokenizer.json")
    try:
        Tokenizer.from_str(text)
    except BaseException as error:
        # The library raises plain Exception, and for some normalizers Rust's PanicException.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{folder.root / 'tokenizer.json'}: the tokenizers library refuses it: {error}"
        ) from None
    return data


def _chat_template(folder: Folder, config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins over tokenizer_config.json; of named templates 'default' is used."""
    data = folder.read("chat_template.jinja", JSON_BYTES)
    if data is not None:
        return _text(data, folder, "chat_template.jinja")
    template = config.get("chat_template")
    if isinstance(template, list) and all(
        isinstance(t, dict) and isinstance(t.get("name"), str) for t in template
    ):
        named = {t["name"]: t.get("template") for t in template}
        if len(named) != len(template):
            raise CheckpointError(
                f"{folder.root / 'tokenizer_config.json'}: chat_template has one name twice"
            )
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{folder.root / 'tokenizer_config.json'}: chat_template is a "
            f"{type(template).__name__}; a string or a list of {{name, template}} is accepted"
        )
    return template


def _special_tokens(folder: Folder, config: dict[str, Any]) -> dict[str, str]:
    """special_tokens_map.json overrides a tokenizer_config.json without added_tokens_decoder."""
    merged = {key: ("tokenizer_config.json", config.get(key)) for key in SPECIAL_TOKENS}
    if "added_tokens_decoder" not in config:
        legacy = _object(folder, "special_tokens_map.json")
        merged |= {
            key: ("special_tokens_map.json", legacy[key]) for key in SPECIAL_TOKENS if key in legacy
        }
    result = {}
    for key, (file, value) in merged.items():
        content = value.get("content") if isinstance(value, dict) else value
        if value is None:
            continue
        if not isinstance(content, str):
            raise CheckpointError(
                f"{folder.root / file}: {key} is {value!r}; a string or an object with a string "
                "'content' is accepted"
            )
        result[key] = content
    return result
