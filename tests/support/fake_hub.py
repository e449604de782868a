"""A Hugging Face hub on loopback, as far as huggingface-hub asks one: lists of files, and the files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """``repositories`` are names, and their files by name; ``asked`` is what has been asked for. Those in ``gated``
    want a token."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]], gated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repositories = repositories
        self.gated = gated
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Request(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        files = self.server.repositories.get(repo)
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        elif repo in self.server.gated and "authorization" not in self.headers:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        elif path.startswith("api/models/"):
            siblings = [{"rfilename": name} for name in files]
            told = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            self._send(200, json.dumps(told).encode(), {"content-type": "application/json"}, with_body)
        elif (content := files.get(path.partition("/resolve/main/")[2])) is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        else:
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def serving(repositories: dict[str, dict[str, bytes]], gated: frozenset[str] = frozenset()) -> Iterator[Hub]:
    hub = Hub(repositories, gated)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
