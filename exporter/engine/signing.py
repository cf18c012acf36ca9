"""Signatures of engines: model.sig, by model-signing with an elliptic-curve key, offline.

It covers every other file of an engine, byte for byte. Of the checkpoint files that a linked engine
points into, it covers what engine.json records: path, size, time and header, and the hash of all
bytes where the export has read them all.
"""

import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import SMALL, read_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, SIGNATURE
from lmcast.exporter.engine.sealed import DamagedError, Problem, read_regular
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from model_signing.hashing import Config

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of model-signing: P-256, P-384, P-521
KEY_BYTES = 1 << 16  # far above what a key needs
# How the first line of a key in PEM form ends, whatever comes before: EC, ENCRYPTED or nothing.
MARKS = {"public": b"PUBLIC KEY-----", "private": b"PRIVATE KEY-----"}
MISMATCH = "Signature mismatch"  # how model-signing begins to say that the files are other ones


class SigningError(InputError):
    """A key that cannot be used, or an engine without a signature."""


@dataclass(frozen=True)
class Signed:
    """What a signature covers, for a person and for a machine."""

    path: str
    key: str  # sha256 of the public key in PEM form, by which a signature names it
    files: int
    bytes: int
    linked: tuple[str, ...]  # not covered but for their size, time and header: no hash is recorded

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [f"{self.path}: covers {self.files} files, {self.bytes:,} bytes; key {self.key}"]
        if self.linked:
            files = self.linked[0] if len(self.linked) == 1 else f"{len(self.linked)} files"
            lines.append(
                f"not covered: weights linked in {files}, but for their size, time and header;"
                " `lmcast pack` takes them in"
            )
        return "\n".join(lines)


@checked
def sign(engine: Path, key: Path) -> Signed:
    """Write model.sig into `engine`, in place of any that is there.

    Raises InputError for what is no engine or no private key, CheckFailed for an engine that
    differs from its manifest; then nothing is written.
    """
    _require()
    from model_signing import signing

    public = _read_key(key, "private")
    problems = manifest.verify(engine)
    if problems:
        raise CheckFailed(f"{engine}: {problems[0]}; not signed")
    # A signature is written whole or not at all, and with the permissions of any other file.
    unfinished = engine / f".{SIGNATURE}.{secrets.token_hex(8)}"
    config = signing.Config().set_hashing_config(_contents())
    try:
        config.use_elliptic_key_signer(private_key=key).sign(engine.resolve(), unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, engine / SIGNATURE)
    finally:
        unfinished.unlink(missing_ok=True)
    found = read_manifest(engine)
    size = (engine / ENGINE_JSON).stat().st_size + sum(f.size for f in found.files)
    linked = tuple(source.path for source in found.linked if source.sha256 is None)
    return Signed(str(engine / SIGNATURE), _fingerprint(public), len(found.files) + 1, size, linked)


@checked
def verify(engine: Path, key: Path) -> list[Problem]:
    """Return all differences of an engine from its manifest, and from what `key` has signed; the
    latter not where a file that differs is large: nothing says how much there would be to hash.

    Raises InputError for what is no engine or no public key, and for an engine without a signature.
    """
    _require()
    public = _read_key(key, "public")
    manifest.verify(engine, quick=True)  # raises where there is no engine at all
    if not os.path.lexists(engine / SIGNATURE):
        raise SigningError(
            f"{engine} has no {SIGNATURE}: it is not signed, as `lmcast sign {engine}` would do"
        )
    problems = manifest.verify(engine)
    unbounded = (p.path == SIGNATURE or _is_large(engine / p.path) for p in problems)
    if not any(unbounded):
        wrong = _wrong_signature(engine, key, public)
        problems += [Problem(SIGNATURE, wrong)] if wrong else []
    return problems


def _is_large(file: Path) -> bool:
    return os.path.lexists(file) and file.lstat().st_size > SMALL


def _wrong_signature(engine: Path, key: Path, public: "EllipticCurvePublicKey") -> str | None:
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    path = engine.resolve() / SIGNATURE
    config = verifying.Config().set_hashing_config(_contents())
    try:
        # Looked at first: model-signing prints a warning where there is none.
        if _named_key(path) != _fingerprint(public):
            return f"was made with another key than {key}"
        config.use_elliptic_key_verifier(public_key=key).verify(path.parent, path)
    except InvalidSignature:
        return f"was changed since it was made with the key of {key}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # All that model-signing may meet in a file that it did not write.
        text = " ".join(str(error).split())
        if text.startswith(MISMATCH):
            return f"files of the engine differ from those that {key} signed"
        return text if isinstance(error, DamagedError) else f"cannot be read: {text[:200]}"
    return None


def _named_key(path: Path) -> object:
    try:
        return json.loads(read_regular(path))["verificationMaterial"]["publicKey"]["hint"]
    except DamagedError:
        raise
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DamagedError("is no signature by a key: damaged, sign again") from None


def _contents() -> "Config":
    """Return what is hashed: all but the signature itself, which must not choose what to leave
    out."""
    from model_signing import hashing

    class Contents(hashing.Config):
        def add_ignored_paths(self, *, model_path: Any, paths: Any) -> None:
            """Called by a verifier with those of the signature."""

    return Contents().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _require() -> None:
    try:
        import_module("model_signing")
    except ImportError as error:
        raise SigningError(
            f"signatures need the package model-signing ({error}): pip install 'lmcast[sign]'"
        ) from None


def _read_key(path: Path, wanted: Literal["public", "private"]) -> "EllipticCurvePublicKey":
    """Return a public key, or the public part of a private one; raises SigningError for other
    files."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not path.is_file():
        found = "is not a regular file" if path.exists() else "does not exist"
        raise SigningError(f"{path} {found}; a {wanted} key in PEM form is needed")
    with open(path, "rb") as file:
        data = file.read(KEY_BYTES)
    if MARKS[wanted] not in data:
        kinds = [f"a {kind} key" for kind, mark in MARKS.items() if mark in data]
        raise SigningError(
            f"{path} is {(*kinds, 'no key in PEM form')[0]}; a {wanted} key in PEM form is needed"
        )
    try:
        key = (
            serialization.load_pem_public_key(data)
            if wanted == "public"
            else serialization.load_pem_private_key(data, None).public_key()
        )
    except TypeError:
        raise SigningError(
            f"{path} is encrypted; decrypt it first: openssl pkey -in {path} -out PLAIN.pem"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningError(f"{path} is no {wanted} key in PEM form that can be read") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise SigningError(
            f"{path} is no elliptic-curve key on P-256, P-384 or P-521; `lmcast sign --help` shows"
            " how to make one"
        )
    return key


def _fingerprint(key: "EllipticCurvePublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
