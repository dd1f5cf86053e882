"""What every task must keep, whoever wrote it; runs over every task by name."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from tinyllm_bench.base import plugins
from tinyllm_bench.data.checks import question_key
from tinyllm_bench.data.facts import facts_of, shipped_facts
from tinyllm_bench.data.prompts import LETTERS, Ask
from tinyllm_bench.data.records import READINGS, SPLITS, Reading, TaskRecord
from tinyllm_bench.data.sources import SAMPLE_SIZES, Source, load_rationales, load_split, manifest, rationale_keys

SAMPLE = Source("sample")
TASKS = plugins.names("task")
RELEASE_ROWS = {  # rows of train, valid and test in the public release
    "obqa": (4957, 500, 500),
    "arc": (1117, 295, 1165),
    "piqa": (16113, 919, 919),
    "riddle": (3510, 511, 510),
    "pubmedqa": (500, 100, 400),
    "bioasq": (976, 109, 123),
}
every_task = pytest.mark.parametrize("task", TASKS)


def sample(task: str) -> list[TaskRecord]:
    return [record for split in SPLITS for record in load_split(SAMPLE, task, split)]


def test_the_six_tasks_are_there() -> None:
    assert sorted(RELEASE_ROWS) == TASKS


@every_task
def test_the_facts_are_filled_in(task: str) -> None:
    info = plugins.load_task(task)
    assert info.name == task and info.version >= 1
    assert info.title and info.source and info.licence
    assert tuple(info.sizes[split] for split in SPLITS) == RELEASE_ROWS[task]
    assert {split: facts["rows"] for split, facts in shipped_facts()[task].items()} == dict(info.sizes)
    assert info.readings and set(info.readings) <= set(READINGS)


@every_task
def test_the_docstring_shows_a_row_a_source_and_a_licence(task: str) -> None:
    text = (plugins.folder("task") / f"{task}.py").read_text()
    head = text.split('"""')[1]
    for word in ('{"id":', '"choices":', '"answer":', "Source:", "Licence:", "invented"):
        assert word in head


@every_task
def test_the_sample_has_its_sizes_and_unique_ids(task: str) -> None:
    assert {split: len(load_split(SAMPLE, task, split)) for split in SPLITS} == SAMPLE_SIZES
    ids = [record.id for record in sample(task)]
    assert len(set(ids)) == len(ids) == 48
    for split in SPLITS:
        assert all(record.id.startswith(f"{task}/{split}/") for record in load_split(SAMPLE, task, split))
        assert all((record.task, record.split) == (task, split) for record in load_split(SAMPLE, task, split))


@every_task
def test_no_two_splits_of_the_sample_share_a_question(task: str) -> None:
    keys = {split: {question_key(record) for record in load_split(SAMPLE, task, split)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not keys[one] & keys[other]


@every_task
def test_texts_are_clean(task: str) -> None:
    for record in sample(task):
        assert 0 <= record.answer < len(record.choices) >= 2
        for text in (record.question, *record.choices):
            assert text and text == text.strip()
        assert record.context == " ".join(record.context.split())


@every_task
def test_the_sample_s_answers_are_spread_over_the_options(task: str) -> None:
    answers = {record.answer for record in load_split(SAMPLE, task, "test")}
    assert answers == set(range(len(sample(task)[0].choices)))


@every_task
def test_the_sample_s_teachers_speak_to_every_training_question(task: str) -> None:
    keys = rationale_keys(SAMPLE, task)
    assert set(keys) == {"terse", "stepwise"}
    for key in keys:
        texts = load_rationales(SAMPLE, task, "train", key)
        assert list(texts) == [record.id for record in load_split(SAMPLE, task, "train")]
        assert all(texts.values())
        assert not any(load_rationales(SAMPLE, task, "test", key).values())


@every_task
def test_the_manifest_of_the_sample_is_stable(task: str) -> None:
    before = manifest(SAMPLE, task)
    load_split.cache_clear()
    assert manifest(SAMPLE, task) == before
    assert {split: facts["rows"] for split, facts in before.items()} == SAMPLE_SIZES


@every_task
@pytest.mark.parametrize("reading", READINGS)
def test_the_label_s_target_per_reading(task: str, reading: Reading) -> None:
    ask = Ask(reading=reading)
    for record in sample(task):
        wanted = LETTERS[record.answer] if reading == "mc" else record.choices[record.answer]
        assert ask.label_target(record) == wanted == ask.options(record)[record.answer]


@every_task
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("style", ["marker", "paper"])
def test_the_prompt_does_not_know_the_answer(task: str, reading: Reading, style: str) -> None:
    ask = Ask(reading=reading, style=style)  # type: ignore[arg-type]
    for record in sample(task):
        for channel in ("label", "rationale:any"):
            prompts = {ask.prompt(replace(record, answer=i), channel) for i in range(len(record.choices))}
            assert len(prompts) == 1


@every_task
def test_the_passage_and_the_question_hold_no_options(task: str) -> None:
    """The options stand in the prompt once, put there by `Ask`, and not at all in `cloze`."""
    for record in sample(task):
        assert "Answer Choices" not in record.context + record.question
        assert "(a) " not in record.context + record.question
        assert Ask(reading="gen").context(record).count("Answer Choices:") == 1
        assert "Answer Choices" not in Ask(reading="cloze").context(record)
        assert record.question in Ask(reading="cloze").context(record)


@pytest.mark.release
@every_task
def test_every_row_of_the_release_converts(task: str, release: Path) -> None:
    source = Source("release", str(release))
    for split, size in zip(SPLITS, RELEASE_ROWS[task], strict=True):
        records = load_split(source, task, split)
        assert len(records) == size == len({record.id for record in records})
        assert facts_of(records) == shipped_facts()[task][split]
        assert all(record.choices.count(record.choices[record.answer]) == 1 for record in records)
        assert not any("Answer Choices" in record.context + record.question for record in records)


@pytest.mark.release
@every_task
def test_every_rationale_of_the_release_lines_up(task: str, release: Path) -> None:
    source = Source("release", str(release))
    for key in rationale_keys(source, task):
        texts = load_rationales(source, task, "train", key)
        assert list(texts) == [record.id for record in load_split(source, task, "train")]
        assert not any("Answer Choices:" in text.split("\n\nQ: ")[0] for text in texts.values() if key == "flan-t5-xl")


@pytest.mark.release
def test_a_missing_training_file_is_rebuilt_with_the_same_digest(release: Path, tmp_path: Path) -> None:
    (task,) = (name for name in TASKS if plugins.load_task(name).rebuild_train)
    (tmp_path / task).mkdir()
    (tmp_path / task / "llm").symlink_to(release / task / "llm")
    records = load_split(Source("release", str(tmp_path)), task, "train")
    assert facts_of(records) == shipped_facts()[task]["train"]
