"""`lmcast parity` and `lmcast quality`: engines against their checkpoints."""

from pathlib import Path
from typing import Annotated, Any

import click

from lmcast.exporter.cli.options import (
    CHECK_FAILED,
    CHECKPOINT,
    PATH,
    exact,
    portable,
    recipe,
    revision,
)
from lmcast.exporter.cli.reports import check_reports, force, json_file, report
from lmcast.exporter.clients.names import CLIENTS
from lmcast.plugins.annotations import Range
from lmcast.plugins.arguments import checked


@click.command()
@click.argument("engine", type=PATH)
@click.option("--against", type=CHECKPOINT, required=True, help="The checkpoint it was made from.")
@revision
@click.option("--prompts", type=PATH, help="Prompts to compare on. Default: drawn ids.")
@click.option("--tokens", type=int, help="Of drawn prompts.  [default: 64, or the baseline's]")
@recipe
@portable
@exact
@click.option("--baseline", type=PATH, metavar="REPORT",
              help="A --json report of before: what has become worse fails.")  # fmt: skip
@click.option("--client", type=click.Choice(CLIENTS),
              help="Run the graph of another program, and that where it is installed.")  # fmt: skip
@click.option("--image", "images", type=PATH, multiple=True, metavar="FILE",
              help="A picture for the tower. Repeatable. Default: drawn ones.")  # fmt: skip
@click.option("--bisect", is_flag=True, help="On failure, find the first layer that diverges.")
@click.option("--quality", is_flag=True, help="Hold its KL, too, against what its recipe records.")
@json_file
@click.option("--junit", type=PATH, help="Write a JUnit report for CI.")
@click.option("--html", "html_file", type=PATH, help="Write the report with plots, as one file.")
@force
def parity(
    engine: Path,
    against: str,
    json_file: Path | None,
    junit: Path | None,
    html_file: Path | None,
    force: bool,
    **given: Any,
) -> None:
    """Prove ENGINE equal to eager PyTorch.

    Exit status 1 beyond the bound, where a text differs, or what is worse than in --baseline. Eager
    PyTorch reads the same recipe as the engine, if there is one: --quality measures the KL from the
    checkpoint without it, on the tokens that calibration has recorded.

    Example: lmcast parity engine --against ./Qwen3-0.6B --bisect --junit parity.xml
    """
    from lmcast.exporter.progress import Terminal

    check_reports((json_file, junit, html_file), force, given["baseline"])
    from lmcast.exporter.prove.junit import junit as xml
    from lmcast.exporter.prove.parity import parity as run
    from lmcast.exporter.prove.parity_page import parity_page

    result = run(engine, against, progress=Terminal(), layers=html_file is not None, **given)
    beside = {junit: xml(result)} if junit else {}
    if html_file:
        beside[html_file] = parity_page(result, f"{engine} against {against}").encode()
    report(result, "parity", json_file, beside)
    if not result.passed:
        raise SystemExit(CHECK_FAILED)


@checked
def bound(max_kl: Annotated[float, Range(0.0, 1000.0)] | None) -> float | None:
    """Return what --max-kl is, if that is a number of nats."""
    return max_kl


@click.command()
@click.argument("engine", type=PATH)
@click.option("--against", type=CHECKPOINT, required=True,
              help="The checkpoint it was made from, before it was quantized.")  # fmt: skip
@revision
@click.option("--data", type=PATH, metavar="FILE",
              help="Text in a .txt or .jsonl. Default: Python's own manual.")  # fmt: skip
@click.option("--tokens", type=int, default=2048, show_default=True, help="Held-out, at least.")
@click.option("--chunk", type=int, default=512, show_default=True, help="Tokens run together.")
@click.option("--recipe", type=PATH, metavar="DIR",
              help="The recipe it was made with, to rank layers by their errors.")  # fmt: skip
@portable
@exact
@click.option("--max-kl", type=float, metavar="NATS", callback=lambda _, __, kl: bound(max_kl=kl),
              help="Exit status 1 if the mean KL per token is above it.")  # fmt: skip
@json_file
@click.option("--html", "html_file", type=PATH, help="Write the report with plots, as one file.")
@force
def quality(
    engine: Path,
    against: str,
    max_kl: float | None,
    json_file: Path | None,
    html_file: Path | None,
    force: bool,
    **given: Any,
) -> None:
    """Measure what low precision has cost ENGINE.

    Perplexity, KL divergence and agreement with its checkpoint. Both see the same held-out text,
    which `lmcast calibrate` never uses of the same file. The checkpoint runs in eager PyTorch and
    fp32; weights that it holds quantized count as what they stand for.

    Example: lmcast quality engine --against ./Qwen3-0.6B --data mine.jsonl --max-kl 0.05
    """
    from lmcast.exporter.progress import Terminal

    check_reports((json_file, html_file), force)
    from lmcast.exporter.prove.quality import quality as run
    from lmcast.exporter.prove.quality_report import html

    measured = run(engine, against, progress=Terminal(), **given)
    page = {html_file: html(measured, f"{engine} against {against}").encode()} if html_file else {}
    report(measured, "quality", json_file, page)
    if max_kl is not None:
        measured.require(max_kl)
