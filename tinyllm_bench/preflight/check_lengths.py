"""Checks of `doctor` on lengths: what is cut of passages, prompts and targets before a student sees it."""

from collections import defaultdict
from collections.abc import Sequence

from tinyllm_bench.data.checks import context_cut_share, context_words_cut_share
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import SPLITS, Split
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.models.load import max_input_tokens
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.findings import Finding, graded, share
from tinyllm_bench.preflight.planned import Planned, own_student, place

CONTEXT_CUT = 0.10  # of questions with a passage
TARGETS_CUT = 0.05  # of a channel's targets
ANSWERS_CUT = 0.01  # of gold answers


def contexts(planned: Planned) -> list[Finding]:
    """The share of passages that `data.max_context_words` cuts, and of their words that are lost."""
    found = []
    for cell in planned.tasks:
        most = cell.config.data.max_context_words
        records = [r for split in SPLITS for r in cell.records(split) if r.context]
        if not records:
            continue
        cut, words = context_cut_share(records, most), context_words_cut_share(records, most)
        found.append(
            graded(
                cut,
                check="contexts",
                where=cell.task.name,
                measured=f"{share(round(cut * len(records)), len(records))} passages are cut from their start to {most}"
                f" words, {100 * words:.3g} % of all their words are lost",
                fix="raise data.max_context_words; all rows of one protocol read the same cut passages",
                note=0.0,
                warning=CONTEXT_CUT,
                unit="of passages",
            )
        )
    return found


def prompts(planned: Planned) -> list[Finding]:
    """Prompts longer than the model reads: such a question stops a run, since nothing but a passage is ever cut.

    With `data.cut_tokens` prompts are cut instead, and lose their end.
    """
    found = []
    for cell in planned.trained:
        encoder = planned.encoder(cell)
        if encoder is None:
            continue
        where = f"{place(cell)}, student {own_student(cell).text}"
        items = [item for group in planned.groups(cell) for item in group.items]
        found.append(_too_long(where, "training prompts", [len(i.prompt) for i in items], encoder.max_prompt_tokens))
        found += _asked(planned, cell, where)
        if cell.config.data.cut_tokens is not None:
            found.append(_behind(where, items, cell.config.data.cut_tokens))
    return found


def _asked(planned: Planned, cell: Cell, where: str) -> list[Finding]:
    """The questions of validation and test: with their longest option, or with room for a written answer."""
    loaded = planned.student(cell)
    assert loaded is not None
    written = cell.config.eval.max_new_tokens if cell.reading == "gen" else 0
    limit = max_input_tokens(*loaded)
    splits: tuple[Split, ...] = ("valid",) if cell.trains_only else ("valid", "test")
    found = []
    for split in splits:
        asked = planned.asked(cell, split)
        seq2seq = loaded.model.config.is_encoder_decoder
        sizes = [len(i.prompt) + (0 if seq2seq else written or len(i.target)) for i in asked]
        found.append(_too_long(where, f"{split} prompts", sizes, limit))
    return found


def _too_long(where: str, what: str, sizes: Sequence[int], limit: int) -> Finding:
    long = sum(size > limit for size in sizes)
    measured = f"{share(long, len(sizes))} {what} are longer than the {limit:,} tokens that it reads"
    if not long:
        return Finding(severity="ok", check="prompts", where=where, measured=measured)
    fix = f"lower data.max_context_words, or take a student that reads {max(sizes):,} tokens"
    return Finding(severity="error", check="prompts", where=where, measured=measured, threshold="none may be", fix=fix)


def _behind(where: str, items: Sequence[Encoded], most: int) -> Finding:
    cut = sum(len(item.prompt) >= most for item in items)
    return graded(
        cut / max(len(items), 1),
        check="prompts",
        where=where,
        measured=f"{share(cut, len(items))} prompts are cut behind {most} tokens and may lose options or question",
        fix="set data.cut_tokens=null, unless cutting is what is reproduced",
        note=0.0,
        warning=TARGETS_CUT,
        unit="of prompts",
    )


def targets(planned: Planned) -> list[Finding]:
    """The share of targets that `train.max_target_tokens` cuts, by channel, and of answers too long to be written."""
    found = []
    for cell in planned.trained:
        most = cell.config.train.max_target_tokens
        channels: dict[str, list[int]] = defaultdict(list)
        for item in (item for group in planned.groups(cell) for item in group.items):
            channels[item.channel].append(len(item.target))
        for channel, sizes in channels.items():
            where = f"{cell.task.name}, channel {channel}, student {own_student(cell).text}"
            found.append(_cut(where, sizes, most, "train.max_target_tokens", TARGETS_CUT))
        written = channels.get(LABEL, []) if cell.reading == "gen" else []
        if written:
            where = f"{cell.task.name}, answers, student {own_student(cell).text}"
            found.append(_cut(where, written, cell.config.eval.max_new_tokens + 1, "eval.max_new_tokens", ANSWERS_CUT))
    return found


def _cut(where: str, sizes: Sequence[int], most: int, setting: str, limit: float) -> Finding:
    cut = sum(size > most for size in sizes)
    return graded(
        cut / len(sizes),
        check="targets",
        where=where,
        measured=f"{share(cut, len(sizes))} targets are longer than {setting} allows, the longest has {max(sizes):,}",
        fix=f"raise {setting}, or drop the long texts with annotations.filters",
        note=0.0,
        warning=limit,
        unit="of targets",
    )
