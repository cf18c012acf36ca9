"""Names of TensorRT that the backend uses, which only TensorRT for RTX runs here: both have them.

NVIDIA's package of bindings is installed without TensorRT itself; libraries with nothing but the
symbols that it is linked with let it be imported, by a process of its own.
"""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_cuda import libraries

from lmcast.exporter.backends import tensorrt

FULL, RTX = "tensorrt_bindings", "tensorrt_rtx_bindings"
LINKED = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry
getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
"""
# Used where the library has them: the code asks for one of them before it uses any.
RTX_ALONE = {
    "ComputeCapability", "num_compute_capabilities", "set_compute_capability",
    "DynamicShapesKernelSpecializationStrategy", "dynamic_shapes_kernel_specialization_strategy",
    "EAGER", "LAZY", "create_runtime_cache", "set_runtime_cache", "is_stream_capturable",
}  # fmt: skip
# Prints {"": names of the module, class: {name: how it is called}}.
PRINT = """
import importlib, inspect, json, sys
module = importlib.import_module(sys.argv[1])
found = {"": {n: "" for n, value in vars(module).items() if not inspect.ismodule(value)}}
for name, value in vars(module).items():
    if inspect.isclass(value):
        members = {n: inspect.getdoc(member) or "" for n, member in vars(value).items()}
        found[name] = {n: doc.partition("\\n")[0] for n, doc in members.items()}
print(json.dumps(found))
"""
Names = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Names]:
    if find_spec(FULL) is None or find_spec(RTX) is None or libraries.compiler() is None:
        pytest.skip(f"{FULL} and {RTX}, of the extra `test`, and a C++ compiler are needed")
    folder = tmp_path_factory.mktemp("libraries")
    source = folder / "symbols.cpp"
    source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in SYMBOLS.split()))
    for library in LINKED:
        command = [libraries.compiler(), "-shared", "-fPIC", source, "-o", folder / library]
        subprocess.run(list(map(str, command)), check=True)
    return {module: printed(module, folder) for module in (FULL, RTX)}


def printed(module: str, folder: Path) -> Names:
    found = {"LD_LIBRARY_PATH": str(folder)} if module == FULL else {}
    command = [sys.executable, "-c", PRINT, module]
    done = subprocess.run(command, env=os.environ | found, capture_output=True, check=True)
    own = f"{module}.{module.removesuffix('_bindings')}."  # in signatures
    return json.loads(done.stdout.decode().replace(own, ""))


def used() -> set[str]:
    """Return what the backend may use: each attribute, and each name that is a text."""
    found = set()
    for file in Path(tensorrt.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_every_name_is_in_both(names: dict[str, Names]):
    full, rtx, mine = names[FULL], names[RTX], used()
    anywhere = {name for members in full.values() for name in members}
    missing = {
        name
        for owner, members in rtx.items()
        for name in mine & {*members}
        # What is used of a class that only RTX has may be of another class.
        if name not in full.get(owner, anywhere)
    }
    assert missing == RTX_ALONE, "of a name that one library has alone, the code asks before"
    shared = {name for members in rtx.values() for name in mine & {*members}} - RTX_ALONE
    assert len(shared) > 50, "this test finds what is used"


def test_what_is_called_takes_the_same(names: dict[str, Names]):
    full, rtx, mine = names[FULL], names[RTX], used()
    differ = {
        f"{owner}.{name}": (members[name], full[owner][name])
        for owner, members in rtx.items()
        for name in mine & {*members} & {*full.get(owner, {})}
        if members[name] != full[owner][name]
    }
    assert not differ
    assert "set_shape(self: IOptimizationProfile" in full["IOptimizationProfile"]["set_shape"]
