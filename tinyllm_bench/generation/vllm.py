"""A local teacher run by vLLM in one child process; what prompts begin with in common is computed once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tinyllm_bench.generation.encoding import Chat
from tinyllm_bench.generation.requests import Completion, Failed, GenerationRequest, TextGenerator
from tinyllm_bench.generation.vllm_process import Seconds, VllmProcess

_INSTEAD = "Or use annotations.engine=hf."


class VllmGenerator(VllmProcess, TextGenerator):
    """Writes with vLLM; the answers of a batch come back when all of it is done.

    `folder` holds a whole decoder-only model (config, tokenizer, safetensors). `dtype` is the type on a GPU; the CPU
    engine runs float32 alone. `max_model_len` bounds prompt and answer in tokens: by default what the model reads, on
    a CPU at most 4096. On GPUs the model is spread over as many as its heads allow; this path has not been run yet.
    Tokens out count the end token and the tokens of a stop text.
    """

    engine = "vllm"

    def __init__(
        self,
        folder: Path,
        *,
        chat: Chat = "auto",
        dtype: str = "float32",
        batch: int = 64,
        max_model_len: int | None = None,
        log: Path | None = None,
        start_seconds: float = 900,
        answer_seconds: float = 7200,
    ) -> None:
        self.batch = batch
        load = {"chat": chat, "dtype": dtype, "max_model_len": max_model_len}
        seconds = Seconds(start_seconds, answer_seconds)
        super().__init__(
            "tinyllm_bench.generation.vllm_worker", folder, load, instead=_INSTEAD, log=log, seconds=seconds
        )

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        """`(index of the request, answer)`, in order, `batch` of them at a time.

        Raises:
            UserError: the child died, failed or did not answer in time.
        """
        for start in range(0, len(requests), self.batch):
            part = requests[start : start + self.batch]
            began = time.perf_counter()
            asked = [{"prompt": request.prompt, "seed": request.seed, **asdict(request.sampling)} for request in part]
            answers = self.ask({"op": "write", "requests": asked})
            share = (time.perf_counter() - began) / len(part)
            for index, answer in enumerate(answers, start):
                if "failed" in answer:
                    yield index, Failed(answer["failed"])
                else:
                    yield index, Completion(**answer, seconds=share)

    def forget_prefixes(self) -> None:
        """Drop what was computed of earlier prompts (for measurements that are to start alike)."""
        self.ask({"op": "forget"})
