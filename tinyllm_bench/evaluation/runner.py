"""Asking a model through lm-eval: one path for validation, the test split and the reference baselines.

lm-eval builds the prompts, the requests and their order; this module chooses the records, takes the logged samples
and turns them into predictions. `lm_eval.evaluate` is called rather than `simple_evaluate`: the latter resets the
global random seeds, which would disturb a training run, and collects the environment with every call (seconds).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import temporary_folder
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Prediction, Sample
from tinyllm_bench.evaluation import task_yaml
from tinyllm_bench.evaluation.scoring import decided
from tinyllm_bench.models.tokens import respelled

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

    from tinyllm_bench.evaluation.request import Asked


@dataclass(frozen=True, slots=True)
class Finish:
    """How a generation ended: `tokens` new ones, and whether the limit cut it off (neither EOS nor a stop text)."""

    tokens: int
    hit_limit: bool


def answer(lm: LM, asked: Asked) -> list[Prediction]:
    """Ask the records of `asked` and read the answers, in the order of `asked.ids`.

    An LM may have an attribute `finished`, a mapping prompt -> `Finish`; without it, token counts are unknown.

    Raises:
        UserError: unknown task or record, a prompt longer than the model's limit, scores that are not finite, a chat
            template asked of a tokenizer that has none.
    """
    import lm_eval

    with _quiet():
        task = build_task(asked)
        name = task_yaml.task_name(asked.task, asked.mode)
        results: Any = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=True,
        )
    logged = {sample["doc"]["id"]: sample for sample in results["samples"][name]}
    finished: Mapping[str, Finish] = getattr(lm, "finished", {})
    # the tokenizer of a proxy is loaded when it is first read: only exact match needs it
    tokenizer = lm.tokenizer if asked.match == "exact" and asked.mode == "generate" else None
    return [_prediction(asked, logged[name], finished, tokenizer) for name in asked.ids]


def build_task(asked: Asked) -> ConfigurableTask:
    """The lm-eval task that serves exactly the asked records.

    Raises:
        UserError: a task or mode that lm-eval does not find (lm-eval itself skips a broken YAML without a word).
    """
    from lm_eval.tasks import TaskManager

    name = task_yaml.task_name(asked.task, asked.mode)
    manager: Any = _manager(asked.task)
    if name not in manager.all_subtasks:
        raise UserError(f"lm-eval finds no task {name!r} in {task_yaml.folder()}; run `make tasks` to write its YAML")
    assert isinstance(manager, TaskManager)
    manager._factory._meta = asked.metadata()  # the index is kept; the metadata change with every call
    task: Any = manager.load([name])["tasks"][name]
    task.set_config(key="num_fewshot", value=asked.shots)
    if asked.mode == "generate":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": asked.max_new_tokens}, update=True)
    return task


@lru_cache(maxsize=16)
def _manager(task: str) -> Any:
    """The index of our tasks, and of `task` if another package brought it (written to a temporary folder)."""
    from lm_eval.tasks import TaskManager

    home = task_yaml.folder()
    if (home / f"{task}.py").is_file():
        return _built_in_manager(home)
    info = plugins.load_task(task)
    with temporary_folder("tinyllm-bench-task") as made:
        for mode in info.scoring_modes:
            text = task_yaml.task_text(info, mode, shared=f"{home}/")
            (made / f"{task}_{mode}.yaml").write_text(text, encoding="utf-8")
        manager = TaskManager(include_path=[str(home), str(made)], include_defaults=False)
        for entry in manager.task_index.values():  # keep what the folder said before it goes
            if entry.yaml_path and made in Path(entry.yaml_path).parents:
                _keep(entry)
    return manager


def _keep(entry: Any) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    entry.cfg, entry.yaml_path = load_yaml(entry.yaml_path, resolve_func=True), None


@lru_cache(maxsize=1)
def _built_in_manager(home: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(home), include_defaults=False)


def _prediction(
    asked: Asked, sample: Mapping[str, Any], finished: Mapping[str, Finish], tokenizer: Any = None
) -> Prediction:
    doc, prompt = sample["doc"], sample["arguments"][0][0]
    assert not asked.shots or prompt.count(doc["prompt"]) == 1, f"{doc['id']} is among its own few-shot examples"
    bare = Prediction(record_id=doc["id"], mode=asked.mode, answer=None, correct=False)
    if asked.mode == "generate":
        text, finish = sample["resps"][0][0], finished.get(prompt)
        written = replace(
            bare,
            samples=(Sample(channel=LABEL, text=text, tokens=finish.tokens if finish else None),),
            choices_read=tuple(respelled(tokenizer, c) for c in doc["choices"]) if asked.match == "exact" else (),
            stopped="limit" if finish and finish.hit_limit else "stop",
        )
        return decided(written, doc["choices"], doc["gold"])
    logprobs = tuple(float(response[0][0]) for response in sample["resps"])
    if not all(map(math.isfinite, logprobs)):
        raise UserError(
            f"{doc['id']}: the student's log-probabilities are {logprobs}, finite numbers are needed; "
            "did training diverge? Lower the learning rate"
        )
    chars = tuple(len(option) for option in doc["options"])
    return decided(replace(bare, option_logprobs=logprobs, option_chars=chars), doc["choices"], doc["gold"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log and its progress bar; keep `random`, which it draws from, as it was."""
    import lm_eval.api.task as module

    logger, bar = logging.getLogger("lm_eval"), module.tqdm
    level, drawn = logger.level, random.getstate()
    logger.setLevel(logging.ERROR)
    module.tqdm = lambda rows, **_: rows
    try:
        yield
    finally:
        logger.setLevel(level)
        module.tqdm = bar
        random.setstate(drawn)
