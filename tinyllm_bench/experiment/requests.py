"""How a cell's records of a split are asked."""

from collections.abc import Sequence
from typing import Any

from tinyllm_bench.evaluation.request import Asked
from tinyllm_bench.experiment.cell import Cell


def asked_of(cell: Cell, split: Any, ids: Sequence[str], *, shots: int = 0, chat: bool = False) -> Asked:
    """How the cell's records of a split are asked."""
    config = cell.config
    return Asked(
        task=cell.task.name,
        reading=cell.reading,
        split=split,
        ids=tuple(ids),
        source=cell.source,
        max_context_words=config.data.max_context_words,
        style=config.data.style,
        markers=config.data.markers,
        shots=shots,
        shot_max_words=config.eval.shot_max_words,
        chat=chat,
        max_new_tokens=config.eval.max_new_tokens,
        match=config.eval.match,
    )
