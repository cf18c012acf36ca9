"""The command that measures what an engine has lost."""

import json
from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("engine", type=PATH)
@click.option("--against", type=PATH, required=True,
              help="The checkpoint it was made from, before it was quantized.")  # fmt: skip
@click.option("--data", type=PATH, metavar="FILE",
              help="Text in a .txt or .jsonl. Default: Python's own manual.")  # fmt: skip
@click.option("--tokens", type=int, default=2048, show_default=True, help="Held-out, at least.")
@click.option("--chunk", type=int, default=512, show_default=True, help="Tokens run together.")
@click.option("--recipe", type=PATH, metavar="DIR",
              help="The recipe it was made with, to rank layers by their errors.")  # fmt: skip
@click.option("--portable", is_flag=True, help="Run the graph on this CPU, where there are plans.")
@click.option("--max-kl", type=float, metavar="NATS",
              help="Exit status 1 if the mean KL per token is above it.")  # fmt: skip
@click.option("--json", "json_file", type=PATH, help="Write the report; - prints it.")
@click.option("--html", "html_file", type=PATH, help="Write the report with plots, as one file.")
def quality(
    engine: Path,
    against: Path,
    data: Path | None,
    tokens: int,
    chunk: int,
    recipe: Path | None,
    portable: bool,
    max_kl: float | None,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Measure what ENGINE has lost: perplexity, KL divergence and agreement with its checkpoint.

    Both see the same held-out text, which `lmcast calibrate` never uses of the same file. The
    checkpoint runs in eager PyTorch and fp32; weights that it holds quantized count as what they
    stand for.

    Example: lmcast quality engine --against ./Qwen3-0.6B --data mine.jsonl --max-kl 0.05
    """
    from lmcast.exporter.cli import write
    from lmcast.exporter.progress import Terminal
    from lmcast.exporter.prove.quality import quality as run
    from lmcast.exporter.prove.quality_report import html

    measured = run(engine, against, data, tokens, chunk, recipe, portable, Terminal())
    text = json.dumps(measured.as_json(), indent=1)
    if str(json_file) == "-":
        click.echo(text)
    else:
        click.echo(measured.table())
        if json_file:
            write(json_file, text.encode() + b"\n")
    if html_file:
        write(html_file, html(measured, f"{engine} against {against}").encode())
    if max_kl is not None:
        measured.require(max_kl)
