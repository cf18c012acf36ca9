"""The command line: help at once, numbers that add up, exit statuses."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.llama import tiny_llama

from lmcast.exporter import export
from lmcast.exporter.cli import cli
from lmcast.exporter.engine.sealed import seal, unseal

BYTES = 4  # of a float32
# Embedding, head and last norm; per layer q and o, k and v, three of the FFN, two norms.
PARAMETERS = 2 * 97 * 32 + 32 + 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 48 * 32 + 2 * 32)
ACTIVE = PARAMETERS - 97 * 32  # a token takes one row of the embedding
TENSORS = 3 + 2 * 9
PER_TOKEN = 2 * 2 * 2 * 8  # layers, key and value, key heads, width


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a checkpoint and its engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", weights="copy", parity=False)
    yield folder
    torch.set_num_threads(before)


@pytest.mark.parametrize("command", [None, *cli.commands])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: str | None, flag: str, lmcast):
    status, out, _ = lmcast(*filter(None, [command, flag]))
    assert status == 0
    assert out.startswith(f"Usage: lmcast {command or '[OPTIONS]'}")
    if command is None:
        assert all(f"\n  {name} " in out for name in cli.commands)
        assert not [line for line in out.splitlines()[1:] if line.endswith("...")]  # none cut off
    else:
        assert f"Example: lmcast {command} " in out


USAGE = [
    (["expord"], "error: No such command 'expord'. Did you mean 'export'? See `lmcast --help`."),
    (["bench"], "error: Missing argument 'ENGINE'. See `lmcast bench --help`."),
    (["bench", "e", "--nope"], "error: No such option '--nope'. See `lmcast bench --help`."),
    (["parity", "e"], "error: Missing option '--against'. See `lmcast parity --help`."),
    (["generate", "e", "hi", "--file", "f"],
     "error: give either a PROMPT or --file, not both. See `lmcast generate --help`."),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), USAGE)
def test_a_wrong_command_is_one_line(words: list[str], line: str, lmcast):
    assert lmcast(*words) == (2, "", f"{line}\n")


def unread() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


# What is checked, the stream that does not take what is said, and which it is -> status, said
LOST: dict[str, tuple[str, str, Callable[[], int], int, bytes]] = {
    "an error, to a full disk": ("nothing", "stderr", full, 2, b""),
    "an error, to nobody": ("nothing", "stderr", unread, 2, b""),
    "a result, to a full disk": ("engine", "stdout", full, 2, b"error: [Errno 28] No space"),
    "a result, to nobody": ("engine", "stdout", unread, 141, b""),
}


@pytest.mark.parametrize("name", LOST)
def test_what_cannot_be_said(name: str, made: Path):
    """The status tells it, and neither Python nor click has a word of its own."""
    path, lost, stream, status, said = LOST[name]
    code = "from lmcast.exporter.command import main; main()"
    command = [sys.executable, "-c", code, "verify", str(made / path)]
    to = stream()
    other = "stderr" if lost == "stdout" else "stdout"
    streams = {lost: to, other: subprocess.PIPE}
    buffered = {n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, **streams, env=buffered)
    os.close(to)
    heard = getattr(done, other)
    assert done.returncode == status
    assert heard.startswith(said)
    assert heard.count(b"\n") == bool(said)


def test_a_long_word_is_cut(lmcast):
    status, _, error = lmcast("inspect", "engine", "--context", "9" * 5000)
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("error: Invalid value for '--context': '999")
    assert len(error) < 2000
    assert " ... 999" in error
    assert error.endswith("integer. See `lmcast inspect --help`.\n")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['lmcast', '--help']\n"
        "from lmcast.exporter.cli import main\n"
        "main()\n"
        "print(sorted({n.split('.')[0] for n in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "onnx", "onnx_ir", "onnxruntime", "tokenizers", "jinja2", "rich"}
    heavy |= {"model_signing", "sigstore", "cryptography"}
    assert not heavy & set(eval(done.stderr))
    assert "Usage: lmcast" in done.stdout


def test_help_takes_no_time():
    """Processor time beyond the interpreter's own start; the least of three, as others work too."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    code = (
        "import sys; sys.argv = ['lmcast', '--help']; from lmcast.exporter.cli import main; main()"
    )
    took = min(seconds(code) for _ in range(3)) - min(seconds("pass") for _ in range(3))
    assert took < 0.3


@pytest.mark.parametrize("what", ["checkpoint", "engine"])
def test_inspect(what: str, made: Path, lmcast):
    status, out, _ = lmcast("inspect", made / what, "--batch", 3, "--context", 50, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["kind"] == what
    assert found["architecture"] == "llama"
    assert (found["layers"], found["context"], found["vocab_size"]) == (2, 128, 97)
    assert found["parameters"] == PARAMETERS
    assert found["active_parameters"] == ACTIVE
    assert found["weights"] == {"float32": {"tensors": TENSORS, "bytes": PARAMETERS * BYTES}}
    assert (found["batch"], found["tokens"]) == (3, 50)
    assert found["state"] == {
        "format": "float32",
        "elements_per_token": PER_TOKEN,
        "bytes_per_token": PER_TOKEN * BYTES,
        "fixed_bytes_per_sequence": 0,
        "bytes": 3 * 50 * PER_TOKEN * BYTES,
    }
    assert found["tokenizer"] is True
    assert found["chat_templates"] == []
    files = [p for p in (made / what).rglob("*") if p.is_file() and p.name != "engine.json"]
    if what == "checkpoint":
        files = [made / what / "model.safetensors"]
    sizes = {made / what / f["path"]: f["bytes"] for f in found["files"]}
    assert sizes == {path: path.stat().st_size for path in files}

    status, out, _ = lmcast("inspect", made / what, "--batch", 3, "--context", 50)
    assert status == 0
    for text in (
        f"parameters    {PARAMETERS:,}, of which a token uses {ACTIVE:,}\n",
        f"{PER_TOKEN} elements = {PER_TOKEN * BYTES} bytes in float32",
        f"{3 * 50 * PER_TOKEN * BYTES:,} bytes for 3 x 50 tokens",
        "a tokenizer, no chat template",
    ):
        assert text in out
    assert ("target        cpu, self-contained" in out) == (what == "engine")


def test_inspect_takes_inert_keys_as_export_does(made: Path, tmp_path: Path, lmcast):
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"our_note": "v3"}))
    status, _, error = lmcast("inspect", path.parent)
    assert (status, "pass --inert our_note" in error) == (2, True)
    status, _, error = lmcast("inspect", path.parent, "--inert", "our_note")
    assert (status, error) == (0, "")
    status, _, error = lmcast("inspect", made / "engine", "--inert", "our_note")
    assert (status, "are for checkpoints" in error) == (2, True)


def test_inspect_counts_windows_once(tmp_path: Path, lmcast):
    """Two layers of three see 8 tokens, whatever the context."""
    from tiny import case, make

    make(case("gemma2/plain"), tmp_path)
    window = 2 * 2 * 8 * 2 * 16 * BYTES  # layers of that kind, key and value, window, heads, width
    grows = 1 * 2 * 2 * 16 * BYTES
    for batch, context in ((1, 64), (5, 3)):
        _, out, _ = lmcast("inspect", tmp_path, "--batch", batch, "--context", context, "--json")
        state = json.loads(out)["state"]
        assert state["fixed_bytes_per_sequence"] == window
        assert state["bytes_per_token"] == grows
        assert state["bytes"] == batch * (window + context * grows)


def test_generate_text(made: Path, lmcast):
    status, out, _ = lmcast("generate", made / "engine", "hello", "-n", 5)
    assert status == 0
    assert out.endswith("\n")
    _, line, _ = lmcast("generate", made / "engine", "hello", "-n", 5, "--json")
    result = json.loads(line)
    assert result.keys() == {"prompt", "ids", "text", "finish_reason", "image_tokens"}
    assert result["text"] + "\n" == out
    assert result["prompt"] == [2 + ord(letter) - 32 for letter in "hello"]
    assert 1 <= len(result["ids"]) <= 5
    assert result["finish_reason"] in ("eos", "length")


def test_generate_ids(made: Path, lmcast):
    status, out, _ = lmcast("generate", made / "engine", "74 71, 78 78 81", "--ids", "-n", 5)
    assert status == 0
    _, line, _ = lmcast("generate", made / "engine", "hello", "-n", 5, "--json")
    assert list(map(int, out.split())) == json.loads(line)["ids"]


PROMPTS = {
    "p.txt": "hello\n\nbye now\n",
    "p.jsonl": '{"prompt": "hello"}\n{"prompt": "bye now"}\n',
}


@pytest.mark.parametrize("name", PROMPTS)
def test_generate_a_file(name: str, made: Path, tmp_path: Path, lmcast):
    (tmp_path / name).write_text(PROMPTS[name])
    status, out, _ = lmcast(
        "generate", made / "engine", "--file", tmp_path / name, "-n", 4, "--json"
    )  # fmt: skip
    assert status == 0
    alone = [
        lmcast("generate", made / "engine", p, "-n", 4, "--json")[1] for p in ("hello", "bye now")
    ]
    assert out == "".join(alone)


def test_generate_by_seed(made: Path, lmcast):
    def sampled(seed: int) -> str:
        options = ("-n", 20, "--temperature", 2.0, "--seed", seed, "--json")
        return lmcast("generate", made / "engine", "hello", *options)[1]

    assert sampled(7) == sampled(7)
    assert len({sampled(seed) for seed in range(3)}) > 1


def test_generate_until_a_text(made: Path, lmcast):
    _, line, _ = lmcast("generate", made / "engine", "hello", "-n", 12, "--json")
    text = json.loads(line)["text"]
    assert len(text) > 3
    _, line, _ = lmcast("generate", made / "engine", "hello", "-n", 12, "--json", "--stop", text[3])
    stopped = json.loads(line)
    assert stopped["text"] == text[: text.index(text[3])]
    assert stopped["finish_reason"] == "stop"


BAD: dict[str, tuple[list[str], str]] = {
    "two prompts": (["hello", "--file", "p.txt"], "give either a PROMPT or --file"),
    "no such file": (["--file", "absent.txt"], "absent.txt: cannot be read"),
    "a file of another kind": (["--file", "p.csv"], "p.csv: prompts must be in a .txt or .jsonl"),
    "ids that are text": (["hello", "--ids"], "--ids needs token ids such as '1 15 27'"),
    "no ids": ([" ", "--ids"], "--ids needs token ids"),
    "an id out of range": (["97", "--ids"], "input_ids holds 97; accepted: 0 to 96"),
    "an id out of int64": ([str(2**64), "--ids"], "input_ids"),
    "negative temperature": (["hello", "--temperature", "-1"], "temperature"),
    "temperature nan": (["hello", "--temperature", "nan"], "temperature"),
    "top-p above 1": (["hello", "--temperature", "1", "--top-p", "2"], "top_p"),
    "top-k 0": (["hello", "--temperature", "1", "--top-k", "0"], "top_k"),
    "no new tokens": (["hello", "-n", "0"], "max_new_tokens"),
    "beyond the context": (["hello", "-n", "124"], "over the context of 128"),
    "a word for a number": (["hello", "-n", "many"], "'many' is not a valid integer"),
    "an unknown option": (["hello", "--beams", "2"], "No such option"),
    "a template it lacks": (["hello", "--chat"], "chat template"),
    "an empty stop": (["hello", "--stop", ""], "stop"),
    "no threads": (["hello", "--threads", "0"], "threads is 0; accepted: an integer from 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_generate_refuses(name: str, made: Path, lmcast):
    options, message = BAD[name]
    status, out, error = lmcast("generate", made / "engine", *options)
    assert status == 2
    assert out == ""
    assert message in error
    assert "Traceback" not in error


def test_no_engine(tmp_path: Path, lmcast):
    for command in (["generate", tmp_path, "hello"], ["verify", tmp_path], ["inspect", tmp_path]):
        status, _, error = lmcast(*command)
        assert status == 2
        assert error.startswith("error: ")
        assert str(tmp_path) in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("options", [["--batch", "0"], ["--context", "0"], ["--context", "129"]])
def test_inspect_refuses(options: list[str], made: Path, lmcast):
    status, _, error = lmcast("inspect", made / "engine", *options)
    assert status == 2
    assert options[1] in error


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Any, str]] = {
    "a byte of the graph": (lambda e: flip(e / "engine.onnx"), "engine.onnx"),
    "a byte of the tokenizer": (lambda e: flip(e / "tokenizer.json"), "tokenizer.json"),
    "a byte of the manifest": (lambda e: flip(e / "engine.json"), "engine.json"),
    "a file too many": (lambda e: (e / "more").write_text("x"), "more"),
    "a file too few": (lambda e: (e / "tokenizer.json").unlink(), "tokenizer.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_finds_damage(name: str, made: Path, tmp_path: Path, lmcast):
    damage, path = DAMAGE[name]
    shutil.copytree(made / "engine", tmp_path / "engine")
    damage(tmp_path / "engine")
    status, out, _ = lmcast("verify", tmp_path / "engine")
    assert status == 1
    assert out.startswith(f"{path}: ")
    status, out, _ = lmcast("verify", tmp_path / "engine", "--json")
    assert status == 1
    found = json.loads(out)
    assert found["ok"] is False
    assert [problem["path"] for problem in found["problems"]] == [path]


@pytest.mark.parametrize("key", ["architecture", "target", "weights", "path"])
def test_what_strangers_write_acts_on_no_terminal(key: str, made: Path, tmp_path: Path, lmcast):
    """An escape of eight bits, half of a surrogate pair, text from right to left, a line."""
    wild = "a\x9b31m\ud800\u202e"
    shutil.copytree(made / "engine", engine := tmp_path / "engine")
    body = unseal((engine / "engine.json").read_bytes())
    if key == "path":
        engine = engine.rename(tmp_path / "a\x9b31m\udcff\u202e\n")
        (engine / "b\n\x1b[31m").touch()
        status, out, _ = lmcast("verify", engine)
        assert (status, out) == (1, "b\\n\\x1b[31m: not part of the engine\n1 problem\n")
    else:
        body[key] = {f"{wild}\n": {"tensors": 1, "bytes": 1}} if key == "weights" else wild
        (engine / "engine.json").write_bytes(seal(body))
    status, out, _ = lmcast("inspect", engine)
    assert status == 0
    assert all(line.isprintable() for line in out.splitlines())
    assert "a\\x9b31m" in out
    assert len(out.split("\n")) == len(lmcast("inspect", made / "engine")[1].split("\n"))


def test_verify_a_whole_engine(made: Path, lmcast):
    assert lmcast("verify", made / "engine")[0] == 0
    status, out, _ = lmcast("verify", made / "engine", "--json")
    assert status == 0
    assert json.loads(out) == {"ok": True, "problems": []}
