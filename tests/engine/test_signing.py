"""model.sig: what it covers, what it finds, and one clear error for a key that cannot be used."""

import base64
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import hashing, signing, verifying
from staged_engines import DESCRIPTION
from tiny.llama import tiny_llama

from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import write_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, SIGNATURE
from lmcast.exporter.engine.signing import verify

CONTENTS = {"engine.onnx": b"graph" * 9, "weights/a.safetensors": bytes(99), "plans/b": b"native"}
PLAIN, LOCKED = NoEncryption(), BestAvailableEncryption(b"secret")
PKCS8, SEC1 = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL  # by genpkey, by ecparam
MADE = {
    "P-256": (ec.generate_private_key(ec.SECP256R1()), PKCS8, PLAIN),
    "P-384": (ec.generate_private_key(ec.SECP384R1()), PKCS8, PLAIN),
    "P-521": (ec.generate_private_key(ec.SECP521R1()), SEC1, PLAIN),
    "other": (ec.generate_private_key(ec.SECP256R1()), PKCS8, PLAIN),
    "koblitz": (ec.generate_private_key(ec.SECP256K1()), PKCS8, PLAIN),
    "edwards": (ed25519.Ed25519PrivateKey.generate(), PKCS8, PLAIN),
    "locked": (ec.generate_private_key(ec.SECP256R1()), PKCS8, LOCKED),
    "locked SEC1": (ec.generate_private_key(ec.SECP256R1()), SEC1, LOCKED),
}
KEY, PUBLIC = "P-256.pem", "P-256.pub"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a signature needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with NAME.pem and NAME.pub of every key, and files that are none."""
    folder = tmp_path_factory.mktemp("keys")
    for name, (key, form, encryption) in MADE.items():
        data = key.private_bytes(Encoding.PEM, form, encryption)
        (folder / f"{name}.pem").write_bytes(data)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    (folder / "text").write_text("my key")
    (folder / "empty").write_bytes(b"")
    for kind in ("pem", "pub"):
        cut = (folder / f"P-256.{kind}").read_bytes().replace(b"M", b"?", 1)
        (folder / f"broken.{kind}").write_bytes(cut)
    os.mkfifo(folder / "pipe")
    return folder


def build(directory: Path) -> Path:
    for path, data in CONTENTS.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    write_manifest(directory, DESCRIPTION)
    return directory


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return build(tmp_path / "engine")


@pytest.fixture
def signed(engine: Path, keys: Path, lmcast) -> Path:
    assert lmcast("sign", engine, "--key", keys / KEY)[0] == 0
    return engine


def names(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_round_trip(curve: str, engine: Path, keys: Path, lmcast):
    status, out, error = lmcast("sign", engine, "--key", keys / f"{curve}.pem", "--json")
    assert (status, error) == (0, "")
    said = json.loads(out)
    size = sum(map(len, CONTENTS.values())) + (engine / ENGINE_JSON).stat().st_size
    assert said.pop("key") in (engine / SIGNATURE).read_text()
    assert said == {"path": str(engine / SIGNATURE), "files": 4, "bytes": size, "linked": []}
    assert names(engine) == {*CONTENTS, ENGINE_JSON, SIGNATURE}
    status, out, _ = lmcast("verify", engine)
    assert (status, "model.sig was not checked: give --key" in out) == (0, True)
    assert manifest.verify(engine, quick=True) == []
    public = keys / f"{curve}.pub"
    status, out, _ = lmcast("verify", engine, "--key", public)
    assert (status, out) == (
        0,
        f"every file is as it was written, and signed with the key of {public}\n",
    )
    moved = engine.rename(engine.parent / "another name")
    (moved.parent / "link").symlink_to(moved)
    for place in (moved, moved.parent / "link"):
        status, out, _ = lmcast("verify", place, "--key", public, "--json")
        assert (status, json.loads(out)) == (0, {"ok": True, "problems": []})


REFUSED = {
    "no such key": ("sign", "absent", "absent does not exist; a private key"),
    "a FIFO": ("sign", "pipe", "pipe is not a regular file"),
    "a text": ("sign", "text", "text is no key in PEM form; a private key"),
    "an empty file": ("verify", "empty", "empty is no key in PEM form; a public key"),
    "a public key to sign": ("sign", PUBLIC, "P-256.pub is a public key; a private key"),
    "a private key to verify": ("verify", KEY, "P-256.pem is a private key; a public key"),
    "an encrypted key": ("sign", "locked.pem", "is encrypted; decrypt it first: openssl pkey"),
    "one of the older form": ("sign", "locked SEC1.pem", "is encrypted; decrypt it first"),
    "a broken private key": ("sign", "broken.pem", "is no private key in PEM form that can be"),
    "a broken public key": ("verify", "broken.pub", "is no public key in PEM form that can be"),
    "another curve": ("sign", "koblitz.pem", "no elliptic-curve key on P-256, P-384 or P-521"),
    "an Edwards curve": ("verify", "edwards.pub", "no elliptic-curve key on P-256"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_keys_that_are_refused(name: str, signed: Path, keys: Path, lmcast):
    command, key, message = REFUSED[name]
    before = (signed / SIGNATURE).read_bytes()
    status, out, error = lmcast(command, signed, "--key", keys / key)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert message in error
    assert (signed / SIGNATURE).read_bytes() == before


def test_engines_that_are_refused(engine: Path, keys: Path, tmp_path: Path, lmcast):
    status, out, error = lmcast("verify", engine, "--key", keys / PUBLIC)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert f"{engine} has no model.sig: it is not signed" in error
    for command, key in (("sign", KEY), ("verify", PUBLIC)):
        status, out, error = lmcast(command, tmp_path, "--key", keys / key)
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert "it is no lmcast engine" in error


@pytest.mark.parametrize("missing", ["model_signing", "OpenSSL"])
def test_without_the_package(missing: str, engine: Path, keys: Path, monkeypatch, lmcast):
    for name in [n for n in sys.modules if n.split(".")[0] in ("model_signing", missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for command, key in (("sign", KEY), ("verify", PUBLIC)):
        status, out, error = lmcast(command, engine, "--key", keys / key)
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert missing in error and "pip install 'lmcast[sign]'" in error
    assert lmcast("verify", engine)[0] == 0


def flip(name: str) -> Callable[[Path], None]:
    def change(engine: Path) -> None:
        data = bytearray((engine / name).read_bytes())
        data[len(data) // 2] ^= 1
        (engine / name).write_bytes(data)

    return change


def forge(engine: Path) -> None:
    """Change a file and the manifest with it: the engine is whole, but not the one signed."""
    kept = (engine / SIGNATURE).read_bytes()
    (engine / "plans/b").write_bytes(b"malice")
    write_manifest(engine, DESCRIPTION)
    (engine / SIGNATURE).write_bytes(kept)
    assert manifest.verify(engine) == []


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change something in the signature as JSON."""

    def apply(engine: Path) -> None:
        body = json.loads((engine / SIGNATURE).read_text())
        change(body)
        (engine / SIGNATURE).write_text(json.dumps(body))

    return apply


def resign(key: str, *left_out: str) -> Callable[[Path], None]:
    """Sign with model-signing itself, which can leave files out."""

    def apply(engine: Path) -> None:
        config = hashing.Config().set_ignored_paths(paths=[SIGNATURE, *left_out])
        signer = signing.Config().set_hashing_config(config)
        path = engine.parent / "key"
        path.write_bytes(MADE[key][0].private_bytes(Encoding.PEM, PKCS8, PLAIN))
        signer.use_elliptic_key_signer(private_key=path).sign(engine, engine / SIGNATURE)

    return apply


def another_hand(engine: Path) -> None:
    """A signature with another key that says it were made with ours."""
    ours = json.loads((engine / SIGNATURE).read_text())["verificationMaterial"]
    resign("other")(engine)
    edit(lambda b: b.update(verificationMaterial=ours))(engine)


def payload(body: dict) -> None:
    data = base64.b64decode(body["dsseEnvelope"]["payload"])
    body["dsseEnvelope"]["payload"] = base64.b64encode(data.replace(b"plans", b"plant")).decode()


def replace_by(data: bytes) -> Callable[[Path], object]:
    return lambda engine: (engine / SIGNATURE).write_bytes(data)


def kind(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(engine: Path) -> None:
        (engine / SIGNATURE).rename(engine.parent / "elsewhere")
        make(engine / SIGNATURE)

    return apply


OTHERS, CHANGED = "files of the engine differ from those that", "was changed since it was made"
NONE, ANOTHER = "is no signature by a key", "was made with another key than"
MATERIAL = "verificationMaterial"
# What happens to a signed engine -> the first problem, in part, and how many.
TAMPERED: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "a file": (flip("plans/b"), "plans/b: sha256 differs", 2),
    "engine.json": (flip(ENGINE_JSON), "engine.json: ", 2),
    "a file and engine.json": (forge, f"model.sig: {OTHERS}", 1),
    "a file too many": (lambda e: (e / "more").write_text("x"), "more: not part of", 2),
    "a file of git": (lambda e: (e / ".gitignore").write_text("x"), ".gitignore: not part of", 2),
    "a file too few": (lambda e: (e / "plans/b").unlink(), "plans/b: missing", 2),
    "a huge file, listed": (lambda e: os.truncate(e / "plans/b", 1 << 40), "plans/b: ", 1),
    "a huge file too many": (
        lambda e: ((e / "more").touch(), os.truncate(e / "more", 1 << 40)),
        "more: not part of",
        1,
    ),
    "another key": (resign("other"), f"model.sig: {ANOTHER}", 1),
    "another hand": (another_hand, f"model.sig: {CHANGED}", 1),
    "its payload": (edit(payload), f"model.sig: {CHANGED}", 1),
    "its number": (
        edit(lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="MEQC")),
        f"model.sig: {CHANGED}",
        1,
    ),
    "less than all signed": (resign("P-256", "plans"), f"model.sig: {OTHERS}", 1),
    "not engine.json": (resign("P-256", ENGINE_JSON), f"model.sig: {OTHERS}", 1),
    "nothing signed": (resign("P-256", "."), f"model.sig: {OTHERS}", 1),
    "no name of a key": (edit(lambda b: b[MATERIAL]["publicKey"].pop("hint")), NONE, 1),
    "an empty name": (edit(lambda b: b[MATERIAL]["publicKey"].update(hint="")), ANOTHER, 1),
    "no envelope": (edit(lambda b: b.pop("dsseEnvelope")), "model.sig: cannot be read: ", 1),
    "no signatures": (
        edit(lambda b: b["dsseEnvelope"].update(signatures=[])),
        "model.sig: cannot be read: ",
        1,
    ),
    "an empty file": (replace_by(b""), f"model.sig: {NONE}", 1),
    "a list": (replace_by(b"[]"), f"model.sig: {NONE}", 1),
    "no text": (replace_by(b"\xff\0"), f"model.sig: {NONE}", 1),
    "depth": (replace_by(b"[" * 100_000), f"model.sig: {NONE}", 1),
    "a huge file": (lambda e: os.truncate(e / SIGNATURE, 4 << 30), "larger than 64 MiB", 1),
    "a FIFO": (kind(os.mkfifo), "model.sig: is a FIFO", 1),
    "a link": (kind(lambda p: p.symlink_to("../elsewhere")), "model.sig: is a symbolic link", 1),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_found(name: str, signed: Path, keys: Path, lmcast):
    change, first, count = TAMPERED[name]
    change(signed)
    status, out, error = lmcast("verify", signed, "--key", keys / PUBLIC)
    assert (status, error) == (1, "")
    *problems, total = out.splitlines()
    assert first in problems[0]
    assert (len(problems), total) == (count, f"{count} problem{'s' * (count > 1)}")
    status, out, _ = lmcast("verify", signed, "--key", keys / PUBLIC, "--json")
    found = json.loads(out)
    assert (status, found["ok"]) == (1, False)
    assert [f"{p['path']}: {p['message']}" for p in found["problems"]] == problems


def test_no_byte_of_a_signature_is_a_traceback(signed: Path, keys: Path):
    """A flip may hit what is not signed, such as a space: then the rest still holds."""
    data = (signed / SIGNATURE).read_bytes()
    whole = json.loads(data)["dsseEnvelope"]
    for place in range(0, len(data), 17):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        (signed / SIGNATURE).write_bytes(damaged)
        if verify(signed, keys / PUBLIC) == []:
            envelope = json.loads(damaged)["dsseEnvelope"]
            assert envelope["payload"] == whole["payload"]
            assert envelope["signatures"][0]["sig"] == whole["signatures"][0]["sig"]


def test_signing_again_replaces(signed: Path, keys: Path, monkeypatch, lmcast):
    before = (signed / SIGNATURE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        status, _, error = lmcast("sign", signed, "--key", keys / "other.pem")
    assert (status, "No space left" in error) == (2, True)
    assert (signed / SIGNATURE).read_bytes() == before
    assert names(signed) == {*CONTENTS, ENGINE_JSON, SIGNATURE}
    assert lmcast("sign", signed, "--key", keys / "other.pem")[0] == 0
    assert names(signed) == {*CONTENTS, ENGINE_JSON, SIGNATURE}
    assert verify(signed, keys / "other.pub") == []
    assert [p.path for p in verify(signed, keys / PUBLIC)] == [SIGNATURE]
    status = (signed / SIGNATURE).stat().st_mode
    assert status == (signed / ENGINE_JSON).stat().st_mode


def test_damaged_engine_is_not_signed(engine: Path, keys: Path, lmcast):
    flip("plans/b")(engine)
    status, out, error = lmcast("sign", engine, "--key", keys / KEY)
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert error.startswith(f"failed: {engine}: plans/b: sha256 differs")
    assert names(engine) == {*CONTENTS, ENGINE_JSON}


def test_model_signing_agrees(signed: Path, keys: Path):
    """Who has no lmcast checks with the tool of the format, as README.md says."""
    config = verifying.Config().use_elliptic_key_verifier(public_key=keys / PUBLIC)
    config.verify(signed, signed / SIGNATURE)
    forge(signed)
    with pytest.raises(ValueError, match=r"Hash mismatch for 'engine\.json'"):
        config.verify(signed, signed / SIGNATURE)
    resign("P-256")(signed)
    assert verify(signed, keys / PUBLIC) == []


def test_writing_anew_drops_the_signature(signed: Path, keys: Path, tmp_path: Path, lmcast):
    write_manifest(signed, DESCRIPTION)
    assert names(signed) == {*CONTENTS, ENGINE_JSON}

    checkpoint, packed = tmp_path / "checkpoint", tmp_path / "packed"
    checkpoint.mkdir()
    tiny_llama(checkpoint)
    for written, *command in (
        (signed, "export", checkpoint, "-o", signed, "--weights", "link", "--no-parity", "--force"),
        (packed, "pack", signed, "-o", packed),
        (signed, "pack", signed),
    ):
        assert lmcast("sign", signed, "--key", keys / KEY)[0] == 0
        status, _, error = lmcast(*command)
        assert status == 0, error
        assert f"warning: {written} is not signed" in error
        assert error.count("\n") == 1
        assert not (written / SIGNATURE).exists()
    shutil.rmtree(checkpoint)
    assert lmcast("sign", signed, "--key", keys / KEY)[0] == 0


@pytest.mark.parametrize("hashed", [True, False])
def test_linked_weights_are_covered_by_their_hash(
    hashed: bool, engine: Path, keys: Path, tmp_path: Path, lmcast
):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    now = SourceFile.of(file)
    entry = {"path": str(file), "size": now.size, "mtime_ns": now.mtime_ns}
    entry["header_sha256"] = now.header_sha256
    if hashed:
        entry["sha256"] = hashlib.sha256(b"weights").hexdigest()
    write_manifest(engine, {**DESCRIPTION, "linked": [entry]})
    status, out, _ = lmcast("sign", engine, "--key", keys / KEY)
    said = f"not covered: weights linked in {file}, but for their size"
    assert (status, said in out) == (0, not hashed)
    assert verify(engine, keys / PUBLIC) == []
