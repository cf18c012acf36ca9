"""Models of the Hugging Face Hub by name: what is read of one, downloaded into the Hub's own cache.

A name is ORG/NAME, or ORG/NAME:FILE.gguf. huggingface_hub does the work, so HF_HOME, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE mean what they mean elsewhere.
"""

import glob
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import WEIGHTS, Folder, cached_repository
from lmcast.exporter.progress import Progress, Step
from lmcast.plugins.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo
    from huggingface_hub.utils.tqdm import tqdm

WORD, NAME = r"[a-z0-9][a-z0-9._-]*", r"[^:/.][^:/]*"
MODEL = re.compile(rf"({WORD}/{WORD})(?::((?:{NAME}/)*{NAME}\.gguf))?", re.IGNORECASE)
# What may say something of text, of quantization or of shards: small, and never code or a pickle.
TEXTS = (".json", ".jinja", ".model")
# Read by huggingface_hub when it is imported, and by hf_xet, its library for large files, when that
# downloads. Otherwise the one tells the version of torch, and which program runs this one by a list
# that it fetches first; the other reports how fast each transfer was.
TELEMETRY_OFF = "HF_HUB_DISABLE_TELEMETRY"
# Of the bars of huggingface_hub those that count what comes to the disk.
BYTES_BARS = {"huggingface_hub.http_get", "huggingface_hub.xet_get"}
LOGIN = "log in with `hf auth login` or HF_TOKEN"
LOOK = "look at the network and HF_ENDPOINT, or give a directory"


def is_model(name: object) -> bool:
    """Return whether this names a model of the Hub: a text of that form which is no path here.

    A pathlib.Path is always a path, and so is a text that ends as a file of weights does.
    """
    found = MODEL.fullmatch(name) if isinstance(name, str) else None
    if found is None or os.path.lexists(found[0]):
        return False
    return found[2] is not None or not found[1].endswith(WEIGHTS)


def origin(path: Path) -> dict[str, str] | None:
    """Return the repository and the commit of a checkpoint in the Hub's cache, None elsewhere."""
    found = cached_repository(Path(os.path.abspath(path)))
    if found is None:
        return None
    folder, commit = found
    name = folder.name.removeprefix("models--").replace("--", "/")
    return {"repository": name, "revision": commit}


def revision_of(name: object, fields: Mapping[str, Any]) -> str | None:
    """Return the commit of a model that an engine was made from, by its engine.json; None for
    another model, and for a path."""
    made_from = fields.get("hub")
    if made_from is None or not is_model(name):
        return None
    same = str(name).partition(":")[0] == made_from["repository"]
    return str(made_from["revision"]) if same else None


def fetch(name: str, revision: str | None, progress: Progress) -> Path:
    """Return the path of a model, after what is missing of its files has been downloaded.

    name: as is_model accepts; revision: a branch, tag or commit, None: main. Where the Hub cannot
    be asked, or refuses, the snapshot in the cache is taken, and progress warned. Raises
    CheckpointError where there is none, and where nothing in the repository can be read.
    """
    _switch_telemetry_off()
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    # All that fails on the way derives from this class, of httpx or of httpx2.
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    repository, _, file = name.partition(":")
    try:
        listed = _ask(repository, revision)
    except RevisionNotFoundError:
        page = f"{ENDPOINT}/{repository}"
        raise CheckpointError(
            f"{repository}: has no revision {revision!r}; give a branch, tag or commit of {page}"
        ) from None
    except (http_error, OSError, ValueError, LookupError, TypeError) as error:
        # The last three are what another server than the Hub's, or a login page, may answer.
        what, remedy = _explain(error, repository)
        path = _cached(repository, file, revision)
        if path is None:
            wanted = "it" if revision is None else f"its revision {revision!r}"
            raise CheckpointError(
                f"{name}: is no path here; on the Hub, {what}, and {wanted} is not in the cache"
                f" ({HF_HUB_CACHE}); {remedy}"
            ) from None
        commit = cast(dict[str, str], origin(path))["revision"]
        progress.warn(
            f"{name}: on the Hub, {what}; used is the cached snapshot {commit}, and what that lacks"
            " is taken to be absent"
        )
        return path
    try:
        return _download(listed, repository, file, revision, progress)
    except InputError:
        raise
    except (http_error, OSError, ValueError, RuntimeError) as error:
        raise _failed(name, repository, error) from None


def _failed(name: str, repository: str, error: Exception) -> CheckpointError:
    """Return what a download that failed is said as."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    local = isinstance(error, LocalEntryNotFoundError)  # not there, for a reason behind it
    if isinstance(error, OSError) and error.errno and not local:
        return CheckpointError(
            f"{name}: cannot be downloaded into the cache ({HF_HUB_CACHE}): {error.strerror}"
        )
    what, remedy = _explain((local and error.__cause__) or error, repository)
    return CheckpointError(f"{name}: on the Hub, {what}; {remedy}")


def _switch_telemetry_off() -> None:
    """Switch telemetry off, unless the user has said otherwise; huggingface_hub may be imported
    already."""
    os.environ.setdefault(TELEMETRY_OFF, "1")
    from huggingface_hub import constants

    if os.environ[TELEMETRY_OFF] == "1":
        constants.HF_HUB_DISABLE_TELEMETRY = True


def _library() -> dict[str, Any]:
    return {"library_name": "lmcast", "library_version": version("lmcast")}


def _ask(repository: str, revision: str | None) -> "ModelInfo":
    """Return the commit and the files of a repository; raises what huggingface_hub does, and
    ValueError for an answer without a commit."""
    from huggingface_hub import HfApi, constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT
    api = HfApi(**_library())
    found = api.model_info(repository, revision=revision, timeout=seconds, files_metadata=True)
    if not found.sha:  # without which nothing can be downloaded
        raise ValueError("its answer names no commit")
    return found


def _cached(repository: str, file: str, revision: str | None) -> Path | None:
    """Return the snapshot of a revision in the cache, however much it holds, or a file of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    only: dict[str, Any] = {"local_files_only": True, "allow_patterns": "config.json"}
    try:
        found = Path(snapshot_download(repository, revision=revision, **only)) / file
    except (LocalEntryNotFoundError, ValueError):
        return None
    return found if found.exists() else None


def _download(
    listed: "ModelInfo", repository: str, file: str, revision: str | None, progress: Progress
) -> Path:
    """Download what is read of a repository; return its snapshot, or the GGUF file in it."""
    from huggingface_hub import hf_hub_download, snapshot_download

    from lmcast.exporter.checkpoint.huggingface import require_checkpoint, weight_files

    sizes = {found.rfilename: found.size or 0 for found in listed.siblings or []}
    names = sorted(sizes)
    file = file or _only_gguf(repository, names)
    # A call with the name of the revision lets the cache note which commit that is.
    commit, noted = listed.sha, revision
    folder = Path()
    if file:
        weights = _parts(repository, names, file)
    else:
        require_checkpoint(Path(repository), sorted({name.partition("/")[0] for name in names}))
        texts: dict[str, Any] = {"allow_patterns": [glob.escape(name) for name in _texts(names)]}
        texts |= {"tqdm_class": _bar(lambda done: None), **_library()}
        folder = Path(snapshot_download(repository, revision=revision, **texts))
        found = weight_files(Folder.at(folder), names)
        weights = [name for name in found if name.endswith(WEIGHTS)]
        noted = commit
    with progress.stage(f"downloading {repository}", sum(sizes[n] for n in weights)) as step:
        given: dict[str, Any] = {"tqdm_class": _bar(step), **_library()}
        for name in weights:  # in this thread: the library's threads go on after an interrupt
            path = Path(hf_hub_download(repository, name, revision=noted, **given))
            folder, noted = path.parents[name.count("/")], commit
    if folder.name != commit:
        raise CheckpointError(f"{repository}: changed while it was downloaded; run this again")
    return folder / file


def _texts(names: list[str]) -> list[str]:
    """Return which files are read beside the weights."""
    from lmcast.exporter.checkpoint.chat_templates import FOLDER

    places = {".": TEXTS, FOLDER: (".jinja",)}
    return [n for n in names if n.endswith(places.get(str(PurePosixPath(n).parent), ()))]


def _only_gguf(repository: str, names: list[str]) -> str:
    """Return the one GGUF file of a repository without safetensors, '' where there is none."""
    from lmcast.exporter.checkpoint.gguf.names import models

    found = models(names)
    if not found or any(n.endswith(".safetensors") and "/" not in n for n in names):
        return ""
    if len(found) > 1:
        raise CheckpointError(
            f"{repository}: has {len(found)} GGUF files; give one of them, as"
            f" {repository}:{found[0]}"
        )
    return found[0]


def _parts(repository: str, names: list[str], file: str) -> list[str]:
    """Return a GGUF file, with its other parts where it is split."""
    from lmcast.exporter.checkpoint.gguf.names import PART, models

    if file not in names:
        known = ", ".join(models(names)) or "none"
        raise CheckpointError(f"{repository}: has no file {file}; its GGUF files: {known}")
    found = {name: match for name in names if (match := PART.fullmatch(name))}
    if file not in found:
        return [file]
    whole = found[file].group(1, 3)
    return [name for name, match in found.items() if match.group(1, 3) == whole]


def _bar(step: Step) -> "type[tqdm]":
    """Return a class of progress bars that show nothing, and count bytes by `step`."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, name: str | None = None, **given: Any):
            self.counts = name in BYTES_BARS
            begin: Any = super().__init__  # which has no types
            begin(*args, name=name, **{**given, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts and n:
                step(int(n))
            return None

    return Bar


def _explain(error: BaseException, repository: str) -> tuple[str, str]:
    """Return what is the matter with a model by an error of huggingface_hub, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repository}"
    match error:
        case GatedRepoError():
            return "access to it is gated", f"ask for it at {page}, and {LOGIN}"
        case RepositoryNotFoundError():
            return "it does not exist or is private", f"correct the name, or {LOGIN}"
        case OfflineModeIsEnabled():
            return "it is not looked for, as HF_HUB_OFFLINE is set", "unset that"
        case HFValidationError():
            return "no such name is allowed", "correct it, or give a directory"
        case HfHubHTTPError() if error.response.status_code == 401:
            return "the token is refused", LOGIN
        case HfHubHTTPError() if error.response.status_code == 403:
            return "access is refused (403)", f"look at {page}, and at what the token may do"
        case HfHubHTTPError():
            return f"it answers with status {error.response.status_code}", "try again later"
    text = " ".join(str(error).split())
    return f"it cannot be asked for ({type(error).__name__}: {text:.200})", LOOK
