"""Records as a pandas table, for notebooks: one line a run, numbers as numbers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tinyllm_bench.leaderboard.judgements import Judge
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import Row

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "method",
    "kind",
    "task",
    "mode",
    "seed",
    "sample",
    "student",
    "n",
    "accuracy",
    "low",
    "high",
    "unparsed",
    "student_tokens",
    "seconds",
    "protocol",
    "run_id",
)


def runs_frame(records: Iterable[RunRecord]) -> "pd.DataFrame":
    """One line a run: `accuracy` and its 95 % interval as shares, None where it cannot be measured.

    The interval is that of a board's row of one run: it speaks of these questions and this student, not of seeds.
    """
    import pandas as pd

    return pd.DataFrame([_line(record) for record in records], columns=list(COLUMNS))


def _line(record: RunRecord) -> dict[str, Any]:
    row = Row(record.label, (record,))
    found = Judge([row]).accuracies.get(row.key)
    score, budget = record.score, record.budget
    return {
        "method": record.label,
        "kind": record.kind,
        "task": record.task,
        "mode": record.mode,
        "seed": record.seed,
        "sample": record.sample,
        "student": row.student or None,
        "n": record.protocol["n"],
        "accuracy": record.accuracy,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "unparsed": score.unparsed if score else None,
        "student_tokens": budget.student_tokens if budget else None,
        "seconds": budget.seconds if budget else None,
        "protocol": record.protocol_hash,
        "run_id": record.run_id,
    }
