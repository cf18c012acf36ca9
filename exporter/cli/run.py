"""`lmcast generate` and `lmcast bench`: running engines."""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from lmcast.exporter.cli.options import (
    PATH,
    as_json,
    chat_options,
    image_options,
    of_chat,
    of_images,
    of_run,
    of_sampling,
    parse_ids,
    report,
    run_options,
    sampling_options,
    with_system,
)


@click.command()
@click.argument("engine", type=PATH)
@click.argument("prompt", required=False)
@click.option("--file", type=PATH, help="Prompts: a .txt with one a line, or .jsonl.")
@click.option("--ids", is_flag=True, help="PROMPT is token ids; print token ids.")
@image_options
@chat_options
@click.option("-n", "--max-new-tokens", type=int, help="[default: 256, or what is left]")
@sampling_options
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable.")
@click.option("--verify", is_flag=True, help="Recompute every hash of the engine first.")
@run_options
@as_json
def generate(
    engine: Path,
    prompt: str | None,
    file: Path | None,
    ids: bool,
    system: str | None,
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Continue PROMPT with ENGINE, printing text as it comes.

    Without a PROMPT, or with -, it is read from standard input; on a terminal there is a chat.

    Example: lmcast generate engine "The capital of France is" -n 32

    With a picture: lmcast generate engine "What is this?" --image cat.jpg
    """
    from lmcast.exporter.cli.chat import Shown, is_chat, talk
    from lmcast.exporter.progress import Terminal
    from lmcast.exporter.runtime.engine import load
    from lmcast.exporter.runtime.prepare import shown

    images, most_pixels = of_images(given), given.pop("max_pixels")
    chatting = is_chat(prompt, file, given["chat"], ids or as_json)
    prompts = [] if chatting else read(prompt, file, ids, system, given["chat"], images)
    chats = of_chat(given)
    verifies = given.pop("verify")
    with Terminal().stage("hashing") if verifies else nullcontext():
        loaded = load(engine, **of_run(given), verify=verifies)
    options = {
        "max_new_tokens": max_new_tokens,
        "sampling": of_sampling(given, loaded.generation_config),
        "stop": stop,
        **chats,
    }
    if chatting:
        talk(loaded, system, options, Shown(shown(loaded, images, most_pixels), most_pixels))
        return
    options["max_pixels"] = most_pixels
    if len(prompts) == 1 and not (as_json or ids):
        loaded.generate(prompts, **options, on_token=lambda _, piece: click.echo(piece, nl=False))
        click.echo()
        return
    for result in loaded.generate(prompts, **options):
        if as_json:
            click.echo(json.dumps(asdict(result)))
        else:
            click.echo(" ".join(map(str, result.ids)) if ids else result.text)


def read(
    prompt: str | None,
    file: Path | None,
    ids: bool,
    system: str | None,
    chat: bool | None,
    images: Any,
) -> list[Any]:
    """Return the prompts of the command line, of a file or of standard input.

    images: a Pictured, for one that is not of a file.
    """
    from lmcast.exporter.cli.chat import read_stdin
    from lmcast.exporter.runtime.generate import read_prompts

    if file is not None and (images.images or images.videos or images.sounds):
        raise click.UsageError(
            "--image, --video and --audio are for a PROMPT: a line of a .jsonl may have"
            ' "images", "videos" and "sounds".'
        )
    if prompt is not None and file is not None:
        raise click.UsageError("give either a PROMPT or --file, not both.")
    if system is not None and (ids or chat is False):
        raise click.UsageError("--system is for chats: leave it out, or --ids and --no-chat.")
    if ids and chat:
        raise click.UsageError("--ids takes a prompt as it is: leave out --chat.")
    prompts: list[Any] = read_prompts(file) if file else [prompt]
    if prompts == [None] or prompt == "-":
        prompts = [read_stdin()]
    if ids:
        prompts = [parse_ids(p) for p in prompts]
    if file is None:
        prompts = [replace(images, prompt=p) for p in prompts]
    return prompts if system is None else [with_system(p, system) for p in prompts]


@click.command()
@click.argument("engine", type=PATH)
@click.option("--prompt-tokens", type=int, default=128, show_default=True)
@click.option("--new-tokens", type=int, default=32, show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--image", type=PATH, metavar="FILE", help="A picture before these tokens.")
@run_options
@click.option("--runs", type=int, default=3, show_default=True)
@as_json
def bench(engine: Path, as_json: bool, **given: Any) -> None:
    """Measure the speed and memory of ENGINE.

    Load time, prefill and decode tokens/s, peak memory; of a picture, the time to its features.

    Example: lmcast bench engine --prompt-tokens 512
    """
    from lmcast.exporter.bench import bench as run
    from lmcast.exporter.progress import Terminal

    with Terminal().stage("measuring"):
        measured = run(engine, **of_run(given), **given)
    report(measured, as_json)
