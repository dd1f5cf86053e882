"""Evaluation of a model through lm-eval, the same for validation, the test split and the reference baselines.

lm-eval builds the prompts, the requests and their order; this module chooses the records and turns the logged samples
into predictions. `lm_eval.evaluate` is called rather than `simple_evaluate`: the latter resets the global random
seeds, which would disturb a training run, and collects the environment with every call (seconds).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import temporary_folder
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Prediction, Sample, ScoringMode, Split
from tinyllm_bench.evaluation import task_yaml
from tinyllm_bench.evaluation.scoring import with_answer
from tinyllm_bench.models.tokens import respelled

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

    from tinyllm_bench.data.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """Records of one split to evaluate in one scoring mode: all that decides a prompt and how its answer is read.

    `max_context_words` and `shot_max_words` cut the context of the question and of the few-shot examples, in words.
    `shots` examples come from the train split; `chat` applies the model's own chat template. `markers` replaces the
    markers of channels by name. `max_new_tokens` limits a generated answer, in tokens; `match`: it is read by the
    parser, or must be a choice's text to the letter.

    Raises:
        UserError: no ids, an id that is given twice, few-shot examples for the split that they come from.
    """

    task: str
    mode: ScoringMode
    split: Split
    ids: tuple[str, ...]
    source: Source
    max_context_words: int = 160
    style: str = "marker"
    markers: Mapping[str, str] = field(default_factory=dict)
    shots: int = 0
    shot_max_words: int = 64
    chat: bool = False
    max_new_tokens: int = 64
    match: Literal["parser", "exact"] = "parser"

    def __post_init__(self) -> None:
        if not self.ids:
            raise UserError(f"{self.task}: no record ids; give at least one id of split {self.split!r}")
        if len(set(self.ids)) != len(self.ids):
            raise UserError(f"{self.task}: a record id is given twice; give each id once")
        if self.shots and self.split == "train":
            raise UserError(
                f"{self.task}: few-shot examples come from 'train'; evaluate 'valid' or 'test', or set shots=0"
            )

    def metadata(self) -> dict[str, Any]:
        """Keyword arguments of the lm-eval task's loader, plain values only (task and mode are in the task's YAML)."""
        return {
            "source": self.source.kind,
            "source_folder": self.source.folder,
            "split": self.split,
            "ids": list(self.ids),
            "style": self.style,
            "markers": dict(self.markers),
            "max_context_words": self.max_context_words,
            "shots": self.shots,
            "shot_max_words": self.shot_max_words,
        }


@dataclass(frozen=True, slots=True)
class Finish:
    """How a generation ended: number of new tokens, and whether the limit cut it off (neither EOS nor a stop text)."""

    tokens: int
    hit_limit: bool


def evaluate(lm: LM, request: EvalRequest) -> list[Prediction]:
    """Predictions for the records of `request`, in the order of `request.ids`.

    An LM may have an attribute `finished`, a mapping prompt -> `Finish`; without it, token counts are unknown.

    Raises:
        UserError: unknown task or record, a prompt longer than the model's limit, scores that are not finite, a chat
            template requested of a tokenizer that has none.
    """
    import lm_eval

    with _quiet():
        task = build_task(request)
        name = task_yaml.task_name(request.task, request.mode)
        results: Any = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=request.chat,
            fewshot_as_multiturn=True,
        )
    logged = {sample["doc"]["id"]: sample for sample in results["samples"][name]}
    finished: Mapping[str, Finish] = getattr(lm, "finished", {})
    # read only where exact match needs it: a proxy LM loads its tokenizer at the first access
    tokenizer = lm.tokenizer if request.match == "exact" and request.mode == "generate" else None
    return [_prediction(request, logged[record_id], finished, tokenizer) for record_id in request.ids]


def build_task(request: EvalRequest) -> ConfigurableTask:
    """The lm-eval task that serves exactly the records of a request.

    Raises:
        UserError: a task or mode that lm-eval does not find (lm-eval itself skips a broken YAML silently).
    """
    from lm_eval.tasks import TaskManager

    name = task_yaml.task_name(request.task, request.mode)
    manager: Any = _task_manager(request.task)
    if name not in manager.all_subtasks:
        raise UserError(f"lm-eval finds no task {name!r} in {task_yaml.folder()}; run `make tasks` to write its YAML")
    assert isinstance(manager, TaskManager)
    manager._factory._meta = request.metadata()  # the index is cached; the metadata change with every call
    task: Any = manager.load([name])["tasks"][name]
    task.set_config(key="num_fewshot", value=request.shots)
    if request.mode == "generate":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": request.max_new_tokens}, update=True)
    return task


@lru_cache(maxsize=16)
def _task_manager(task: str) -> Any:
    """lm-eval's index of the built-in tasks, and of `task` if another package provides it."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    home = task_yaml.folder()
    if (home / f"{task}.py").is_file():
        return _built_in_tasks(home)
    info = plugins.load_task(task)
    with temporary_folder("tinyllm-bench-task") as folder:
        for mode in info.scoring_modes:
            text = task_yaml.task_text(info, mode, shared=f"{home}/")
            (folder / f"{task}_{mode}.yaml").write_text(text, encoding="utf-8")
        manager = TaskManager(include_path=[str(home), str(folder)], include_defaults=False)
        for entry in manager.task_index.values():
            if entry.yaml_path and folder in Path(entry.yaml_path).parents:
                # lm-eval reads the file at every load, when the temporary folder is gone
                entry.cfg, entry.yaml_path = load_yaml(entry.yaml_path, resolve_func=True), None
    return manager


@lru_cache(maxsize=1)
def _built_in_tasks(home: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(home), include_defaults=False)


def _prediction(
    request: EvalRequest, sample: Mapping[str, Any], finished: Mapping[str, Finish], tokenizer: Any = None
) -> Prediction:
    """One sample of lm-eval's log as a prediction."""
    doc, prompt = sample["doc"], sample["arguments"][0][0]
    assert not request.shots or prompt.count(doc["prompt"]) == 1, f"{doc['id']} is among its own few-shot examples"
    unanswered = Prediction(record_id=doc["id"], mode=request.mode, answer=None, correct=False)
    if request.mode == "generate":
        text, finish = sample["resps"][0][0], finished.get(prompt)
        generated = replace(
            unanswered,
            samples=(Sample(channel=LABEL, text=text, tokens=finish.tokens if finish else None),),
            choices_read=tuple(respelled(tokenizer, c) for c in doc["choices"]) if request.match == "exact" else (),
            stopped="limit" if finish and finish.hit_limit else "stop",
        )
        return with_answer(generated, doc["choices"], doc["gold"])
    logprobs = tuple(float(response[0][0]) for response in sample["resps"])
    if not all(map(math.isfinite, logprobs)):
        raise UserError(
            f"{doc['id']}: the student's log-probabilities are {logprobs}, finite numbers are needed; "
            "did training diverge? Lower the learning rate"
        )
    chars = tuple(len(option) for option in doc["options"])
    return with_answer(replace(unanswered, option_logprobs=logprobs, option_chars=chars), doc["choices"], doc["gold"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log and progress bar, and leave `random`, which it samples from, as it was."""
    import lm_eval.api.task as module

    logger, bar = logging.getLogger("lm_eval"), module.tqdm
    level, state = logger.level, random.getstate()
    logger.setLevel(logging.ERROR)
    module.tqdm = lambda rows, **_: rows
    try:
        yield
    finally:
        logger.setLevel(level)
        module.tqdm = bar
        random.setstate(state)
