"""The protocol of a cell: what two rows must share to stand in one table."""

from typing import TYPE_CHECKING, Any

from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.base.files import digest
from tinyllm_bench.leaderboard.record import ids_digest

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell

_METRICS = {"cloze": "log-probability per character", "mc": "log-probability", "gen": "parsed answer"}


def protocol_of(cell: "Cell") -> dict[str, Any]:
    """Task, scored ids, reading, asked context and options, parser, metric and the cap of the context.

    The marker belongs to the method's policy, not to the protocol; so do training data, budget and backend.
    """
    records = cell.asked_records("test")
    asked = [[record.id, cell.ask.context(record), list(cell.ask.options(record))] for record in records]
    return {
        "task": cell.task.name,
        "version": cell.task.version,
        "scored_ids_digest": ids_digest(record.id for record in records),
        "n": len(records),
        "reading": cell.reading,
        "prompt_digest": digest(asked),
        "parser_version": reader_version(records[0].choices),
        "metric": _metric(cell),
        "max_context_words": cell.config.data.max_context_words,
    }


def _metric(cell: "Cell") -> str:
    exact = cell.reading == "gen" and cell.config.eval.match == "exact"
    cut = cell.config.data.cut_tokens
    named = "the choice's text to the letter" if exact else _METRICS[cell.reading]
    return f"accuracy by {named}" + (f", prompts cut behind {cut} tokens" if cut else "")
