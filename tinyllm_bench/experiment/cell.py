"""A cell: one method or reference baseline on one task, in one scoring mode, with one seed.

Two digests follow from it. Its identity (`run_id`) is everything that can change its predictions and nothing that
cannot: where and how fast a cell runs (folders, batch sizes, checkpoint intervals) is not part of it, and neither is
what the cell does not use, so that label-only training is not repeated because a teacher changed. Its protocol is what
two rows must have in common to be compared in one table.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tinyllm_bench import __version__
from tinyllm_bench.answers.codec import LayoutTokens
from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.base import plugins
from tinyllm_bench.base.files import digest, digest_file
from tinyllm_bench.data.prompts import Ask, rationale_channel
from tinyllm_bench.data.records import ScoringMode, Split, TaskInfo, TaskRecord, cut_context
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.data.splits import SplitFacts, stratified_subset
from tinyllm_bench.evaluation.runner import EvalRequest
from tinyllm_bench.evaluation.sampled_answers import DecodingConfig, policies_for
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.leaderboard.record import ids_digest
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import is_encoder_decoder
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.method import Method

GUESSES = ("random", "majority")  # reference baselines without a model


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything one run needs, resolved and checked. `origin` names for each setting the layer it came from.

    `shared_by`: how many methods of the request learn from the same teachers' texts, for the amortised cost.
    `signal`: the white-box teacher, for methods that learn from distributions. `student_from` and `teacher_from` are
    cells that make the initial student and the teacher; they are trained first. `students`: for methods that answer by
    a policy, the cell that trains the student of each channel, on a `share` of the budget. All of these have
    `trains_only` set.
    `select_on_test`: weights are selected on the test split, as some released code does; only a reproduction requests
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
    def run_id(self) -> str:
        """A readable name with the digest of the cell's identity."""
        name = self.name.replace("/", ".") + ("-training" if self.trains_only else "")
        return f"{name}-{self.task.name}-{self.mode}-s{self.seed}-{digest(identity_of(self))[:10]}"

    @property
    def ask(self) -> Ask:
        """The wording of this cell's prompts."""
        data = self.config.data
        return Ask(mode=self.mode, style=data.style, rationale_context=data.rationale_context, markers=data.markers)

    def records(self, split: Split) -> tuple[TaskRecord, ...]:
        """The cell's records of a split with whole contexts: the training subset, or those that are scored."""
        return records_of(self.config, self.source, self.task.name, split)

    def truncated_records(self, split: Split) -> tuple[TaskRecord, ...]:
        """The same records as prompts show them, passages cut to `data.max_context_words`."""
        return tuple(cut_context(record, self.config.data.max_context_words) for record in self.records(split))

    def eval_request(self, split: Split, ids: Sequence[str], *, shots: int = 0, chat: bool = False) -> EvalRequest:
        """The evaluation of the records with these ids, with `shots` examples and through the chat template."""
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
    def samples_answers(self) -> bool:
        """Whether the method answers by sampled chain-of-thought or programs, and a policy decides between them."""
        return self.method is not None and self.method.decoding().policy is not None

    def program_layout(self) -> LayoutTokens | None:
        """How the student writes programs: in one line for a T5, whose tokenizer loses newlines; None = as they are."""
        return LayoutTokens() if is_encoder_decoder(self.student, runs=self.runs) else None

    def decoding_config(self, layout: LayoutTokens | None, *, greedy: bool = False) -> DecodingConfig:
        """How answers are sampled, for a student that writes programs in `layout` (see `program_layout`).

        `greedy`: without sampling, by the cheapest policy that uses every channel, for evaluations during training.
        """
        assert self.method is not None
        decoding = self.method.decoding()
        policies: Any = policies_for(decoding.channels)
        cheapest = "pot_then_cot" if "pot_then_cot" in policies else policies[0]
        return DecodingConfig(
            channels=decoding.channels,
            policy=cheapest if greedy else decoding.policy,  # type: ignore[arg-type]
            samples=decoding.samples,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_new_tokens=decoding.max_new_tokens,
            every=decoding.every and not greedy,
            seed=self.seed,
            layout=layout,
        )

    @property
    def student_specs(self) -> dict[str, ModelSpec]:
        """Per channel the trained student that writes it."""
        return {channel: parse_spec(f"run:{cell.run_id}", role="student") for channel, cell in self.students.items()}

    @property
    def prerequisites(self) -> "tuple[Cell, ...]":
        """The cells that must be trained before this one, each once."""
        cells = [self.student_from, self.teacher_from, *self.students.values()]
        return tuple({cell.run_id: cell for cell in cells if cell is not None}.values())


def records_of(config: BenchConfig, source: Source, task: str, split: Split) -> tuple[TaskRecord, ...]:
    """The records of a split that the settings select: a fixed stratified subset, or all of them."""
    limits = {"train": config.data.train_limit, "valid": config.eval.valid_limit, "test": config.eval.limit}
    limit = limits[split]
    return load_split(source, task, split) if limit is None else _subset(source, task, split, limit)


@lru_cache(maxsize=64)
def _subset(source: Source, task: str, split: Split, limit: int) -> tuple[TaskRecord, ...]:
    return stratified_subset(load_split(source, task, split), limit, salt=split)


def device_of(cell: Cell) -> str:
    """The device that the settings select; `auto` takes an accelerator where there is one."""
    import torch

    device = cell.config.backend.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


# --- the identity -----------------------------------------------------------------------------------------------------


def identity_of(cell: Cell) -> dict[str, Any]:
    """The facts whose digest is part of the cell's run id; their names are fixed, since the digest depends on them."""
    config = cell.config
    protocol = protocol_of(cell)
    if cell.trains_only and not cell.select_on_test:  # its weights do not depend on the test questions
        for key in ("scored_ids_digest", "n", "prompt_digest"):
            protocol.pop(key)
    facts: dict[str, Any] = {
        "version": __version__,
        "cell": [
            "training" if cell.trains_only else cell.kind,
            cell.name,
            cell.task.name,
            cell.task.version,
            cell.mode,
            cell.seed,
        ],
        "protocol": protocol,
    }
    if cell.name not in GUESSES:
        facts["student"] = [model_identity(cell.student, cell.runs), config.student.model_dump(mode="json")]
        for key in ("model", "init"):  # `cell.student` names what they mean: the run that made the initial student
            facts["student"][1].pop(key)
        facts["inference"] = {
            "engine": None if cell.trains_only else config.backend.engine,
            "device": config.backend.device,
            "max_new_tokens": config.eval.max_new_tokens if cell.mode == "generate" else None,
            "chat_template": config.eval.chat_template if cell.kind == "reference_baseline" else None,
            "style": config.data.style,
            "markers": dict(config.data.markers),
            **({"cut_tokens": config.data.cut_tokens} if config.data.cut_tokens else {}),
        }
    if cell.name == "majority" or (cell.name == "random" and not cell.records("test")[0].choices):
        facts["train"] = _ids_digest(cell, "train")
    if cell.name == "few_shot":
        facts["shots"] = [config.eval.shots, config.eval.shot_max_words, cell.data["train"]["digest"]]
    return facts if cell.method is None else facts | _training_identity(cell, cell.method)


def _training_identity(cell: Cell, method: Method) -> dict[str, Any]:
    config, data = cell.config, cell.config.data
    train = config.train.model_dump(mode="json")
    for key in ("micro_batch_tokens", "checkpoint_seconds", "gradient_checkpointing", "layout", "attention"):
        train.pop(key)
    # how prompts are worded, by the example of one question
    first = cell.truncated_records("train")[0]
    examples = [asdict(example) for example in method.examples(first, [], cell.ask)]
    decoding = method.decoding()
    channels = [rationale_channel(teacher.key) for teacher in cell.teachers]
    channels += decoding.channels if decoding.policy is not None else ()
    plugin = plugins.origin("method", cell.name)
    source = inspect.getsource(inspect.getmodule(type(method)) or type(method))
    signal = None
    if cell.signal is not None:
        teacher = config.teacher
        cache = None if teacher.cache is None else teacher.cache.model_dump(exclude={"engine"})
        signal = [model_identity(cell.signal, cell.runs), teacher.dtype, teacher.chat, cache]
    facts: dict[str, Any] = {
        "method": config.method,
        "method_source": digest(source) if plugin is None else plugin.fingerprint,
        "train": train,
        "budget": config.budget.model_dump(mode="json"),
        "records": [_ids_digest(cell, "train"), _ids_digest(cell, "valid")],
        "data": {split: facts["digest"] for split, facts in cell.data.items()},
        "wording": [examples, *(cell.ask.prompt(first, channel) for channel in channels)],
        "teachers": [[t.key, t.text_digest(cell.task.name)] for t in cell.teachers],
        "control": config.annotations.control if cell.teachers else None,
        "signal": signal,
    }
    if data.plain_text is not None and method.needs().plain_text:
        facts["plain_text"] = [digest_file(Path(data.plain_text).expanduser()), data.plain_tokens]
    if cell.share != 1 and cell.student_from is not None:
        facts["share"] = cell.share
    if cell.select_on_test:
        facts["select_on_test"] = True
    return facts


def _ids_digest(cell: Cell, split: Split) -> str:
    return digest([record.id for record in cell.records(split)])


def plugins_of(cell: Cell) -> dict[str, str]:
    """Packages and plugin files that a cell uses, by name: their version and the digest of their code."""
    used = [("task", cell.task.name), *([("method", cell.name)] if cell.kind == "method" else [])]
    used += [("teacher", teacher.spec.partition(":")[0]) for teacher in cell.teachers]
    origins = [origin for kind, name in used if (origin := plugins.origin(kind, name)) is not None]
    packages = [origin.fingerprint for origin in origins]
    return {code["package"]: f"{code['version']} sha256:{code['digest'][:16]}".strip() for code in packages}


# --- the protocol -----------------------------------------------------------------------------------------------------


_METRICS = {"cloze": "log-probability per character", "multiple_choice": "log-probability", "generate": "parsed answer"}


def protocol_of(cell: Cell) -> dict[str, Any]:
    """Task, scored ids, mode, contexts and options of the questions, parser, metric and the limit of the context.

    Markers belong to a method and are no part of the protocol; neither are training data, budget and backend.
    """
    records = cell.truncated_records("test")
    questions = [[record.id, cell.ask.context(record), list(cell.ask.options(record))] for record in records]
    exact = cell.mode == "generate" and cell.config.eval.match == "exact"
    metric = "accuracy by " + ("the choice's text to the letter" if exact else _METRICS[cell.mode])
    if cell.config.data.cut_tokens:
        metric += f", prompts cut behind {cell.config.data.cut_tokens} tokens"
    return {
        "task": cell.task.name,
        "version": cell.task.version,
        "scored_ids_digest": ids_digest(record.id for record in records),
        "n": len(records),
        "mode": cell.mode,
        "prompt_digest": digest(questions),
        "parser_version": reader_version(records[0].choices),
        "metric": metric,
        "max_context_words": cell.config.data.max_context_words,
    }
