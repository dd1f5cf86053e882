"""A cell: one method or reference baseline on one task, in one mode, with one seed; its identity is its run id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tinyllm_bench.base.files import digest
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import ScoringMode, Split, TaskInfo, TaskRecord, cut_context
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.data.splits import SplitFacts, stratified_subset
from tinyllm_bench.evaluation.runner import EvalRequest
from tinyllm_bench.experiment.identity import identity_of
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.method import Method


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything one run needs, resolved and checked. `origin` says for each setting the layer it came from.

    `shared_by`: how many methods of the request learn from the same teachers' texts, for the amortised cost.
    `signal`: the white-box teacher, for methods that learn from distributions. `student_from` and `teacher_from` are
    cells that make the initial student and the teacher; they are trained first. `students`: the cells that train who
    writes each channel, where a policy decides, each with a `share` of the budget. All these `trains_only`.
    `select_on_test`: weights are selected on the test split, as some released code does; only a reproduction asks for
    it.
    """

    kind: Literal["method", "reference_baseline"]
    name: str
    label: str
    task: TaskInfo
    mode: ScoringMode
    seed: int
    config: BenchConfig
    origin: Mapping[str, str]
    method: Method | None
    student: ModelSpec
    source: Source
    data: Mapping[str, SplitFacts]
    teachers: tuple[Teacher, ...]
    notes: tuple[str, ...]
    request: Mapping[str, Any]
    runs: Path
    shared_by: int = 1
    signal: ModelSpec | None = None
    student_from: "Cell | None" = None
    teacher_from: "Cell | None" = None
    students: Mapping[str, "Cell"] = field(default_factory=dict)
    trains_only: bool = False
    share: float = 1.0
    select_on_test: bool = False

    @property
    def ask(self) -> Ask:
        """The wording of this cell's prompts."""
        data = self.config.data
        return Ask(mode=self.mode, style=data.style, rationale_context=data.rationale_context, markers=data.markers)

    def records(self, split: Split) -> tuple[TaskRecord, ...]:
        """The cell's records of a split, whole contexts: the training subset, validation ids, scored test ids."""
        return records_of(self.config, self.source, self.task.name, split)

    def asked_records(self, split: Split) -> tuple[TaskRecord, ...]:
        """The same records as they are asked, passages cut to `data.max_context_words`."""
        return tuple(cut_context(record, self.config.data.max_context_words) for record in self.records(split))

    def eval_request(self, split: Split, ids: Sequence[str], *, shots: int = 0, chat: bool = False) -> EvalRequest:
        """How the records of a split with these ids are asked, with so many examples and through the chat template."""
        config = self.config
        return EvalRequest(
            task=self.task.name,
            mode=self.mode,
            split=split,
            ids=tuple(ids),
            source=self.source,
            max_context_words=config.data.max_context_words,
            style=config.data.style,
            markers=config.data.markers,
            shots=shots,
            shot_max_words=config.eval.shot_max_words,
            chat=chat,
            max_new_tokens=config.eval.max_new_tokens,
            match=config.eval.match,
        )

    @property
    def earlier(self) -> "tuple[Cell, ...]":
        """The cells that must have trained before, each once."""
        found = [self.student_from, self.teacher_from, *self.students.values()]
        return tuple({cell.run_id: cell for cell in found if cell is not None}.values())

    @property
    def run_id(self) -> str:
        """A readable name with the digest of the cell."""
        name = self.name.replace("/", ".") + ("-training" if self.trains_only else "")
        return f"{name}-{self.task.name}-{self.mode}-s{self.seed}-{digest(identity_of(self))[:10]}"


def records_of(config: BenchConfig, source: Source, task: str, split: Split) -> tuple[TaskRecord, ...]:
    """The records of a split that the settings mean: a fixed stratified subset, or all of them."""
    limits = {"train": config.data.train_limit, "valid": config.eval.valid_limit, "test": config.eval.limit}
    limit = limits[split]
    return load_split(source, task, split) if limit is None else _subset(source, task, split, limit)


@lru_cache(maxsize=64)
def _subset(source: Source, task: str, split: Split, limit: int) -> tuple[TaskRecord, ...]:
    return stratified_subset(load_split(source, task, split), limit, salt=split)


def device_of(cell: Cell) -> str:
    """The device that the settings mean; `auto` takes an accelerator where there is one."""
    import torch

    asked = cell.config.backend.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
