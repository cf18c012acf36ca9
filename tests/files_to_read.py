"""Which files of graphs/ an architecture is made of: `python tests/files_to_read.py [NAME ...]`.

Its own and what that imports, at any depth. Parts are what defines a model: architectures, families
and blocks. Machinery is what every architecture shares: the record, config/ and weights/.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("llama", "deepseek_v3", "qwen3_next")
MACHINERY = ("graphs/archs/record.py", "graphs/config/", "graphs/weights/")


def imported(path: Path) -> set[Path]:
    """Return the files of graphs/ that a file imports."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmcast.graphs."):
            module = ROOT / node.module.removeprefix("lmcast.").replace(".", "/")
            inner = {module / f"{alias.name}.py" for alias in node.names}
            whole = module.with_suffix(".py")
            found |= {whole} if whole.exists() else {file for file in inner if file.exists()}
    return found


def files(name: str) -> tuple[list[str], list[str]]:
    """Return the parts and the machinery that an architecture is made of, by path."""
    found, new = set(), {ROOT / f"graphs/archs/{name}.py"}
    while new:
        found |= new
        new = {file for path in new for file in imported(path)} - found
    names = sorted(str(path.relative_to(ROOT)) for path in found)
    shared = [name for name in names if name.startswith(MACHINERY)]
    return [name for name in names if name not in shared], shared


def main(names: list[str]) -> None:
    for name in names or SHOWN:
        for kind, found in zip(("parts", "machinery"), files(name), strict=True):
            lines = sum(len((ROOT / file).read_text().splitlines()) for file in found)
            print(f"{name}: {len(found)} files of {kind}, {lines} lines: {', '.join(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
