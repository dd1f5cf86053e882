"""A local teacher scored by vLLM in one child process: its distributions over given responses, for a logit cache.

What vLLM returns is a distribution over all rows of the model's table, at temperature 1. Where the table has more rows
than the tokenizer has entries, the tail holds their probability; a teacher in memory (`training.teacher_signals`) cuts
them off before the softmax instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.vllm_process import Seconds, VllmProcess

if TYPE_CHECKING:
    from tinyllm_bench.generation.top_k import Rows

Pair = tuple[Sequence[int], Sequence[int]]
_INSTEAD = "Or use teacher.cache.engine=hf."


class VllmScorer(VllmProcess):
    """Scores responses with vLLM; a context manager.

    `folder` holds a whole decoder-only model (config, tokenizer, safetensors). `k` entries of every distribution are
    kept. `dtype` is the type on a GPU; the CPU engine runs float32 alone. `batch` pairs are scored at a time.
    `max_model_len` bounds prompt and response in tokens, one more than both: by default what the model reads, on a CPU
    at most 4096. The path on GPUs has not been run yet.
    """

    def __init__(
        self,
        folder: Path,
        *,
        k: int,
        dtype: str = "float32",
        batch: int = 64,
        max_model_len: int | None = None,
        log: Path | None = None,
        start_seconds: float = 900,
        answer_seconds: float = 7200,
    ) -> None:
        if k < 1:
            raise UserError(f"k={k}; at least 1 entry of every distribution must be kept")
        if batch < 1:
            raise UserError(f"batch={batch}; at least 1 pair must be scored at a time")
        self.k, self.batch = k, batch
        load = {"k": k, "dtype": dtype, "max_model_len": max_model_len}
        seconds = Seconds(start_seconds, answer_seconds)
        super().__init__(
            "tinyllm_bench.generation.vllm_scorer_worker", folder, load, instead=_INSTEAD, log=log, seconds=seconds
        )

    def score(self, pairs: Sequence[Pair]) -> Iterator[Rows]:
        """The distributions at every token of each response, given its prompt and what of the response stands before.

        A pair is `(prompt ids, response ids)`, none of them empty. `ids_NK` is int64; the others are float32, sorted
        downwards along K.

        Raises:
            UserError: an empty or too long pair, an id that the tokenizer does not have (given, or among the k
                likeliest); the child died, failed or did not answer in time.
        """
        for place, (prompt, response) in enumerate(pairs):
            if not prompt or not response:
                empty = "response" if prompt else "prompt"
                raise UserError(f"pair {place} has an empty {empty}; needed: at least one token of each")
        return self._scored(pairs)

    def _scored(self, pairs: Sequence[Pair]) -> Iterator[Rows]:
        for start in range(0, len(pairs), self.batch):
            asked = [[list(map(int, part)) for part in pair] for pair in pairs[start : start + self.batch]]
            for answer in self.ask({"op": "score", "pairs": asked}):
                yield _rows(answer)


def _rows(answer: dict[str, Any]) -> Rows:
    import torch

    from tinyllm_bench.generation.top_k import Rows, tail_of

    ids_NK = torch.tensor(answer["ids"], dtype=torch.int64)
    logp_NK, order_NK = torch.tensor(answer["logp"], dtype=torch.float32).sort(dim=-1, descending=True, stable=True)
    gold_N = torch.tensor(answer["gold"], dtype=torch.float32)
    return Rows(ids_NK.gather(-1, order_NK), logp_NK, tail_of(logp_NK), gold_N)
