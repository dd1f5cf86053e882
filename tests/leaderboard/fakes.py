"""Records made for tests: small, consistent, with invented names."""

import re
from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import digest
from tinyllm_bench.leaderboard.board import board_add, board_markdown
from tinyllm_bench.leaderboard.record import RunRecord, ids_digest, protocol_hash, save_record

CONFIG = """title: Toy board
baseline: tuned
baseline_title: label-only fine-tuning
order: [guess, majority, untrained, tuned]
sample: mark
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flags(n: int, right: int) -> list[int]:
    """The first `right` of n items right."""
    return [1] * right + [0] * (n - right)


def protocol(task: str, n: int, **changes: Any) -> dict[str, Any]:
    """A protocol whose scored ids are task/test/0 ... task/test/n-1."""
    ids = [f"{task}/test/{i}" for i in range(n)]
    made = {
        "task": task,
        "version": 1,
        "scored_ids_digest": ids_digest(ids),
        "n": n,
        "mode": "cloze",
        "prompt_digest": "p",
        "parser_version": 1,
        "metric": "logprob per character",
        "max_context_words": 160,
    }
    return made | changes


def make_fields(
    name: str,
    right: list[int] | None,
    *,
    task: str = "toy",
    n: int = 20,
    kind: str = "method",
    seed: int = 0,
    tokens: int = 1000,
    unparsed: int = 0,
    mode: str = "cloze",
    context_cut: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """The fields of a valid record; `right` holds 0/1 per item (None: no score), the last wrong ones are unparsed."""
    own_protocol = protocol(task, n, mode=mode)
    answers = [0] * n
    for i in [i for i in range(n) if right and not right[i]][::-1][:unparsed]:
        answers[i] = None  # type: ignore[call-overload]
    items = [[f"{task}/test/{i}", answers[i], flag] for i, flag in enumerate(right or [])]
    correct = sum(right or [])
    fields = {
        "run_id": f"{name}-{task}-{mode}-s{seed}-{digest([changes.get('label'), n])[:8]}",
        "created": "2026-01-02T03:04:05Z",
        "kind": kind,
        "name": name,
        "label": name,
        "sample": False,
        "task": task,
        "task_version": 1,
        "mode": mode,
        "seed": seed,
        "protocol": own_protocol,
        "protocol_hash": protocol_hash(own_protocol),
        "student": {"spec": "dir:small"},
        "data": {
            "source": "sample" if changes.get("sample") else "release",
            "splits": {"test": {"rows": n, "digest": "d"}},
            "train_ids_digest": "t",
        },
        "budget": {"student_tokens": tokens, "seconds": 42.4},
        "score": None
        if right is None
        else {
            "n": n,
            "correct": correct,
            "wrong": n - correct - unparsed,
            "unparsed": unparsed,
            "context_cut": context_cut,
        },
        "chance": 0.25,
        "test_evaluations": 1,
        "items": items,
        "backend": {"name": "hf", "dtype": "float32", "device": "cpu"},
        "git": {"commit": COMMIT, "dirty": False},
        "command": f"tinyllm-bench run --method {name} --task {task} --seed {seed}",
    }
    return fields | changes


def make_record(name: str, right: list[int] | None, **changes: Any) -> RunRecord:
    """A checked record; see `make_fields`."""
    return RunRecord.model_validate(make_fields(name, right, **changes))


def make_reference(name: str, right: list[int] | None, **changes: Any) -> RunRecord:
    """A reference baseline's record: no model and no budget unless given."""
    return make_record(name, right, **({"kind": "reference_baseline", "student": None, "budget": None} | changes))


def add(folder: Path, *records: RunRecord) -> list[Path]:
    """Save records as runs beside the board and add them."""
    runs = folder.parent / "runs"
    return board_add([save_record(record, runs / record.run_id).parent for record in records], folder)


def lines(folder: Path, label: str) -> list[str]:
    """The cells of the first table line that starts with a label."""
    found = [line for line in board_markdown(folder).splitlines() if re.match(rf"\| {re.escape(label)} +\|", line)]
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def column(folder: Path, label: str, name: str) -> str:
    """One cell of the first table, by row label and the beginning of the column's head."""
    heads = next(line for line in board_markdown(folder).splitlines() if line.startswith("| row"))
    names = [head.strip() for head in heads.strip("|").split("|")]
    return lines(folder, label)[next(i for i, head in enumerate(names) if head.startswith(name))]
