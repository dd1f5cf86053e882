"""What is said to an OpenAI-compatible server and what its replies mean: one request at a time, nothing asked twice."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.secrets import SECRET_REFUSED, holds_secret, redacted
from tinyllm_bench.generation.encoding import before_stop
from tinyllm_bench.generation.requests import Completion, GenerationRequest

FALLBACK_KEY_VARIABLE = "OPENAI_API_KEY"
_WORTH_REPEATING = {408, 409, 425, 429}  # and every 5xx
_NO_LIST = {404, 405, 501}  # a server need not list its models
_MOST_STOPS = 4  # OpenAI takes no more; the others are looked for in what comes back
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_LONGEST_MESSAGE = 200  # characters of a server's own words
_MOST_BYTES = 16 << 20  # of a reply: a text of a million tokens is smaller
_CLOSING_SECONDS = 10.0


class Again(Exception):
    """A reply that may be better next time. `wait`: seconds the server asks for; `unreachable`: nobody was there."""

    def __init__(self, reason: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.unreachable = reason, wait, unreachable


class Malformed(Again):
    """A reply that is not JSON."""


class Refused(Exception):
    """The server will not answer this one request, however often it is asked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ApiClient:
    """One server and one model of it. The key is read from the environment by `open` and sent, nothing else.

    `timeout` is in seconds of a whole request, from the first attempt to connect to the last byte of the reply: a
    server that sends a byte now and then does not renew it. Redirections are not followed, for the key would go along.

    Raises:
        UserError: the address is none, or holds a user, a password or a key.
    """

    def __init__(self, url: str, model: str, *, chat: bool, timeout: float, key_variable: str) -> None:
        if holds_secret(f"api:{url}#{model}"):
            raise UserError(f"the API's address {SECRET_REFUSED}")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(
                f"the API's address is malformed: {error}; write it like http://localhost:8000/v1"
            ) from None
        self.url, self.model = url.rstrip("/"), model
        self._chat, self._timeout, self._variable = chat, timeout, key_variable
        self._key = ""
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx.AsyncClient | None = None

    def open(self) -> None:
        """Read the key and prepare connections; nothing is sent.

        Raises:
            UserError: the key cannot be part of a request.
        """
        self._key = (os.environ.get(self._variable) or os.environ.get(FALLBACK_KEY_VARIABLE) or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # httpx would show it in its own error
            raise UserError(
                f"the API key in {self._variable} or {FALLBACK_KEY_VARIABLE} holds odd characters; set it anew"
            )
        headers = {"Accept-Encoding": "identity"}  # what is unpacked while it arrives may fill the memory
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # An event loop of its own: only there has a request one limit of time, whatever it is waiting for.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api", daemon=True)
        self._thread.start()
        connecting = httpx.Timeout(None, connect=self._timeout / 2)  # less than all, so that it is told apart
        self._http = httpx.AsyncClient(headers=headers, timeout=connecting, limits=httpx.Limits())

    def close(self) -> None:
        """Close every connection; what is asked at this moment gets no answer."""
        http, loop, thread = self._http, self._loop, self._thread
        self._http = self._loop = self._thread = None  # first, so that nothing new is asked
        if http is not None and loop is not None and thread is not None:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_finish(http), loop).result(_CLOSING_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSING_SECONDS)
            loop.close()

    def check_model(self) -> None:
        """Ask which models there are.

        Raises:
            UserError: nobody is there, the key is wrong, the model is not served, or this is no such API.
            Again: the server is busy.
        """
        try:
            reply = self._send("GET", "/models", allowed=_NO_LIST)
            names = None if reply is None else [str(model["id"]) for model in reply["data"]]
        except (Malformed, KeyError, TypeError):
            raise UserError(
                f"{self.url}/models does not list models as an OpenAI-compatible server does; write the API's base"
                " address, such as http://localhost:8000/v1"
            ) from None
        except Again as error:
            if not error.unreachable:
                raise
            raise UserError(
                f"{self.url} cannot be reached ({error.reason}); start the server, or correct the address"
            ) from None
        if names is not None and self.model not in names:
            raise unknown_name(f"model at {self.url}:", self.model, names)

    def complete(self, request: GenerationRequest) -> Completion:
        """The answer to one request; its `seconds` are 0.

        Raises:
            Again, Refused, UserError: see the classes; the last when no request can be answered.
        """
        path = "/chat/completions" if self._chat else "/completions"
        reply = self._send("POST", path, self._body(request))
        assert reply is not None
        return self._written(reply, request)

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop[:_MOST_STOPS])
        asked = (
            {"messages": [{"role": "user", "content": request.prompt}]} if self._chat else {"prompt": request.prompt}
        )
        return {**body, **asked}

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, allowed: set[int] | None = None
    ) -> dict[str, Any] | None:
        """The reply's JSON object; None where the status is one of `allowed`."""
        http, loop = self._http, self._loop
        if http is None or loop is None:
            raise Again("the connection is closed")
        try:
            response = asyncio.run_coroutine_threadsafe(self._whole(http, method, path, body), loop).result()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise Again(f"no connection: {redacted(str(error)) or type(error).__name__}", unreachable=True) from None
        except TimeoutError:
            raise Again(f"no answer within {self._timeout:g} s") from None
        except (httpx.HTTPError, CancelledError) as error:
            raise Again(f"the connection broke ({type(error).__name__})") from None
        if response.status_code in (allowed or ()):
            return None
        self._check_status(response)
        try:
            reply = response.json()
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise Malformed("the reply is not a JSON object")
        return reply

    async def _whole(
        self, http: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx.Response:
        """The reply, read to its end.

        Raises:
            TimeoutError: not within the limit.
            Again: it is compressed, or larger than a text can be.
            httpx.HTTPError: no connection, or it broke.
        """
        parts, size = [], 0
        async with asyncio.timeout(self._timeout), http.stream(method, self.url + path, json=body) as response:
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.lower() != "identity":
                raise Again(f"the reply is compressed ({encoding[:20]!r}), which nobody asked for")
            async for part in response.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > _MOST_BYTES:
                    raise Again(f"the reply is larger than {_MOST_BYTES >> 20} MiB")
        return httpx.Response(response.status_code, headers=response.headers, content=b"".join(parts))

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        said = f"{status}{self._message(response)}"
        if status in (401, 403):
            what = "refuses the key" if self._key else "wants a key"
            raise UserError(f"{self.url} {what} ({status}); set {self._variable} to one that may use {self.model!r}")
        if status in (402, 404) or response.is_redirect:
            raise UserError(f"{self.url} cannot serve {self.model!r}: it answers {said}; correct api:URL#MODEL")
        if status in _WORTH_REPEATING or response.is_server_error:
            raise Again(f"the server answers {said}", wait=_retry_after(response.headers.get("retry-after")))
        raise Refused(f"the server answers {said}")

    def _message(self, response: httpx.Response) -> str:
        """The server's own words, in one short line, without the key should it repeat that."""
        try:
            said = _error_of(response.json()) or response.text
        except ValueError:
            said = response.text
        return self._quoted(said)

    def _quoted(self, said: str) -> str:
        line = " ".join((said.replace(self._key, "***") if self._key else said).split())[:_LONGEST_MESSAGE]
        return f" ({line})" if line else ""

    def _written(self, reply: dict[str, Any], request: GenerationRequest) -> Completion:
        try:
            choice = reply["choices"][0]
            text = _content(choice["message"]) if self._chat else choice["text"]
            ended = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            text, ended = None, None
        if ended == "content_filter":
            raise Refused("the server's content filter held the text back")
        if not isinstance(text, str):
            raise Again(f"the reply holds no text{self._quoted(_error_of(reply))}")
        text, cut = before_stop(text, request.sampling.stop)
        finish: Literal["stop", "length"] = "length" if ended == "length" and not cut else "stop"
        tokens_in = _counted(reply, "prompt_tokens", request.prompt)
        return Completion(text, tokens_in, _counted(reply, "completion_tokens", text), finish, 0.0)


async def _finish(http: httpx.AsyncClient) -> None:
    """End the requests that are under way, then their connections."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await http.aclose()


def _content(message: Mapping[str, Any]) -> str | None:
    """A message's text. What a server puts into fields or parts of their own (`reasoning_content`, `thinking`) is no
    text: a message that holds nothing else has an empty one."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        return "".join(str(part.get("text", "")) for part in parts)
    if content is None and any(isinstance(message.get(name), str) for name in _THOUGHTS):
        return ""
    return content


def _error_of(reply: Any) -> str:
    error = reply.get("error", reply) if isinstance(reply, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _counted(reply: dict[str, Any], name: str, text: str) -> int:
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < _MOST_BYTES else len(text.split())


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return None if math.isnan(seconds) else max(seconds, 0.0)
    with contextlib.suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None
