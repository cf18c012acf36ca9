"""Puts what check.py must be given into a folder, in parts below 64 MiB.

    python tests/device/pack.py FOLDER [--sm 90] [--python 3.12] [GROUP ...]

FOLDER must be new or empty. GPU and Python are those of the machine to check. Needs the extra
`test`, a C++ compiler, pip's registry and some minutes; no GPU. Each group is one part:

    provider   ONNX Runtime's CUDA provider, with machine code of one SM alone
    site       the other packages that run engines, and lmcast-native
    operators  all cases of all operators of ours, with machine code, and graphs of MoE
    engines    engines of twelve tiny families, and what eager computes of them
    models     graphs of full-size models, whose weights are drawn on the machine
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "plugins")]

import numpy as np

from device import families, full_size, onnxruntime_experts, operators
from device.trim import trim

ROOT = Path(__file__).parents[2]
MOST = 64 << 20  # bytes of a part
# What runs engines of target cuda (tests/runtime/test_without_torch.py).
PACKAGES = ("onnxruntime-gpu", "numpy", "ml-dtypes", "cuda-bindings", "cuda-pathfinder")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
UNUSED = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
PRODUCT = 64  # rows and columns of the first product


@dataclass(frozen=True)
class Machine:
    """What is to be checked: its GPU's SM, and its Python as '3.12'."""

    sm: int
    python: str


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="default: all")
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--python", default=".".join(map(str, sys.version_info[:2])))
    asked = parser.parse_args(arguments)
    if unknown := {*asked.groups} - {*GROUPS}:
        parser.error(f"{', '.join(sorted(unknown))}; accepted: {', '.join(GROUPS)}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    if any(asked.folder.iterdir()):
        parser.error(f"{asked.folder} is not empty")
    machine = Machine(asked.sm, asked.python)
    for name in asked.groups or GROUPS:
        with tempfile.TemporaryDirectory() as made:
            GROUPS[name](Path(made), machine)
            size = archived(Path(made), asked.folder / f"{name}.tar.xz")
        print(f"{name}: {size / 1e6:.1f} MB", flush=True)
    return 0


def archived(content: Path, part: Path) -> int:
    """Write a part; return its bytes. Raises SystemExit where they are too many."""
    with tarfile.open(part, "w:xz", preset=1) as archive:
        archive.add(content, ".")
    size = part.stat().st_size
    if size >= MOST:
        raise SystemExit(f"{part} has {size:,} bytes; a part may have less than {MOST:,}")
    return size


def provider(folder: Path, machine: Machine) -> None:
    downloaded(("onnxruntime-gpu",), folder / "all", machine)
    to = folder / "site" / PROVIDER
    to.parent.mkdir(parents=True)
    (folder / "all" / PROVIDER).rename(to)
    shutil.rmtree(folder / "all")
    if not trim(to, {machine.sm}):
        raise SystemExit(f"{PROVIDER} has no machine code for SM{machine.sm}")


def site(folder: Path, machine: Machine) -> None:
    downloaded(PACKAGES, folder / "site", machine)
    for name in (PROVIDER, UNUSED):
        (folder / "site" / name).unlink()
    pip("wheel", "--no-deps", "-w", folder / "native", ROOT / "plugins/native")
    unzipped(folder / "native", folder / "site")


def downloaded(packages: Iterable[str], to: Path, machine: Machine) -> None:
    """Download packages for that Python as the constraints pin them, and unpack them."""
    wheels = to.with_name("wheels")
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip("download", "--no-deps", "--only-binary=:all:", "--python-version", machine.python,
        *platforms, "-c", ROOT / "constraints.txt", "-d", wheels, *packages)  # fmt: skip
    unzipped(wheels, to)


def unzipped(wheels: Path, to: Path) -> None:
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(to)
    shutil.rmtree(wheels)


def pip(*words: Any) -> None:
    subprocess.run([sys.executable, "-m", "pip", *map(str, words), "-q"], check=True)


def every_operator(folder: Path, machine: Machine) -> None:
    from runtimes import every

    product(folder / "product")
    onnxruntime_experts.write(folder / "experts")
    cases(folder, every(), machine.sm)


def cases(folder: Path, wanted: Iterable[tuple[str, int, str, int]], sm: int) -> None:
    from runtimes import key

    for case in wanted:
        to = folder / "operators" / key(case).replace(" ", "-")
        operators.write(case, sm, to)


def product(folder: Path) -> None:
    """Write a product in bf16, as a case of an operator."""
    import json

    import ml_dtypes
    from onnx import TensorProto, helper

    folder.mkdir(parents=True)
    random, shape = np.random.default_rng(0), [PRODUCT, PRODUCT]
    a, b = (random.standard_normal(shape).astype(ml_dtypes.bfloat16) for _ in "ab")
    names = ("in0", "in1", "out0")
    *inputs, out = (helper.make_tensor_value_info(n, TensorProto.BFLOAT16, shape) for n in names)
    node = helper.make_node("MatMul", names[:2], names[2:])
    graph = helper.make_graph([node], "graph", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    (folder / operators.MODEL).write_bytes(model.SerializeToString())
    kind = ["bfloat16", shape]
    # Half a unit in the last of 8 bits is 2**-9 of the value; sums in fp32 are far closer.
    about = {"inputs": [kind, kind], "outputs": [[*kind, -1]], "expected": [["float64", shape]],
             "close": {"rtol": 2**-8, "atol": 1e-4}}  # fmt: skip
    (folder / operators.CASE).write_text(json.dumps(about))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    (folder / operators.DATA).write_bytes(a.tobytes() + b.tobytes() + exact.tobytes())


def engines(folder: Path, machine: Machine, names: Iterable[str] = families.NAMES) -> None:
    from tiny import CASES, make

    for name in names:
        case = next(case for case in CASES if case.architecture == name)
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir(parents=True)
        place = folder / "engines" / name
        place.mkdir(parents=True)
        families.write(make(case, checkpoint), place, machine.sm)
        shutil.rmtree(checkpoint)


def models(folder: Path, machine: Machine, names: Iterable[str] = ()) -> None:
    """The checkpoints lie where the machine will have their weights: below its /tmp."""
    import giants

    for name, (config, tensors) in full_size.shapes().items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="lmcast-device-", dir="/tmp") as checkpoint:
            giants.write(config, tensors, Path(checkpoint, name))
            place = folder / "models" / name
            place.mkdir(parents=True)
            full_size.write(Path(checkpoint, name), place, machine.sm)


GROUPS: dict[str, Callable[[Path, Machine], None]] = {
    "provider": provider,
    "site": site,
    "operators": every_operator,
    "engines": engines,
    "models": models,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
