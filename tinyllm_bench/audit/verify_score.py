"""What the data says about a record: its splits, its protocol, and the score of the answers worked out again."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm_bench.audit.verify_files import Problem, shown
from tinyllm_bench.data.checks import clusters, overlap
from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.evaluation.reference_baselines import chance, expected
from tinyllm_bench.evaluation.sampled_answers import path_report
from tinyllm_bench.evaluation.scoring import TaskScore, score, shared_gold
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.protocol import protocol_of
from tinyllm_bench.leaderboard.record import RunRecord, ids_digest, protocol_difference
from tinyllm_bench.leaderboard.stats.averages import UNPARSED, macro_f1


def data_problems(file: Path, record: RunRecord, cell: Cell) -> Iterator[Problem]:
    """Digests and sizes of the splits, and which questions trained and selected the student."""
    for split, facts in cell.data.items():
        told = record.data.splits.get(split)
        if told is None or told.model_dump() != dict(facts):
            wrong = f"data.splits.{split} is {told and f'{told.rows} rows, {shown(told.digest)}'}"
            yield Problem(file, wrong, f"{facts['rows']} rows, {shown(facts['digest'])} from the data")
    if record.kind != "method":
        return
    train, valid = cell.records("train"), cell.records("valid")
    own: dict[str, Any] = {
        "train_ids_digest": ids_digest(one.id for one in train),
        "valid_ids_digest": ids_digest(one.id for one in valid),
        "n_train": len(train),
        "overlap": overlap(train, cell.records("test")),
    }
    for key, value in own.items():
        found = getattr(record.data, key)
        if found != value and not (key == "overlap" and found is None):
            yield Problem(file, f"data.{key} is {shown(found)}", f"{shown(value)} from settings and data")


def protocol_problems(file: Path, record: RunRecord, cell: Cell) -> Iterator[Problem]:
    """The protocol as settings and data make it, field by field; the parser's version is that of the record."""
    own = protocol_of(cell) | {"parser_version": record.protocol["parser_version"]}
    for field in protocol_difference(record.protocol, own):
        wrong = f"protocol.{field} is {shown(record.protocol[field])}"
        yield Problem(file, wrong, f"{shown(own[field])} from settings, data and this code")


def score_problems(file: Path, record: RunRecord, cell: Cell, again: Sequence[Prediction]) -> Iterator[Problem]:
    """Every number of the score, from answers that were worked out again."""
    records = cell.asked_records("test")
    whole = {one.id: one for one in cell.records("test")}
    cut = sum(one.context != whole[one.id].context for one in records)
    found = score(again, records, context_cut=cut)
    for field, told, own in _numbers(record, cell, again, found):
        if not _same(told, own):
            yield Problem(file, f"{field} is {shown(told)}", f"{shown(own)} from the stored predictions")


def _numbers(
    record: RunRecord, cell: Cell, again: Sequence[Prediction], found: TaskScore
) -> Iterator[tuple[str, Any, Any]]:
    records = cell.asked_records("test")
    told, own = (record.score.model_dump() if record.score else {}), asdict(found)
    for key, value in told.items():
        yield f"score.{key}", value, own[key]
    second = _secondary(found, again, records)
    for key in sorted({*record.secondary, *({"accuracy_plain"} & second.keys())}):
        yield f"secondary.{key}", record.secondary.get(key), second.get(key)
    if "clusters" in record.model_fields_set:  # older records have none
        yield "clusters", record.clusters, clusters(cell.records("test"))
    if "gold" in record.model_fields_set:
        yield "gold", record.gold, shared_gold(records)
    yield "chance", record.chance, chance(records)
    if record.expected_accuracy is not None:
        yield "expected_accuracy", record.expected_accuracy, expected(records, cell.records("train"))
    flags = {one.record_id: int(one.correct) for one in again}
    wrong = [record_id for record_id, _, flag in record.items if flags.get(record_id) != flag]
    yield "items marked otherwise", wrong[:1], []
    decoding = cell.method.decoding() if cell.method else None
    if decoding is not None and decoding.policy is not None:
        paths = path_report(again, records, decoding.channels, every=decoding.every)
        for key in sorted({*paths, *record.paths}):
            yield f"paths.{key}", record.paths.get(key), paths.get(key)


def _secondary(found: TaskScore, again: Sequence[Prediction], records: Sequence[TaskRecord]) -> dict[str, float]:
    """The secondary figures that a record may have: plain accuracy, and macro-F1 over named answers."""
    second = {} if found.accuracy_plain is None else {"accuracy_plain": found.accuracy_plain}
    by_id = {one.id: one for one in records}
    labels = sorted({choice for one in records for choice in one.choices})
    number = {label: place for place, label in enumerate(labels)}
    if labels:
        golds = [number[by_id[one.record_id].gold_text] for one in again]
        said = [
            [number[by_id[one.record_id].choices[one.answer]] if isinstance(one.answer, int) else UNPARSED]
            for one in again
        ]
        second["macro_f1"] = macro_f1(golds, said)
    return second


def _same(told: Any, own: Any) -> bool:
    if isinstance(told, float) and isinstance(own, float):
        return math.isclose(told, own, rel_tol=1e-9, abs_tol=1e-12)
    return bool(told == own)
