"""What writes a teacher's texts: the one interface of local transformers, local vLLM and an API.

A generator knows nothing of tasks: it turns prompts into texts. What is asked stands in `teachers.prompts`, what was
answered is kept by `teachers.cache`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How a text is drawn. Temperature 0 is greedy; `stop` texts end it and are not part of it."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()


class GenerationRequest(NamedTuple):
    """One text that is wanted. `prompt` is plain words; a chat model gets it as one user message in its own template.

    `seed` belongs to this request alone, so that neither order nor batching changes what is drawn.
    """

    prompt: str
    sampling: SamplingConfig
    seed: int


class Completion(NamedTuple):
    """One text that was written, without the stop text. Tokens as the teacher's tokenizer or server counts them.

    `tokens_in` counts the whole prompt, template included; `seconds` is this text's share of the wall time.
    """

    text: str
    tokens_in: int
    tokens_out: int
    finish: Literal["stop", "length"]
    seconds: float


class Failed(NamedTuple):
    """A request that this generator could not serve, retries included: the run may stop or go on without it."""

    reason: str


class TextGenerator(Protocol):
    """A context manager: entering opens the model or the connection, leaving closes it.

    `batch` is how many requests it likes to get at once; `engine` its name in records.
    """

    engine: str
    batch: int

    def __enter__(self) -> Self:
        """Open; raises UserError where the teacher cannot be had."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        """`(index of the request, answer)` as each is finished, in any order, every request exactly once.

        Raises:
            UserError: nothing more can be had of this teacher (wrong key, unknown model, a dead server).
        """
