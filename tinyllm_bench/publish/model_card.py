"""The model card of an exported student: `templates/model_card.md`, filled from the run's record.

The front matter is what the Hugging Face hub reads (`huggingface_hub.ModelCardData`); results of sample data are no
benchmark results and stay out of it.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import Markdown, all_visible, markdown, markdown_block, markdown_code, visible
from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.data.prompts import LABEL, PLAIN, Ask
from tinyllm_bench.data.records import TaskRecord, cut_context
from tinyllm_bench.data.sources import find_source, load_split
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.tables import BoardNames, text_table
from tinyllm_bench.leaderboard.verdicts import Checks, Tier
from tinyllm_bench.publish import card_parts as parts
from tinyllm_bench.reporters.eval_results import NAME, eval_results
from tinyllm_bench.training.method import Decoding, Method

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD = "README.md"
Form = Literal["full", "merged", "adapter"]
_TEMPLATES = Path(__file__).with_name("templates")
_SHOWN = ("student", "data", "method", "train", "budget")
_SHOWN_OF_TAUGHT = ("teachers", "teacher", "annotations")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is exported of a run.

    form: all weights of a fully trained student, a LoRA student with its adapters merged, or the adapters alone;
    encoder_decoder, add_bos: how the student reads; channel: which of several students this is, None for the only one;
    repo: its place on the hub, if it goes there; tier: how far the record was checked by others.
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
        others: Records that may stand beside it; those of another protocol are not used.
        names: The words of the board that would show them.
        checks: What others found about the records.
    """
    import jinja2

    environment = jinja2.Environment(
        # Every value is escaped but what a filter has made Markdown of, or what is written for a code block.
        autoescape=False,
        finalize=lambda value: markdown(value) if isinstance(value, str) else value,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "table": lambda cells: Markdown(text_table(cells, markdown=True)),
        "text": lambda value: Markdown(json.dumps(value)),  # a literal of Python, too
        "word": lambda value: Markdown(shlex.quote(visible(str(value)))),
        "code": markdown_code,
        "block": markdown_block,
    }
    return environment.get_template("model_card.md").render(
        metadata=Markdown(_metadata(record, exported).to_yaml()),
        record=record,
        exported=exported,
        own=parts.listed(parts.own_score(record)),
        compared=parts.compared(record, others, names, checks),
        baseline_title=names.baseline_title,
        cost=parts.listed(parts.cost_rows(record)),
        teachers=parts.teacher_rows(record),
        splits=parts.data_rows(record),
        licences=list(parts.licence_notes(record)),
        **_method(record),
        **_usage(record, exported),
    )


def _metadata(record: RunRecord, exported: Exported) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    base, info = parts.hub_name(parts.base_of(record)), parts.task_of(record)
    return ModelCardData(
        base_model=base,  # the hub works out by itself what the student is to it
        datasets=[info.hub.path] if info and info.hub and not record.sample else None,
        eval_results=_results(record) or None,
        language="en",
        library_name="peft" if exported.form == "adapter" else "transformers",
        model_name=visible(title(record, exported)),
        pipeline_tag="text2text-generation" if exported.encoder_decoder else "text-generation",
        tags=[NAME, "distillation", visible(record.name), record.task, *(["sample-data"] if record.sample else [])],
        license="other",  # that of the base model, of the teachers and of the data together: the card's notes
        license_name="see-licence-notes",
        license_link=CARD,
    )


def title(record: RunRecord, exported: Exported) -> str:
    """What the student is called: method, task and seed, and the channel of one among several."""
    channel = f", {exported.channel}" if exported.channel else ""
    return f"{record.label} on {record.task}, seed {record.seed}{channel}"


def _results(record: RunRecord) -> "list[EvalResult]":
    """The entries of `reporters.eval_results` in the form of a card's model-index."""
    from huggingface_hub import EvalResult

    return [
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


def _method(record: RunRecord) -> dict[str, Any]:
    import yaml

    paper, about = parts.method_of(record)
    shown = (*_SHOWN, *(_SHOWN_OF_TAUGHT if record.teachers else ()))
    settings = {key: all_visible(_set(record.config[key])) for key in shown if record.config.get(key)}
    return {
        "paper": Markdown(_ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", markdown(paper))),
        "about": about,
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110).strip(),
        "task": parts.task_of(record),
    }


def _set(values: Any) -> Any:
    """Nested settings without those that are null or empty."""
    if not isinstance(values, dict):
        return values
    return {key: _set(value) for key, value in values.items() if value not in (None, {}, [])}


def _usage(record: RunRecord, exported: Exported) -> dict[str, Any]:
    """What the code blocks need: how the student is loaded and asked, shown with a question of the sample data."""
    base, ask = parts.base_of(record), ask_of(record)
    asked = shown_question(record)
    written = _written(record)
    channels = written or (LABEL,)
    lead = "tokenizer.bos_token + " if exported.add_bos else ""
    adapter_on_hub = exported.form == "adapter" and base.kind == "hf" and base.layers is None
    loaded = "transformers" if exported.form != "adapter" else "peft" if adapter_on_hub else NAME
    taught = [name for name in (record.budget.tokens_by_channel if record.budget else {}) if name != PLAIN]
    return {
        "title": title(record, exported),
        "base": base,
        "base_text": parts.described(base),
        "loaded_by": loaded,
        "name": exported.repo or ".",
        "lead": Markdown(lead),
        "ranked": record.mode in ("cloze", "multiple_choice") and not written,
        "written": written,
        "prompts": {name: ask.prompt(asked, name) for name in channels if exported.channel in (None, name)},
        "options": list(ask.options(asked)),
        "markers": {name: ask.marker(name) for name in taught},
        "max_new_tokens": _max_new_tokens(record),
    }


def ask_of(record: RunRecord) -> Ask:
    """The wording of the run's prompts."""
    data = record.config.get("data") or {}
    told = {key: data[key] for key in ("style", "rationale_context", "markers") if key in data}
    return Ask(mode=record.mode, **told)


def shown_question(record: RunRecord) -> TaskRecord:
    """A question that may be shown: one that this project wrote for the task, else one about nothing in particular."""
    try:
        found = load_split(find_source("sample", None), record.task, "test")[0]
    except UserError:
        choices = ("a cork", "a stone")
        question = "Which of these floats on water?"
        return TaskRecord(id="", task=record.task, split="test", question=question, choices=choices, answer=0)
    return cut_context(found, record.protocol["max_context_words"])


def _written(record: RunRecord) -> tuple[str, ...]:
    """The channels that a policy reads; empty where the label channel answers."""
    decoding = decoding_of(record)
    return decoding.channels if decoding is not None and decoding.policy is not None else ()


def decoding_of(record: RunRecord) -> Decoding | None:
    """How the run's student was read; None where the method is not installed, or takes other settings by now."""
    try:
        kind: type[Method] = load_method(record.name)
        return kind(kind.Config.model_validate(record.config.get("method") or {})).decoding()
    except ValueError:
        return None


def _max_new_tokens(record: RunRecord) -> int:
    decoding = decoding_of(record)
    if decoding is not None and decoding.policy is not None:
        return decoding.max_new_tokens
    return int((record.config.get("eval") or {}).get("max_new_tokens") or 64)
