"""The fake CUDA libraries, compiled by this machine's C++ compiler: one, under five names."""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).parent / "source"
DRIVER = "libcuda.so.1"
LIBRARY = "libfake_cuda.so"
PROVIDER = "libonnxruntime_providers_cuda.so"
NO_COMPILER = "no C++ compiler: accepted are c++, g++ and clang++ on the PATH"
# What the provider is linked with.
NAMES = (DRIVER, "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")


def compiler() -> str | None:
    """Return this machine's C++ compiler."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def missing() -> str:
    """Return why nothing can run on a fake GPU here; "" where something can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the fake CUDA libraries are for Linux on x86-64"
    if compiler() is None:
        return NO_COMPILER
    found = find_spec("onnxruntime")
    beside = Path(str(found.origin)).with_name("capi") if found else Path()
    return "" if (beside / PROVIDER).exists() else f"onnxruntime has no {PROVIDER}"


@cache
def build() -> Path:
    """Return a folder with the libraries, made once for all processes of this machine's user.

    Within it, `driver` has all of them, and `no_driver` lacks libcuda.so.1. Raises RuntimeError
    where there is no compiler, or where it refuses the sources.
    """
    found = compiler()
    if found is None:
        raise RuntimeError(NO_COMPILER)
    sources = sorted(SOURCE.iterdir())
    text = b"\0".join([*(path.read_bytes() for path in sources), repr((found, FLAGS)).encode()])
    version = hashlib.sha256(text).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"lmcast-fake-cuda-{os.getuid()}-{version}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} is another user's: remove it, or set TMPDIR")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / LIBRARY).exists():
            compile_into(folder, found)
    return folder


def compile_into(folder: Path, found: str) -> None:
    made = folder / "unfinished.so"
    command = [found, *FLAGS, "-shared", f"-Wl,--version-script={SOURCE / 'versions.map'}"]
    command += [*map(str, sorted(SOURCE.glob("*.cpp"))), "-o", str(made), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{found} refuses {SOURCE}:\n{done.stderr}")
    for name, names in (("driver", NAMES), ("no_driver", NAMES[1:])):
        (folder / name).mkdir(exist_ok=True)
        for one in names:
            (folder / name / one).unlink(missing_ok=True)
            (folder / name / one).symlink_to(folder / LIBRARY)
    made.rename(folder / LIBRARY)
