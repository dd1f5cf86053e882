"""A child process with one vLLM engine for a teacher's model: what its generator and its scorer share."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.worker import VLLM_ENVIRONMENT, VLLM_INSTALL, Child, vllm_installed
from tinyllm_bench.models.files import check_safetensors, model_files, only


class Seconds(NamedTuple):
    """How long a child may take to build its engine, and to answer."""

    start: float = 900
    answer: float = 7200


class VllmProcess:
    """Holds the child; a context manager, entered when a model is loaded. `instead` says what to do without vLLM."""

    def __init__(
        self, module: str, folder: Path, load: dict[str, Any], *, instead: str, log: Path | None, seconds: Seconds
    ) -> None:
        self._folder, self._load = folder.expanduser(), load
        self._links = ExitStack()  # vLLM, too, sees the files that are read and no others
        self._instead, self._start_seconds = instead, seconds.start
        self._child = Child(
            module,
            name="vLLM",
            instead=instead,
            environment=VLLM_ENVIRONMENT,
            log=log,
            answer_seconds=seconds.answer,
        )

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid

    def __enter__(self) -> Self:
        if not vllm_installed():
            raise UserError(f"vLLM is not installed; {VLLM_INSTALL}. {self._instead}")
        files = model_files(str(self._folder), self._folder)
        check_safetensors(str(self._folder), [f for name, f in files.items() if name.endswith(".safetensors")])
        self._child.__enter__()
        try:
            links = self._links.enter_context(only(files))
            asked = {"op": "load", "folder": str(links), **self._load}
            self._child.start(asked, self._start_seconds, what=str(self._folder))
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)
        self._links.close()

    def ask(self, request: dict[str, Any]) -> Any:
        """The child's answer to a request.

        Raises:
            UserError: it died, failed or did not answer in time.
        """
        return self._child.ask(request)["ok"]
