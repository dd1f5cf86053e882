"""Checks of `doctor` on questions: digests, overlaps, duplicates, balance, and texts that are cut."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from tinyllm_bench.answers.keys import normalised
from tinyllm_bench.data.checks import (
    chance_level,
    context_cut_share,
    context_words_cut_share,
    most_frequent,
    question_key,
)
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import SPLITS, Split, TaskRecord
from tinyllm_bench.data.splits import shipped_facts
from tinyllm_bench.models.load import max_input_tokens
from tinyllm_bench.preflight.inspection import Finding, Preflight, graded, own_student, place, share

SAME_ANSWER = 0.01  # of a split's questions that are in train with their answer
SAME_PASSAGE = 0.05  # of a split's questions whose passage is in train
DUPLICATES = 0.01  # of training questions
ABOVE_CHANCE = 0.10  # of the majority answer
SHIFT = 0.10  # total variation between splits
CONTEXT_CUT = 0.10  # of questions with a passage
TARGETS_CUT = 0.05  # of a channel's targets
ANSWERS_CUT = 0.01  # of gold answers


def digests(preflight: Preflight) -> list[Finding]:
    """Whether the data have the digests that ship with the project; changed data of a known task do not even load."""
    findings = []
    for cell in preflight.tasks:
        task, shipped = cell.task.name, shipped_facts().get(cell.task.name)
        if cell.source.kind == "sample":
            measured = "sample questions written for this project, not the data set"
            fix = "results on them say nothing about the data set: name the release folder with --data-dir"
            findings.append(Finding("note", "digests", task, measured, fix=fix))
        elif shipped is None:
            measured = "the task of another package; no digest of its data ships with this one"
            findings.append(Finding("ok", "digests", task, measured))
        elif wrong := [split for split in SPLITS if cell.data[split] != shipped[split]]:
            measured = f"the data of {', '.join(wrong)} do not have the digests of digests.json"
            fix = "copy them again from the release; results on other data are another protocol"
            findings.append(Finding("error", "digests", task, measured, fix=fix))
        else:
            findings.append(Finding("ok", "digests", task, "as shipped"))
    return findings


def overlaps(preflight: Preflight) -> list[Finding]:
    """Questions of valid and test that are in train too, with their answer, and passages that are.

    Compared without case, white space and punctuation (`question_key`); the same question with another answer is no
    leak.
    """
    findings = []
    for cell in preflight.tasks:
        answers: dict[str, set[str]] = defaultdict(set)
        for record in cell.records("train"):
            answers[_question_and_passage(record)].add(normalised(record.gold_text))
        passages = {record.context for record in cell.records("train") if record.context}
        for split in ("test", "valid"):
            records = cell.records(split)
            known = [record for record in records if _question_and_passage(record) in answers]
            leaked = sum(normalised(record.gold_text) in answers[_question_and_passage(record)] for record in known)
            findings.append(
                graded(
                    leaked / len(records),
                    check="overlaps",
                    where=f"{cell.task.name}, {split} in train",
                    measured=f"{share(leaked, len(records))} questions are in train with the same answer"
                    f" ({len(known)} with any answer)",
                    fix="all methods gain the same from them; read results with and without these questions",
                    note=0.0,
                    warning=SAME_ANSWER,
                    unit="of questions",
                )
            )
            shared = sum(record.context in passages for record in records)
            findings.append(
                graded(
                    shared / len(records),
                    check="overlaps",
                    where=f"{cell.task.name}, {split} in train",
                    measured=f"{share(shared, len(records))} questions have a passage that is in train",
                    fix="split by passage instead of by question",
                    note=0.0,
                    warning=SAME_PASSAGE,
                    unit="of questions",
                )
            )
    return findings


def _question_and_passage(record: TaskRecord) -> str:
    """The same question may be asked about two passages."""
    return f"{question_key(record)}\n{record.context}"


def duplicates(preflight: Preflight) -> list[Finding]:
    """Training questions that occur twice with the same options, and those of them whose answers contradict."""
    findings = []
    for cell in preflight.tasks:
        groups: dict[tuple[str, ...], list[TaskRecord]] = defaultdict(list)
        for record in cell.records("train"):
            groups[_question_and_passage(record), *sorted(map(normalised, record.choices))].append(record)
        repeated = [records for records in groups.values() if len(records) > 1]
        count, of = sum(len(records) - 1 for records in repeated), len(cell.records("train"))
        where = f"{cell.task.name}, train"
        findings.append(
            graded(
                count / of,
                check="duplicates",
                where=where,
                measured=f"{share(count, of)} training questions repeat an earlier one",
                fix="remove them: they are trained on more often than the others",
                note=0.0,
                warning=DUPLICATES,
                unit="of questions",
            )
        )
        contradictory = [
            records for records in repeated if len({normalised(record.gold_text) for record in records}) > 1
        ]
        if contradictory:
            first = contradictory[0][0].id
            measured = f"{len(contradictory)} training questions occur twice with different answers, the first {first}"
            findings.append(
                Finding("warning", "duplicates", where, measured, fix="look at them: one of the answers is wrong")
            )
    return findings


def balance(preflight: Preflight) -> list[Finding]:
    """How far one constant answer gets on test, and whether the splits have the same distribution of answers.

    The distributions are compared by chi squared (p < 0.001), because small splits differ by chance. Tasks whose
    answers are numbers are left out.
    """
    findings = []
    for cell in preflight.tasks:
        train, test = cell.records("train"), cell.records("test")
        if not test[0].choices:
            continue
        answer = most_frequent(record.gold_key for record in train)
        level = sum(record.gold_key == answer for record in test) / len(test)
        chance = chance_level(test)
        findings.append(
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
        findings += [_answer_shift(cell.task.name, split, train, cell.records(split)) for split in ("valid", "test")]
    return findings


def _answer_shift(task: str, split: Split, train: Sequence[TaskRecord], records: Sequence[TaskRecord]) -> Finding:
    from scipy.stats import chi2_contingency

    in_train, in_split = (Counter(record.gold_key for record in split_records) for split_records in (train, records))
    keys = sorted(in_train | in_split)
    shift = sum(abs(in_train[key] / len(train) - in_split[key] / len(records)) for key in keys) / 2
    unseen = sorted(key for key in in_split if key not in in_train)

    def by_chance() -> bool:
        table = [[counts[key] for key in keys] for counts in (in_train, in_split)]
        return len(keys) < 2 or bool(chi2_contingency(table).pvalue >= 0.001)

    where = f"{task}, train against {split}"
    measured = f"{100 * shift:.3g} % of answers would have to move for the same distribution of answer positions"
    if unseen:
        measured = f"answer positions {unseen} occur in {split} and never in train"
    if not unseen and (shift <= SHIFT or by_chance()):
        return Finding("ok", "balance", where, measured)
    fix = "split the data again, stratified by answer, or shuffle the options"
    return Finding("warning", "balance", where, measured, f"warning above {100 * SHIFT:g} % with p < 0.001", fix)


def contexts(preflight: Preflight) -> list[Finding]:
    """The share of passages that `data.max_context_words` cuts, and of their words that are lost."""
    findings = []
    for cell in preflight.tasks:
        limit = cell.config.data.max_context_words
        records = [record for split in SPLITS for record in cell.records(split) if record.context]
        if not records:
            continue
        cut, words = context_cut_share(records, limit), context_words_cut_share(records, limit)
        findings.append(
            graded(
                cut,
                check="contexts",
                where=cell.task.name,
                measured=f"{share(round(cut * len(records)), len(records))} passages are cut to their last {limit}"
                f" words, {100 * words:.3g} % of all their words are lost",
                fix="raise data.max_context_words; all rows of one protocol read the same cut passages",
                note=0.0,
                warning=CONTEXT_CUT,
                unit="of passages",
            )
        )
    return findings


def prompts(preflight: Preflight) -> list[Finding]:
    """Prompts longer than the model can read: such a question stops a run, since only passages are ever cut.

    With `data.cut_tokens` prompts are cut instead, and lose their end.
    """
    findings = []
    for cell in preflight.trained:
        encoder, loaded = preflight.encoder(cell), preflight.student(cell)
        if encoder is None or loaded is None:
            continue
        where = f"{place(cell)}, student {own_student(cell).text}"
        items = [item for group in preflight.groups(cell) for item in group.items]
        lengths = [len(item.prompt) for item in items]
        findings.append(_too_long(where, "training prompts", lengths, encoder.max_prompt_tokens))

        # Questions are read with their longest option, or need space for the answer that the student generates.
        generated = cell.config.eval.max_new_tokens if cell.mode == "generate" else 0
        seq2seq = loaded.model.config.is_encoder_decoder
        splits: tuple[Split, ...] = ("valid",) if cell.trains_only else ("valid", "test")
        for split in splits:
            lengths = [
                len(question.prompt) + (0 if seq2seq else generated or len(question.target))
                for question in preflight.questions(cell, split)
            ]
            findings.append(_too_long(where, f"{split} prompts", lengths, max_input_tokens(*loaded)))

        limit = cell.config.data.cut_tokens
        if limit is not None:
            cut = sum(len(item.prompt) >= limit for item in items)
            findings.append(
                graded(
                    cut / max(len(items), 1),
                    check="prompts",
                    where=where,
                    measured=f"{share(cut, len(items))} prompts are cut after {limit} tokens and may lose options or"
                    " question",
                    fix="set data.cut_tokens=null, unless cutting is what you reproduce",
                    note=0.0,
                    warning=TARGETS_CUT,
                    unit="of prompts",
                )
            )
    return findings


def _too_long(where: str, what: str, lengths: Sequence[int], limit: int) -> Finding:
    long = sum(length > limit for length in lengths)
    measured = f"{share(long, len(lengths))} {what} are longer than the {limit:,} tokens that it can read"
    if not long:
        return Finding("ok", "prompts", where, measured)
    fix = f"lower data.max_context_words, or choose a student that can read {max(lengths):,} tokens"
    return Finding("error", "prompts", where, measured, "none may be", fix)


def targets(preflight: Preflight) -> list[Finding]:
    """The share of targets that `train.max_target_tokens` cuts, by channel, and of answers too long to be generated."""
    findings = []
    for cell in preflight.trained:
        channels: dict[str, list[int]] = defaultdict(list)
        for group in preflight.groups(cell):
            for item in group.items:
                channels[item.channel].append(len(item.target))
        student = own_student(cell).text
        for channel, lengths in channels.items():
            where = f"{cell.task.name}, channel {channel}, student {student}"
            limit = cell.config.train.max_target_tokens
            findings.append(_cut(where, lengths, limit, "train.max_target_tokens", TARGETS_CUT))
        answers = channels.get(LABEL, []) if cell.mode == "generate" else []
        if answers:
            where = f"{cell.task.name}, answers, student {student}"
            limit = cell.config.eval.max_new_tokens + 1  # the end token counts as well
            findings.append(_cut(where, answers, limit, "eval.max_new_tokens", ANSWERS_CUT))
    return findings


def _cut(where: str, lengths: Sequence[int], limit: int, setting: str, warning: float) -> Finding:
    cut = sum(length > limit for length in lengths)
    return graded(
        cut / len(lengths),
        check="targets",
        where=where,
        measured=f"{share(cut, len(lengths))} targets are longer than {setting} allows, the longest has"
        f" {max(lengths):,}",
        fix=f"raise {setting}, or reject long texts with annotations.filters",
        note=0.0,
        warning=warning,
        unit="of targets",
    )
