"""Checks of `doctor` on questions: whose data, overlaps, duplicates, balance, and what is cut of their texts."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from tinyllm_bench.answers.parser import normalised
from tinyllm_bench.data.checks import (
    chance_level,
    context_cut_share,
    context_words_cut_share,
    most_frequent,
    question_key,
)
from tinyllm_bench.data.facts import shipped_facts
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import SPLITS, Split, TaskRecord
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.models.load import max_input_tokens
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.inspection import Finding, Preflight, graded, own_student, place, share

SAME_ANSWER = 0.01  # of asked questions that are in train with their answer
SAME_PASSAGE = 0.05  # of asked questions whose passage is in train
DUPLICATES = 0.01  # of training questions
ABOVE_CHANCE = 0.10  # of the majority answer
SHIFT = 0.10  # total variation between splits


def digests(preflight: Preflight) -> list[Finding]:
    """Whether the data are those whose digests ship with the project; changed ones of a known task do not even load."""
    found = []
    for cell in preflight.tasks:
        where, wanted = cell.task.name, shipped_facts().get(cell.task.name)
        if cell.source.kind == "sample":
            measured = "sample questions written for this project, not the data set"
            fix = "results on them say nothing about the data set: name the release folder with --data-dir"
            found.append(Finding(severity="note", check="digests", where=where, measured=measured, fix=fix))
        elif wanted is None:
            measured = "the task of another package; no digest of its data ships with this one"
            found.append(Finding(severity="ok", check="digests", where=where, measured=measured))
        elif wrong := [split for split in SPLITS if cell.data[split] != wanted[split]]:
            measured = f"the data of {', '.join(wrong)} are not those that digests.json names"
            fix = "copy them again from the release; results on other data are another protocol"
            found.append(Finding(severity="error", check="digests", where=where, measured=measured, fix=fix))
        else:
            found.append(Finding(severity="ok", check="digests", where=where, measured="as shipped"))
    return found


def overlaps(preflight: Preflight) -> list[Finding]:
    """Questions of valid and test that are in train too, with their answer, and passages that do.

    Compared without case, white space and punctuation (`question_key`); a question with another answer is no leak.
    """
    found = []
    for cell in preflight.tasks:
        train = cell.records("train")
        for split in ("test", "valid"):
            asked = cell.records(split)
            where = f"{cell.task.name}, {split} in train"
            found.append(_same_questions(where, train, asked))
            found.append(_same_passages(where, train, asked))
    return found


def _same_questions(where: str, train: Sequence[TaskRecord], asked: Sequence[TaskRecord]) -> Finding:
    known: dict[str, set[str]] = defaultdict(set)
    for record in train:
        known[_whole(record)].add(_gold(record))
    both = [record for record in asked if _whole(record) in known]
    leaked = sum(_gold(record) in known[_whole(record)] for record in both)
    return graded(
        leaked / len(asked),
        check="overlaps",
        where=where,
        measured=f"{share(leaked, len(asked))} questions are in train with the same answer"
        f" ({len(both)} with any answer)",
        fix="all methods gain the same from them; read results with and without these questions",
        note=0.0,
        warning=SAME_ANSWER,
        unit="of questions",
    )


def _same_passages(where: str, train: Sequence[TaskRecord], asked: Sequence[TaskRecord]) -> Finding:
    known = {record.context for record in train if record.context}
    shared = sum(record.context in known for record in asked)
    return graded(
        shared / len(asked),
        check="overlaps",
        where=where,
        measured=f"{share(shared, len(asked))} questions have a passage that is in train",
        fix="split by passage instead of by question",
        note=0.0,
        warning=SAME_PASSAGE,
        unit="of questions",
    )


def _whole(record: TaskRecord) -> str:
    """The question with its passage: two passages may be asked the same."""
    return f"{question_key(record)}\n{record.context}"


def _gold(record: TaskRecord) -> str:
    return normalised(record.gold_text)


def duplicates(preflight: Preflight) -> list[Finding]:
    """Training questions that occur twice with the same options, and those of them whose answers contradict."""
    found = []
    for cell in preflight.tasks:
        groups: dict[tuple[str, ...], list[TaskRecord]] = defaultdict(list)
        for record in cell.records("train"):
            groups[_whole(record), *sorted(map(normalised, record.choices))].append(record)
        again = [records for records in groups.values() if len(records) > 1]
        count, of = sum(len(records) - 1 for records in again), len(cell.records("train"))
        found.append(
            graded(
                count / of,
                check="duplicates",
                where=f"{cell.task.name}, train",
                measured=f"{share(count, of)} training questions repeat an earlier one",
                fix="remove them: they are trained more often than the others",
                note=0.0,
                warning=DUPLICATES,
                unit="of questions",
            )
        )
        if odd := [records for records in again if len({_gold(record) for record in records}) > 1]:
            measured = f"{len(odd)} training questions occur twice with different answers, the first {odd[0][0].id}"
            fix = "look at them: one of the answers is wrong"
            where = f"{cell.task.name}, train"
            found.append(Finding(severity="warning", check="duplicates", where=where, measured=measured, fix=fix))
    return found


def balance(preflight: Preflight) -> list[Finding]:
    """How far one constant answer gets on test, and whether the splits' answers are spread alike.

    The spread is tested by chi squared (p < 0.001), because small splits differ by chance. Numbers are left out.
    """
    found = []
    for cell in preflight.tasks:
        split = {name: cell.records(name) for name in SPLITS}
        if not split["test"][0].choices:
            continue
        answer = most_frequent(record.gold_key for record in split["train"])
        level = sum(record.gold_key == answer for record in split["test"]) / len(split["test"])
        chance = chance_level(split["test"])
        found.append(
            graded(
                level - chance,
                check="balance",
                where=f"{cell.task.name}, test",
                measured=f"always giving train's most frequent answer is right on {100 * level:.3g} %, chance is"
                f" {100 * chance:.3g} %",
                fix="read rows against the reference baseline `majority`, and macro-F1 where the record has it",
                note=None,
                warning=ABOVE_CHANCE,
                unit="over chance",
            )
        )
        found += [_spread(cell.task.name, other, split["train"], split[other]) for other in ("valid", "test")]
    return found


def _spread(task: str, other: Split, train: Sequence[TaskRecord], asked: Sequence[TaskRecord]) -> Finding:
    one, two = (Counter(record.gold_key for record in records) for records in (train, asked))
    shift = sum(abs(one[key] / len(train) - two[key] / len(asked)) for key in one | two) / 2
    never = sorted(key for key in two if key not in one)
    where = f"{task}, train against {other}"
    measured = f"{100 * shift:.3g} % of answers would have to move for the same spread of answer positions"
    if never:
        measured = f"answer positions {never} occur in {other} and never in train"
    if not never and (shift <= SHIFT or _by_chance(one, two)):
        return Finding(severity="ok", check="balance", where=where, measured=measured)
    fix = "split the data anew, stratified by answer, or shuffle the options"
    threshold = f"warning above {100 * SHIFT:g} % with p < 0.001"
    return Finding(severity="warning", check="balance", where=where, measured=measured, threshold=threshold, fix=fix)


def _by_chance(one: Counter[int | str], two: Counter[int | str]) -> bool:
    from scipy.stats import chi2_contingency

    keys = sorted(one | two)
    return len(keys) < 2 or bool(chi2_contingency([[c[key] for key in keys] for c in (one, two)]).pvalue >= 0.001)


CONTEXT_CUT = 0.10  # of questions with a passage
TARGETS_CUT = 0.05  # of a channel's targets
ANSWERS_CUT = 0.01  # of gold answers


def contexts(preflight: Preflight) -> list[Finding]:
    """The share of passages that `data.max_context_words` cuts, and of their words that are lost."""
    found = []
    for cell in preflight.tasks:
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


def prompts(preflight: Preflight) -> list[Finding]:
    """Prompts longer than the model reads: such a question stops a run, since nothing but a passage is ever cut.

    With `data.cut_tokens` prompts are cut instead, and lose their end.
    """
    found = []
    for cell in preflight.trained:
        encoder = preflight.encoder(cell)
        if encoder is None:
            continue
        where = f"{place(cell)}, student {own_student(cell).text}"
        items = [item for group in preflight.groups(cell) for item in group.items]
        found.append(_too_long(where, "training prompts", [len(i.prompt) for i in items], encoder.max_prompt_tokens))
        found += _asked(preflight, cell, where)
        if cell.config.data.cut_tokens is not None:
            found.append(_behind(where, items, cell.config.data.cut_tokens))
    return found


def _asked(preflight: Preflight, cell: Cell, where: str) -> list[Finding]:
    """The questions of validation and test: with their longest option, or with room for a written answer."""
    loaded = preflight.student(cell)
    assert loaded is not None
    written = cell.config.eval.max_new_tokens if cell.mode == "generate" else 0
    limit = max_input_tokens(*loaded)
    splits: tuple[Split, ...] = ("valid",) if cell.trains_only else ("valid", "test")
    found = []
    for split in splits:
        asked = preflight.asked(cell, split)
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


def targets(preflight: Preflight) -> list[Finding]:
    """The share of targets that `train.max_target_tokens` cuts, by channel, and of answers too long to be written."""
    found = []
    for cell in preflight.trained:
        most = cell.config.train.max_target_tokens
        channels: dict[str, list[int]] = defaultdict(list)
        for item in (item for group in preflight.groups(cell) for item in group.items):
            channels[item.channel].append(len(item.target))
        for channel, sizes in channels.items():
            where = f"{cell.task.name}, channel {channel}, student {own_student(cell).text}"
            found.append(_cut(where, sizes, most, "train.max_target_tokens", TARGETS_CUT))
        written = channels.get(LABEL, []) if cell.mode == "generate" else []
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
