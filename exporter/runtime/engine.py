"""A loaded engine: logits, sessions and generation from an engine directory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmcast.exporter import targets
from lmcast.exporter.backends.runner import Loading, Runner, RunTower
from lmcast.exporter.checkpoint.tokenizers import FILE_BYTES
from lmcast.exporter.cores import limited
from lmcast.exporter.engine.description import Graph
from lmcast.exporter.engine.manifest import (
    EngineError,
    Manifest,
    changes,
    read_file,
    read_manifest,
    read_object,
    read_parity,
)
from lmcast.exporter.engine.names import AUDIO, GENERATION, PARITY, TOKENIZER, VISION, templates
from lmcast.exporter.engine.staging import recover
from lmcast.exporter.runtime.arrays import as_ids
from lmcast.exporter.runtime.chat import as_template
from lmcast.exporter.runtime.conversation import Conversation
from lmcast.exporter.runtime.generate import Generated, generate
from lmcast.exporter.runtime.images import Picture
from lmcast.exporter.runtime.prepare import (
    Frames,
    Pictures,
    Prepared,
    Prompts,
    Rate,
    Sound,
    Source,
    no_tower,
    prepare,
)
from lmcast.exporter.runtime.sampling import Sampling, choose_sampling
from lmcast.exporter.runtime.session import Session
from lmcast.exporter.runtime.summary import Summary
from lmcast.exporter.runtime.text import Text
from lmcast.exporter.runtime.tower import Tower
from lmcast.exporter.targets import Target
from lmcast.plugins.annotations import Count, Rows, Threads
from lmcast.plugins.arguments import checked

NEW_TOKENS = 256


@dataclass(frozen=True)
class Variant:
    """A graph to run instead of an engine's own, over the same weights."""

    model: bytes  # ONNX
    contract: Graph


class Engine:
    """One engine directory, checked and ready to run.

    The graph itself is loaded on first use: a plan for the GPU at hand, where there are plans, or
    the portable graph in ONNX Runtime.

    threads, prepack, exact: for ONNX Runtime's CPU, as in `load`.
    portable: run the portable graph in any case. variant: another graph in its place.
    whole: recompute every hash first.

    Raises EngineError where engine.json is not as declared, where files are missing or resized,
    where the graph, texts and others up to 16 MiB are changed, and where the checkpoint that a
    linked engine points into is; for an option that its target does not read (Target.loads).
    """

    @checked
    def __init__(
        self,
        directory: str | PathLike[str],
        threads: Threads | None = None,
        prepack: bool = False,
        portable: bool = False,
        variant: Variant | None = None,
        whole: bool = False,
        exact: bool = False,
    ):
        self.directory = Path(directory)
        if exact and prepack:
            raise EngineError("exact and prepack: kernels of prepacked weights round; give one")
        recover(self.directory)
        self.manifest: Manifest = read_manifest(self.directory)
        about = self.manifest.about
        if problems := changes(self.manifest, whole):
            raise EngineError(f"{self.directory}: {problems[0]}")
        self.runs_plan: bool = bool(about.plans) and not portable
        given: dict[targets.Loads, object] = {"threads": threads, "prepack": prepack}
        self.target.require_loads(given | {"exact": exact, "portable": portable})
        if exact and about.activations != "int8":
            raise EngineError(
                f"{self.directory}: exact changes nothing: no kernel rounds inputs of this engine,"
                " as only those of 4- and 8-bit weights do whose recipe rounds none, if not told"
                " otherwise at export; leave it out"
            )
        self.threads = limited(threads) if "threads" in self.target.loads else None
        self._prepack, self.exact = prepack, exact
        self._model: bytes | None = variant.model if variant else None
        self._graph: Graph = variant.contract if variant else about.graph
        self.context: int = about.context
        self.vocab_size: int = about.vocab_size
        self.eos_ids: frozenset[int] = frozenset(about.eos_ids)

    @property
    def linked(self) -> bool:
        """Whether the weights are in the checkpoint, not in the engine."""
        return self.manifest.about.graph.weights == "link"

    def summary(self) -> Summary:
        """Return the summary of the engine."""
        about = self.manifest.about
        return Summary(
            path=str(self.directory),
            architecture=about.architecture,
            parameters=about.parameters,
            dtype=about.dtype,
            target=about.target,
            bytes=sum(file.size for file in self.manifest.files),
            of_checkpoint=max(1, sum(file.size for file in about.source)),
            linked=tuple(source.path for source in about.linked),
            parity=self._parity(),
            plans=tuple(
                {"file": plan.file, "sms": list(plan.request.sms), "bytes": plan.bytes}
                for plan in about.plans
            ),
            activations=about.activations,
            clients=dict(about.clients),
            tower=None if about.vision is None else about.vision.parameters,
            audio=None if about.audio is None else about.audio.parameters,
        )

    def _parity(self) -> dict[str, Any] | None:
        """Return parity.json, which is as declared; None where it was not measured."""
        found = self._object(PARITY)
        if found is not None:
            read_parity(self.directory / PARITY)
        return found

    def _object(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object among the files, None where there is no such file."""
        if name not in {file.path for file in self.manifest.files}:
            return None
        return read_object(self.directory / name, FILE_BYTES)

    def read(self, name: str) -> bytes:
        """Return the bytes of a text, report or config among the files; raises EngineError."""
        return read_file(self.directory / name, FILE_BYTES)

    @property
    def target(self) -> Target:
        """The target that it runs as here; raises EngineError for an unknown one."""
        if (target := targets.TARGETS.get(name := self.manifest.about.target)) is None:
            raise EngineError(f"{self.directory}: {targets.unknown(name)}")
        return target if self.runs_plan else target.carried

    @cached_property
    def runner(self) -> Runner:
        """The graph or the plan, loaded; raises InputError where it cannot run here."""
        loading = Loading(self.threads, self._prepack, self.exact, self._model)
        return self.target.run(self.manifest, loading)

    @property
    def _has_tokenizer(self) -> bool:
        return TOKENIZER in {file.path for file in self.manifest.files}

    @cached_property
    def text(self) -> Text:
        """Tokenizer and chat template; raises EngineError if the engine has no tokenizer."""
        if not self._has_tokenizer:
            raise EngineError(
                f"{self.directory}: this engine has no tokenizer; give token ids: --ids,"
                " or lists of them in a .jsonl"
            )
        return Text(self.read(TOKENIZER), self.chat_templates, self.manifest.about.special_tokens)

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name, the usual one as "default"."""
        found = templates(file.path for file in self.manifest.files)
        return {n: as_template(self.read(p), self.directory / p) for n, p in found.items()}

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """What the checkpoint's generation_config.json says, {} without one."""
        return self._object(GENERATION) or {}

    @property
    def has_tower(self) -> bool:
        """Whether it takes pictures."""
        return self.manifest.about.vision is not None

    @cached_property
    def tower(self) -> Tower:
        """What it does with pictures; the graph is loaded with the first. Raises InputError where
        it takes none."""
        vision = self.manifest.about.vision
        if vision is None:
            raise no_tower(self)
        return Tower(
            vision.processor,
            lambda inputs: self._run_tower(inputs),
            lambda inputs: self._run_audio(inputs),
        )

    @cached_property
    def _run_tower(self) -> RunTower:
        loading = Loading(self.threads, self._prepack, self.exact)
        return self.target.run_tower(self.manifest, loading, VISION)

    @cached_property
    def _run_audio(self) -> RunTower:
        loading = Loading(self.threads, self._prepack, self.exact)
        return self.target.run_tower(self.manifest, loading, AUDIO)

    @checked
    def picture(
        self, source: Source, max_pixels: Count | None = None, crops: bool = False
    ) -> Picture:
        """Return a picture for the images of several calls: it is prepared, and its features are
        computed, once.

        max_pixels: make it smaller where it has more. crops: show a long one in crops, too, where
        the model takes such (Gemma 3). Raises InputError.
        """
        if isinstance(source, Picture):
            if max_pixels is not None or crops:
                said = "crops" if max_pixels is None else "max_pixels"
                raise EngineError(f"{said}: a Picture is prepared already; give it to `picture`")
            return source
        return self.tower.picture(source, max_pixels, crops)

    @checked
    def video(
        self, source: Frames, fps: Rate | None = None, max_pixels: Count | None = None
    ) -> Picture:
        """Return a video for the images of calls, as `picture` does a picture.

        source: a folder of pictures, an animated file or its bytes, a list of pictures, or an array
        uint8 [frames, height, width, 3]. fps: frames a second; None: as an animated file says.
        Raises InputError.
        """
        return self.tower.video(source, fps, max_pixels)

    @checked
    def sound(self, source: Sound) -> Picture:
        """Return a sound for the images of calls, as `picture` does a picture.

        source: a WAV file, its bytes, or float32 [samples], at the rate of the model. Raises
        InputError.
        """
        return self.tower.sound(source)

    @checked
    def session(self, batch: Rows = 1) -> Session:
        """Return `batch` empty sequences."""
        return Session(self.runner, self._graph, self.context, self.vocab_size, batch)

    def conversation(self) -> Conversation:
        """Return a conversation that is empty, for `generate`."""
        return Conversation(self.session)

    def logits(self, input_ids: Any) -> np.ndarray:
        """input_ids: integers B,T -> float32 B,T,V from a fresh full pass.

        Raises SessionError for ids out of range or more tokens than the context.
        """
        ids = as_ids(input_ids)
        batch, tokens = ids.shape
        session = self.session(batch)
        session.check_room(tokens)
        return session.run(ids, None, np.broadcast_to(np.arange(tokens), (batch, tokens)))

    @checked
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: Count | None = None,
        sampling: Sampling | Literal["model", "greedy"] | None = None,
        stop: str | Sequence[str] = (),
        chat: bool | None = None,
        chat_kwargs: Mapping[str, Any] | None = None,
        on_token: Callable[[int, str], None] | None = None,
        conversation: Conversation | None = None,
        images: Pictures = None,
        max_pixels: Count | None = None,
    ) -> list[Generated]:
        """Continue prompts: texts, lists of messages, Chats, or lists of token ids.

        prompts: several; a text, a Chat, a list of messages and a flat list of ids are one.
        max_new_tokens: None for NEW_TOKENS, or what the context leaves.
        sampling: "greedy", which None is too; "model" for what generation_config.json asks for.
        stop: strings that end a text.
        chat: put a text into the chat template as a user's message; None: if there is a template.
        chat_kwargs: of every chat, as of Text.chat. What a Chat has of its own counts first.
        on_token: called with a row and its new piece of text.
        conversation: of this engine, for one prompt that says again what was said in it.
        images: of one prompt, or lists of those of each; a part {"type": "image"} of a message
            says where, else they come first. max_pixels: make smaller what has more.

        Raises InputError before anything runs.
        """
        if isinstance(sampling, str):
            sampling, _ = choose_sampling(self.generation_config, sampling, {})
        ready = prepare(self, prompts, images, chat, chat_kwargs, max_pixels)
        session: Session | Conversation = conversation or self.session(max(1, len(ready)))
        self._begin(conversation, len(ready))
        longest = max((len(one.ids) for one in ready), default=0)
        if max_new_tokens is None:
            max_new_tokens = max(1, min(NEW_TOKENS, session.context - longest))
        if session.context < self.context:
            session.check_room(longest + max_new_tokens)  # says how to build a larger plan
        return generate(
            session,
            [one.ids for one in ready],
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            eos_ids=self.eos_ids,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            text=self.text if self._has_tokenizer else None,
            on_token=on_token,
            images=[one.images for one in ready],
        )

    def _begin(self, conversation: Conversation | None, prompts: int) -> None:
        """Begin an answer in a conversation, if any; raises EngineError where that cannot be."""
        if conversation is None:
            return
        if prompts != 1:
            raise EngineError(f"conversation: {prompts} prompts; accepted: one")
        if conversation.runner is not self.runner:
            raise EngineError("conversation: is one of another engine; accepted: of this one")
        conversation.begin()

    @checked
    def prepare(
        self,
        prompts: Prompts,
        images: Pictures = None,
        chat: bool | None = None,
        chat_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Prepared]:
        """Return the token ids of prompts, and where their pictures stand in them, for a session;
        in any of the forms that `generate` takes."""
        return prepare(self, prompts, images, chat, chat_kwargs)

    @checked
    def encode(
        self,
        prompts: Prompts,
        chat: bool | None = None,
        chat_kwargs: Mapping[str, Any] | None = None,
    ) -> list[list[int]]:
        """Return the token ids of prompts without pictures, in any of the forms that `generate`
        takes."""
        ready = prepare(self, prompts, None, chat, chat_kwargs)
        if any(one.images is not None for one in ready):
            raise EngineError("prompts: some have pictures; Engine.prepare returns those too")
        return [one.ids for one in ready]


@checked
def load(
    engine_dir: str | PathLike[str],
    threads: Threads | None = None,
    prepack: bool = False,
    portable: bool = False,
    verify: bool = False,
    exact: bool = False,
) -> Engine:
    """Return the engine of a directory.

    threads: for its kernels, at most the processors that this process may use; None for all. An
        engine that runs on a GPU has no use for it, nor for the next, and refuses both.
    prepack: copy the weights for faster kernels: slower to load, as much private memory as they.
    portable: run the portable graph in ONNX Runtime, also where the engine has TensorRT plans.
    verify: recompute every hash first; otherwise those of the graph, texts and files up to 16 MiB,
        and weights that were changed at the same size are run, but for linked ones, whose times
        are compared.
    exact: kernels round no inputs of products with 4- and 8-bit weights: slower. Refused where they
        round none anyway.
    """
    return Engine(engine_dir, threads, prepack, portable, whole=verify, exact=exact)
