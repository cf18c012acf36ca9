"""The command line: each command parses, calls one function, prints."""

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lmcast.exporter.cli.calibrate import calibrate
from lmcast.exporter.cli.plans import of_plan, plan_options
from lmcast.exporter.cli.prompts import parse_ids, with_system
from lmcast.exporter.cli.quality import quality
from lmcast.exporter.cli.recipes import recipe
from lmcast.plugins.errors import CheckFailed, InputError

# Everything else is imported inside the commands, so that --help answers at once.

CHECK_FAILED, WRONG_INPUT = 1, 2
DIRECTORY = click.Path(path_type=Path)
prepack = click.option(
    "--prepack",
    is_flag=True,
    help="Copy the weights for faster kernels: more memory and load time.",
)
portable = click.option(
    "--portable", is_flag=True, help="Run the graph on this CPU, where the engine has plans."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lmcast")
def cli() -> None:
    """Cast a language-model checkpoint into a verified engine, ahead of time.

    \b
    lmcast export ./Qwen3-0.6B -o engine
    lmcast generate engine "The capital of France"
    lmcast parity engine --against ./Qwen3-0.6B
    """


@cli.command()
@click.argument("checkpoint", type=DIRECTORY)
@click.option("-o", "--output", type=DIRECTORY, required=True, help="Engine directory to write.")
@click.option("--target", default="cpu", show_default=True,
              metavar="cpu|onnx|tensorrt-rtx|tensorrt",
              help="onnx: standard operators only, for any runtime; tensorrt-rtx, tensorrt: a plan"
                   " compiled ahead of time, beside that graph.")  # fmt: skip
@click.option("--dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
              help="What to compute in; auto loses nothing of the checkpoint.")  # fmt: skip
@click.option("--weights", type=click.Choice(["link", "copy"]),
              help="Point into the checkpoint, or copy it. Default: link if it can.")  # fmt: skip
@click.option("--parity/--no-parity", default=True, show_default=True,
              help="Prove the engine against eager PyTorch before it is published.")  # fmt: skip
@click.option("--context", type=int, help="Most tokens of a row. Default: from config.json.")
@click.option("--inert", multiple=True, metavar="KEY",
              help="Ignore a key of config.json that nothing reads. Repeatable.")  # fmt: skip
@click.option("--check", default="auto", show_default=True, type=click.Choice(["auto", "full"]),
              help="Search linked weights for NaN; auto: samples above 8 GiB.")  # fmt: skip
@click.option("--no-tokenizer", is_flag=True, help="Accept a checkpoint without a tokenizer.")
@click.option("--matformer-config", type=DIRECTORY, metavar="FILE",
              help="Export a slice: JSON with intermediate_size, and layers or skip.")  # fmt: skip
@recipe
@plan_options
@as_json
def export(
    checkpoint: Path,
    output: Path,
    target: str,
    dtype: str,
    weights: Any,
    parity: bool,
    context: int | None,
    inert: tuple[str, ...],
    check: str,
    no_tokenizer: bool,
    matformer_config: Path | None,
    recipe: Path | None,
    as_json: bool,
    sm: str | None,
    **sizes: int | None,
) -> None:
    """Write CHECKPOINT (a Hugging Face directory or GGUF file) as an engine.

    Example: lmcast export ./SmolLM2-135M-Instruct -o engine

    For NVIDIA GPUs, here or elsewhere: --target tensorrt-rtx --sm 89,120 --max-context 8192
    """
    # What a trace makes lives to its end: looking for garbage took a fifth of an export.
    gc.disable()
    from lmcast.exporter.pipeline import export as run
    from lmcast.exporter.progress import Terminal

    engine = run(
        checkpoint,
        output,
        target,
        None if dtype == "auto" else dtype,
        weights,
        parity,
        inert=inert,
        context=context,
        full_check=True if check == "full" else None,
        tokenizer=not no_tokenizer,
        matformer=matformer_config,
        recipe=recipe,
        **of_plan(sm, sizes),
        progress=Terminal(),
    )
    report(engine.summary(), as_json)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.option("--target", default="tensorrt-rtx", show_default=True,
              metavar="tensorrt-rtx|tensorrt")  # fmt: skip
@plan_options
@as_json
def build(engine: Path, target: str, as_json: bool, sm: str | None, **sizes: int | None) -> None:
    """Compile the portable graph of ENGINE for NVIDIA GPUs, into ENGINE.

    For an engine of --target onnx, or one with plans for other GPUs.

    Example: lmcast build engine --target tensorrt-rtx --sm 89,120
    """
    from lmcast.exporter.build import build as run
    from lmcast.exporter.progress import Terminal

    result = run(engine, target, **of_plan(sm, sizes), progress=Terminal())
    report(result.summary(), as_json)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.argument("prompt", required=False)
@click.option("--file", type=DIRECTORY, help="Prompts: a .txt with one a line, or .jsonl.")
@click.option("--ids", is_flag=True, help="PROMPT is token ids; print token ids.")
@click.option("--chat/--no-chat", default=None, help="Use the chat template. Default: if any.")
@click.option("--system", help="A system message for the chat template.")
@click.option("-n", "--max-new-tokens", type=int, help="[default: 256, or what is left]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", type=int)
@click.option("--top-p", type=float)
@click.option("--min-p", type=float)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable.")
@click.option("--threads", type=int, help="Default: all cores.")
@prepack
@portable
@as_json
def generate(
    engine: Path,
    prompt: str | None,
    file: Path | None,
    ids: bool,
    chat: bool | None,
    system: str | None,
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    threads: int | None,
    prepack: bool,
    portable: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Continue PROMPT with ENGINE, printing text as it comes.

    Example: lmcast generate engine "The capital of France is" -n 32
    """
    from lmcast.exporter.runtime.engine import load
    from lmcast.exporter.runtime.generate import read_prompts
    from lmcast.exporter.runtime.sampling import Sampling

    if (prompt is None) == (file is None):
        raise click.UsageError("give either a PROMPT or --file, not both.")
    prompts: list[Any] = read_prompts(file) if file else [prompt]
    if ids:
        prompts = [parse_ids(p) for p in prompts]
    elif system is not None:
        prompts = [with_system(p, system) for p in prompts]
    streaming = len(prompts) == 1 and not (as_json or ids)

    results = load(engine, threads, prepack, portable).generate(
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(**sampling),
        stop=stop,
        chat=chat,
        on_token=(lambda _row, piece: click.echo(piece, nl=False)) if streaming else None,
    )
    if streaming:
        click.echo()
    elif as_json:
        for result in results:
            click.echo(json.dumps(asdict(result)))
    else:
        for result in results:
            click.echo(" ".join(map(str, result.ids)) if ids else result.text)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.option("--against", type=DIRECTORY, required=True, help="The checkpoint it was made from.")
@click.option("--prompts", type=DIRECTORY, help="Prompts to compare on. Default: drawn ids.")
@click.option("--tokens", type=int, help="Length of drawn prompts.  [default: 64]")
@recipe
@portable
@click.option("--bisect", is_flag=True, help="On failure, find the first layer that diverges.")
@click.option("--json", "json_file", type=DIRECTORY, help="Write the report; - prints it.")
@click.option("--junit", type=DIRECTORY, help="Write a JUnit report for CI.")
def parity(
    engine: Path,
    against: Path,
    prompts: Path | None,
    tokens: int | None,
    recipe: Path | None,
    portable: bool,
    bisect: bool,
    json_file: Path | None,
    junit: Path | None,
) -> None:
    """Prove ENGINE equal to eager PyTorch; exit status 1 beyond the bound.

    Example: lmcast parity engine --against ./Qwen3-0.6B --bisect --junit parity.xml
    """
    from lmcast.exporter.progress import Terminal
    from lmcast.exporter.prove.parity import parity as run

    result = run(engine, against, prompts, tokens, bisect, Terminal(), portable, recipe)
    text = json.dumps(result.as_json(), indent=1)
    if str(json_file) == "-":
        click.echo(text)
    else:
        click.echo(result.table())
        if json_file:
            write(json_file, text.encode() + b"\n")
    if junit:
        write(junit, result.as_junit())
    if not result.passed:
        raise SystemExit(CHECK_FAILED)


@cli.command()
@click.argument("path", type=DIRECTORY)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--context", type=int, help="Tokens per row.  [default: the model's longest]")
@as_json
def inspect(path: Path, batch: int, context: int | None, as_json: bool) -> None:
    """Say what a checkpoint or an engine is: parameters, formats, state bytes, files.

    Example: lmcast inspect engine --batch 8 --context 4096
    """
    from lmcast.exporter.engine.inspect import inspect as run

    report(run(path, batch, context), as_json)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.option("--key", type=DIRECTORY, required=True, metavar="PRIVATE.pem",
              help="Elliptic-curve key in PEM form, not encrypted.")  # fmt: skip
@as_json
def sign(engine: Path, key: Path, as_json: bool) -> None:
    """Sign every file of ENGINE as it is, into model.sig; needs lmcast[sign].

    Weights that ENGINE links to are not signed, but for their size, time and header: see
    `lmcast pack`. A command that writes ENGINE anew drops the signature. Keys are on P-256, P-384
    or P-521; a pair is made by

    \b
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out PRIVATE.pem
    openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem

    Example: lmcast sign engine --key PRIVATE.pem
    """
    from lmcast.exporter.engine.signing import sign as run

    report(run(engine, key), as_json)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.option("--key", type=DIRECTORY, metavar="PUBLIC.pem",
              help="Also check the signature, which covers all but linked weights.")  # fmt: skip
@as_json
def verify(engine: Path, key: Path | None, as_json: bool) -> None:
    """Recompute everything in ENGINE's manifest; exit status 1 if anything differs.

    Example: lmcast verify engine --key PUBLIC.pem
    """
    from lmcast.exporter.engine import manifest, signing

    problems = signing.verify(engine, key) if key else manifest.verify(engine)
    if as_json:
        listed = [{"path": p.path, "message": p.message} for p in problems]
        click.echo(json.dumps({"ok": not problems, "problems": listed}, indent=1))
    else:
        for problem in problems:
            click.echo(str(problem))
        whole = "every file is as it was written"
        if key:
            whole += f", and signed with the key of {key}"
        elif (engine / manifest.SIGNATURE).exists():
            whole += f"; {manifest.SIGNATURE} was not checked: give --key"
        click.echo(f"{len(problems)} problems" if problems else whole)
    if problems:
        raise SystemExit(CHECK_FAILED)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.option("-o", "--output", type=DIRECTORY, help="Default: in place.")
@as_json
def pack(engine: Path, output: Path | None, as_json: bool) -> None:
    """Copy the weights of a linked ENGINE into it, for shipping.

    Example: lmcast pack engine
    """
    from lmcast.exporter.pack import pack as run
    from lmcast.exporter.progress import Terminal

    report(run(engine, output, Terminal()).summary(), as_json)


@cli.command()
@click.argument("engine", type=DIRECTORY)
@click.option("--prompt-tokens", type=int, default=128, show_default=True)
@click.option("--new-tokens", type=int, default=32, show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--threads", type=int, help="Default: all cores.")
@prepack
@portable
@click.option("--runs", type=int, default=3, show_default=True)
@as_json
def bench(
    engine: Path,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    threads: int | None,
    prepack: bool,
    portable: bool,
    runs: int,
    as_json: bool,
) -> None:
    """Measure ENGINE: load time, prefill and decode tokens/s, peak memory.

    Example: lmcast bench engine --prompt-tokens 512
    """
    from lmcast.exporter.bench import bench as run

    given = (prompt_tokens, new_tokens, batch, threads, runs, prepack, portable)
    report(run(engine, *given), as_json)


cli.add_command(calibrate)
cli.add_command(quality)


def report(result: Any, as_json: bool) -> None:
    """Print what a command found, for a machine or for a person."""
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else result.text())


def write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def main() -> None:
    """Run the command line; an InputError is one line and exit status 2."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if error.exit_code != CHECK_FAILED else WRONG_INPUT)
    except (InputError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(WRONG_INPUT)
    except CheckFailed as error:
        click.echo(f"failed: {' '.join(str(error).split())}", err=True)
        sys.exit(CHECK_FAILED)
