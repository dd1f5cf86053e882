"""A Hugging Face hub on the loopback, as far as pushing a model asks for one: repositories and their files."""

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

TOKEN = "hf_a-secret-of-nobody"


@dataclass
class Repository:
    """A model repository: who may see it, its files, the messages of its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class FakeHub:
    """A context manager. It takes `TOKEN` alone; `asked` collects (method, path) of every request.

    `breaks`: answer this status to every commit, with the token in the text, as a careless proxy would.
    """

    def __init__(self, *, breaks: int | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.breaks = breaks
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one request with the right token."""
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision)/main)?", path)
        if found is None or found[1] not in self.repositories:
            return 404, {"error": "Repository not found"}
        name, what = found[1], found[2]
        if what == "preupload":
            files = [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            return 200, {"files": files}
        if what == "commit":
            return self._commit(name, body)
        return 200, {"id": name, "private": self.repositories[name].private, "sha": "0" * 40, "siblings": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = Repository(asked.get("visibility") == "private" or asked.get("private") is True)
        return 200, {"url": f"{self.url}/{name}"}

    def _commit(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.breaks is not None:
            return self.breaks, {"error": f"refused: Bearer {TOKEN}"}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.repositories[name].commits.append(line["value"]["summary"])
            elif line["key"] == "file":
                self.repositories[name].files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}
        return 200, {**commit, "pullRequestUrl": None, "success": True}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply()

        def do_POST(self) -> None:
            self._reply()

        def _reply(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, value = hub.answer(path, body) if known else (401, {"error": "Invalid username or password."})
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    return Handler
