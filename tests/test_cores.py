"""Threads: no more than the processors that a process may use, by its affinity and its quota."""

from pathlib import Path

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import cores
from lmcast.exporter.backends.runner import Loading
from lmcast.exporter.cores import limited, quotas
from lmcast.plugins.errors import InputError

# What a process finds of its control groups: its membership, files, and what they allow.
GROUPS: dict[str, tuple[str, dict[str, str], list[int]]] = {
    "version 2": ("0::/job", {"job/cpu.max": "150000 100000"}, [2]),
    "version 2, less above": (
        "0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, [1],
    ),
    "version 2, within a container": ("0::/", {"cpu.max": "50000 100000"}, [1]),
    "version 2, of the host": ("0::/docker/x", {"cpu.max": "400000 100000"}, [4]),
    "version 2, no limit": ("0::/", {"cpu.max": "max 100000"}, []),
    "version 1": (
        "7:blkio:/\n1:cpu,cpuacct:/job",
        {"cpu,cpuacct/job/cpu.cfs_quota_us": "9", "cpu,cpuacct/job/cpu.cfs_period_us": "4"},
        [3],
    ),
    "version 1, no limit": (
        "1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, [],
    ),
    "a name of odd characters": (
        "0::/a\x0cb\r\x85c", {"a\x0cb\r\x85c/cpu.max": "300000 100000"}, [3],
    ),
    "files that are odd": ("0::/", {"cpu.max": "many"}, []),
    "no period": ("0::/", {"cpu.max": "100000 0"}, []),
    "none": ("", {}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_quotas(name: str, tmp_path: Path):
    membership, files, allowed = GROUPS[name]
    (tmp_path / "cgroup").write_bytes(membership.encode() + b"\n")
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    assert list(quotas(tmp_path, tmp_path / "cgroup")) == allowed


# asked for, processors of the process, of the machine -> threads, and whether it is said
@pytest.mark.parametrize(
    ("asked", "most", "machine", "threads", "said"),
    [
        (1000, 2, 2, 2, True),
        (3, 2, 48, 2, True),
        (2, 2, 2, 2, False),
        (1, 2, 2, 1, False),
        (None, 2, 2, None, False),
        (None, 2, 48, 2, False),  # the runtime would take one for each of the machine
    ],
)
def test_limited(asked, most, machine, threads, said, monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: most)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: machine)
    heard: list[str] = []
    assert limited(asked, heard.append) == threads
    expected = f"threads is {asked}; this process may use {most}, so it runs in {most}"
    assert heard == [expected] * said


@pytest.mark.parametrize("asked", [0, -1, 1.5, "2", True])
def test_refused(asked):
    with pytest.raises(InputError, match="accepted: an integer from 1"):
        limited(asked)


def test_everywhere(tmp_path: Path, monkeypatch, lmcast):
    """From Python a warning, from commands a line, and the runtime gets what is at hand."""
    from lmcast.exporter import bench, export, load
    from lmcast.exporter.backends import onnxruntime

    given: list[int | None] = []

    def opened(manifest, loading: Loading):
        given.append(loading.threads)
        return runner(manifest, loading)

    def measured(request):
        given.append(request["threads"])
        raise InputError("enough")

    runner = onnxruntime.open_runner
    monkeypatch.setattr(cores, "usable", lambda: 1)
    monkeypatch.setattr(onnxruntime, "open_runner", opened)
    engine = tmp_path / "engine"
    tiny_llama(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", engine, parity=False)
    with pytest.warns(UserWarning, match="threads is 1000; this process may use 1"):
        load(engine, threads=1000).logits([[1]])
    monkeypatch.setattr(bench, "measured_apart", measured)
    with pytest.warns(UserWarning, match="threads is 1000"), pytest.raises(InputError, match="eno"):
        bench.bench(engine, 4, 2, threads=1000)
    status, out, error = lmcast("generate", engine, "1 2", "--ids", "-n", 2, "--threads", 1000)
    assert error == "warning: threads is 1000; this process may use 1, so it runs in 1\n"
    assert (status, len(out.split())) == (0, 2)
    assert given == [1, 1, 1]
