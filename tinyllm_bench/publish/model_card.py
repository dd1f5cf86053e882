"""The model card of an exported student: `templates/model_card.md`, filled from the run's record.

Everything comes from the record, from records of the same protocol, and from what the installed task and method say
about themselves; what none of them states is called unknown. The front matter is what the Hugging Face hub reads
(`huggingface_hub.ModelCardData`); results on sample data are no benchmark results and stay out of it.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import Markdown, all_visible, markdown, markdown_block, markdown_code, visible
from tinyllm_bench.base.plugins import load_method, load_task, origin
from tinyllm_bench.data.prompts import LABEL, PLAIN, Ask
from tinyllm_bench.data.records import TaskInfo, TaskRecord, cut_context
from tinyllm_bench.data.sources import find_source, load_split
from tinyllm_bench.leaderboard.analysis import SectionAnalysis
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import Gain, make_rows, row_key, student_digest
from tinyllm_bench.leaderboard.tables import (
    BoardNames,
    Cells,
    duration,
    make_section,
    percent,
    points,
    probability,
    text_table,
)
from tinyllm_bench.leaderboard.verdicts import Checks, Tier
from tinyllm_bench.models.bundled import BUNDLES
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.reporters.eval_results import NAME, eval_results
from tinyllm_bench.training.method import Decoding, Method

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
UNKNOWN = "unknown"
NOT_RECORDED = "not recorded"
Form = Literal["full", "merged", "adapter"]
_TEMPLATES = Path(__file__).with_name("templates")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is exported of a run.

    form: all weights of a fully trained student, a LoRA student with its adapters merged, or the adapters alone;
    encoder_decoder, add_bos: how the student reads a prompt; channel: which of several students this is, None for the
    only one; repo: its repository on the hub, if it is uploaded; tier: how far others have checked the record.
    """

    form: Form
    encoder_decoder: bool
    add_bos: bool
    channel: str | None = None
    repo: str | None = None
    tier: Tier = "self-reported"
    with_predictions: bool = False


def model_card(
    record: RunRecord, exported: Exported, others: Sequence[RunRecord], names: BoardNames, checks: Checks
) -> str:
    """The text of the card.

    Args:
        record: Of the run that trained and scored the student.
        exported: What is exported of it.
        others: Records to compare with; those of another protocol are ignored.
        names: The words of the board that would show them.
        checks: Verdicts and refutations of these records.
    """
    import jinja2

    environment = jinja2.Environment(
        # Every value is escaped, except what a filter has turned into Markdown or what is written for a code block.
        autoescape=False,
        finalize=lambda value: markdown(value) if isinstance(value, str) else value,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "table": _table,
        "text": lambda value: Markdown(json.dumps(value)),  # JSON strings are Python literals too
        "word": lambda value: Markdown(shlex.quote(visible(str(value)))),
        "code": markdown_code,
        "block": markdown_block,
    }
    return environment.get_template("model_card.md").render(
        metadata=Markdown(_metadata(record, exported).to_yaml()),
        title=_title(record, exported),
        record=record,
        exported=exported,
        task=_task_of(record),
        base=base_of(record),
        base_text=_base_in_words(record),
        score=_score_facts(record),
        compared=compared(record, others, names, checks),
        baseline_title=names.baseline_title,
        splits=[
            {"split": name, "rows": f"{split.rows:,}", "SHA-256 of its content": split.digest[:16]}
            for name, split in record.data.splits.items()
        ],
        teachers=_teacher_rows(record),
        licences=list(licence_notes(record)),
        cost=_cost_facts(record),
        **_method_context(record),
        **_usage_context(record, exported),
    )


def _table(content: Sequence[Cells] | dict[str, str]) -> Markdown:
    """Rows as a table; facts by their names as a table of two columns."""
    if isinstance(content, dict):
        content = [{"what": name, "value": value} for name, value in content.items()]
    return Markdown(text_table(content, markdown=True))


def _title(record: RunRecord, exported: Exported) -> str:
    """The student's name: method, task and seed, and the channel of one among several students."""
    channel = f", {exported.channel}" if exported.channel else ""
    return f"{record.label} on {record.task}, seed {record.seed}{channel}"


def _metadata(record: RunRecord, exported: Exported) -> "ModelCardData":
    """The front matter."""
    from huggingface_hub import EvalResult, ModelCardData

    task = _task_of(record)
    results = [
        EvalResult(
            task_type="question-answering",
            task_name=f"{record.task}, {record.mode} mode, {NAME}",
            dataset_type=entry.dataset.id,
            dataset_name=entry.dataset.task_id,
            dataset_revision=entry.dataset.revision,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=entry.value,
            metric_name=visible(entry.notes),
        )
        for entry in eval_results(record)
    ]
    return ModelCardData(
        base_model=hub_name(base_of(record)),  # the hub derives the relation (finetune, adapter) by itself
        datasets=[task.hub.path] if task and task.hub and not record.sample else None,
        eval_results=results or None,
        language="en",
        library_name="peft" if exported.form == "adapter" else "transformers",
        model_name=visible(_title(record, exported)),
        pipeline_tag="text2text-generation" if exported.encoder_decoder else "text-generation",
        tags=[NAME, "distillation", visible(record.name), record.task, *(["sample-data"] if record.sample else [])],
        license="other",  # the licences of base model, teachers and data apply together: see the card's notes
        license_name="see-licence-notes",
        license_link=CARD,
    )


# --- The student and its method ---------------------------------------------------------------------------------------


def base_of(record: RunRecord) -> ModelSpec:
    """The spec of the model that the student was trained from."""
    assert record.student is not None, "only trained runs have a card"
    return parse_spec(record.student.spec, role="teacher")


def hub_name(spec: ModelSpec) -> str | None:
    """The model's name on the Hugging Face hub; None if it has none or the spec does not say."""
    if spec.kind == "hf":
        return spec.location if _REPOSITORY.fullmatch(spec.location) else None
    return BUNDLES[spec.location].hub if spec.kind == "bundled" and spec.location in BUNDLES else None


def _base_in_words(record: RunRecord) -> Markdown:
    """The base model: where it comes from and which of its layers were used."""
    spec = base_of(record)
    name = hub_name(spec)
    text = markdown_code(spec.text) + (f", that is [{markdown(name)}](https://huggingface.co/{name})" if name else "")
    if spec.kind == "bundled" and name:
        text += f" as {markdown(BUNDLES[spec.location].title)}, dequantised: not the original weights"
    if spec.layers is not None:
        text += f"; only its layers {':'.join(map(str, spec.layers))} (START:STOP:STEP) were used"
    return Markdown(text)


def _task_of(record: RunRecord) -> TaskInfo | None:
    """The task, None if it is not installed here."""
    try:
        task: TaskInfo = load_task(record.task)
    except UserError:
        return None
    return task


def _method_context(record: RunRecord) -> dict[str, Any]:
    """The method's paper, its one-line description, and the settings that decided the training."""
    import yaml

    try:
        method: type[Method] = load_method(record.name)
        paper, about = method.paper, (method.__doc__ or record.name).strip().splitlines()[0]
    except UserError:
        paper, about = UNKNOWN, f"{record.name}, a method that is not installed here"
    shown: tuple[str, ...] = ("student", "data", "method", "train", "budget")
    if record.teachers:
        shown = (*shown, "teachers", "teacher", "annotations")
    settings = {key: all_visible(_without_empty(record.config[key])) for key in shown if record.config.get(key)}
    return {
        "paper": Markdown(_ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", markdown(paper))),
        "about": about,
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110).strip(),
    }


def _without_empty(values: Any) -> Any:
    """Nested settings without those that are null or empty."""
    if not isinstance(values, dict):
        return values
    return {key: _without_empty(value) for key, value in values.items() if value not in (None, {}, [])}


# --- Scores, and the rows to compare with -----------------------------------------------------------------------------


def _score_facts(record: RunRecord) -> dict[str, str]:
    """The run's own figures."""
    score, accuracy = record.score, record.accuracy
    assert score is not None and accuracy is not None, "only scored runs have a card"
    (row,) = make_rows([record], ())
    interval = SectionAnalysis([row]).accuracies.get(row.key)
    assert interval is not None
    selection = "validation" if record.selected_on == "valid" else record.selected_on
    return {
        "accuracy": f"{percent(accuracy)} % ({score.correct} of {score.n})",
        "95 % interval": f"{percent(interval.low)} to {percent(interval.high)} % ({interval.method})",
        "chance": f"{percent(record.chance)} %",
        "not readable (counted as wrong)": f"{score.unparsed} of {score.n}",
        **{key.replace("_", " "): f"{percent(value)} %" for key, value in sorted(record.secondary.items())},
        **{key.replace("_", " "): f"{value:.4g}" for key, value in sorted(record.paths.items())},
        "evaluations on the test split": str(record.test_evaluations),
        "weights selected on": f"the {selection} split",
    }


class BaselineComparison(NamedTuple):
    """The rows of the run's protocol as a table, the table's notes, and the run's gain in a sentence."""

    table: Sequence[Cells]
    notes: Sequence[str]
    gain: str


def compared(
    record: RunRecord, others: Sequence[RunRecord], names: BoardNames, checks: Checks
) -> BaselineComparison | None:
    """The run next to the reference baselines, the fine-tuning baseline and its other seeds, under the same protocol.

    None if there is nothing to compare with. `others` may hold any records. Rows of other methods are left out: a card
    does not rank methods, a leaderboard does.
    """

    def comparable(other: RunRecord) -> bool:
        if other.protocol_hash != record.protocol_hash or other.selected_on == "test" or other.run_id == record.run_id:
            return False
        if other.kind == "reference_baseline":
            evaluated = other.student.spec if other.student else None
            return evaluated in (None, base_of(record).text, *(teacher.spec for teacher in record.teachers))
        is_baseline = other.name == names.baseline and student_digest(other) == student_digest(record)
        return is_baseline or row_key(other) == row_key(record)

    chosen = [record, *filter(comparable, others)]
    if len(chosen) == 1:
        return None
    rows = make_rows(chosen, names.order)
    gains = SectionAnalysis(rows).gains(names.baseline)
    own = next(gain for row, gain in zip(rows, gains, strict=True) if record in row.records)
    section = make_section(chosen, [], names, checks)
    return BaselineComparison(section.cells(), section.notes, gain_sentence(own, names.baseline_title))


def gain_sentence(gain: Gain, baseline_title: str) -> str:
    """A gain in a sentence that claims no more than it shows, also where it is negative."""
    if gain.why_not == "baseline":
        return f"This student is {baseline_title} itself, which gains are measured against."
    if gain.value is None or gain.low is None or gain.high is None:
        return f"No gain over {baseline_title} can be given: {gain.why_not}."
    p = "" if gain.p_holm is None else f", p = {probability(gain.p_holm)}".replace("= <", "<")
    size = f"{points(gain.value)} points over {baseline_title} at equal budget"
    sentence = f"{size} (95 % interval {points(gain.low)} to {points(gain.high)}{p}, {gain.scope})"
    if gain.beats:
        return f"{sentence}: above zero."
    if gain.value < 0 and gain.high < 0:
        return f"{sentence}: below zero. {baseline_title.capitalize()} is better here."
    return f"{sentence}: not distinguishable from zero. These questions do not show that the method helps."


# --- Teachers, licences, cost -----------------------------------------------------------------------------------------


def _teacher_rows(record: RunRecord) -> list[Cells]:
    """One row per teacher: what it provided, and whether it saw the answer."""
    rows = []
    for teacher in record.teachers:
        key = teacher.spec.rpartition("#")[2]
        own = [counts for counts in record.annotations if len(record.teachers) == 1 or counts.teacher == key]
        used = "; ".join(f"{n.used} {n.kind}s, {sum(n.rejected.values())} rejected" for n in own)
        rows.append(
            {
                "teacher": teacher.spec,
                "provided": teacher.note or NOT_RECORDED,
                "the right answer was visible to it": {True: "yes", False: "no", None: "not known"}[
                    teacher.gold_visible
                ],
                "texts used": used or "-",
            }
        )
    return rows


def licence_notes(record: RunRecord) -> Iterator[str | Markdown]:
    """Licences and terms that redistributing the student is subject to, one sentence each; unknowns are stated."""
    assert record.student is not None
    models = [("The student's base model", record.student.spec)]
    models += [("Teacher", teacher.spec) for teacher in record.teachers]
    for what, text in models:
        model = f"{what} {markdown_code(text)}"
        try:
            name = hub_name(parse_spec(text, role="teacher"))
        except UserError:
            name = None
        if name is None:
            yield Markdown(f"{model}: its licence is not recorded; look it up before you redistribute the student.")
        else:
            yield Markdown(f"{model}: its licence is on its page, <https://huggingface.co/{name}>.")
    if record.teachers:
        yield (
            "Some licences and terms of use restrict what may be trained on a model's texts: a teacher's licence can "
            "extend to this student."
        )
    task = _task_of(record)
    if task is None:
        yield Markdown(f"Data {markdown_code(record.task)}: licence unknown, the task is not installed here.")
    elif record.sample and origin("task", task.name) is None:
        yield "Data: sample questions written by tinyllm-bench's authors, Apache-2.0."
    elif record.sample:
        yield f"Data: sample questions that come with the task {task.title}: {task.licence}."
    else:
        yield f"Data {task.title}: {task.licence}."
    yield (
        "Whether a data set's terms extend to a model that was trained on it is not settled; no row of the data is in "
        "this folder, and what the student memorised of it is not known."
    )


def _cost_facts(record: RunRecord) -> dict[str, str]:
    """The cost of the student."""
    budget = record.budget
    assert budget is not None, "only trained runs have a card"
    facts = {
        "student tokens": f"{budget.student_tokens:,} in {budget.steps:,} steps, {budget.epochs:.3g} epochs",
        "training": duration(budget.train_seconds),
        "training FLOPs (estimate)": f"{budget.train_flops:.3g}" if budget.train_flops else UNKNOWN,
        "wall time with evaluation": duration(budget.seconds),
        "device": budget.device or NOT_RECORDED,
        "peak memory": f"{budget.peak_memory_bytes / 1e9:.2f} GB" if budget.peak_memory_bytes else NOT_RECORDED,
    }
    if budget.student_init_tokens:
        facts["tokens that made the initial student"] = f"{budget.student_init_tokens:,}"
    costs = [counts.cost for counts in record.annotations if counts.cost is not None]
    if not costs:
        return facts | ({"teachers": "recorded texts; what they cost is unknown"} if record.teachers else {})
    prices = [cost.usd for cost in costs]
    return facts | {
        "teacher tokens": f"{budget.teacher_tokens_in or 0:,} read, {budget.teacher_tokens_out or 0:,} written",
        "teacher time": duration(budget.teacher_seconds or 0),
        "teacher price": UNKNOWN if None in prices else f"{sum(filter(None, prices)):.2f} USD",
    }


# --- How to use the student -------------------------------------------------------------------------------------------


def _usage_context(record: RunRecord, exported: Exported) -> dict[str, Any]:
    """Values of the code blocks: how to load and prompt the student, shown on a question of the sample data."""
    data = record.config.get("data") or {}
    ask = Ask(mode=record.mode, **{key: data[key] for key in ("style", "rationale_context", "markers") if key in data})
    question = _example_question(record)
    decoding = decoding_of(record)
    # Channels whose texts a policy combines into an answer; none if the label channel answers alone.
    written = decoding.channels if decoding is not None and decoding.policy is not None else ()
    if written and decoding is not None:
        max_new_tokens = decoding.max_new_tokens
    else:
        max_new_tokens = int((record.config.get("eval") or {}).get("max_new_tokens") or 64)
    base = base_of(record)
    adapter_on_hub = exported.form == "adapter" and base.kind == "hf" and base.layers is None
    trained = [name for name in (record.budget.tokens_by_channel if record.budget else {}) if name != PLAIN]
    return {
        "loaded_by": "transformers" if exported.form != "adapter" else "peft" if adapter_on_hub else NAME,
        "name": exported.repo or ".",
        "lead": Markdown("tokenizer.bos_token + " if exported.add_bos else ""),
        "ranked": record.mode in ("cloze", "multiple_choice") and not written,
        "written": written,
        "prompts": {
            name: ask.prompt(question, name) for name in written or (LABEL,) if exported.channel in (None, name)
        },
        "options": list(ask.options(question)),
        "markers": {name: ask.marker(name) for name in trained},
        "max_new_tokens": max_new_tokens,
    }


def _example_question(record: RunRecord) -> TaskRecord:
    """A question that may be shown: one that this project wrote for the task, else a general one."""
    try:
        question = load_split(find_source("sample", None), record.task, "test")[0]
    except UserError:
        text, choices = "Which of these floats on water?", ("a cork", "a stone")
        return TaskRecord(id="", task=record.task, split="test", question=text, choices=choices, answer=0)
    return cut_context(question, record.protocol["max_context_words"])


def decoding_of(record: RunRecord) -> Decoding | None:
    """How the run's student was decoded; None if the method is not installed or no longer accepts these settings."""
    try:
        method: type[Method] = load_method(record.name)
        return method(method.Config.model_validate(record.config.get("method") or {})).decoding()
    except ValueError:
        return None
