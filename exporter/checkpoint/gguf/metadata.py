"""The metadata of a GGUF file, read key by key with types; what stays unread is refused."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lmcast.exporter.checkpoint.errors import CheckpointError

T = TypeVar("T")

# Keys that change no logit and no text; an architecture's own are written without its name.
INERT = frozenset(
    {
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "tokenizer.chat_templates",
        "tokenizer.ggml.token_type_count",
        "tokenizer.huggingface.json",
    }
)
INERT_ENDS = ("_token_id", "_token_ids")  # tokens with a purpose beyond bos, eos, unk and pad


class Metadata:
    """Typed access to the metadata of one file; every error names the file and the key."""

    def __init__(self, path: Path, values: Mapping[str, Any]):
        self.path, self.values, self.read = path, values, set[str]()
        self.architecture = self.text("general.architecture")

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def own(self, name: str) -> str:
        """Return the full key of one of the architecture's values: 'block_count'."""
        return f"{self.architecture}.{name}"

    def has(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, (str,), "a string", default)

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, (bool,), "true or false", default)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer."""
        value = self._typed(key, (int,), "one positive integer", default)
        if value < 1:
            raise self.error(f"{key} is {value}; only a positive integer is accepted")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return an integer from 0 on."""
        value = self._typed(key, (int,), "one integer from 0 on", default)
        if value < 0:
            raise self.error(f"{key} is {value}; only an integer from 0 on is accepted")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number."""
        value = float(self._typed(key, (int, float), "a number", default))
        if not 0 < value < math.inf:
            raise self.error(f"{key} is {value}; only a positive finite number is accepted")
        return value

    def items(self, key: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """Return an array whose items are all of type `kind`."""
        value: list[T] = self._typed(key, (list,), "an array", default)
        if not all(type(item) is kind for item in value):
            raise self.error(f"{key} holds other things than {kind.__name__}; it is damaged")
        return value

    def token(self, key: str, count: int) -> int | None:
        """Return a token id below `count`, or None if the key is absent."""
        if not self.has(key):
            return None
        value = self._typed(key, (int,), "a token id", None)
        if not 0 <= value < count:
            raise self.error(f"{key} is {value}; the vocabulary has {count} tokens")
        return value

    def unread(self, space: str) -> CheckpointError | None:
        """Return what to raise for a key of `space` ('llama', 'tokenizer') that nothing has read
        and that says something; None if there is none."""
        for key, value in self.values.items():
            first, _, name = key.partition(".")
            if first != space or key in self.read:
                continue
            known = key in INERT or name in INERT
            if not known and not key.endswith(INERT_ENDS) and value not in (0, "", []):
                return self.error(
                    f"sets {key} = {value!r:.80}, which nothing reads; the result could be wrong."
                    " Convert the original checkpoint directly instead"
                )
        return None

    def _typed(self, key: str, kinds: tuple[type[T], ...], accepted: str, default: T | None) -> T:
        self.read.add(key)
        if key not in self.values:
            if default is None:
                raise self.error(f"{key} is missing; the model cannot be built without it")
            return default
        value = self.values[key]
        # bool is an int: True must not pass for 1.
        if not isinstance(value, kinds) or type(value) not in kinds:
            raise self.error(f"{key} is {value!r:.80}; accepted: {accepted}")
        return value
