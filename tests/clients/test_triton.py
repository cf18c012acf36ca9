"""A packed model repository in Triton's server, whose Python backend nvidia-pytriton brings."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.llama import tiny_llama

import lmcast.exporter
from clients import ENVIRONMENTS
from clients.triton_states import read_states
from lmcast.exporter import Engine, export
from lmcast.exporter.pack import pack_for

SAMPLES = Path(__file__).parents[2] / "samples/triton"
PYTHON = ENVIRONMENTS / "triton/bin/python"
NEW = {"max_tokens": 8}
# Prints a config.pbtxt as JSON, as tritonclient's own definition of the format reads it.
READ = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json_format.MessageToJson(text_format.Parse(open(sys.argv[1]).read(), ModelConfig())))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.skip("needs nvidia-pytriton: make test-clients installs it")
    folder, before = tmp_path_factory.mktemp("triton"), torch.get_num_threads()
    torch.set_num_threads(1)
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    torch.set_num_threads(before)
    pack_for(folder / "engine", "triton", folder / "repository")
    return folder / "repository"


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the model that lmcast runs, in a server of its own."""
    home, log = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("log") / "log"
    served = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(repository, served)
    # The backend's Python has the environment's packages; folders of a model are on its path.
    package = served / "lmcast/1/lmcast"
    package.mkdir()
    for part in Path(lmcast.exporter.__file__).parents[1].iterdir():
        (package / part.name).symlink_to(part.resolve())
    (packages,) = PYTHON.parents[1].glob("lib/python3.*/site-packages")
    triton = packages / "pytriton/tritonserver"
    for part in ("backends", "bin", "caches"):
        shutil.copytree(triton / part, home / part)
    stub = triton / "python_backend_stubs" / packages.parent.name.removeprefix("python")
    shutil.copy(stub / "triton_python_backend_stub", home / "backends/python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        home / "bin/tritonserver", f"--model-repository={served}",
        f"--backend-directory={home / 'backends'}", "--model-control-mode=explicit",
        "--load-model=lmcast", "--http-address=127.0.0.1", f"--http-port={port}",
        "--allow-grpc=false", "--allow-metrics=false",
    ]  # fmt: skip
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
    }
    address = f"http://127.0.0.1:{port}/v2"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process,
    ):
        try:
            wait(f"{address}/health/ready", process, log)
            yield f"{address}/models/lmcast"
        finally:
            process.terminate()


def wait(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except OSError:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
    raise TimeoutError(log.read_text()[-3000:])


def ask(server: str, how: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the responses: one of `generate`, any number of `generate_stream`."""
    body = json.dumps(request).encode()
    try:
        with urllib.request.urlopen(f"{server}/{how}", body, timeout=60) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    lines = text.split("\n\n") if how == "generate_stream" else [text]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.strip()]


def test_texts_and_ids_are_continued_as_by_lmcast(server: str, repository: Path):
    engine = Engine(repository / "lmcast/1/engine")
    (made,) = engine.generate(["hello"], max_new_tokens=8)
    assert made.text
    (text,) = ask(server, "generate", NEW | {"text_input": "hello"})
    assert text["text_output"] == made.text
    (ids,) = ask(server, "generate", NEW | {"input_ids": list(made.prompt)})
    assert ids["output_ids"] == list(made.ids)
    pieces = ask(server, "generate_stream", NEW | {"text_input": "hello", "stream": True})
    assert len(pieces) > 1
    assert "".join(piece["text_output"] for piece in pieces) == made.text


def test_wrong_requests_are_answered_and_survived(server: str):
    for request, said in (
        ({}, "text_input and input_ids: give one of them"),
        ({"text_input": "a", "input_ids": [5]}, "text_input and input_ids: give one of them"),
        ({"text_input": "a", "max_tokens": -1}, "max_new_tokens is -1"),
        ({"input_ids": [97]}, "97"),
        ({"text_input": "a", "temperature": -1.0}, "temperature is -1"),
        ({"text_input": "a", "max_tokens": 1000}, "over the context of 128"),
    ):
        (answer,) = ask(server, "generate", request)
        assert said in answer["error"], answer
    assert "text_output" in ask(server, "generate", NEW | {"text_input": "a"})[0]


def test_configs_are_as_tritons_definition_reads_them(repository: Path):
    found = {}
    for model in ("lmcast", "lmcast_step"):
        command = [PYTHON, "-c", READ, repository / model / "config.pbtxt"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[model] = json.loads(printed)
    served, step = found["lmcast"], found["lmcast_step"]
    assert served["backend"] == "python"
    assert served["modelTransactionPolicy"] == {"decoupled": True}
    assert all(given["optional"] for given in served["input"])
    states = step["sequenceBatching"]["state"]
    assert [
        (s["inputName"], s["outputName"], s["dataType"], tuple(map(int, s["dims"]))) for s in states
    ] == [
        (s.past, s.present, s.dtype, s.dims)
        for s in read_states(repository / "lmcast_step/config.pbtxt")
    ]
    for state in states:
        assert state["useSameBufferForInputOutput"]
        (begin,) = state["initialState"]
        assert begin["zeroData"]
        assert begin["dims"] == state["dims"]


def test_the_samples_are_as_docker_wants_them(repository: Path):
    """By hadolint, and by a reader of the specification of compose files."""
    docker, root = ENVIRONMENTS / "docker/bin", SAMPLES.parents[1]
    if not docker.exists():
        pytest.skip("needs hadolint: make test-clients installs it")
    lint = [docker / "hadolint", SAMPLES / "Dockerfile"]
    done = subprocess.run(lint, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    read = (
        "import compose_spec, sys; c = compose_spec.PyCompose.from_yaml(open(sys.argv[1]).read())"
    )
    read += "; c.to_spec(); print(c.to_json())"
    command = [docker / "python", "-c", read, SAMPLES / "compose.yaml"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (service,) = json.loads(printed)["services"].values()
    assert (SAMPLES / service["build"]["context"]).resolve() == root
    assert root / service["build"]["dockerfile"] == SAMPLES / "Dockerfile"
    lines = (SAMPLES / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((root / path).exists() for path in copied if path != "samples/triton/models")
    (command,) = [json.loads(line.removeprefix("CMD ")) for line in lines if line[:3] == "CMD"]
    assert command[-1] == "--load-model=lmcast"
    assert (repository / "lmcast/config.pbtxt").exists()
