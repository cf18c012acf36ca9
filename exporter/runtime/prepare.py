"""Prompts in all their forms, with the pictures beside them, to token ids."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np

from lmcast.exporter.runtime.arrays import as_ids, within
from lmcast.exporter.runtime.chat import Chat, Messages, TextError, as_chat, too_long
from lmcast.exporter.runtime.images import Images, Picture
from lmcast.plugins.annotations import Range
from lmcast.plugins.arguments import checked_fields
from lmcast.plugins.errors import InputError

if TYPE_CHECKING:
    from lmcast.exporter.runtime.engine import Engine

TOKEN_CHARACTERS = 512  # of the longest token; those in use have 128 spaces, or 256
MEDIA = ("image", "video", "audio")  # the "type" of parts that say where one stands
# Other parts that would hold one: of Chat Completions and of Responses.
OTHERS = ("image_url", "input_image", "video_url", "input_video", "input_audio")


class PilImage(Protocol):
    """An image of Pillow's."""

    def getexif(self) -> Any: ...

    def convert(self) -> Any: ...


Rate = Annotated[float, Range(0.001, 1000.0)]
Video = str | PathLike[str] | bytes
Source = str | PathLike[str] | bytes | np.ndarray | Picture | PilImage
Sound = str | PathLike[str] | bytes | np.ndarray
Frames = Video | np.ndarray | Sequence[Source]
PICTURES = (
    "paths, bytes of files, images of PIL, arrays uint8 [height, width, 3] or Pictures, one or"
    " several; for several prompts a list of these for each"
)
Pictures = Annotated[Source | Sequence[Source | Sequence[Source]] | None, PICTURES]


Words = str | Messages | Chat | Sequence[int]


@checked_fields
@dataclass(frozen=True)
class Pictured:
    """A prompt, in any form, and its pictures, videos and sounds, in the order in which it names
    those of each kind.

    videos: folders of pictures and animated files; fps: their frames a second, None: as files say.
    sounds: WAV files.
    """

    prompt: Words
    images: Sequence[Source] = ()
    videos: Sequence[Video] = ()
    sounds: Sequence[Sound] = ()
    fps: Rate | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not self.videos:
            raise TextError("fps: is of videos, and there are none; leave it out")


Prompt = Words | Pictured
Prompts = Annotated[
    Sequence[Prompt] | Prompt,
    "texts, lists of messages, Chats or lists of token ids, one or several",
]


@dataclass
class Prepared:
    """A prompt as a session takes it."""

    ids: list[int] = field(default_factory=list)
    images: Images | None = None


def prepare(
    engine: "Engine",
    prompts: Any,
    images: Any,
    chat: bool | None,
    chat_kwargs: Mapping[str, Any] | None,
    max_pixels: int | None = None,
) -> list[Prepared]:
    """Return the token ids of prompts, and where pictures stand in them; as Engine.generate."""
    if chat is None:
        chat = bool(engine.chat_templates)
    # Known before a text is tokenized, which takes a hundred times its memory.
    most = engine.context * TOKEN_CHARACTERS
    given = pair(prompts, images)
    pictures = [shown(engine, beside, max_pixels) for _, beside in given]
    if max_pixels is not None and not any(pictures):
        raise TextError("max_pixels: is for pictures, and there are none; leave it out")
    ready, chats = [Prepared() for _ in given], dict[int, Chat]()
    texts: dict[int, str] = {}
    for i, ((prompt, _), own) in enumerate(zip(given, pictures, strict=True)):
        if engine.has_tower:
            engine.tower.require_context(own, sum(p.tokens for p in own), engine.context)
        if isinstance(prompt, str) and len(prompt) > most:
            raise too_long(most)
        if isinstance(prompt, str) and not chat:
            texts[i] = plain(engine, prompt, own)
        elif isinstance(made := as_chat(prompt, chat_kwargs or {}, kinds_of(own)), Chat):
            refuse_parts(engine, made, own)
            chats[i] = made
        else:
            ready[i].ids = as_ids([made])[0].tolist()
    if chat_kwargs and not chats:
        raise TextError(f"chat_kwargs: {', '.join(chat_kwargs)} is for chats; no prompt is one")
    for i, text in texts.items():
        ready[i].ids = engine.text.encode(text)
    # All at once: a template is rendered in a process of its own, which takes a while to start.
    rendered = engine.text.rendered(chats.values(), most) if chats else []
    for i, text in zip(chats, rendered, strict=True):
        if engine.has_tower:
            text = engine.tower.expand(text, pictures[i])
        ready[i].ids = engine.text.encode(text, special=False)
    for one, own in zip(ready, pictures, strict=True):
        place(engine, one, own)
    return ready


def place(engine: "Engine", one: Prepared, pictures: Sequence[Picture]) -> None:
    """Find where the pictures of a prompt stand; refuse ids that the model does not have."""
    ids = np.array(one.ids, np.int64)
    if engine.has_tower:
        one.ids, found = engine.tower.place(one.ids, pictures)
        if pictures:
            one.images = found
        ids = np.where(found.image_rows < 0, one.ids, 0)
        engine.tower.require_context(pictures, len(ids), engine.context)
    within("input_ids", ids[None], engine.vocab_size)


def plain(engine: "Engine", text: str, pictures: Sequence[Picture]) -> str:
    """Return a text without a template, with what its pictures become before it."""
    if not engine.has_tower:
        return text
    engine.tower.refuse_tokens(text, "the prompt")
    return engine.tower.expand(engine.tower.written(pictures) + text, pictures)


def shown(engine: "Engine", one: Pictured, max_pixels: int | None) -> list[Picture]:
    """Return the pictures of a prompt, then its videos, then its sounds, as towers take them."""
    pictures = [engine.picture(source, max_pixels) for source in one.images]
    pictures += [engine.video(source, one.fps, max_pixels) for source in one.videos]
    return pictures + [engine.sound(source) for source in one.sounds]


def kinds_of(pictures: Sequence[Picture]) -> list[str]:
    """Return the kind of each: "image", "video" or "audio"."""
    return [picture.medium for picture in pictures]


def refuse_parts(engine: "Engine", chat: Chat, pictures: Sequence[Picture]) -> None:
    """Refuse a chat whose parts are not those of its pictures, and texts that look like one."""
    found: Counter[str] = Counter()
    for message in chat.messages:
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if not isinstance(kind, str):
                continue  # for the template to say
            if kind in OTHERS or (kind in MEDIA and dict(part) != {"type": kind}):
                raise TextError(
                    f"messages: a part is {part!r:.80}; accepted: {{'type': 'image'}}, which says"
                    " where a picture of `images` stands"
                )
            found.update([kind] if kind in MEDIA else [])
    if found and not engine.has_tower:
        raise no_tower(engine)
    given = Counter(kinds_of(pictures))
    for kind in MEDIA:
        if found[kind] != given[kind]:
            raise TextError(
                f"messages: {found[kind]} parts {{'type': {kind!r}}} and {given[kind]} {kind}s are"
                " given; give one for each"
            )
    if engine.has_tower:
        told = (chat.messages, chat.tools, chat.documents, chat.variables)
        for text in texts_of(told):
            engine.tower.refuse_tokens(text, "the chat")


def texts_of(value: Any) -> list[str]:
    """Return all texts in a JSON value, keys too."""
    if isinstance(value, str):
        return [value]
    items = value.items() if isinstance(value, Mapping) else ()
    listed = value if isinstance(value, list | tuple) else ()
    return [text for item in (*items, *listed) for text in texts_of(item)]


def no_tower(engine: "Engine") -> InputError:
    """Return the error for a picture that is given to an engine of text alone."""
    from lmcast.exporter.vision import kinds

    about = engine.manifest.about
    where = f"{engine.directory}: this engine takes no pictures"
    if kinds.of_model(str(about.config.get("model_type"))) is not None:
        why = "its checkpoint has a tower, which was left out at export (--text-only, or an earlier"
        return TextError(f"{where}: {why} lmcast); export again to take it along")
    beside = sorted(key for key in about.config if key.startswith("vision"))
    if beside:
        return TextError(f"{where}: lmcast builds no tower of {about.architecture} ({beside[0]})")
    return TextError(f"{where}: its model, {about.architecture}, reads text alone")


def pair(prompts: Any, images: Any) -> list[tuple[Any, Pictured]]:
    """Return each prompt, and what is shown beside it, whose own prompt does not count.

    Raises TextError where pictures are not of as many prompts.
    """
    none = Pictured("")
    listed = [(p.prompt, p) if isinstance(p, Pictured) else (p, none) for p in as_prompts(prompts)]
    if images is None:
        return listed
    if any(own.images or own.videos or own.sounds for _, own in listed):
        raise TextError("images: prompts have their own; give one of the two")
    given = list(images) if isinstance(images, list | tuple) else [images]
    nested = [isinstance(each, list | tuple) for each in given]
    if not any(nested) and len(listed) == 1:
        given, nested = [given], [True]
    if not all(nested) or len(given) != len(listed):
        raise TextError(
            f"images: {len(listed)} prompts and {len(given)} images; give a list for each prompt,"
            " empty for none"
        )
    return [(prompt, Pictured("", own)) for (prompt, _), own in zip(listed, given, strict=True)]


def as_prompts(prompts: Any) -> Sequence[Any]:
    """Return several prompts: of one, a list of that one."""
    if isinstance(prompts, str | Chat | Pictured | Mapping):
        return [prompts]
    one = len(prompts) > 0 and isinstance(prompts[0], int | np.integer | Mapping)
    return [prompts] if one else prompts
