"""What is said to an OpenAI-compatible server and what its replies mean: one request at a time, nothing asked twice."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.generation.encoding import before_stop
from tinyllm_bench.generation.requests import Wish, Written

FALLBACK_KEY_VARIABLE = "OPENAI_API_KEY"
_WORTH_REPEATING = {408, 409, 425, 429}  # and every 5xx
_NO_LIST = {404, 405, 501}  # a server need not list its models
_MOST_STOPS = 4  # OpenAI takes no more; the others are looked for in what comes back
_LONGEST_MESSAGE = 200  # characters of a server's own words


class Again(Exception):
    """A reply that may be better next time. `wait`: seconds the server asks for; `unreachable`: nobody was there."""

    def __init__(self, reason: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.unreachable = reason, wait, unreachable


class Malformed(Again):
    """A reply that is not JSON."""


class Refused(Exception):
    """The server will not answer this one wish, however often it is asked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ApiClient:
    """One server and one model of it. The key is read from the environment by `open` and sent, nothing else.

    Raises:
        UserError: the address is none, or holds a password.
    """

    def __init__(self, url: str, model: str, *, chat: bool, timeout: float, key_variable: str) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(
                f"the API's address is malformed: {error}; write it like http://localhost:8000/v1"
            ) from None
        if parsed.userinfo:
            raise UserError(f"the API's address holds a user or password; put the key into {key_variable} instead")
        self.url, self.model = url.rstrip("/"), model
        self._chat, self._timeout, self._variable = chat, timeout, key_variable
        self._key = ""
        self._http: httpx.Client | None = None

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
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.Client(headers=headers, timeout=self._timeout)

    def close(self) -> None:
        """Close every connection."""
        if self._http is not None:
            self._http.close()

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

    def complete(self, wish: Wish) -> Written:
        """The answer to one wish; its `seconds` are 0.

        Raises:
            Again, Refused, UserError: see the classes; the last when no wish can be answered.
        """
        path = "/chat/completions" if self._chat else "/completions"
        reply = self._send("POST", path, self._body(wish))
        assert reply is not None
        return self._written(reply, wish)

    def _body(self, wish: Wish) -> dict[str, Any]:
        sampling = wish.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": wish.seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop[:_MOST_STOPS])
        asked = {"messages": [{"role": "user", "content": wish.prompt}]} if self._chat else {"prompt": wish.prompt}
        return {**body, **asked}

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, allowed: set[int] | None = None
    ) -> dict[str, Any] | None:
        """The reply's JSON object; None where the status is one of `allowed`."""
        assert self._http is not None, "use `open` first"
        try:
            response = self._http.request(method, self.url + path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise Again(f"no connection: {str(error) or type(error).__name__}", unreachable=True) from None
        except httpx.TimeoutException:
            raise Again(f"no answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise Again(f"the connection broke ({type(error).__name__})") from None
        if response.status_code in (allowed or ()):
            return None
        self._check_status(response)
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise Malformed("the reply is not a JSON object")
        return reply

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

    def _written(self, reply: dict[str, Any], wish: Wish) -> Written:
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if self._chat else choice["text"]
            ended = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            text, ended = None, None
        if ended == "content_filter":
            raise Refused("the server's content filter held the text back")
        if not isinstance(text, str):
            raise Again(f"the reply holds no text{self._quoted(_error_of(reply))}")
        text, cut = before_stop(text, wish.sampling.stop)
        finish: Literal["stop", "length"] = "length" if ended == "length" and not cut else "stop"
        tokens_in = _counted(reply, "prompt_tokens", wish.prompt)
        return Written(text, tokens_in, _counted(reply, "completion_tokens", text), finish, 0.0)


def _error_of(reply: Any) -> str:
    error = reply.get("error", reply) if isinstance(reply, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _counted(reply: dict[str, Any], name: str, text: str) -> int:
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else len(text.split())


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(float(value), 0.0)
    with contextlib.suppress(ValueError):
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None
