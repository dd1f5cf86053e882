"""A teacher behind an OpenAI-compatible API: several requests at once, asked again while it makes sense.

The key comes from the environment alone and stands in no exception, log or record.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

import tenacity

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.api_client import Again, ApiClient, Refused
from tinyllm_bench.generation.requests import Completion, Failed, GenerationRequest, TextGenerator

KEY_VARIABLE = "TINYLLM_BENCH_API_KEY"
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds between tries, doubled each time
_LONGEST_ASKED_WAIT = 300.0  # seconds; a Retry-After of more is not obeyed, so that the run ends and can go on later

T = TypeVar("T")
Answer = Completion | Failed


class ApiGenerator(TextGenerator):
    """Asks `URL/chat/completions`, or `URL/completions` when `chat` is false.

    `timeout` is in seconds per request; `attempts` counts the first try too. The key is the value of `key_variable`,
    else of OPENAI_API_KEY. A text's tokens are what the server's `usage` says; where it says nothing they are
    white-space words, which are fewer. An empty text is an answer like any other; a reply without a text is asked for
    again. `sleep(seconds)` waits between tries.
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
            self._asked(self._client.check_model, threading.Event())
        except Again as busy:
            self._client.close()
            raise UserError(f"{self._client.url}: {busy.reason}, {self._attempts} times; try again later") from None
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Answer]]:
        """`(index of the request, answer)` as each arrives; what was on its way when the teacher failed still comes.

        Raises:
            UserError: a wrong key, a model that is not served, a server that cannot be reached any more.
        """
        workers = _Workers(lambda index, stopped: self._one(requests[index], stopped), len(requests))
        began = time.perf_counter()
        try:
            for index, answer in workers.run(self._concurrency):
                if isinstance(answer, Completion):
                    answer = answer._replace(seconds=time.perf_counter() - began)
                yield index, answer
                began = time.perf_counter()
        finally:
            workers.stopped.set()

    def _one(self, request: GenerationRequest, stopped: threading.Event) -> Answer | None:
        """The answer to one request; None when the generator was stopped before it came."""
        try:
            return self._asked(lambda: self._client.complete(request), stopped)
        except Refused as refused:
            return Failed(refused.reason)
        except Again as last:
            if stopped.is_set():
                return None
            if last.unreachable:
                raise UserError(
                    f"{self._client.url} went away: {last.reason}, {self._attempts} times; start the server again and"
                    " repeat the command: it goes on where it stopped"
                ) from None
            return Failed(f"{last.reason}, {self._attempts} times")

    def _asked(self, ask: Callable[[], T], stopped: threading.Event) -> T:
        """What `ask` returns, asked again after each `Again`; the last one is raised."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self._attempts), tenacity.stop_when_event_set(stopped)),
            wait=_wait,
            sleep=self._sleep or tenacity.sleep_using_event(stopped),
            reraise=True,
        )
        return retrying(ask)


_backoff = tenacity.wait_exponential_jitter(initial=_FIRST_WAIT, max=_LONGEST_WAIT, jitter=_FIRST_WAIT)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: growing and never alike, or as long as the server asks if that is longer."""
    error = state.outcome.exception() if state.outcome else None
    asked = (error.wait or 0.0) if isinstance(error, Again) else 0.0
    return max(_backoff(state), asked if asked <= _LONGEST_ASKED_WAIT else 0.0)


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
        fatal: Exception | None = None
        while running:
            found = self._done.get()
            if found is None:
                running -= 1
            elif isinstance(found[1], Exception):
                fatal = fatal or found[1]
            elif found[1] is not None:
                yield found[0], found[1]
        if fatal is not None:
            raise fatal

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
