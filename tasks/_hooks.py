"""The functions that the YAML tasks call: documents for lm-eval, and the parsing of generated answers.

lm-eval imports this file by its path and calls `load(**metadata, **dataset_kwargs)`. The documents carry their prompt
ready-made from `tinyllm_bench.data.prompts.Ask`, the one function that training uses too.

Under plain `lm_eval --include_path` the data come from `$TINYLLM_BENCH_DATA` (the release folder); `--metadata
'{"source": "sample"}'` or `TINYLLM_BENCH_SOURCE=sample` takes the sample questions, `hub` the hub.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from tinyllm_bench.answers.parser import read
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SPLITS, TaskRecord, cut_context
from tinyllm_bench.data.sources import Source, find_source, load_split

SHOT_POOL = 32  # shots on offer to `lm_eval --num_fewshot`; the runner of this package requests as many as it needs


def load(
    *,
    task: str,
    mode: str,
    source: str | None = None,
    source_folder: str | None = None,
    split: str | None = None,
    ids: Sequence[str] | None = None,
    style: str = "marker",
    markers: Mapping[str, str] | None = None,
    max_context_words: int = 160,
    shots: int = SHOT_POOL,
    shot_max_words: int = 64,
    **_others: Any,
) -> dict[str, datasets.Dataset]:
    """The documents of one task and mode, by lm-eval's split names.

    Without `ids`: the whole validation and test splits. With `ids` (record ids of `split`): these records alone, in
    this order, under the name that lm-eval evaluates (`test`). `train` holds the few-shot examples only: the first
    `shots` training records whose question is in neither of the other splits, contexts cut to `shot_max_words` words.
    Further keywords are ignored: lm-eval's command line passes the model's arguments and the task's version as well.

    Raises:
        UserError: no such data, or an id that the split does not have.
    """
    where = find_source(source or os.environ.get("TINYLLM_BENCH_SOURCE") or "auto", source_folder)
    ask = Ask(mode=mode, style=style, markers=dict(markers or {}))
    pool = _shots(where, task, shots)
    documents = {"train": _documents(ask, (cut_context(record, shot_max_words) for record in pool))}
    if ids is None:
        for lm_eval_split, own_split in (("validation", "valid"), ("test", "test")):
            records = load_split(where, task, own_split)
            documents[lm_eval_split] = _documents(ask, (cut_context(record, max_context_words) for record in records))
        return documents
    by_id = {record.id: record for record in load_split(where, task, split)}
    unknown = next((name for name in ids if name not in by_id), None)
    if unknown is not None:
        example = next(iter(by_id), "none")
        raise UserError(f"no record {unknown!r} among the {len(by_id)} of its split, e.g. {example!r}")
    documents["test"] = _documents(ask, (cut_context(by_id[name], max_context_words) for name in ids))
    documents["validation"] = documents["test"]
    return documents


def _shots(source: Source, task: str, number: int) -> list[TaskRecord]:
    """The first training records whose question is nowhere in the evaluated splits."""
    if not number:
        return []
    evaluated = {
        record.question.casefold() for split in SPLITS if split != "train" for record in load_split(source, task, split)
    }
    shots = []
    for record in load_split(source, task, "train"):
        if record.question.casefold() not in evaluated:
            shots.append(record)
        if len(shots) == number:
            break
    return shots


def _documents(ask: Ask, records: Iterable[TaskRecord]) -> datasets.Dataset:
    rows = [
        {
            "id": record.id,
            "prompt": ask.prompt(record),
            "options": list(ask.options(record)),
            "target": record.answer if record.choices else record.gold_text,
            "choices": list(record.choices),
            "gold": record.gold_key,
        }
        for record in records
    ]
    return datasets.Dataset.from_list(rows)


def read_generation(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Per document: 1 where the generated text names the right choice or number; 1 where nothing could be read."""
    key = read(results[0], doc["choices"]).key
    return {"exact_match": float(key == doc["gold"]), "unparsed": float(key is None)}
