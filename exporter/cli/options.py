"""Options shared by commands, prompts as they are typed, and printing of results.

A group of options comes with a function that takes their values out of a command's keyword
arguments, and returns them under the names of the library's function.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lmcast.plugins.errors import escaped

CHECK_FAILED, WRONG_INPUT = 1, 2  # exit statuses
LONGEST_ID = 1000  # digits: Python reads no integer of some thousands
PATH = click.Path(path_type=Path)
CHECKPOINT = click.Path()  # a text: one that is no path may name a model of the Hub
Command = Callable[..., None]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
inert = click.option(
    "--inert",
    multiple=True,
    metavar="KEY,...",
    callback=lambda _, __, given: tuple(key for keys in given for key in keys.split(",") if key),
    help="Ignore keys of config.json that nothing reads and that change no result: a or a.b, as the"
    " file has them. Repeatable.",
)
untie = click.option(
    "--untie",
    is_flag=True,
    help="Take the stored lm_head where tie_word_embeddings is true beside it.",
)
revision = click.option(
    "--revision",
    metavar="NAME",
    help="Branch, tag or commit of a model of the Hub.  [default: main]",
)
recipe = click.option(
    "--recipe",
    type=PATH,
    metavar="DIR",
    help="Low-precision weights and inputs, as `lmcast calibrate` wrote them.",
)
text_only = click.option(
    "--text-only",
    is_flag=True,
    help="Leave out what a checkpoint has beside its text.",
)
force = click.option("--force", is_flag=True, help="Replace what is of another checkpoint.")
portable = click.option(
    "--portable", is_flag=True, help="Run the graph on this CPU, where the engine has plans."
)


exact = click.option(
    "--exact", is_flag=True, help="Kernels round no inputs of 4- and 8-bit weights: slower."
)


def run_options(command: Command) -> Command:
    """Add how an engine is loaded."""
    prepack = click.option(
        "--prepack",
        is_flag=True,
        help="Copy the weights for faster kernels of CPUs: more memory and load time.",
    )
    threads = click.option(
        "--threads", type=int, help="At most the processors at hand.  [default: all]"
    )
    return threads(prepack(exact(portable(command))))


def of_run(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of run_options, as load takes them; say so where threads are too many."""
    from lmcast.exporter.cores import limited
    from lmcast.exporter.progress import Terminal

    threads = given.pop("threads")
    if threads is not None:
        threads = limited(threads, lambda message: Terminal().warn(message))
    names = ("prepack", "portable", "exact")
    return {"threads": threads} | {name: given.pop(name) for name in names}


SIZES = ("max_batch", "max_context", "max_tokens", "opt_batch", "opt_tokens", "max_pixels", "widen")


def plan_options(command: Command) -> Command:
    """Add what TensorRT plans are built for."""
    for option in (
        click.option(
            "--widen",
            is_flag=True,
            help="Few bits of a GGUF as plain numbers; of a plan, 4 as 8 where a GPU lacks them.",
        ),
        click.option(
            "--max-pixels", type=int, help="Of a picture.  [default: as many as it is given]"
        ),
        click.option("--opt-tokens", type=int, help="Of a usual prompt.  [default: 128]"),
        click.option("--opt-batch", type=int, help="Usual rows of a call.  [default: 1]"),
        click.option("--max-tokens", type=int, help="Most of one call.  [default: 2048]"),
        click.option("--max-context", type=int, help="Tokens of a row.  [default: 4096]"),
        click.option("--max-batch", type=int, help="Rows of a call.  [default: 1]"),
        click.option(
            "--sm",
            metavar="89,120",
            help="GPUs that it is for.  [default: the one here; of target cuda all]",
        ),
    ):
        command = option(command)
    return command


def of_plan(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of plan_options, as export and build take them."""
    from lmcast.exporter.backends.tensorrt.request import Sizes, parse_sms

    sm = given.pop("sm")
    sizes = {name: given.pop(name) for name in SIZES}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    return {"sms": parse_sms(sm) if sm else (), "sizes": Sizes(**sizes)}


def chat_options(command: Command) -> Command:
    """Add what a chat template is given beside the messages."""
    for option in (
        click.option(
            "--chat-kwargs",
            metavar="JSON",
            help='For the chat template: \'{"enable_thinking": false, "tools": [...]}\'.',
        ),
        click.option("--template", metavar="NAME", help="A chat template that has a name."),
        click.option("--system", help="A system message for the chat template."),
        click.option(
            "--chat/--no-chat", default=None, help="Use the chat template. Default: if any."
        ),
    ):
        command = option(command)
    return command


def of_chat(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of chat_options but for `system`, as Engine.generate takes them."""
    from lmcast.exporter.checkpoint import strict_json

    text, template = given.pop("chat_kwargs"), given.pop("template")
    try:
        value = strict_json.parse_value(text) if text is not None else {}
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--chat-kwargs is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"--chat-kwargs needs a JSON object, got {text!r:.80}")
    if template is not None:
        if "chat_template" in value:
            raise click.UsageError("--template and chat_template of --chat-kwargs: give one.")
        value["chat_template"] = template
    return {"chat": given.pop("chat"), "chat_kwargs": value}


def sampling_options(command: Command) -> Command:
    """Add how tokens are picked."""
    for option in (
        click.option("--seed", type=int, help="Same seed, same text."),
        click.option("--repetition-penalty", type=float, help="[default: 1.0]"),
        click.option("--min-p", type=float),
        click.option("--top-p", type=float),
        click.option("--top-k", type=int),
        click.option("--temperature", type=float, help="0: greedy.  [default: 0]"),
        click.option(
            "--sampling",
            type=click.Choice(["greedy", "model"]),
            help="model: as generation_config.json asks.",
        ),
    ):
        command = option(command)
    return command


def image_options(command: Command) -> Command:
    """Add the pictures of a prompt."""
    for option in (
        click.option("--max-pixels", type=int, help="Make pictures smaller that have more."),
        click.option("--fps", type=float, help="Frames a second of the videos."),
        click.option(
            "--audio",
            type=PATH,
            multiple=True,
            metavar="FILE",
            help="A sound: a WAV file at the model's rate. Repeatable.",
        ),
        click.option(
            "--video",
            type=PATH,
            multiple=True,
            metavar="PATH",
            help="A folder of pictures, or an animated file. Repeatable.",
        ),
        click.option(
            "--image", type=PATH, multiple=True, metavar="FILE", help="A picture. Repeatable."
        ),
    ):
        command = option(command)
    return command


def of_images(given: dict[str, Any]) -> Any:
    """Take the values of image_options but for max_pixels: a prompt that waits for its text."""
    from lmcast.exporter.runtime.prepare import Pictured

    images, videos, sounds = (given.pop(name) for name in ("image", "video", "audio"))
    return Pictured("", images, videos, sounds, given.pop("fps"))


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def of_sampling(given: dict[str, Any], generation: dict[str, Any]) -> Any:
    """Take the values of sampling_options as Sampling; say what the model asks for."""
    from lmcast.exporter.runtime.sampling import choose_sampling

    own = {name: value for name in SAMPLING if (value := given.pop(name)) is not None}
    sampling, remark = choose_sampling(generation, given.pop("sampling"), own)
    if remark:
        click.echo(f"note: {remark}", err=True)
    return sampling


def parse_ids(prompt: Any) -> Any:
    """Return the token ids of '1 15 27', or of a line that holds ids already; with the pictures
    that a line has beside them."""
    from lmcast.exporter.runtime.prepare import Pictured

    if isinstance(prompt, Pictured):
        return replace(prompt, prompt=parse_ids(prompt.prompt))
    if isinstance(prompt, list):
        return prompt
    words = prompt.replace(",", " ").split() if isinstance(prompt, str) else []
    if not words or not all(word.isdecimal() and len(word) < LONGEST_ID for word in words):
        raise click.UsageError(f"--ids needs token ids such as '1 15 27', got {prompt!r:.80}")
    return [int(word) for word in words]


def with_system(prompt: Any, system: str, shown: Sequence[str] = ()) -> Any:
    """Return a prompt, a text or a chat, as a chat behind a message of the system; shown: kinds of
    what stands before a text."""
    from lmcast.exporter.runtime.chat import Chat, user
    from lmcast.exporter.runtime.prepare import Pictured

    if isinstance(prompt, Pictured):
        kinds = ["image"] * len(prompt.images) + ["video"] * len(prompt.videos)
        kinds += ["audio"] * len(prompt.sounds)
        return replace(prompt, prompt=with_system(prompt.prompt, system, kinds))
    if isinstance(prompt, list):
        raise click.UsageError("--system is for chats, not for token ids.")
    chat = Chat([user(prompt, shown)]) if isinstance(prompt, str) else prompt
    return replace(chat, messages=[{"role": "system", "content": system}, *chat.messages])


def report(result: Any, as_json: bool) -> None:
    """Print what a command found, for a machine or for a person."""
    if as_json:
        click.echo(as_text(result.as_json()))
    else:
        tell(result.text())


def as_text(body: Mapping[str, Any]) -> str:
    """Return the JSON of what a command found; numbers that JSON has none for, which models that
    are broken give, are null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: finite(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(body), indent=1, allow_nan=False)


def tell(text: str) -> None:
    """Print lines for a person: paths, and what strangers' files say, may hold any characters."""
    click.echo("\n".join(map(escaped, text.split("\n"))))
