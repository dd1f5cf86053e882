"""What a cell writes: its student, checkpoints while it trains, answers, and a cache of a teacher's distributions."""

from typing import NamedTuple

from tinyllm_bench.experiment.cached_logits import header_of
from tinyllm_bench.generation.top_k import response_digest
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.counts import Training
from tinyllm_bench.preflight.time import model_bytes, trained_bytes
from tinyllm_bench.training.logit_cache import Header, LogitCache

_TOKENIZER = 4 * 2**20  # bytes beside the student's weights
_A_QUESTION = 400  # bytes of an answer, compressed, and of its line in the record
_STATES = 3  # a checkpoint holds the weights and AdamW's two moments


class Disk(NamedTuple):
    """Bytes: `kept` when the cell is done, `peak` while it runs, `logits` of the shared cache, `texts` of teachers."""

    kept: int
    peak: int
    logits: int
    texts: int


def disk_of(training: Training, looks: int) -> Disk:
    """What a training writes. Two checkpoints exist while one replaces the other; every look may keep weights."""
    cell, trained = training.cell, trained_bytes(training)
    asked = 0 if cell.trains_only else len(cell.records("test"))
    kept = model_bytes(training) + _TOKENIZER + _A_QUESTION * asked
    logits, texts = logit_bytes(training), 4 * sum(bill.tokens_out for bill in training.texts.bills)
    peak = kept + looks * trained + 2 * _STATES * trained
    return Disk(kept + logits + texts, peak + logits + texts, logits, texts)


def missing_logits(training: Training) -> list[Encoded]:
    """The responses whose distributions the cell's cache lacks; of a cell without one none."""
    if training.cell.signal is None or training.cell.config.teacher.cache is None:
        return []
    items = [item for group in training.groups for item in group.items]
    folder = _header(training).folder
    if training.cell.signal != training.asked.signal or not (folder / "header.json").exists():
        return items
    cache = LogitCache.open(folder)
    has = cache.has
    return [i for i in items if not has(i.record_id, response_digest(i.prompt, i.target))]


def logit_bytes(training: Training) -> int:
    """Bytes that the cache of the teacher's distributions still needs."""
    missing = missing_logits(training)
    return sum(len(i.target) for i in missing) * _header(training).bytes_per_token if missing else 0


def _header(training: Training) -> Header:
    return header_of(training.cell, training.loaded)
