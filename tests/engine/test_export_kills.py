"""Kills and collisions of real exports: a whole engine or none, and the next run cleans up."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from export_server import HEADERS, TRACING, WEIGHTS, Job, Server
from tiny.llama import HEAD, poke, tiny_llama

from lmcast.exporter.cli import main
from lmcast.exporter.engine.manifest import verify

KILLS = 25  # of each case, that hit an export in progress


@dataclass(frozen=True)
class Case:
    name: str
    old: bool  # whether there is an engine of another checkpoint already
    weights: Literal["link", "copy"]


CASES = (Case("onto nothing", False, "copy"), Case("onto an old engine", True, "link"))


# What each kill left: 'absent', 'old' or 'new' at the destination, and how many files beside it.
Kills = list[tuple[str, int]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def state(destination: Path, engines: dict[str, dict[str, bytes]]) -> str:
    """Say which of the engines lies there; none but a whole one may."""
    if not os.path.lexists(destination):
        return "absent"
    assert verify(destination) == []
    (name,) = [name for name, files in engines.items() if contents(destination) == files]
    return name


def kill_often(checkpoints: dict[str, Path], folder: Path, case: Case, server: Server) -> Kills:
    """Kill exports at moments that are drawn over what an undisturbed one took just before."""
    place, old = folder / case.name, folder / f"{case.name}, old"
    place.mkdir()
    engine, chooser, kills = place / "engine", random.Random(case.name), Kills()
    job = partial(Job, str(checkpoints["new"]), str(engine), case.weights)
    previous = Job(str(checkpoints["old"]), str(old), case.weights, traced=True)
    assert server.run(previous).status == 0
    whole = {False: server.run(job()), True: server.run(job(traced=True))}
    engines = {"old": contents(old), "new": contents(engine)}
    while len(kills) < KILLS:
        shutil.rmtree(engine)
        if case.old:
            shutil.copytree(old, engine)
        # Tracing takes most of the time; every other kill comes when there are files.
        stage, traced = [(HEADERS, False), (WEIGHTS, True)][len(kills) % 2]
        left = whole[traced].seconds - whole[traced].stages[stage]
        moment = chooser.uniform(0, left)
        status = server.run(job(stage=stage, traced=traced, kill_after=moment)).status
        found, beside = state(engine, engines), len(os.listdir(place)) - engine.exists()
        assert status in (0, -signal.SIGKILL)
        if status:
            kills.append((found, beside))
        traced = len(kills) % 10 > 0
        whole[traced] = server.run(job(traced=traced))
        assert whole[traced].status == 0
        assert os.listdir(place) == ["engine"]
        assert state(engine, engines) == "new"
    return kills


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("old", "new"):
        tiny_llama(folder / name)
    poke(HEAD, 0, 1.5)(folder / "old")
    return {name: folder / name for name in ("old", "new")}


@pytest.fixture(scope="module")
def servers(checkpoints) -> Iterator[list[Server]]:
    """One for each case: the two run at once."""
    servers = [Server(checkpoints["new"]) for _ in CASES]
    yield servers
    for server in servers:
        server.close()


def test_fifty_kills_at_random_moments(checkpoints, servers, tmp_path: Path):
    with ThreadPoolExecutor(len(CASES)) as pool:
        run = partial(kill_often, checkpoints, tmp_path)
        nothing, old = pool.map(run, CASES, servers)
    assert {found for found, _ in nothing} - {"new"} == {"absent"}
    assert {found for found, _ in old} - {"new"} == {"old"}
    assert sum(beside > 0 for _, beside in nothing + old) > KILLS, "most must hit a run that writes"


@pytest.mark.parametrize("old", [False, True])
def test_of_two_exports_to_one_place_the_second_is_refused(
    checkpoints, servers, tmp_path, capsys, monkeypatch, old
):
    server, new = servers[0], str(checkpoints["new"])
    engine, undisturbed = tmp_path / "place" / "engine", tmp_path / "undisturbed"
    engine.parent.mkdir()
    if old:
        assert (
            server.run(Job(str(checkpoints["old"]), str(engine), "link", traced=True)).status == 0
        )
    server.send(Job(new, str(engine), "link", stage=TRACING, stop=True))
    writer = wait_until_stopped(engine.parent / ".engine.lmcast-lock")
    monkeypatch.setattr(sys, "argv", ["lmcast", "export", new, "-o", str(engine)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: another export (pid {writer} on ")
    assert f"is writing {engine} since " in message
    os.kill(writer, signal.SIGCONT)
    assert server.receive().status == 0
    assert os.listdir(engine.parent) == ["engine"]
    assert verify(engine) == []
    assert server.run(Job(new, str(undisturbed), "link", traced=True)).status == 0
    assert contents(engine) == contents(undisturbed)


def wait_until_stopped(lock: Path) -> int:
    """Return the process that holds a lock, once it has stopped itself."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.02)
        if lock.exists():
            pid = json.loads(lock.read_text())["pid"]
            status = Path(f"/proc/{pid}/stat").read_text()
            if status.rpartition(")")[2].split()[0] == "T":
                return pid
    raise AssertionError("the export did not begin")
