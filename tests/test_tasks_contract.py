"""What every task must keep (`tinyllm_bench.testing`), and what the built-in ones keep beside that."""

import json
from pathlib import Path

import pytest

from tinyllm_bench.answers.keys import answer_of, number
from tinyllm_bench.answers.parser import ParsedAnswer, read
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base import plugins
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SCORING_MODES, SPLITS
from tinyllm_bench.data.release import own_file
from tinyllm_bench.data.sources import (
    SAMPLE_SIZES,
    Source,
    gold_visible,
    load_rationales,
    load_split,
    manifest,
    program_keys,
    rationale_keys,
)
from tinyllm_bench.data.splits import shipped_facts, split_facts
from tinyllm_bench.testing import task_contract

SAMPLE = Source("sample")
TASKS = plugins.names("task")
RELEASE_ROWS = {  # rows of train, valid and test, of the tasks with public data
    "obqa": (4957, 500, 500),
    "arc": (1117, 295, 1165),
    "piqa": (16113, 919, 919),
    "riddle": (3510, 511, 510),
    "pubmedqa": (500, 100, 400),
    "bioasq": (976, 109, 123),
    "svamp": (720, 80, 200),
    "gsm8k": (6473, 500, 500),
}
CHOICES = tuple(task for task in TASKS if load_split(SAMPLE, task, "test")[0].choices)
NUMBERS = tuple(task for task in TASKS if task not in CHOICES)
every_task = pytest.mark.parametrize("task", TASKS)
released_task = pytest.mark.parametrize("task", RELEASE_ROWS)
choice_task = pytest.mark.parametrize("task", CHOICES)
number_task = pytest.mark.parametrize("task", NUMBERS)

globals().update({f"Test_{task}": task_contract(task) for task in TASKS})


def release_of(task: str, release: Path) -> Source:
    info = plugins.load_task(task)
    if info.file is not None and own_file(release, info) is None:
        pytest.skip(f"needs {info.file.path} beside the release folder")
    return Source("release", str(release))


def test_the_tasks_with_public_data_have_their_facts() -> None:
    assert set(RELEASE_ROWS) == set(shipped_facts()) <= set(TASKS)


@released_task
def test_a_released_task_has_the_rows_of_the_release(task: str) -> None:
    assert tuple(plugins.load_task(task).sizes[split] for split in SPLITS) == RELEASE_ROWS[task]


@every_task
def test_the_docstring_shows_a_row_a_source_and_a_licence(task: str) -> None:
    text = (plugins.folder("task") / f"{task}.py").read_text()
    head = text.split('"""')[1]
    fields = ('"gold":',) if task in NUMBERS else ('"choices":', '"answer":')
    for word in ('{"id":', *fields, "Source:", "Licence:", "invented"):
        assert word in head


@every_task
def test_the_sample_has_its_sizes_and_two_teachers(task: str) -> None:
    assert {split: len(load_split(SAMPLE, task, split)) for split in SPLITS} == SAMPLE_SIZES
    assert {split: facts["rows"] for split, facts in manifest(SAMPLE, task).items()} == SAMPLE_SIZES
    assert set(rationale_keys(SAMPLE, task)) == {"terse", "stepwise"}


@choice_task
def test_the_sample_s_answers_are_spread_over_the_options(task: str) -> None:
    answers = {record.answer for record in load_split(SAMPLE, task, "test")}
    assert answers == set(range(len(load_split(SAMPLE, task, "test")[0].choices)))


@number_task
def test_the_sample_s_numbers_differ(task: str) -> None:
    assert len({record.number for record in load_split(SAMPLE, task, "test")}) > 10


@number_task
def test_the_sample_s_rationales_name_the_answer_and_its_programs_work_it_out(task: str) -> None:
    train = {record.id: record for record in load_split(SAMPLE, task, "train")}
    for key in rationale_keys(SAMPLE, task):
        for name, text in load_rationales(SAMPLE, task, "train", key).items():
            assert read(text, ()) == ParsedAnswer(None, "answer_is", train[name].number), text
    assert program_keys(SAMPLE, task) == ("stepwise",)
    programs = load_rationales(SAMPLE, task, "train", "stepwise", kind="program")
    assert list(programs) == list(train)
    assert not any(load_rationales(SAMPLE, task, "test", "stepwise", kind="program").values())
    with Sandbox() as sandbox:
        results = sandbox.map(list(programs.values()))
    assert [answer_of(result, ()).key for result in results] == [record.number for record in train.values()]


@number_task
@pytest.mark.parametrize("style", ["marker", "paper"])
def test_a_number_is_asked_for_without_options_and_without_the_answer(task: str, style: str) -> None:
    for mode in SCORING_MODES:
        ask = Ask(mode=mode, style=style)  # type: ignore[arg-type]
        for record in load_split(SAMPLE, task, "test"):
            assert ask.context(record) == ask.context(record, "rationale:any") == f"Question: {record.question}"


@pytest.mark.release
@released_task
def test_every_row_of_the_release_converts(task: str, release: Path) -> None:
    source = release_of(task, release)
    for split, size in zip(SPLITS, RELEASE_ROWS[task], strict=True):
        records = load_split(source, task, split)
        assert len(records) == size == len({record.id for record in records})
        assert split_facts(records) == shipped_facts()[task][split]
        assert all((record.choices or (record.gold_text,)).count(record.gold_text) == 1 for record in records)
        assert all(record.choices or record.number == number(record.gold_text).key for record in records)
        assert not any("Answer Choices" in record.context + record.question for record in records)


@pytest.mark.release
@released_task
def test_every_rationale_of_the_release_lines_up(task: str, release: Path) -> None:
    source = release_of(task, release)
    for key in rationale_keys(source, task):
        texts = load_rationales(source, task, "train", key)
        assert list(texts) == [record.id for record in load_split(source, task, "train")]
        assert not any("Answer Choices:" in text.split("\n\nQ: ")[0] for text in texts.values() if key == "flan-t5-xl")


@pytest.mark.release
def test_teachers_of_word_problems_are_read_as_they_were_recorded(release: Path) -> None:
    """Counts alone: what the reader of numbers makes of 1,000 chains of thought a teacher."""
    source, info = release_of("svamp", release), plugins.load_task("svamp")
    rows = [json.loads(line) for line in own_file(release, info).read_text().splitlines()]  # type: ignore[union-attr]
    found = {}
    for key in info.rationale_keys:
        keys = [read(row[key]["cot"], ()).key for row in rows]
        told = [number(row[key]["cot_answer"]).key for row in rows]
        read_ones = [(mine, theirs) for mine, theirs in zip(keys, told, strict=True) if mine is not None]
        right = sum(mine == number(row["gold"]).key for mine, row in zip(keys, rows, strict=True))
        found[key] = (len(read_ones), sum(mine == theirs for mine, theirs in read_ones), right)
        assert not gold_visible(source, "svamp", key)
        programs = load_rationales(source, "svamp", "test", key, kind="program")
        assert len(programs) == 200 and all(programs.values())
    # three that end in "which is not possible" are read no more; one that claims a number in passing and another at
    # last is
    assert found == {"gpt-3.5-turbo": (975, 973, 824), "gpt4": (976, 976, 917)}


@pytest.mark.release
def test_human_solutions_end_in_the_gold_and_not_every_one_has_a_program(release: Path) -> None:
    source = release_of("gsm8k", release)
    records = load_split(source, "gsm8k", "train")
    texts = load_rationales(source, "gsm8k", "train", "human")
    keys = [read(texts[record.id], ()).key for record in records]
    assert sum(key == record.gold_key for key, record in zip(keys, records, strict=True)) == 6472
    assert keys.count(None) == 1  # "points/answer = 48" announces another number
    programs = load_rationales(source, "gsm8k", "train", "human", kind="program")
    assert sum(map(bool, programs.values())) == 6069 and list(programs) == list(texts)
    assert gold_visible(source, "gsm8k", "human")


@pytest.mark.release
def test_a_missing_training_file_is_rebuilt_with_the_same_digest(release: Path, tmp_path: Path) -> None:
    (task,) = (name for name in TASKS if plugins.load_task(name).rebuild_train)
    (tmp_path / task).mkdir()
    (tmp_path / task / "llm").symlink_to(release / task / "llm")
    records = load_split(Source("release", str(tmp_path)), task, "train")
    assert split_facts(records) == shipped_facts()[task]["train"]
