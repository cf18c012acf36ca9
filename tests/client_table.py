"""Prints CLIENTS.md: which programs make the same tokens of which families as lmcast.

    python tests/client_table.py [--check] [--only genai ...] [--families llama ...]

Exit status 1 where a program makes other tokens or changes an engine, or, with --check, where the
page is not as it would be printed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from clients import CLIENTS, Given, first_cases, given, outcomes

from lmcast.exporter.engine.manifest import undeclared, verify

DOCUMENT = Path(__file__).parents[1] / "CLIENTS.md"
HEAD = """# Clients

Whether other programs make the same tokens as lmcast of an engine that `lmcast export` wrote:
three prompts of different length, one by one and in one batch, greedily, from the first tiny
checkpoint of each family in tests/tiny, on a CPU in fp32. All programs open the same directory, and
it is byte for byte the same afterwards.

**yes**: every token is the same. A number: why not, below.

`python tests/client_table.py > CLIENTS.md` prints this page, in the environments that
`make test-clients` makes; that compares it with what is here. [docs/clients.md](docs/clients.md)
says how each program opens an engine.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with CLIENTS.md")
    parser.add_argument("--only", choices=CLIENTS, nargs="+", default=list(CLIENTS))
    parser.add_argument("--families", choices=first_cases(), nargs="+", default=list(first_cases()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        engines = made(options.families, Path(name))
        found = {title: run(title, engines, Path(name)) for title in options.only}
        changed = [name for name, each in engines.items() if touched(each)]
    text = page(found)
    if not options.check:
        print(text, end="")
    wrong = [
        f"{family} in {title}: {said}"
        for title, rows in found.items()
        for family, said in rows.items()
        if said.startswith("no: ")
    ]
    wrong += [f"{name} has been changed" for name in changed]
    if options.check:
        wrong += compared(found)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def made(families: list[str], folder: Path) -> dict[str, Given]:
    """Export the engines of families into a folder."""
    found = {}
    for name in families:
        print(f"exporting {name}", file=sys.stderr)
        found[name] = given(first_cases()[name], folder / "checkpoints" / name, folder / name)
    return found


def run(title: str, engines: dict[str, Given], folder: Path) -> dict[str, str]:
    """Return what came of the engines in a program, or nothing where it is not installed."""
    client = CLIENTS[title]
    if client.missing:
        print(f"{client.title} is skipped: {client.missing}", file=sys.stderr)
        return {}
    print(f"running {client.title}", file=sys.stderr)
    return outcomes(client, engines, folder)


def touched(each: Given) -> bool:
    """Whether a file of an engine was changed, or one was added."""
    directory = each.engine.directory
    return bool(verify(directory) or undeclared(directory))


def rows(found: dict[str, dict[str, str]], reasons: list[str]) -> list[list[str]]:
    """Return a line for each family; the reasons of cells that are not 'yes' are collected."""
    families = sorted({family for each in found.values() for family in each})
    lines = []
    for family in families:
        line = [f"`{family}`"]
        for each in found.values():
            said = each.get(family, "not run")
            if said != "yes" and said not in reasons:
                reasons.append(said)
            line.append("yes" if said == "yes" else f"{reasons.index(said) + 1}")
        lines.append(line)
    return lines


def page(found: dict[str, dict[str, str]]) -> str:
    """Return the whole page."""
    reasons: list[str] = []
    titles = ["Family", *(CLIENTS[name].title for name in found)]
    lines = [titles, ["---"] * len(titles), *rows(found, reasons)]
    text = HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if reasons:
        text += "\n" + "".join(f"{i}. {reason}\n" for i, reason in enumerate(reasons, 1))
    return text


def compared(found: dict[str, dict[str, str]]) -> list[str]:
    """Return how the programs that were run differ from what CLIENTS.md says of them."""
    recorded = recorded_outcomes()
    return [
        f"{family} in {CLIENTS[name].title}: CLIENTS.md says {before!r}, and it is {said!r}"
        for name, each in found.items()
        for family, said in each.items()
        if (before := recorded.get((family, CLIENTS[name].title), "nothing")) != said
    ]


def recorded_outcomes() -> dict[tuple[str, str], str]:
    """Return what CLIENTS.md says: (family, program's title) -> 'yes' or the reason why not."""
    lines = DOCUMENT.read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    numbered = [line.split(". ", 1) for line in lines if line[:1].isdigit()]
    reasons = dict(map(tuple, numbered))
    (_, *titles), _, *families = table
    return {
        (family.strip("`"), title): reasons.get(cell, cell)
        for family, *cells in families
        for title, cell in zip(titles, cells, strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
