"""The contract tests of tasks, on their samples; subclass `TaskContract` to test your own task.

A task is loaded by its name, so the package of a third party's task must be installed.
"""

from dataclasses import replace
from itertools import combinations
from typing import ClassVar

import pytest

from tinyllm_bench.answers.keys import number
from tinyllm_bench.answers.parser import read
from tinyllm_bench.base import plugins
from tinyllm_bench.data.checks import question_key
from tinyllm_bench.data.prompts import LETTERS, Ask
from tinyllm_bench.data.records import SCORING_MODES, SPLITS, ScoringMode, TaskInfo, TaskRecord
from tinyllm_bench.data.sources import Source, load_rationales, load_split, manifest, rationale_keys
from tinyllm_bench.data.splits import shipped_facts

SAMPLE = Source("sample")


class TaskContract:
    """The contract; a subclass sets the task's name."""

    task: ClassVar[str]

    @property
    def info(self) -> TaskInfo:
        """The task's facts."""
        info: TaskInfo = plugins.load_task(self.task)
        return info

    @property
    def records(self) -> list[TaskRecord]:
        """All records of the sample."""
        return [record for split in SPLITS for record in load_split(SAMPLE, self.task, split)]

    @property
    def has_choices(self) -> bool:
        """Whether its questions are multiple-choice; otherwise they ask for a number."""
        return bool(self.records[0].choices)

    def test_the_facts_are_filled_in(self) -> None:
        """Name, version, title, source, licence, sizes, scoring modes; the shipped digests are of the same sizes."""
        info = self.info
        assert info.name == self.task and info.version >= 1
        assert info.title and info.source and info.licence
        assert set(info.sizes) == set(SPLITS) and all(size > 0 for size in info.sizes.values())
        assert info.scoring_modes and set(info.scoring_modes) <= set(SCORING_MODES)
        if self.task in shipped_facts():
            assert {split: facts["rows"] for split, facts in shipped_facts()[self.task].items()} == dict(info.sizes)

    def test_ids_are_unique_and_name_task_and_split(self) -> None:
        """`task/split/source_id`, each once."""
        ids = [record.id for record in self.records]
        assert len(set(ids)) == len(ids)
        for split in SPLITS:
            for record in load_split(SAMPLE, self.task, split):
                assert record.id.startswith(f"{self.task}/{split}/")
                assert (record.task, record.split) == (self.task, split)

    def test_no_two_splits_share_a_question(self) -> None:
        """No test question is trained on."""
        keys = {split: {question_key(record) for record in load_split(SAMPLE, self.task, split)} for split in SPLITS}
        for first, second in combinations(SPLITS, 2):
            assert not keys[first] & keys[second]

    def test_texts_are_clean(self) -> None:
        """No text is empty or has white space around it; a passage has single spaces."""
        for record in self.records:
            for text in (record.question, record.gold_text, *record.choices):
                assert text and text == text.strip()
            assert record.context == " ".join(record.context.split())

    def test_an_answer_is_a_choice_or_a_number(self) -> None:
        """The same for all questions of a task. The main suite is multiple-choice; numbers are only generated."""
        if not self.has_choices:
            assert self.info.suite != "main" and self.info.scoring_modes == ("generate",)
        for record in self.records:
            if self.has_choices:
                assert 0 <= record.answer < len(record.choices) >= 2 and record.number is None
                assert (record.gold_key, record.gold_text) == (record.answer, record.choices[record.answer])
            else:
                assert record.choices == () and record.answer == -1
                assert record.gold_key == record.number == number(record.gold_text).key
                assert read(record.gold_text, ()).key == record.gold_key

    def test_answers_are_not_always_the_same(self) -> None:
        """Test questions have different answers, or a constant answer would score 100 %."""
        assert len({record.gold_key for record in load_split(SAMPLE, self.task, "test")}) > 1

    def test_recorded_teachers_have_a_text_for_every_training_question_and_none_for_tests(self) -> None:
        """The teachers of the sample; there may be none."""
        for key in rationale_keys(SAMPLE, self.task):
            texts = load_rationales(SAMPLE, self.task, "train", key)
            assert list(texts) == [record.id for record in load_split(SAMPLE, self.task, "train")]
            assert all(texts.values())
            assert not any(load_rationales(SAMPLE, self.task, "test", key).values())

    def test_the_manifest_of_the_sample_is_stable(self) -> None:
        """Read twice, the sample has the same digests."""
        before = manifest(SAMPLE, self.task)
        load_split.cache_clear()
        assert manifest(SAMPLE, self.task) == before

    @pytest.mark.parametrize("mode", SCORING_MODES)
    def test_the_label_target_of_each_scoring_mode(self, mode: ScoringMode) -> None:
        """The answer's text, its letter in `multiple_choice`, or the number."""
        ask = Ask(mode=mode)
        for record in self.records:
            if self.has_choices:
                expected = LETTERS[record.answer] if mode == "multiple_choice" else record.choices[record.answer]
                assert ask.label_target(record) == expected == ask.options(record)[record.answer]
            else:
                assert ask.label_target(record) == record.gold_text and ask.options(record) == ()

    @pytest.mark.parametrize("mode", SCORING_MODES)
    @pytest.mark.parametrize("style", ["marker", "paper"])
    def test_the_prompt_does_not_contain_the_answer(self, mode: ScoringMode, style: str) -> None:
        """Another correct answer leaves every prompt unchanged."""
        ask = Ask(mode=mode, style=style)  # type: ignore[arg-type]
        for record in self.records:
            others = [replace(record, answer=i) for i in range(len(record.choices))] or [replace(record, number="7")]
            for channel in ("label", "rationale:any"):
                assert {ask.prompt(other, channel) for other in others} == {ask.prompt(record, channel)}

    def test_the_passage_and_the_question_hold_no_options(self) -> None:
        """`Ask` puts the options into the prompt once, and not at all in `cloze` or if the question has none."""
        for record in self.records:
            assert "Answer Choices" not in record.context + record.question
            assert "(a) " not in record.context + record.question
            shown = Ask(mode="generate").context(record).count("Answer Choices:")
            assert shown == (1 if self.has_choices else 0)
            assert "Answer Choices" not in Ask(mode="cloze").context(record)
            assert record.question in Ask(mode="cloze").context(record)


def task_contract(task: str) -> type[TaskContract]:
    """The contract of one task as a class: `TestMine = task_contract("mine")`."""
    return type(f"Test_{task}", (TaskContract,), {"task": task})
