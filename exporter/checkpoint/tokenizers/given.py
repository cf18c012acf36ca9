"""What a converter of a tokenizer is given, and what it returns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.tokenizers.parts import Named, Part

INSTEAD = "add a tokenizer.json (save_pretrained of the maker's fast tokenizer writes one)"


class Converted(NamedTuple):
    content: Part  # of tokenizer.json
    shown: Path  # the file that it is from
    special_tokens: Mapping[str, str]  # bos_token, eos_token ...: what the file itself says

    def ids(self) -> int:
        """Return how many ids there are, from 0 to the largest."""
        vocab = self.content["model"]["vocab"]
        return len(vocab) if isinstance(vocab, list) else max(vocab.values()) + 1


class Given(NamedTuple):
    data: bytes
    shown: Path  # the file, for errors
    config: Mapping[str, Any]  # of tokenizer_config.json
    special_tokens: Mapping[str, str]  # what the files beside it say

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.shown}: {message}")

    def setting(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.shown.parent / 'tokenizer_config.json'}: {name}")

    def require_class(self, accepted: Mapping[str, tuple[str, ...]], why: str) -> None:
        """Refuse another class in tokenizer_config.json than those accepted, each with the modules
        of releases that may define it; "": none is named."""
        name = str(self.config.get("tokenizer_class") or "")
        auto = self.config.get("auto_map")
        code = auto.get("AutoTokenizer") if isinstance(auto, dict) else None
        defined = [str(at) for at in (code if isinstance(code, list) else [code]) if at]
        known = {f"{module}.{name}" for module in accepted.get(name, ())}
        if name not in accepted or not known.issuperset(defined):
            also = f" (defined in {defined[0]!r})" if defined else ""
            raise self.setting(
                f"tokenizer_class is {name!r}{also}; {self.shown.name} is read for"
                f" {', '.join(filter(None, accepted))} alone: {why}; {INSTEAD}"
            )

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.setting(f"{name} is {value!r:.80}; accepted: true or false")
        return value

    def around(
        self, own: Mapping[str, str], ids: Mapping[str, int], bos: bool
    ) -> tuple[Named | None, Named | None]:
        """Return the tokens before and after every text, as add_bos_token and add_eos_token ask.

        own: what the file itself calls bos_token and eos_token. bos: whether a text begins with one
        where nothing is said.
        """
        wanted = {
            "bos": self.flag("add_bos_token", bos),
            "eos": self.flag("add_eos_token", False),
        }
        found: list[Named | None] = []
        for role, is_wanted in wanted.items():
            content = self.special_tokens.get(f"{role}_token", own.get(f"{role}_token"))
            if not is_wanted or (content is None and f"add_{role}_token" not in self.config):
                found.append(None)
            elif content is None or content not in ids:
                raise self.setting(
                    f"every text gets the {role}_token, which is {content!r}; {self.shown.name} has"
                    " no such token"
                )
            else:
                found.append(Named(content, ids[content]))
        return found[0], found[1]
