"""An OpenAI-compatible server on the loopback that answers as a test tells it to."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

MODEL = "tiny-teacher"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one request gets. `hold`: nothing, until the server ends; `drop`: a closed connection.

    `drip`: the head and the body of the reply, a byte every so many seconds; `endless`: the body again and again.
    """

    status: int = 200
    body: bytes | Mapping[str, Any] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: bool = False
    drop: bool = False
    drip: float = 0.0
    endless: bool = False


def words(text: str, **more: Any) -> Reply:
    """A good reply in both forms, as long as the request's own kind is looked for."""
    choice = {"message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop", **more}
    return Reply(body={"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


class FakeServer:
    """A context manager. `script` holds the replies of the first POSTs; later ones echo the end of their prompt.

    `requests_sent` collects `(path, body)` of every POST, `keys` the Authorization headers. With `dies_after` the
    server is gone for good once it has answered that many POSTs. `meanwhile` is called before each POST is answered.
    """

    def __init__(
        self,
        script: Sequence[Reply] = (),
        *,
        models: Reply | None = None,
        key: str | None = None,
        dies_after: int | None = None,
        port: int = 0,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.script, self.key, self.dies_after = list(script), key, dies_after
        self._meanwhile = meanwhile
        self.models = models or Reply(body={"object": "list", "data": [{"id": MODEL}, {"id": "other"}]})
        self.requests_sent: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self._lock, self._released, self._dead = threading.Lock(), threading.Event(), threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self.die()

    def die(self) -> None:
        """No connection is taken any more."""
        if not self._dead.is_set():
            self._dead.set()
            self._http.shutdown()
            self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        """Handle one request; `body` is None for a GET."""
        with self._lock:
            self.keys.append(handler.headers.get("Authorization"))
            reply = self._reply(handler, body)
        if body is not None:
            self._meanwhile()
        if reply.hold:
            self._released.wait(30)
        if not (reply.drop or reply.hold):
            _send(handler, reply)
        with self._lock:
            done = self.dies_after is not None and len(self.requests_sent) >= self.dies_after
        if done:
            self.die()

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> Reply:
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            return Reply(status=401, body={"error": {"message": f"wrong key: {handler.headers.get('Authorization')}"}})
        if body is None:
            return self.models
        self.requests_sent.append((handler.path, body))
        if self.script:
            return self.script.pop(0)
        return words(f"echo of {body.get('prompt') or body['messages'][0]['content']}")


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self, None)

        def do_POST(self) -> None:
            server.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    if reply.drip:
        _drip(handler, reply, body)
        return
    if reply.endless:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(OSError):  # the client has had enough
            while True:
                handler.wfile.write(body)
        return
    handler.send_response(reply.status)
    for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def _drip(handler: BaseHTTPRequestHandler, reply: Reply, body: bytes) -> None:
    head = f"HTTP/1.1 {reply.status} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    slow = head + body if reply.headers.get("from") == "head" else body
    with contextlib.suppress(OSError):
        if slow is body:
            handler.wfile.write(head)
        for byte in slow:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(reply.drip)
