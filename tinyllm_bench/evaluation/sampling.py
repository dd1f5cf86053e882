"""Texts of a trained student for given prompts, greedy or drawn, by transformers or by the vLLM child.

Drawn texts of one prompt come from seeds of their own. A text ends at the end token or at a stop text, which is no part
of it. The mean log-probability is over the tokens that were written, at temperature 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tinyllm_bench.generation.encoding import check_length

if TYPE_CHECKING:
    from tinyllm_bench.evaluation.vllm import VllmEngine
    from tinyllm_bench.models.load import Loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is wanted for one prompt: its greedy text, and `samples` drawn ones."""

    prompt: str
    greedy: bool
    samples: int
    seed: int
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 256
    stops: tuple[str, ...] = ("\n\n",)


class Written(NamedTuple):
    """One text, its tokens (the end counts), their mean log-probability, and whether the limit cut it off."""

    text: str
    tokens: int
    logprob: float | None
    hit_limit: bool
    greedy: bool


class Drawer(Protocol):
    """What writes for a student."""

    def draw(self, wanted: Sequence[Wanted]) -> list[list[Written]]:
        """Per prompt the greedy text, if wanted, then the drawn ones in the order of their seeds."""


def seeds_of(one: Wanted) -> list[int]:
    """A seed for each drawn text, by the prompt's own."""
    texts = (f"{one.seed}/{number}" for number in range(one.samples))
    return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1 for text in texts]


class HfDrawer:
    """Draws with the model in memory; several texts share a pass."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def draw(self, wanted: Sequence[Wanted]) -> list[list[Written]]:
        """As `Drawer.draw`.

        Raises:
            UserError: a prompt that leaves no room for what is to be written.
        """
        from tinyllm_bench.models.lm import LM

        lm = LM(self._loaded.model)
        ids = [self._ids(one, lm.encoder_decoder) for one in wanted]
        greedy = self._pass(lm, [(n, None) for n, one in enumerate(wanted) if one.greedy], wanted, ids)
        drawn = self._pass(lm, [(n, seed) for n, one in enumerate(wanted) for seed in seeds_of(one)], wanted, ids)
        return [greedy.get(n, []) + drawn.get(n, []) for n in range(len(wanted))]

    def _pass(
        self, lm: object, places: Sequence[tuple[int, int | None]], wanted: Sequence[Wanted], ids: Sequence[list[int]]
    ) -> dict[int, list[Written]]:
        from tinyllm_bench.generation.sampler import sample_texts
        from tinyllm_bench.models.lm import LM

        assert isinstance(lm, LM)
        found: dict[int, list[Written]] = {}
        if not places:
            return found
        one = wanted[0]
        is_greedy = places[0][1] is None
        texts = sample_texts(
            [ids[n] for n, _ in places],
            lm,
            seeds=[seed or 0 for _, seed in places],
            max_new_tokens=one.max_new_tokens,
            temperature=0.0 if is_greedy else one.temperature,
            top_p=one.top_p,
            vocabulary=len(self._loaded.tokenizer),
        )
        for (n, _), drawn in zip(places, texts, strict=True):
            found.setdefault(n, []).append(self._written(drawn.ids, drawn.logq, drawn.ended, wanted[n], is_greedy))
        return found

    def _ids(self, one: Wanted, encoder_decoder: bool) -> list[int]:
        from tinyllm_bench.models.load import max_input_tokens, needs_bos

        model, tokenizer = self._loaded
        lead = str(tokenizer.bos_token) if needs_bos(model, tokenizer) else ""
        text = one.prompt if encoder_decoder else lead + one.prompt.rstrip()  # as in training
        ids = list(tokenizer(text)["input_ids"])
        room = 0 if encoder_decoder else one.max_new_tokens
        check_length(f"…{one.prompt[-60:]!r}", len(ids) + room, max_input_tokens(model, tokenizer))
        return ids

    def _written(
        self, ids: tuple[int, ...], logq: tuple[float, ...], ended: bool, one: Wanted, greedy: bool
    ) -> Written:
        from tinyllm_bench.generation.encoding import cut_at_stop

        tokenizer = self._loaded.tokenizer
        words = list(ids[:-1] if ended else ids)
        cut = cut_at_stop(tokenizer, words, one.stops)
        tokens = len(ids) if cut is None else cut
        text = str(tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        logprob = sum(logq[:tokens]) / tokens if tokens else None
        return Written(_before(text, one.stops), tokens, logprob, not ended and cut is None, greedy)


class VllmDrawer:
    """Draws through the vLLM child; the drawn texts of a prompt are one request."""

    def __init__(self, engine: VllmEngine, use: Callable[[VllmEngine], object]) -> None:
        self._engine, self._use = engine, use

    def draw(self, wanted: Sequence[Wanted]) -> list[list[Written]]:
        """As `Drawer.draw`; `use` puts the student into the child first, where another one is."""
        self._use(self._engine)
        rows = self._engine.ask({"op": "draw", "wanted": [asdict(one) for one in wanted]})["ok"]
        return [[Written(*text) for text in texts] for texts in rows]


def _before(text: str, stops: Sequence[str]) -> str:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text
