"""A checkpoint's files of processors, in the precedence of transformers 5.23, into the record.

preprocessor_config.json and video_preprocessor_config.json beside processor_config.json, or all in
the last, nested. A key that nothing reads is refused: it might change pixels.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.processors import PICTURES, WHOLE
from lmcast.exporter.vision.processor import Medium, Pixels, Processor
from lmcast.plugins.annotations import Range
from lmcast.plugins.records import RecordError, convert, fields_of

if TYPE_CHECKING:
    from lmcast.exporter.checkpoint.tensors import Texts

T = TypeVar("T")
NESTED = ("image_processor", "video_processor", "feature_extractor")
# Says nothing of pixels, or what is done anyway: pictures are RGB, in arrays of one layout; lengths
# of prompts count in the file of the whole processor alone.
HARMLESS = {
    "audio_seq_length", "auto_map", "chat_template", "data_format", "default_to_square", "device",
    "disable_grouping", "do_convert_rgb", "image_seq_length", "input_data_format",
    "processor_class", "return_metadata", "return_tensors", "_valid_processor_keys",
}  # fmt: skip
TYPES = ("image_processor_type", "video_processor_type", "feature_extractor_type")
SUFFIX = re.compile("(Fast|Pil)$")  # of the same class for other libraries
HALF = (0.5, 0.5, 0.5)
FILTER: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # of Pillow


@dataclass(frozen=True)
class Section:
    """The settings of one processor, and where they stand: 'preprocessor_config.json: '."""

    at: str
    raw: Mapping[str, Any]

    def without(self, names: Collection[str]) -> "Section":
        """Return the settings but those named."""
        return replace(self, raw={k: v for k, v in self.raw.items() if k not in names})

    def read(self, keys: type[T], harmless: Collection[str] = ()) -> T:
        """Return the dataclass `keys` of these settings; null is as good as none.

        Raises CheckpointError for other values than its fields take, and for further keys.
        """
        fields = fields_of(cast(Any, keys))
        values = {}
        for name, value in self.raw.items():
            known = name in HARMLESS or name in harmless
            if value is None or (known and name not in fields):
                continue
            if name not in fields:
                raise CheckpointError(
                    f"{self.at}{name} is {value!r:.80}, which nothing reads and might change"
                    f" pixels; read here are {', '.join(sorted(fields))}"
                )
            values[name] = self.converted(fields[name][0], value, name)
        for name, (_, needed) in fields.items():
            if needed and name not in values:
                raise CheckpointError(f"{self.at}{name} is missing")
        return keys(**values)

    def only(self, name: str, given: Mapping[str, int], *keys: str) -> dict[str, int]:
        """Return an object that has exactly these keys; raises CheckpointError for any other."""
        if set(given) != set(keys):
            raise CheckpointError(
                f"{self.at}{name} is {dict(given)!r:.80}; accepted: an object with"
                f" {' and '.join(keys)}"
            )
        return dict(given)

    def square(self, name: str, given: Mapping[str, int]) -> int:
        """Return the side of an object of height and width, which are equal; raises CheckpointError
        for any other."""
        sides = self.only(name, given, "height", "width")
        if sides["height"] != sides["width"]:
            raise CheckpointError(f"{self.at}{name} is {sides!r:.80}; accepted: a square")
        return sides["height"]

    def converted(self, hint: Any, value: Any, name: str) -> Any:
        """Return a value as its type says; raises CheckpointError."""
        try:
            return convert(hint, value, f"{self.at}{name}")
        except RecordError as error:
            raise CheckpointError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class PixelKeys:
    """Keys of every image processor; a Literal is the only value that lmcast does."""

    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_center_crop: Literal[False] = False
    do_normalize: bool = True
    resample: Literal[2, 3] = 3
    rescale_factor: Annotated[float, Range(1e-6, 1.0)] = 1 / 255
    image_mean: tuple[float, float, float] = HALF
    image_std: tuple[float, float, float] = HALF


def pixels(section: Section, defaults: PixelKeys) -> tuple[Pixels, Section]:
    """Return how values become numbers, and the settings that say something else."""
    names = fields_of(PixelKeys)
    # A crop's size, or that of a batch's padding, is of no use where nothing is cut or padded.
    own = Section(section.at, {k: v for k, v in section.raw.items() if k in names})
    given = own.read(PixelKeys)
    stated = {name: getattr(given, name) for name, value in own.raw.items() if value is not None}
    keys = replace(defaults, **stated)
    how = Pixels(
        resample=FILTER[keys.resample],
        rescale=keys.rescale_factor,
        mean=keys.image_mean if keys.do_normalize else None,
        std=keys.image_std if keys.do_normalize else None,
    )
    return how, section.without({*names, "crop_size"})


@dataclass(frozen=True)
class ProcessorFiles:
    """The files of a checkpoint that a processor is read from.

    config: of the tower, as its architecture reads config.json; audio: likewise, of that of sound.
    named: special tokens by name, as image_token. token_id: the id of a text
    that is one token, None where the tokenizer has none such; always None without a tokenizer.
    """

    files: Mapping[str, Mapping[str, Any]]
    config: Any
    named: Mapping[str, str]
    token_id: Callable[[str], int | None]
    has_tokenizer: bool = True
    audio: Any = None

    @cached_property
    def own(self) -> Section:
        """What is said of the whole processor."""
        return Section(f"{WHOLE}: ", self.files.get(WHOLE, {})).without(NESTED)

    def section(self, nested: str, *flat: str, types: Collection[str]) -> Section:
        """Return the settings of one processor: nested, else of the first file of `flat`.

        types: the names that its type may have. Raises CheckpointError for another type.
        """
        inner = self.files.get(WHOLE, {}).get(nested)
        if inner is not None and not isinstance(inner, dict):
            raise CheckpointError(f"{WHOLE}: {nested} is {inner!r:.80}; accepted: an object")
        if inner is not None:
            found = Section(f"{WHOLE}: {nested}.", inner)
        else:
            name = next((name for name in flat if name in self.files), "")
            if not name:
                raise CheckpointError(
                    f"the checkpoint has no {flat[0]}, nor {nested} in {WHOLE}: how it takes"
                    " pictures is not known; add it, or export the text alone (--text-only)"
                )
            found = Section(f"{name}: ", self.files[name])
        key = {"image_processor": TYPES[0], "video_processor": TYPES[1]}.get(nested, TYPES[2])
        said = found.raw.get(key)
        if said is not None and not (isinstance(said, str) and SUFFIX.sub("", said) in types):
            raise CheckpointError(
                f"{found.at}{key} is {said!r:.80}; accepted for this model: {', '.join(types)}"
            )
        return found.without(TYPES)

    def token(self, name: str, default: str) -> str:
        """Return the text of a special token that the tokenizer names, or its usual one."""
        return self.named.get(name, default)

    def medium(
        self,
        token: str,
        id: int,
        sizes: Any,
        how: Pixels | None,
        placeholder: str = "",
        written: str = "",
    ) -> Medium:
        """Return a medium, whose placeholder is its token unless another is given.

        Raises CheckpointError where the token has another id than the model looks for.
        """
        placeholder = placeholder or token
        self.require_tokens(token)
        if self.has_tokenizer and (found := self.token_id(token)) != id:
            raise CheckpointError(
                f"the tokenizer has {token!r} as token {found}, and config.json takes features at"
                f" {id}; make the two agree"
            )
        return Medium(placeholder, written or placeholder, token, id, dict(vars(sizes)), how)

    def has(self, token: str) -> bool:
        """Return whether the tokenizer has a token; True without a tokenizer."""
        return not self.has_tokenizer or self.token_id(token) is not None

    def require_tokens(self, *texts: str) -> None:
        """Refuse a tokenizer that has no such tokens, which would go to the model as letters."""
        for text in texts:
            if not self.has(text):
                raise CheckpointError(
                    f"the tokenizer has no token {text!r}, which the processor puts into prompts"
                )


def require_equal(what: str, said: float, config_key: str, used: float) -> None:
    """Refuse a processor that cuts pictures otherwise than the tower takes them."""
    if said != used:
        raise CheckpointError(f"{what} is {said}, but config.json: {config_key} is {used}")


def read_processor(model_type: str, config: Any, texts: "Texts", audio: Any = None) -> Processor:
    """Return the record of a checkpoint's processor.

    config: of the tower, as its architecture reads config.json; audio: of that of sound, None where
    there is none, or it is left out.

    Raises CheckpointError for a model whose processor lmcast does not know, for files that say what
    it does not do, and for a tokenizer without the tokens of pictures.
    """
    from lmcast.exporter.vision import kinds

    kind = kinds.of_model(model_type)
    if kind is None:
        known = sorted(name for each in map(kinds.get, kinds.NAMES) for name in each.models)
        raise CheckpointError(
            f"config.json: the processor of model_type {model_type!r:.80} is not known; known are"
            f" those of {', '.join(known)}"
        )
    from tokenizers import Tokenizer

    tokenizer = None if texts.tokenizer is None else Tokenizer.from_str(texts.tokenizer.decode())
    files = ProcessorFiles(
        files=texts.processors,
        config=config,
        named=texts.special_tokens,
        token_id=(lambda text: None) if tokenizer is None else tokenizer.token_to_id,
        has_tokenizer=tokenizer is not None,
        audio=audio,
    )
    try:
        return kind.read(files)
    except RecordError as error:  # numbers that are right one by one, and not together
        raise CheckpointError(f"{WHOLE} or {PICTURES}: {error}") from None
