"""LMs without a model: their answers depend on the request alone."""

import hashlib
from collections.abc import Callable
from typing import Any

from lm_eval.api.model import LM

from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import ScoringMode, TaskRecord


class FakeLM(LM):
    """Scores with a function of (prompt, continuation) and writes with a function of the prompt."""

    def __init__(
        self, score: Callable[[str, str], float] | None = None, write: Callable[[str], str] | None = None
    ) -> None:
        super().__init__()
        self.requests: list[tuple[Any, ...]] = []
        self._score, self._write = score or (lambda *_: -1.0), write or (lambda _: "")

    def loglikelihood(self, requests: Any) -> Any:
        self.requests += [request.args for request in requests]
        return [(self._score(*request.args), False) for request in requests]

    def generate_until(self, requests: Any) -> Any:
        self.requests += [request.args for request in requests]
        return [self._write(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise NotImplementedError


class Recorder(FakeLM):
    """Says nothing useful; records its requests in `requests`."""


def perfect(records: tuple[TaskRecord, ...], mode: ScoringMode) -> FakeLM:
    """Knows the answer to every record by its prompt."""
    ask = Ask(mode=mode)
    key = {ask.prompt(record): ask.label_target(record) for record in records}
    return FakeLM(lambda prompt, text: 0.0 if text == " " + key[prompt] else -1e3, lambda prompt: " " + key[prompt])


def chance(seed: int = 0) -> FakeLM:
    """Random scores that depend on the text alone; per character, so that no length is preferred."""

    def score(prompt: str, text: str) -> float:
        digest = hashlib.sha256(f"{seed}{prompt}|{text}".encode()).digest()
        return -int.from_bytes(digest[:4]) / 2**32 * (len(text) - 1)

    return FakeLM(score)
