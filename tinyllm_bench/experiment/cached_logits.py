"""Filling a logit cache: what the cell's teacher thinks of every training response, made once and kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import LogitCacheOpened, LogitCacheProgress, Report
from tinyllm_bench.base.files import digest, locked
from tinyllm_bench.experiment.cell_teachers import open_teacher_model
from tinyllm_bench.generation.top_k import Scored, response_digest
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import Loaded, spec_folder, tokenizer_digest
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Group, collator_of, micro_batches
from tinyllm_bench.training.logit_cache import LogitCache, LogitCacheHeader

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell

# The teacher reads the student's ids as they are, without a template; what else it may read one day has another name.
_TEMPLATE = "plain"


def header_of(cell: "Cell", student: Loaded) -> LogitCacheHeader:
    """What the cell's cache is made for."""
    kept, teacher = cell.config.teacher.cache, cell.signal
    assert kept is not None and teacher is not None
    size = len(student.tokenizer)
    return LogitCacheHeader(
        teacher=[model_identity(teacher, cell.runs), cell.config.teacher.dtype],
        tokenizer=tokenizer_digest(student.tokenizer),
        template=digest(_TEMPLATE),
        vocabulary=size,
        k=size if kept.k == "all" else kept.k,
        precision=kept.precision,
    )


def fill(cell: "Cell", groups: Sequence[Group], student: Loaded, device: str, *, report: Report) -> LogitCache:
    """The cell's cache with every response of the groups in it; only what is missing is made, and kept as it comes."""
    header = header_of(cell, student)
    with locked(header.folder / "filling"):  # another process or run of the same cache finds everything there
        return _filled(LogitCache.create(header), cell, groups, student, device, report)


def _filled(
    cache: LogitCache, cell: "Cell", groups: Sequence[Group], student: Loaded, device: str, report: Report
) -> LogitCache:
    kept = cell.config.teacher.cache
    assert kept is not None
    missing = [item for group in groups for item in group.items if not _has(cache, item)]
    report(LogitCacheOpened(len(missing), cache.header.bytes_per_token))
    if missing:
        made = _by_vllm if kept.engine == "vllm" else _by_transformers
        done = 0
        for scored in made(cell, missing, student, device, cache.header.k):
            cache.add(scored)
            done += len(scored)
            report(LogitCacheProgress(done, len(missing)))
    return cache


def _has(cache: LogitCache, item: Encoded) -> bool:
    return cache.has(item.record_id, response_digest(item.prompt, item.target))


def _by_transformers(
    cell: "Cell", items: Sequence[Encoded], student: Loaded, device: str, k: int
) -> Iterator[list[Scored]]:
    import torch

    from tinyllm_bench.training.teacher_signals import InMemoryTeacher, score_responses

    teacher = open_teacher_model(cell, student, device)
    assert isinstance(teacher, InMemoryTeacher)
    collator = collator_of(student.model, student.tokenizer)
    rows = [collator.rows([item]) for item in items]
    limit = cell.config.train.micro_batch_tokens
    for micro in micro_batches(rows, max_tokens=limit, keep_groups=False, pack=False):
        yield score_responses(teacher, collator.collate(micro).to(torch.device(device)), k)


def _by_vllm(cell: "Cell", items: Sequence[Encoded], student: Loaded, device: str, k: int) -> Iterator[list[Scored]]:
    from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine

    assert cell.signal is not None
    folder, options = _whole_folder(cell, cell.signal), EngineOptions(dtype=cell.config.teacher.dtype, top_k=k)
    with VllmEngine(folder, options, batch=64, instead="use teacher.cache.engine=hf") as scorer:
        pairs = [(item.prompt, item.target) for item in items]
        for item, rows in zip(items, scorer.score(pairs), strict=True):
            yield [Scored(item.record_id, item.prompt, item.target, rows)]


def _whole_folder(cell: "Cell", spec: ModelSpec) -> Path:
    folder = spec_folder(spec, runs=cell.runs)
    if folder is None or spec.layers is not None or spec.adapter is not None:
        raise UserError(
            f"teacher.cache.engine=vllm: {spec.text} is not a whole model folder; use teacher.cache.engine=hf"
        )
    return folder
