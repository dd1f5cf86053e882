"""The lm-eval LM in the parent process whose every request goes to the vLLM child."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from tinyllm_bench.evaluation.runner import Finish

if TYPE_CHECKING:
    from tinyllm_bench.evaluation.vllm import VllmEngine


class ProxyLM(LM):
    """Scores and writes through a `VllmEngine`; `finished` maps each prompt to how its generation ended."""

    def __init__(self, engine: VllmEngine, folder: Path, *, max_length: int) -> None:
        super().__init__()
        self._vllm, self._folder, self.max_length = engine, folder, max_length
        self.finished: dict[str, Finish] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, for chat templates."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False, local_files_only=True)

    @property
    def tokenizer_name(self) -> str:
        """The folder's name, part of lm-eval's cache key."""
        return str(self._folder).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's own template writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) per request."""
        pairs = [list(request.args) for request in requests]
        return [(value, greedy) for value, greedy in self._vllm.ask({"op": "loglikelihood", "pairs": pairs})["ok"]]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy text per request."""
        prompts, options = [list(column) for column in zip(*(request.args for request in requests), strict=True)]
        rows = self._vllm.ask({"op": "generate", "prompts": prompts, "options": options})["ok"]
        self.finished = {
            prompt: Finish(tokens, limit) for prompt, (_, tokens, limit) in zip(prompts, rows, strict=True)
        }
        return [text for text, _, _ in rows]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Not needed by any reading."""
        raise NotImplementedError("no task asks for rolling log-likelihoods")
