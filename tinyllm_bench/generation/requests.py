"""Requests to a model that generates text, and its completions: the same for transformers, vLLM and an API.

A generator knows nothing of tasks: it turns prompts into texts. A teacher's prompts come from `teachers.prompts`, and
`teachers.cache` stores its texts; a student's come from `data.prompts`, and `evaluation` scores its texts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How a text is sampled. Temperature 0 is greedy; `stop` texts end it and are not part of it."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()


class GenerationRequest(NamedTuple):
    """A request for one text. `prompt` is plain text; a chat model gets it as one user message in its template.

    `seed` belongs to this request alone, so that neither order nor batching changes what is sampled.
    """

    prompt: str
    sampling: SamplingConfig
    seed: int = 0


class Completion(NamedTuple):
    """One text, without the stop text that ended it. Tokens are those of the model's tokenizer, or its server's count.

    `tokens_in` counts the whole prompt, template included; `tokens_out` all generated tokens, with the end token and
    the tokens of a stop text. `seconds` is this text's share of the wall time. `logprob` is the mean log-probability
    of the generated tokens at temperature 1, in nats, where the generator computes it. `ended`: the last token
    is an end token.
    """

    text: str
    tokens_in: int
    tokens_out: int
    finish: Literal["stop", "length"]
    seconds: float
    logprob: float | None = None
    ended: bool = False


class FailedRequest(NamedTuple):
    """A request that this generator could not serve, retries included: the run may stop or continue without it."""

    reason: str


Generate = Callable[[Sequence[GenerationRequest]], Iterable[tuple[int, Completion | FailedRequest]]]


class TextGenerator(Protocol):
    """A context manager: entering opens the model or the connection, leaving closes it.

    `batch` is the number of requests it prefers at once; `engine` its name in records.
    """

    engine: str
    batch: int

    def __enter__(self) -> Self:
        """Open; raises UserError where the model is not available."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        """`(index of the request, answer)` as each is finished, in any order, every request exactly once.

        Raises:
            UserError: this model cannot answer any more (wrong key, unknown model, a dead server).
        """
