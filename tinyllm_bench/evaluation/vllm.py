"""vLLM from outside: one child process per run that outlives cells, and lm-eval LMs that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.data.records import Reading
from tinyllm_bench.generation.worker import VLLM_ENVIRONMENT, VLLM_INSTALL, Child, vllm_installed

if TYPE_CHECKING:
    from types import TracebackType

    from lm_eval.api.model import LM


def backend_for(
    engine: Literal["auto", "hf", "vllm"], reading: Reading, is_encoder_decoder: bool
) -> Literal["hf", "vllm"]:
    """The backend of a cell: `auto` = vLLM for `gen` where it is installed and the model is decoder-only, else hf.

    Raises:
        UserError: an unknown engine, vLLM asked for but missing, or asked for an encoder-decoder model.
    """
    if engine not in ("auto", "hf", "vllm"):
        raise unknown_name("backend", engine, ("auto", "hf", "vllm"))
    if engine == "auto":
        return "vllm" if reading == "gen" and not is_encoder_decoder and vllm_installed() else "hf"
    if engine == "hf":
        return "hf"
    if is_encoder_decoder:
        raise UserError("backend 'vllm' cannot run encoder-decoder models (T5); use backend=hf or backend=auto")
    if not vllm_installed():
        raise UserError(f"backend 'vllm' is not installed; {VLLM_INSTALL}, or use backend=hf")
    return "vllm"


class VllmEngine:
    """The child process; a context manager. The first `lm` starts it, later ones load other weights into it.

    `log` is the file that takes what vLLM prints (a temporary one by default). `start_seconds` bounds the building of
    an engine, `answer_seconds` each request.
    """

    def __init__(self, *, log: Path | None = None, start_seconds: float = 900, answer_seconds: float = 7200) -> None:
        self._start_seconds = start_seconds
        self._child = Child(
            "tinyllm_bench.evaluation.vllm_child",
            name="vLLM",
            instead="Or use backend=hf.",
            environment=VLLM_ENVIRONMENT,
            log=log,
            answer_seconds=answer_seconds,
        )
        self.loaded: str | None = None
        self.folder: Path | None = None  # whose weights the child holds

    def __enter__(self) -> VllmEngine:
        if not vllm_installed():
            raise UserError(f"vLLM is not installed; {VLLM_INSTALL}, or use backend=hf")
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid

    def lm(self, folder: Path, *, add_bos: bool | None = None, dtype: str = "float32") -> LM:
        """An lm-eval LM for a model folder (config, tokenizer, safetensors); LMs of earlier folders go stale.

        `dtype` is the type on a GPU; the CPU engine runs float32 alone.

        Raises:
            UserError: a folder without a model, an engine that dies, hangs or cannot run the model.
        """
        from tinyllm_bench.evaluation.vllm_proxy import ProxyLM

        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no model folder: config.json is missing")
        request = {"op": "load", "folder": str(folder.resolve()), "add_bos": add_bos, "dtype": dtype}
        answer = self.ask(request, self._start_seconds)
        if answer.get("restart"):
            self._child.stop()
            answer = self.ask(request, self._start_seconds)
        self.loaded, self.folder = answer["ok"], folder
        return ProxyLM(self, folder, max_length=answer["max_length"])

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send one request to the child and wait for its answer; errors as of `Child.ask`."""
        return self._child.ask(request, seconds)
