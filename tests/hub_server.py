"""A server of the few routes of the Hugging Face Hub that a download takes, for one model."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

MODEL = "lab/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)
# X-Error-Code of the Hub -> status
ERRORS = {"GatedRepo": 403, "RepoNotFound": 404, "RevisionNotFound": 404, "": 503, "Token": 401}


class Hub(ThreadingHTTPServer):
    """Serves `folder` as the commit COMMIT of MODEL, its branch main and its tag v1.

    refuse: a route ('api', 'resolve') -> the error that it answers with; 'body': 'Half', of a
    file. asked: every request.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.refuse: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []  # path, user agent

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> dict[str, bytes]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def downloaded(self) -> set[str]:
        """Return the files whose contents were asked for."""
        resolved = [path.partition("/resolve/")[2] for path, _ in self.asked]
        return {path.partition("/")[2] for path in resolved if path}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((path, self.headers["user-agent"]))
        api = f"/api/models/{MODEL}"
        route = "api" if path.startswith("/api/") else "resolve"
        if self.server.refuse.get(route) == "Other":
            self.send_json({"error": "not here"})  # as a server of something else
        elif self.server.refuse.get(route) == "NoCommit":
            self.send_json({"id": MODEL})
        elif route in self.server.refuse:
            self.fail(self.server.refuse[route])
        elif path in (api, *(f"{api}/revision/{name}" for name in REVISIONS)):
            listed = [{"rfilename": n, "size": len(d)} for n, d in self.server.files().items()]
            self.send_json({"id": MODEL, "sha": COMMIT, "siblings": listed})
        elif path == f"{api}/tree/{COMMIT}":
            self.send_json(
                [
                    {"type": "file", "path": n, "size": len(d), "oid": digest(d)}
                    for n, d in self.server.files().items()
                ]
            )
        elif path.startswith(tuple(f"/{MODEL}/resolve/{name}/" for name in REVISIONS)):
            self.send_whole(self.server.files()[path.partition("/resolve/")[2].partition("/")[2]])
        else:
            self.fail("RevisionNotFound" if path.startswith(api) else "RepoNotFound")

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), "application/json")

    def send_whole(self, data: bytes) -> None:
        """Send a file, or half of it as if that were all."""
        halves = self.server.refuse.get("body") == "Half" and self.command == "GET"
        self.send(data[: len(data) // 2] if halves else data, tag=digest(data))

    def send(self, data: bytes, kind: str = "application/octet-stream", tag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{tag or digest(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def fail(self, error: str) -> None:
        self.send_response(ERRORS[error])
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
