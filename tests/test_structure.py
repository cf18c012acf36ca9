"""The rules of the tree, measured: who imports whom, what is forbidden, how long things are."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import files_to_read
import pytest
from operators import REGISTRY

from lmcast.exporter import passes
from lmcast.exporter.targets import TARGETS
from lmcast.graphs import archs

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "plugins": set(),
    "graphs": {"plugins"},
    "calib": {"plugins", "graphs"},
    "exporter": {"plugins", "graphs", "calib"},
}
# A distribution of its own, in C++.
APART = ROOT / "plugins/native"
SOURCES = [
    path
    for package in MAY_IMPORT
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.is_relative_to(APART)
]
TESTS = sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "samples").rglob("*.py"))
# Tokenizers run a Rust library whose panics derive from BaseException alone; staging
# takes an unfinished directory away whatever ended the work, and raises on.
CATCH_ALL = {"exporter/checkpoint/tokenizer_trial.py", "exporter/engine/staging.py"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything that a file imports, at any depth."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(path)}:{node.lineno} imports by a relative name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_imports_point_inward():
    wrong = []
    for path in SOURCES:
        package = name(path).split("/")[0]
        for line, imported in imports(path):
            first, _, rest = imported.partition(".")
            if first == "lmcast" and rest.split(".")[0] not in MAY_IMPORT[package] | {package}:
                wrong.append(f"{name(path)}:{line} imports {imported}")
    assert not wrong, "\n".join(wrong)


# The rooms of graphs/: each may import those before it, and itself. "" is the package's own files.
TOWER = (
    ("config",), ("weights",), ("blocks", "layouts"), ("families",), ("towers",), ("archs",), ("",),
)  # fmt: skip


def test_rooms_of_graphs_are_a_tower():
    level = {room: i for i, rooms in enumerate(TOWER) for room in rooms}
    wrong = []
    for path in sorted((ROOT / "graphs").rglob("*.py")):
        room = name(path.parent).removeprefix("graphs").removeprefix("/")
        for line, imported in imports(path):
            if imported.startswith("lmcast.graphs"):
                other = (imported.split(".")[2:] or [""])[0]
                other = other if other in level else ""
                if other != room and level[other] >= level[room]:
                    wrong.append(f"{name(path)}:{line} imports {imported}")
    assert not wrong, "\n".join(wrong)


# The rooms of exporter/, likewise, by what importing them imports; files of its own are rooms too.
# Records and commands refer to later rooms within functions.
WAY = (
    "dtypes", "extras", "cores", "interrupts", "progress", "checkpoint", "vision", "graph",
    "engine", "targets", "weights", "passes", "activations", "cast", "backends", "runtime",
    "texts", "bench", "diff", "clients", "build", "pack", "prove", "pipeline", "calibrate", "cli",
    "command",
)  # fmt: skip
CLIMBS = {("exporter/engine/contract.py", "weights")}  # engine.json says what was placed


def test_rooms_of_the_exporter_are_a_way():
    wrong = []
    for path in sorted((ROOT / "exporter").rglob("*/*.py")) + sorted(ROOT.glob("exporter/*.py")):
        room = path.relative_to(ROOT / "exporter").with_suffix("").parts[0]
        for module in set(imported(tree(path), False)):
            other = module.removeprefix("lmcast.exporter.").split(".")[0]
            later = other in WAY and room != "__init__" and WAY.index(other) > WAY.index(room)
            if (
                module.startswith("lmcast.exporter.")
                and later
                and (name(path), other) not in CLIMBS
            ):
                wrong.append(f"{name(path)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_deepseek_v3_can_be_read():
    parts, _ = files_to_read.files("deepseek_v3")
    assert len(parts) <= 9, parts


def test_no_architecture_inherits_from_another():
    wrong = []
    for path in sorted((ROOT / "graphs/archs").glob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                wrong += [f"{name(path)}: {node.name}({b})" for b in bases if b[-4:] != "Keys"]
    assert not wrong, "\n".join(wrong)


def test_keys_are_flat():
    """What families share of a config are keys of their own, and nothing that builds a part."""
    for path in sorted((ROOT / "graphs/families").glob("*.py")):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Keys"):
                assert not node.bases, f"{name(path)}: {node.name}"
        built = [
            imported
            for _, imported in imports(path)
            if imported.startswith("lmcast.graphs.blocks") and imported[-4:] != "Name"
        ]
        assert built in ([], ["lmcast.graphs.blocks.moe.ExpertActivation"]), (
            f"{name(path)}: {built}"
        )


# What only one place may know: a library -> where it is imported.
OWNED = {
    "onnxruntime": "exporter/backends/ort.py",  # which switches its telemetry off first
    "click": "exporter/cli",
    "cuda": "nowhere",  # of a dotted name in exporter/backends/cuda.py, where there is a GPU
    "gguf": "exporter/checkpoint/",
    "huggingface_hub": "exporter/checkpoint/hub.py",  # which switches its telemetry off first
    "model_signing": "exporter/engine/signing.py",
    "cryptography": "exporter/engine/signing.py",
    "tokenizers": "exporter/",
    "onnx_ir": ("exporter/", "plugins/onnx_builder.py", "plugins/plugin.py"),
    "onnx": "plugins/onnx_builder.py",  # reads the schemas of operators
    "triton": "plugins/",
    "PIL": "exporter/vision/pictures.py",
    "transformers": "nowhere",
    "safetensors": "nowhere",  # its reader checks less than exporter/checkpoint does
}


def test_libraries_stay_where_they_belong():
    wrong = [
        f"{name(path)}:{line} imports {imported}"
        for path in SOURCES
        for line, imported in imports(path)
        if not name(path).startswith(OWNED.get(imported.split(".")[0], ""))
    ]
    assert not wrong, "\n".join(wrong)


# What runs engines, and is installed without PyTorch: these files with all that they import.
RUNS = [
    *sorted((ROOT / "exporter/runtime").glob("*.py")),
    *sorted((ROOT / "exporter/vision").rglob("*.py")),
    *(ROOT / f"exporter/backends/{file}.py" for file in ("onnxruntime", "cuda", "native")),
    *(ROOT / f"exporter/backends/{room}/runner.py" for room in ("cuda_provider", "tensorrt")),
    ROOT / "exporter/bench.py",
    *(ROOT / f"exporter/engine/{file}.py" for file in ("manifest", "signing", "staging")),
]
# Of these only what is imported at once: commands import what they need, inspecting a checkpoint
# what casting does.
OPENS = [ROOT / "exporter/engine/inspect.py", ROOT / "exporter/cli/__init__.py"]
# What a record refers to imports what it needs: most of that is for casting.
RECORDS = [ROOT / "exporter/targets.py", ROOT / "exporter/dtypes.py"]
BASE = {"numpy", "ml_dtypes", "onnxruntime", "tokenizers", "jinja2", "click", "rich"}
EXTRAS = {"model_signing", "cryptography", "PIL"}  # that need no torch


def imported(node: ast.AST, whole: bool) -> Iterator[str]:
    """Yield what a node imports when it is run; whole: also within functions, and by its name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        elif whole and isinstance(child, ast.Constant) and str(child.value).startswith("lmcast."):
            yield str(child.value)  # of import_module
        elif whole or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported(child, whole)


def found_at(module: str) -> Iterator[tuple[Path, bool]]:
    """Yield the files of ours that importing a dotted name runs, and whether their functions may be
    called: those of the packages above it are not."""
    parts = module.split(".")[1:]
    files = [ROOT.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    sources = [path for at in files for path in (at / "__init__.py", at.with_suffix(".py"))]
    existing = [path for path in sources if path.exists()]
    yield from ((path, path == existing[-1]) for path in existing)


def test_engines_run_without_torch():
    waiting = [(path, True, "") for path in RUNS] + [(path, False, "") for path in OPENS]
    seen: set[tuple[Path, bool]] = set()
    wrong = []
    while waiting:
        path, whole, way = waiting.pop()
        whole = whole and path not in RECORDS
        if (path, whole) in seen:
            continue
        seen.add((path, whole))
        way = f"{way} <- {name(path)}" if way else name(path)
        if name(path).startswith(("graphs/", "calib/", "exporter/pipeline.py")):
            wrong.append(way)
            continue
        for module in set(imported(tree(path), whole)):
            first = module.partition(".")[0]
            if first == "lmcast":
                waiting += [(file, deep and whole, way) for file, deep in found_at(module)]
            elif first not in BASE | EXTRAS | set(sys.stdlib_module_names):
                wrong.append(f"{way} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_packages_are_the_folders_with_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"lmcast.{name(path.parent).replace('/', '.')}" for path in SOURCES}
    assert set(project["packages"]) == folders
    assert project["package-dir"] == {f"lmcast.{package}": package for package in MAY_IMPORT}


FORBIDDEN = {
    "a broad except": r"except( Exception\b|\s*:)",
    "code from a checkpoint": r"trust_remote_code|\bimport pickle\b|torch\.load\(",
    "behaviour by environment variable": r"os\.(environ|getenv)",
    "work left undone": r"\b(TODO|FIXME|XXX)\b",
    "an unchecked type": r"# type: ignore",
    "a field that may not exist": r"getattr\((c|config|self\.config), [^)]*, ",
}


ALLOWED = {
    # Telemetry that can be switched off by the environment alone: of ONNX Runtime, of hf_xet.
    "behaviour by environment variable": {"exporter/backends/ort.py", "exporter/checkpoint/hub.py"},
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_forbidden(what: str):
    wrong = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in SOURCES
        if name(path) not in ALLOWED.get(what, ())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_documented_places_catch_everything():
    found = {name(p) for p in SOURCES if re.search(r"except \(?BaseException", p.read_text())}
    assert found == CATCH_ALL


def test_no_module_for_leftovers():
    vague = {"utils", "helpers", "base", "common", "misc", "tools"}
    assert not [name(path) for path in SOURCES + TESTS if path.stem in vague]


LONGEST = {  # lines
    "graphs/archs/": 250,
    "graphs/blocks/": 250,
    "plugins/": 250,
    "exporter/passes/": 150,
    "": 400,
}


TABLES = ("tests/tiny/", "tests/files/")  # of cases: as long as there is something to say


def test_files_are_short():
    wrong = []
    for path in SOURCES + TESTS:
        if name(path).startswith(TABLES):
            continue
        length = len(path.read_text().splitlines())
        limit = next(n for prefix, n in LONGEST.items() if name(path).startswith(prefix))
        if length > limit:
            wrong.append(f"{name(path)}: {length} lines, {limit} allowed")
    assert not wrong, "\n".join(wrong)


def test_functions_are_short():
    wrong = []
    for path in SOURCES + TESTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 50:
                    wrong.append(f"{name(path)}: {node.name} has {length} lines, 50 allowed")
    assert not wrong, "\n".join(wrong)


# Parameters of a function, self aside. A block's parts are given by name, and read as a table;
# operators have the parameters of their schema, and kernels those of a launch.
MOST_PARAMETERS, MOST_PARTS = 10, 12
OF_OPERATORS = {"eager", "shapes", "body"}
# From Python, every parameter is an option of the command of that name.
OF_COMMANDS = {
    "exporter/pipeline.py: export",
    "exporter/calibrate/calibrate.py: calibrate",
    "exporter/prove/parity.py: parity",
}


def is_free(path: Path, function: str) -> bool:
    if name(path).startswith("plugins/"):
        kernels = ROOT / "plugins/launch"
        return function in OF_OPERATORS or path.is_relative_to(kernels) or is_kernel(path)
    return f"{name(path)}: {function}" in OF_COMMANDS


def is_kernel(path: Path) -> bool:
    return any(module.startswith("triton") for _, module in imports(path))


def test_functions_have_few_parameters():
    wrong = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in given if a.arg not in ("self", "cls")])
            block = name(path).startswith("graphs/blocks/") and node.name == "__init__"
            limit = MOST_PARTS if block else MOST_PARAMETERS
            if count > limit and not is_free(path, node.name):
                wrong.append(f"{name(path)}: {node.name} has {count} parameters, {limit} allowed")
    assert not wrong, "\n".join(wrong)


def files(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}


def test_every_architecture_is_in_the_catalogue():
    records = {"record", "multimodal"}
    assert files("graphs/archs") - records == set(archs.NAMES)
    assert list(archs.NAMES) == sorted(archs.NAMES)
    assert [archs.get(known).name for known in archs.NAMES] == list(archs.NAMES)


def test_every_pass_is_of_a_target():
    every = {apply for target in TARGETS.values() for apply in target.passes()}
    listed = {apply.__name__ for apply in every.union(passes.EXACT)}
    # What several passes use.
    shared = {
        "attention_ahead", "evaluate", "expert_products", "expert_routes", "expert_stacks", "nbits",
        "nbits_inputs", "nth", "rewrite", "side_by_side", "transposed_products",
    }  # fmt: skip
    assert files("exporter/passes") - shared == listed


def test_every_operator_is_its_file():
    for name, plugin in REGISTRY.items():
        folder = Path(import_module(plugin.eager.__module__).__file__ or "")
        assert folder.stem == name, f"{name} is defined in {folder}"
