"""Stage 1: the teachers' texts on the training records, and which of them the method learns.

Texts are opened or generated, a control is applied, and where a method answers by sampled chain-of-thought or programs
only those that lead to the right answer become training targets: a program is brought into its canonical form and run
in the sandbox, a rationale is read by the answer parser (where the teacher saw the gold answer there is nothing to
check). Each rejection has a named reason that the record counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tinyllm_bench.answers.codec import encode_program, missing_characters, round_trip_failure
from tinyllm_bench.answers.keys import answer_of, inputs_for, question_kind
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import AnnotationProgress, Report
from tinyllm_bench.base.files import append_checked, cache_root, digest, locked, read_checked
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.data.sources import find_source, load_split
from tinyllm_bench.evaluation.sampled_answers import gold_answer_key, parse_key
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.leaderboard.record import AnnotationInfo, TeacherCost
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.controls import apply_control
from tinyllm_bench.teachers.teacher import Teacher, TeacherContext, cost_of, open_program_teacher, open_teacher
from tinyllm_bench.training.method import Method

CHUNK = 64

# With two options half of all nonsense programs are right: there a program must agree with the teacher's own rationale.
AGREE_BELOW = 3


# --- the teachers of texts --------------------------------------------------------------------------------------------


def teacher_context(config: BenchConfig, task: str, runs: Path) -> TeacherContext:
    """Where the teachers that the settings name are looked up for a task."""
    return TeacherContext(
        task=task,
        source=find_source(config.data.source, config.data.dir),
        data_dir=config.data.dir,
        max_context_words=config.data.max_context_words,
        device=config.backend.device,
        runs=runs,
    )


@dataclass(frozen=True, slots=True)
class _NamedTeacher:
    """A teacher of the settings, opened once per kind of text; `complete`: it has every kind that the method reads."""

    spec: str
    texts: list[Teacher]
    complete: bool


def text_teachers(
    config: BenchConfig, method: Method, task: str, runs: Path
) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    """The teachers a method uses on a task, opened, and notes on those that were dropped because they have no text.

    A method that learns rationales and programs has each teacher twice, once for either.

    Raises:
        UserError: two teachers of one name, or one without a text where `annotations.on_missing_teacher=refuse`.
    """
    kinds = kinds_read(config, method, task, runs)
    if not kinds:
        return (), ()
    context = teacher_context(config, task, runs)
    candidates: dict[str, _NamedTeacher] = {}
    for text in config.teachers:
        spec = parse_spec(text, role="teacher")
        texts = [teacher for kind in kinds if (teacher := _open(spec, kind, config, context)) is not None]
        key = texts[0].key if texts else spec.fragment or text
        if key in candidates:
            raise UserError(f"teachers {candidates[key].spec} and {text} are both called {key!r}")
        candidates[key] = _NamedTeacher(text, texts, len(texts) == len(kinds))
    missing = [
        teacher.spec
        for key, teacher in candidates.items()
        if not teacher.complete and (len(kinds) == 1 or key in method.uses(tuple(candidates)))
    ]
    if missing and config.annotations.on_missing_teacher == "refuse":
        expected = " or no ".join({"rationale": "text", "program": "program"}[kind] for kind in kinds)
        raise UserError(
            f"teacher {missing[0]} has no {expected} for task {task}; remove it from `teachers`"
            " or set annotations.on_missing_teacher=drop"
        )
    notes = tuple(f"teacher {spec} has no text for {task} and was dropped" for spec in missing)
    used = [candidates[key] for key in method.uses(tuple(candidates))]
    return tuple(text for teacher in used if teacher.complete for text in teacher.texts), notes


def kinds_read(config: BenchConfig, method: Method, task: str, runs: Path) -> list[str]:
    """The kinds of text that are read for a method, rationales first.

    Beside those it learns: rationales where a program must agree with one (`AGREE_BELOW`), so that students of one mode
    learn the same programs as students of both.
    """
    kinds = set(method.needs().annotations - {"response"})
    if "program" in kinds:
        records = load_split(teacher_context(config, task, runs).source, task, "train")
        if any(0 < len(record.choices) < AGREE_BELOW for record in records):
            kinds.add("rationale")
    return sorted(kinds, reverse=True)


def _open(spec: ModelSpec, kind: str, config: BenchConfig, context: TeacherContext) -> Teacher | None:
    if kind != "program":
        return open_teacher(spec, config.annotations, context)
    if spec.kind == "replay":
        return open_program_teacher(spec, config.annotations, context)
    settings = config.annotations.model_copy(update={"kind": "program", "filters": ("empty",)})
    return open_teacher(spec, settings, context)


# --- their texts ------------------------------------------------------------------------------------------------------


def annotation_file(cell: Cell, teacher: Teacher) -> Path:
    """The cache file of one teacher's annotations, named by everything that determines a text."""
    key = {
        "teacher": teacher.spec,
        "task": [cell.task.name, cell.task.version],
        "data": cell.data["train"]["digest"],
        "texts": teacher.text_digest(cell.task.name),
    }
    return cache_root() / "annotations" / teacher.key / f"{digest(key)[:24]}.jsonl"


def annotate(cell: Cell, *, report: Report) -> list[Annotation]:
    """Annotations of the cell's training records by all its teachers, before any control; missing ones are generated.

    Live teachers cache each text as it comes, for all tasks and settings, so that a killed run resumes where it
    stopped.
    """
    annotations = []
    for teacher in cell.teachers:
        texts = teacher.annotate(cell.records("train"), report=report)
        annotations += texts
        if not teacher.recorded:
            continue
        file = annotation_file(cell, teacher)
        with locked(file):
            cached = {row["record_id"] for row in read_checked(file)}
            missing = [annotation for annotation in texts if annotation.record_id not in cached]
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                append_checked(file, [asdict(annotation) for annotation in chunk])
                report(AnnotationProgress(chunk[0].teacher, start + len(chunk), len(missing)))
    return annotations


def training_targets(cell: Cell, annotations: Sequence[Annotation]) -> list[Annotation]:
    """The annotations under the cell's control, verified where the method samples its answers, in the same order.

    Those that the method does not learn are rejected with a reason. A control exchanges rationales alone: another
    question's program is no control.
    """
    records = {record.id: record for record in cell.records("train")}
    rationales = [a for a in annotations if a.kind != "program"]
    controlled = iter(apply_control(cell.config.annotations.control, rationales, records))
    return verified(cell, [a if a.kind == "program" else next(controlled) for a in annotations])


def annotation_counts(cell: Cell, annotations: Sequence[Annotation]) -> tuple[AnnotationInfo, ...]:
    """Per teacher and kind: how many texts are used, how many were rejected for which reason, and what they cost."""
    train = {record.id for record in cell.records("train")}
    counts = []
    for teacher in cell.teachers:
        own = [a for a in annotations if (a.teacher, a.kind) == (teacher.key, teacher.kind)]
        right = sum(a.rejected in (None, "degenerate", "disagrees") for a in own)
        prices = cell.config.annotations.prices
        counts.append(
            AnnotationInfo(
                teacher=teacher.key,
                kind=teacher.kind,
                used=sum(a.rejected is None for a in own),
                missing=len(train - {a.record_id for a in own}),
                rejected=dict(sorted(Counter(a.rejected for a in own if a.rejected).items())),
                degenerate_rate=sum(a.rejected == "degenerate" for a in own) / right
                if right and teacher.kind == "program"
                else None,
                control=cell.config.annotations.control,
                text_digest=digest([a.text for a in own if not a.rejected]),
                cost=None if teacher.recorded else TeacherCost(**cost_of(own, prices.get(teacher.key))._asdict()),
            )
        )
    return tuple(counts)


# --- which of them lead to the right answer ---------------------------------------------------------------------------


def verified(cell: Cell, annotations: Sequence[Annotation]) -> list[Annotation]:
    """Annotations with the wrong ones rejected and the right ones as targets, where the method samples its answers;
    for other methods they are returned as they are.

    Raises:
        UserError: there are programs and the sandbox cannot run them.
    """
    if not cell.samples_answers:
        return list(annotations)
    records = {record.id: record for record in cell.records("train")}
    programs = [a for a in annotations if a.kind == "program" and a.rejected is None]
    checked = _checked_programs(cell, programs, records) if programs else {}
    annotations = [
        checked[id(a)] if id(a) in checked else _checked_rationale(a, records[a.record_id]) for a in annotations
    ]
    right = {(a.teacher, a.record_id) for a in annotations if a.kind == "rationale" and a.rejected is None}

    def doubtful(a: Annotation) -> bool:
        few = 0 < len(records[a.record_id].choices) < AGREE_BELOW
        return few and a.kind == "program" and a.rejected is None and (a.teacher, a.record_id) not in right

    return [replace(a, rejected="disagrees") if doubtful(a) else a for a in annotations]


def _checked_rationale(annotation: Annotation, record: TaskRecord) -> Annotation:
    """A rationale as a target, or rejected; other annotations as they are."""
    if annotation.kind != "rationale" or annotation.rejected is not None:
        return annotation
    if not annotation.gold_visible:
        # a live teacher's answer is known, that of a recorded text is parsed
        key = parse_key(annotation.text if annotation.answer is None else annotation.answer, record)
        if key != gold_answer_key(record):
            return replace(annotation, rejected="no_answer" if key is None else "wrong_answer")
    return replace(annotation, text=rationale_target(annotation.text, record))


def rationale_target(text: str, record: TaskRecord) -> str:
    """A rationale in one line that ends in `The answer is X.`: a letter in brackets, or the number."""
    line = " ".join(text.split())
    head, statement, tail = line.rpartition("The answer is ")
    line = head.strip() if statement and ". " not in tail else line  # text behind the answer is not cut off
    answer = f"({LETTERS[record.answer]})" if record.choices else record.gold_text
    stop = "" if not line or line.endswith((".", "!", "?")) else "."
    return f"{line}{stop} The answer is {answer}.".strip()


def _checked_programs(
    cell: Cell, programs: Sequence[Annotation], records: Mapping[str, TaskRecord]
) -> dict[int, Annotation]:
    """Programs as targets, or rejected; by identity of the annotation, since a question may have several."""
    layout = cell.program_layout()
    with Sandbox() as sandbox:
        prepared = sandbox.prepare([a.text for a in programs])
        runnable = [(a, program) for a, program in zip(programs, prepared, strict=True) if program.code is not None]
        inputs = [inputs_for(records[a.record_id].choices) for a, _ in runnable]
        results = sandbox.map([program.code or "" for _, program in runnable], inputs)
    checked = {
        id(a): replace(a, rejected=program.reason)
        for a, program in zip(programs, prepared, strict=True)
        if program.code is None
    }
    for (a, program), result in zip(runnable, results, strict=True):
        record = records[a.record_id]
        answer = answer_of(result, record.choices)
        reason = answer.reason or ("wrong_answer" if answer.key != gold_answer_key(record) else None)
        # a label with boilerplate is no program; a number that is computed from constants is
        if reason is None and program.degenerate and question_kind(record.choices) != "number":
            reason = "degenerate"
        checked[id(a)] = replace(a, rejected=reason) if reason else replace(a, text=encode_program(program, layout))
    return checked


def fit_programs(cell: Cell, loaded: Loaded, annotations: Sequence[Annotation]) -> tuple[list[Annotation], int]:
    """Annotations whose programs the student's tokenizer encodes and decodes without loss, and the number of others.

    Characters missing from an encoder-decoder's tokenizer (T5's has no newline and no braces) are added to it first; a
    program that is still not preserved is rejected as `not_encodable`.

    Raises:
        UserError: tokens must be added and the student is trained by adapters, which would never train their rows.
    """
    layout = cell.program_layout()
    programs = [a for a in annotations if a.kind == "program" and a.rejected is None]
    if programs and layout is not None:
        tokens = [*layout.tokens, *missing_characters(loaded.tokenizer, [a.text for a in programs])]
        new = set(tokens) - set(loaded.tokenizer.get_vocab())
        if cell.config.student.lora is not None and new:
            raise UserError(
                f"student.lora: programs need {len(new)} tokens that {cell.student.text} does not have, and adapters do"
                " not train these; set student.lora=null, or take a decoder-only student"
            )
        loaded.tokenizer.add_tokens([token for token in tokens if token in new])
        model: Any = loaded.model
        # the model may have rows to spare; new rows start as the mean of the others
        if len(loaded.tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=True)
    lost = {id(a) for a in programs if round_trip_failure(loaded.tokenizer, a.text, layout) is not None}
    return [replace(a, rejected="not_encodable") if id(a) in lost else a for a in annotations], len(lost)
