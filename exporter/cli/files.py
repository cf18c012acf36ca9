"""`lmcast inspect`, `diff`, `verify`, `sign` and `pack`: the files of engines and checkpoints."""

import json
from pathlib import Path
from typing import Any

import click

from lmcast.exporter.cli.options import (
    CHECK_FAILED,
    CHECKPOINT,
    PATH,
    as_json,
    force,
    inert,
    report,
    revision,
    tell,
    text_only,
    untie,
)
from lmcast.exporter.clients.names import PROGRAMS, Program
from lmcast.plugins.errors import escaped


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--context", type=int, help="Tokens per row.  [default: the model's longest]")
@inert
@untie
@revision
@text_only
@as_json
def inspect(path: str, batch: int, context: int | None, as_json: bool, **given: Any) -> None:
    """Say what a checkpoint or an engine holds.

    Parameters, number formats, texts, files, and the bytes of its state.

    Example: lmcast inspect engine --batch 8 --context 4096
    """
    from lmcast.exporter.engine.inspect import inspect as run
    from lmcast.exporter.progress import Terminal

    report(run(path, batch, context, progress=Terminal(), **given), as_json)


@click.command()
@click.argument("before", metavar="ENGINE", type=PATH)
@click.argument("after", metavar="ENGINE", type=PATH)
@as_json
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Say what differs between two engines.

    Graph, numbers of weights, formats, tokenizer, chat templates, settings of generation, versions:
    exit status 1 if anything does. Weights are read in full; places of linked ones do not count.

    Example: lmcast diff engine engine-of-before
    """
    from lmcast.exporter.diff.engines import diff as run
    from lmcast.exporter.progress import Terminal

    found = run(before, after, Terminal())
    report(found, as_json)
    if not found.equal:
        raise SystemExit(CHECK_FAILED)


@click.command()
@click.argument("engine", type=PATH)
@click.option("--key", type=PATH, metavar="PUBLIC.pem",
              help="Also check the signature, which covers all but linked weights.")  # fmt: skip
@click.option("--relink", is_flag=True,
              help="Where linked weights were written again with the same bytes, record their"
              " times; drops a signature.")  # fmt: skip
@as_json
def verify(engine: Path, key: Path | None, relink: bool, as_json: bool) -> None:
    """Recompute every hash of ENGINE; exit status 1 if any differs.

    Example: lmcast verify engine --key PUBLIC.pem
    """
    from lmcast.exporter.engine import manifest, signing
    from lmcast.exporter.engine.names import SIGNATURE
    from lmcast.exporter.progress import Terminal

    if relink and key:
        raise click.UsageError("--relink writes what no key has signed: check the signature first.")
    if relink:
        from lmcast.exporter.engine.relink import relink as run

        problems = run(engine, Terminal())
    else:
        with Terminal().stage("hashing"):
            problems = signing.verify(engine, key) if key else manifest.verify(engine)
        problems = problems or manifest.undeclared(engine)
    if as_json:
        listed = [{"path": p.path, "message": p.message} for p in problems]
        click.echo(json.dumps({"ok": not problems, "problems": listed}, indent=1))
    else:
        for problem in problems:
            tell(escaped(str(problem)))
        whole = "every file is as it was written"
        if key:
            whole += f", and signed with the key of {key}"
        elif (engine / SIGNATURE).exists():
            whole += f"; {SIGNATURE} was not checked: give --key"
        elif not relink:
            whole += "; by whom, only a signature can tell"
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        tell(count if problems else whole)
    if problems:
        raise SystemExit(CHECK_FAILED)


@click.command()
@click.argument("engine", type=PATH)
@click.option("--key", type=PATH, required=True, metavar="PRIVATE.pem",
              help="Elliptic-curve key in PEM form, not encrypted.")  # fmt: skip
@as_json
def sign(engine: Path, key: Path, as_json: bool) -> None:
    """Sign every file of ENGINE as it is, into model.sig.

    Needs lmcast[sign]. Of weights that ENGINE links to, what it records is signed: size, time,
    header, and a hash where the export read them whole; see `lmcast pack`. A command that writes
    ENGINE anew drops the signature. Keys are on P-256, P-384 or P-521; a pair is made by

    \b
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out PRIVATE.pem
    openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem

    Example: lmcast sign engine --key PRIVATE.pem
    """
    from lmcast.exporter.engine.signing import sign as run
    from lmcast.exporter.progress import Terminal

    with Terminal().stage("hashing"):
        signed = run(engine, key)
    report(signed, as_json)


@click.command()
@click.argument("engine", type=PATH)
@click.option("-o", "--output", type=PATH, help="Default: in place.")
@click.option("--for", "program", type=click.Choice(PROGRAMS),
              help="Write what this program opens, also of an engine with its weights inside."
              " genai: ONNX Runtime GenAI; hub: optimum, and ONNX Runtime alone; js:"
              " transformers.js, browsers too; triton: NVIDIA Triton's models.")  # fmt: skip
@force
@as_json
def pack(
    engine: Path, output: Path | None, program: Program | None, force: bool, as_json: bool
) -> None:
    """Copy the weights of a linked ENGINE into it, for shipping.

    Example: lmcast pack engine

    For a page that runs transformers.js: lmcast pack engine --for js -o site/model
    """
    from lmcast.exporter.pack import pack as run
    from lmcast.exporter.pack import pack_for
    from lmcast.exporter.progress import Terminal

    if program is None:
        report(run(engine, output, Terminal(), force).summary(), as_json)
    elif output is None:
        raise click.UsageError(f"--for {program} writes another directory: give -o")
    else:
        report(pack_for(engine, program, output, Terminal(), force), as_json)
