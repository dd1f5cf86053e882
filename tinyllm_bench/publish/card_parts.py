"""What a model card says of a run, in pieces: its score, the rows beside it, its teachers, its data, its terms.

Everything comes from the run's record, from records under the same protocol, and from what the task and the method say
of themselves; what none of them tells is called unknown.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import Markdown, markdown, markdown_code
from tinyllm_bench.base.plugins import load_method, load_task
from tinyllm_bench.data.records import TaskInfo
from tinyllm_bench.leaderboard.analysis import SectionAnalysis
from tinyllm_bench.leaderboard.record import RunRecord, TeacherInfo
from tinyllm_bench.leaderboard.rows import Gain, make_rows, row_key, student_digest
from tinyllm_bench.leaderboard.tables import (
    BoardNames,
    Cells,
    Section,
    duration,
    make_section,
    percent,
    points,
    probability,
)
from tinyllm_bench.leaderboard.verdicts import Checks
from tinyllm_bench.models.bundled import BUNDLES
from tinyllm_bench.models.specs import ModelSpec, parse_spec

UNKNOWN = "unknown"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_TOLD_NOT = "not recorded"
_SEEN = {True: "yes", False: "no", None: "not known"}


class Compared(NamedTuple):
    """The rows under the run's protocol: the table, its notes, and the run's gain in a sentence."""

    table: Sequence[Cells]
    notes: Sequence[str]
    gain: str


def task_of(record: RunRecord) -> TaskInfo | None:
    """What the task says of itself; None where it is not installed here."""
    try:
        found: TaskInfo = load_task(record.task)
    except UserError:
        return None
    return found


def method_of(record: RunRecord) -> tuple[str, str]:
    """The method's paper and what it is in a line, as the installed method says."""
    try:
        kind: Any = load_method(record.name)
    except UserError:
        return UNKNOWN, f"{record.name}, a method that is not installed here"
    return kind.paper, (kind.__doc__ or record.name).strip().splitlines()[0]


def base_of(record: RunRecord) -> ModelSpec:
    """The spec of the model that the student was made from."""
    assert record.student is not None, "asked only of trained runs"
    return parse_spec(record.student.spec, role="teacher")


def hub_name(spec: ModelSpec) -> str | None:
    """The model's name on the Hugging Face hub; None for one that has none or whose spec does not tell."""
    if spec.kind == "hf":
        return spec.location if _REPOSITORY.fullmatch(spec.location) else None
    return BUNDLES[spec.location].hub if spec.kind == "bundled" and spec.location in BUNDLES else None


def described(spec: ModelSpec) -> Markdown:
    """The base model in words: where it comes from and what was kept of it."""
    name = hub_name(spec)
    text = markdown_code(spec.text) + (f", that is [{markdown(name)}](https://huggingface.co/{name})" if name else "")
    if spec.kind == "bundled" and name:
        text += f" as {markdown(BUNDLES[spec.location].title)}, dequantised: not the original weights"
    if spec.layers is not None:
        text += f"; only its layers {':'.join(map(str, spec.layers))} (START:STOP:STEP) were kept"
    return Markdown(text)


def own_score(record: RunRecord) -> dict[str, str]:
    """The run's own figures in words."""
    score, accuracy = record.score, record.accuracy
    assert score is not None and accuracy is not None, "asked only of scored runs"
    (row,) = make_rows([record], ())
    found = SectionAnalysis([row]).accuracies.get(row.key)
    assert found is not None
    told = {
        "accuracy": f"{percent(accuracy)} % ({score.correct} of {score.n})",
        "95 % interval": f"{percent(found.low)} to {percent(found.high)} % ({found.method})",
        "chance": f"{percent(record.chance)} %",
        "not readable (counted as wrong)": f"{score.unparsed} of {score.n}",
    }
    told |= {key.replace("_", " "): f"{percent(value)} %" for key, value in sorted(record.secondary.items())}
    told |= {key.replace("_", " "): f"{value:.4g}" for key, value in sorted(record.paths.items())}
    return told | {
        "evaluations on the test split": str(record.test_evaluations),
        "weights selected on": f"the {_split(record)} split",
    }


def _split(record: RunRecord) -> str:
    return "validation" if record.selected_on == "valid" else record.selected_on


def compared(record: RunRecord, others: Sequence[RunRecord], names: BoardNames, checks: Checks) -> Compared | None:
    """The run beside the reference baselines, the fine-tuning baseline and its other seeds, under the same protocol.

    None where there is nothing to compare with.

    `others` may hold any records. Rows of other methods are left out: a card does not rank methods, a board does.
    """
    chosen = [record, *(one for one in others if one.run_id != record.run_id and _beside(one, record, names.baseline))]
    if len(chosen) == 1:
        return None
    rows = make_rows(chosen, names.order)
    gains = SectionAnalysis(rows).gains(names.baseline)
    own = next(gain for row, gain in zip(rows, gains, strict=True) if record in row.records)
    section: Section = make_section(chosen, [], names, checks)
    return Compared(section.cells(), section.notes, gain_sentence(own, names.baseline_title))


def _beside(one: RunRecord, record: RunRecord, baseline: str) -> bool:
    if one.protocol_hash != record.protocol_hash or one.selected_on == "test":
        return False
    if one.kind == "reference_baseline":
        asked = one.student.spec if one.student else None
        return asked in (None, base_of(record).text, *(teacher.spec for teacher in record.teachers))
    mine = one.name == baseline and student_digest(one) == student_digest(record)
    return mine or row_key(one) == row_key(record)


def gain_sentence(gain: Gain, baseline_title: str) -> str:
    """What a gain says and what it does not, also where it is negative."""
    if gain.why_not == "baseline":
        return f"This student is {baseline_title} itself, which gains are measured against."
    if gain.value is None or gain.low is None or gain.high is None:
        return f"No gain over {baseline_title} can be given: {gain.why_not}."
    p = "" if gain.p_holm is None else f", p = {probability(gain.p_holm)}".replace("= <", "<")
    size = f"{points(gain.value)} points over {baseline_title} at equal budget"
    told = f"{size} (95 % interval {points(gain.low)} to {points(gain.high)}{p}, {gain.scope})"
    if gain.beats:
        return f"{told}: above zero."
    if gain.value < 0 and gain.high < 0:
        return f"{told}: below zero. {baseline_title.capitalize()} is better here."
    return f"{told}: not distinguishable from zero. These questions do not show that the method helps."


def teacher_rows(record: RunRecord) -> list[Cells]:
    """One line a teacher: what it gave, whether it saw the answer."""
    return [_teacher(record, teacher) for teacher in record.teachers]


def _teacher(record: RunRecord, teacher: TeacherInfo) -> Cells:
    key = teacher.spec.rpartition("#")[2]
    mine = [one for one in record.annotations if len(record.teachers) == 1 or one.teacher == key]
    used = "; ".join(f"{one.used} {one.kind}s, {sum(one.rejected.values())} rejected" for one in mine)
    return {
        "teacher": teacher.spec,
        "gave": teacher.note or _TOLD_NOT,
        "the right answer was visible to it": _SEEN[teacher.gold_visible],
        "texts used": used or "-",
    }


def data_rows(record: RunRecord) -> list[Cells]:
    """One line a split: rows of the whole split and the digest of its content."""
    return [
        {"split": name, "rows": f"{info.rows:,}", "SHA-256 of its content": info.digest[:16]}
        for name, info in record.data.splits.items()
    ]


def licence_notes(record: RunRecord) -> Iterator[str | Markdown]:
    """What whoever passes the student on must look at, one sentence each; what is not known is said."""
    assert record.student is not None
    models = [("The student's base model", record.student.spec)]
    models += [("Teacher", teacher.spec) for teacher in record.teachers]
    for what, text in models:
        who = f"{what} {markdown_code(text)}"
        name = _hub_name_of(text)
        if name is None:
            yield Markdown(f"{who}: its licence is not recorded; look it up before you pass the student on.")
        else:
            yield Markdown(f"{who}: its licence stands on its page, <https://huggingface.co/{name}>.")
    if record.teachers:
        yield (
            "Some licences and terms of use restrict what may be trained on a model's texts: a teacher's licence can "
            "reach this student."
        )
    task = task_of(record)
    if record.sample:
        yield "Data: sample questions written by this project's authors, Apache-2.0."
    elif task is None:
        yield Markdown(f"Data {markdown_code(record.task)}: licence unknown, the task is not installed here.")
    else:
        yield f"Data {task.title}: {task.licence}."
    yield (
        "Whether a data set's terms reach a model that was trained on it is not settled; no row of the data is in this "
        "folder, and what the student memorised of it is not known."
    )


def _hub_name_of(spec: str) -> str | None:
    try:
        return hub_name(parse_spec(spec, role="teacher"))
    except UserError:
        return None


def cost_rows(record: RunRecord) -> dict[str, str]:
    """What the student cost, in words."""
    budget = record.budget
    assert budget is not None, "asked only of trained runs"
    told = {
        "student tokens": f"{budget.student_tokens:,} in {budget.steps:,} steps, {budget.epochs:.3g} epochs",
        "training": duration(budget.train_seconds),
        "training FLOPs (estimate)": f"{budget.train_flops:.3g}" if budget.train_flops else UNKNOWN,
        "wall time with asking": duration(budget.seconds),
        "device": budget.device or _TOLD_NOT,
        "peak memory": f"{budget.peak_memory_bytes / 1e9:.2f} GB" if budget.peak_memory_bytes else _TOLD_NOT,
        "energy of training": "not measured",
    }
    if budget.student_init_tokens:
        told["tokens that made the initial student"] = f"{budget.student_init_tokens:,}"
    return told | _teacher_cost(record)


def _teacher_cost(record: RunRecord) -> dict[str, str]:
    budget = record.budget
    costs = [one.cost for one in record.annotations if one.cost is not None]
    if budget is None or not costs:
        return {"teachers": "recorded texts; what they cost is unknown"} if record.teachers else {}
    joules = [cost.joules for cost in costs]
    prices = [cost.usd for cost in costs]
    return {
        "teacher tokens": f"{budget.teacher_tokens_in or 0:,} read, {budget.teacher_tokens_out or 0:,} written",
        "teacher time": duration(budget.teacher_seconds or 0),
        "teacher energy": UNKNOWN if None in joules else f"{sum(filter(None, joules)):,.0f} J",
        "teacher price": UNKNOWN if None in prices else f"{sum(filter(None, prices)):.2f} USD",
    }


def listed(told: dict[str, str]) -> list[Cells]:
    """Facts in words as lines of a two-column table."""
    return [{"what": key, "value": value} for key, value in told.items()]
