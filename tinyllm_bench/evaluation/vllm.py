"""vLLM from outside: one child process per run that outlives cells, and lm-eval LMs that ask it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.data.records import Reading
from tinyllm_bench.evaluation.vllm_child import shape_of
from tinyllm_bench.generation.worker import VLLM_ENVIRONMENT, VLLM_INSTALL, Child, vllm_installed
from tinyllm_bench.models.files import model_files, only

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
        raise UserError("backend 'vllm' cannot run encoder-decoder models (T5); use backend.engine=hf or auto")
    if not vllm_installed():
        raise UserError(f"backend 'vllm' is not installed; {VLLM_INSTALL}, or use backend.engine=hf")
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
            instead="Or use backend.engine=hf.",
            environment=VLLM_ENVIRONMENT,
            log=log,
            answer_seconds=answer_seconds,
        )
        self._links = ExitStack()  # vLLM, too, sees the files that are read and no others
        self.loaded: str | None = None
        self.folder: Path | None = None  # whose weights the child holds

    def __enter__(self) -> VllmEngine:
        if not vllm_installed():
            raise UserError(f"vLLM is not installed; {VLLM_INSTALL}, or use backend.engine=hf")
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)
        self._links.close()

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid

    def lm(self, folder: Path, *, add_bos: bool | None = None, dtype: str = "float32") -> LM:
        """An lm-eval LM for a model folder (config, tokenizer, safetensors); LMs of earlier folders go stale.

        `dtype` is the type on a GPU; the CPU engine runs float32 alone.

        Raises:
            UserError: a folder without a model, an engine that dies, hangs or cannot run the model; the same model,
                or any if no engine was ever built, where that failed before in this run.
        """
        from tinyllm_bench.evaluation.vllm_proxy import ProxyLM

        links = self._links.enter_context(only(model_files(str(folder), folder)))
        request = {"op": "load", "folder": str(links), "add_bos": add_bos, "dtype": dtype}
        what = "any model" if self.loaded is None else shape_of(links)
        answer = self._child.start(request, self._start_seconds, what=what)
        if answer.get("restart"):
            self._child.stop()
            answer = self._child.start(request, self._start_seconds, what=what)
        self.loaded, self.folder = answer["ok"], folder
        return ProxyLM(self, links, max_length=answer["max_length"])

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send one request to the child and wait for its answer; errors as of `Child.ask`."""
        return self._child.ask(request, seconds)
