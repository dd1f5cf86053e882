"""A model behind an OpenAI-compatible API: several requests at once, each retried while a retry may help.

`ApiGenerator` holds the retries and the threads, `ApiClient` sends one request and reads its reply. The key comes from
the environment alone and is in no exception, log or record.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
import tenacity

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.secrets import SECRET_REFUSED, holds_secret, redacted
from tinyllm_bench.generation.encoding import before_stop
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, TextGenerator

KEY_VARIABLE = "TINYLLM_BENCH_API_KEY"
FALLBACK_KEY_VARIABLE = "OPENAI_API_KEY"
_FIRST_WAIT, _MAX_WAIT = 1.0, 30.0  # seconds between attempts, doubled each time
_MAX_RETRY_AFTER = 300.0  # seconds; a longer Retry-After is not obeyed, so that the run ends and can resume later
_RETRYABLE = {408, 409, 425, 429}  # and every 5xx
_NO_MODEL_LIST = {404, 405, 501}  # a server need not list its models
_MAX_STOPS = 4  # OpenAI takes no more; the others are searched for in the reply
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MAX_MESSAGE = 200  # characters of a server's own words
_MAX_BYTES = 16 << 20  # of a reply: a text of a million tokens is smaller
_CLOSING_SECONDS = 10.0

T = TypeVar("T")
Answer = Completion | FailedRequest


class RetryableError(Exception):
    """A request that may succeed next time. `wait`: seconds the server asks for; `unreachable`: no connection."""

    def __init__(self, reason: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.unreachable = reason, wait, unreachable


class MalformedReply(RetryableError):
    """A reply that is not a JSON object."""


class RefusedRequest(Exception):
    """The server will not answer this one request, however often it is sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ApiGenerator(TextGenerator):
    """Posts to `URL/chat/completions`, or to `URL/completions` when `chat` is false.

    `timeout` is in seconds per request; `attempts` counts the first one too. The key is the value of `key_variable`,
    else of OPENAI_API_KEY. Tokens are counted by the server's `usage`; where a reply has none they are white-space
    words, which are fewer. An empty text is a valid answer; a reply without a text is retried. `sleep(seconds)` waits
    between attempts.
    """

    engine = "api"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        chat: bool = True,
        concurrency: int = 8,
        timeout: float = 60.0,
        attempts: int = 6,
        batch: int = 32,
        key_variable: str = KEY_VARIABLE,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.batch = batch
        self._concurrency, self._attempts, self._sleep = concurrency, attempts, sleep
        self._client = ApiClient(url, model, chat=chat, timeout=timeout, key_variable=key_variable)

    def __enter__(self) -> Self:
        self._client.open()
        try:
            self._with_retries(self._client.check_model, threading.Event())
        except RetryableError as error:
            self._client.close()
            raise UserError(f"{self._client.url}: {error.reason}, {self._attempts} times; try again later") from None
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Answer]]:
        """`(index of the request, answer)` as each arrives; replies under way when the server fails still come.

        Raises:
            UserError: a wrong key, a model that is not served, a server that cannot be reached any more.
        """
        workers = _Workers(lambda index, stopped: self._complete(requests[index], stopped), len(requests))
        began = time.perf_counter()
        try:
            for index, answer in workers.run(self._concurrency):
                if isinstance(answer, Completion):
                    answer = answer._replace(seconds=time.perf_counter() - began)
                yield index, answer
                began = time.perf_counter()
        finally:
            workers.stopped.set()

    def _complete(self, request: GenerationRequest, stopped: threading.Event) -> Answer | None:
        """The answer to one request; None when the generator was stopped before it came."""
        try:
            return self._with_retries(lambda: self._client.complete(request), stopped)
        except RefusedRequest as refused:
            return FailedRequest(refused.reason)
        except RetryableError as last:
            if stopped.is_set():
                return None
            if last.unreachable:
                raise UserError(
                    f"{self._client.url} is no longer reachable: {last.reason}, {self._attempts} times; start the"
                    " server again and repeat the command: it resumes where it stopped"
                ) from None
            return FailedRequest(f"{last.reason}, {self._attempts} times")

    def _with_retries(self, send: Callable[[], T], stopped: threading.Event) -> T:
        """What `send` returns, called again after each `RetryableError`; the last one is raised."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetryableError),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self._attempts), tenacity.stop_when_event_set(stopped)),
            wait=_wait,
            sleep=self._sleep or tenacity.sleep_using_event(stopped),
            reraise=True,
        )
        return retrying(send)


_backoff = tenacity.wait_exponential_jitter(initial=_FIRST_WAIT, max=_MAX_WAIT, jitter=_FIRST_WAIT)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: exponential with jitter, or the server's Retry-After if that is longer."""
    error = state.outcome.exception() if state.outcome else None
    retry_after = (error.wait or 0.0) if isinstance(error, RetryableError) else 0.0
    return max(_backoff(state), retry_after if retry_after <= _MAX_RETRY_AFTER else 0.0)


class ApiClient:
    """One model of one server: sends one request at a time and never repeats it.

    `timeout` is in seconds of a whole request, from the first attempt to connect to the last byte of the reply: a
    server that sends a byte now and then does not renew it. Redirects are not followed, because the key would be sent
    along.

    Raises:
        UserError: the address is malformed, or holds a user, a password or a key.
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
                f"the API key in {self._variable} or {FALLBACK_KEY_VARIABLE} has characters that"
                " an HTTP header cannot carry; set it again"
            )
        headers = {"Accept-Encoding": "identity"}  # a compressed reply could fill the memory while it is unpacked
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # An event loop of its own: only there does a request have one time limit, whatever it is waiting for.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api", daemon=True)
        self._thread.start()
        # connecting gets less than the whole limit, so that the two timeouts can be distinguished
        timeout = httpx.Timeout(None, connect=self._timeout / 2)
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout, limits=httpx.Limits())

    def close(self) -> None:
        """Close every connection; requests under way get no answer."""
        http, loop, thread = self._http, self._loop, self._thread
        self._http = self._loop = self._thread = None  # first, so that no new request is sent
        if http is not None and loop is not None and thread is not None:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_cancel_and_close(http), loop).result(_CLOSING_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSING_SECONDS)
            loop.close()

    def check_model(self) -> None:
        """Check that the server lists the model.

        Raises:
            UserError: no server, a wrong key, a model that is not served, or not an OpenAI-compatible API.
            RetryableError: the server is busy.
        """
        try:
            reply = self._send("GET", "/models", allowed=_NO_MODEL_LIST)
            names = None if reply is None else [str(model["id"]) for model in reply["data"]]
        except (MalformedReply, KeyError, TypeError):
            raise UserError(
                f"{self.url}/models does not list models as an OpenAI-compatible server does; write the API's base"
                " address, such as http://localhost:8000/v1"
            ) from None
        except RetryableError as error:
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
            RetryableError, RefusedRequest: this request failed; see the classes.
            UserError: no request can be answered.
        """
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop[:_MAX_STOPS])
        if self._chat:
            path, body["messages"] = "/chat/completions", [{"role": "user", "content": request.prompt}]
        else:
            path, body["prompt"] = "/completions", request.prompt
        reply = self._send("POST", path, body)
        assert reply is not None, "no status is allowed to have no reply"
        return self._completion(reply, request)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, allowed: set[int] | None = None
    ) -> dict[str, Any] | None:
        """The reply's JSON object; None where the status is one of `allowed`."""
        http, loop = self._http, self._loop
        if http is None or loop is None:
            raise RetryableError("the connection is closed")
        try:
            response = asyncio.run_coroutine_threadsafe(self._response(http, method, path, body), loop).result()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            reason = redacted(str(error)) or type(error).__name__
            raise RetryableError(f"no connection: {reason}", unreachable=True) from None
        except TimeoutError:
            raise RetryableError(f"no answer within {self._timeout:g} s") from None
        except (httpx.HTTPError, CancelledError) as error:
            raise RetryableError(f"the connection broke ({type(error).__name__})") from None
        if response.status_code in (allowed or ()):
            return None
        self._check_status(response)
        try:
            reply = response.json()
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise MalformedReply("the reply is not a JSON object")
        return reply

    async def _response(
        self, http: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx.Response:
        """The reply, read to its end.

        Raises:
            TimeoutError: it did not end within the limit.
            RetryableError: it is compressed, or larger than a text can be.
            httpx.HTTPError: no connection, or a broken one.
        """
        parts, size = [], 0
        async with asyncio.timeout(self._timeout), http.stream(method, self.url + path, json=body) as response:
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.lower() != "identity":
                raise RetryableError(f"the reply is compressed ({encoding[:20]!r}), which was not requested")
            async for part in response.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > _MAX_BYTES:
                    raise RetryableError(f"the reply is larger than {_MAX_BYTES >> 20} MiB")
        return httpx.Response(response.status_code, headers=response.headers, content=b"".join(parts))

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        problem = f"{status}{self._message(response)}"
        if status in (401, 403):
            what = "refuses the key" if self._key else "requires a key"
            raise UserError(f"{self.url} {what} ({status}); set {self._variable} to one that may use {self.model!r}")
        if status in (402, 404) or response.is_redirect:
            raise UserError(f"{self.url} cannot serve {self.model!r}: it answers {problem}; correct api:URL#MODEL")
        if status in _RETRYABLE or response.is_server_error:
            wait = _retry_after(response.headers.get("retry-after"))
            raise RetryableError(f"the server answers {problem}", wait=wait)
        raise RefusedRequest(f"the server answers {problem}")

    def _message(self, response: httpx.Response) -> str:
        """The server's own words. A function of its own, so that no frame of a raised error holds a key that the server
        repeats."""
        try:
            message = _error_message(response.json()) or response.text
        except ValueError:
            message = response.text
        return self._quoted(message)

    def _quoted(self, message: str) -> str:
        """A server's message in one short line, without the key should the server repeat that."""
        line = " ".join((message.replace(self._key, "***") if self._key else message).split())[:_MAX_MESSAGE]
        return f" ({line})" if line else ""

    def _completion(self, reply: dict[str, Any], request: GenerationRequest) -> Completion:
        try:
            choice = reply["choices"][0]
            text = _content(choice["message"]) if self._chat else choice["text"]
            reason = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            text, reason = None, None
        if reason == "content_filter":
            raise RefusedRequest("the server's content filter withheld the text")
        if not isinstance(text, str):
            raise RetryableError(f"the reply has no text{self._quoted(_error_message(reply))}")
        text, cut = before_stop(text, request.sampling.stop)
        finish: Literal["stop", "length"] = "length" if reason == "length" and not cut else "stop"
        tokens_in = _token_count(reply, "prompt_tokens", request.prompt)
        return Completion(text, tokens_in, _token_count(reply, "completion_tokens", text), finish, 0.0)


async def _cancel_and_close(http: httpx.AsyncClient) -> None:
    """End the requests that are under way, then their connections."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await http.aclose()


def _content(message: Mapping[str, Any]) -> str | None:
    """A message's text, without the reasoning that a server puts into fields or parts of its own
    (`reasoning_content`, `thinking`): a message that holds nothing else has an empty text."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        return "".join(str(part.get("text", "")) for part in parts)
    if content is None and any(isinstance(message.get(name), str) for name in _REASONING_FIELDS):
        return ""
    return content


def _error_message(reply: Any) -> str:
    error = reply.get("error", reply) if isinstance(reply, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _token_count(reply: dict[str, Any], name: str, text: str) -> int:
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < _MAX_BYTES else len(text.split())


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


class _Workers:
    """Threads that work through indices. Daemons, so that Ctrl-C does not wait for a server that is silent."""

    def __init__(self, work: Callable[[int, threading.Event], Answer | None], count: int) -> None:
        self.stopped = threading.Event()
        self._work, self._count = work, count
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Answer | None | Exception] | None] = queue.SimpleQueue()

    def run(self, threads: int) -> Iterator[tuple[int, Answer]]:
        """Results as they come. After an exception nothing new is begun, and it is raised at the end."""
        for index in range(self._count):
            self._todo.put(index)
        running = min(threads, self._count)
        for _ in range(running):
            threading.Thread(target=self._loop, daemon=True).start()
        error: Exception | None = None
        while running:
            done = self._done.get()
            if done is None:  # a thread has ended
                running -= 1
                continue
            index, result = done
            if isinstance(result, Exception):
                error = error or result
            elif result is not None:
                yield index, result
        if error is not None:
            raise error

    def _loop(self) -> None:
        while not self.stopped.is_set():
            try:
                index = self._todo.get_nowait()
            except queue.Empty:
                break
            try:
                self._done.put((index, self._work(index, self.stopped)))
            except Exception as error:
                self.stopped.set()
                self._done.put((index, error))
        self._done.put(None)
