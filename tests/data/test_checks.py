"""`data check` and `data info`: every problem is found, and the facts are right."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import toy_release
from tests.data.toy_release import TASK
from tinyllm_bench.base import plugins
from tinyllm_bench.data import checks
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.data.sources import Source, load_split


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    site = tmp_path / "site"
    site.mkdir()
    toy_release.install(site)
    monkeypatch.syspath_prepend(str(site))
    load_split.cache_clear()
    yield toy_release.write(tmp_path / "release")


def test_a_whole_release_is_ok(folder: Path) -> None:
    (line,) = checks.check_release(folder, tasks=[TASK])
    assert line.ok and line.problems == () and not line.rebuilt
    assert dict(line.counts) == {"train": 6, "valid": 2, "test": 3}
    assert line.rationales == {
        "first": {"train": 6, "valid": 2, "test": 3},
        "second": {"train": 5, "valid": 1, "test": 2},
    }
    assert line.text == (
        "toyquiz: 6 / 2 / 3 rows (train / valid / test), digests ok; rationales: first 6 / 2 / 3, second 5 / 1 / 2"
    )


def test_a_rebuilt_split_is_said_so(folder: Path) -> None:
    (folder / TASK / f"{TASK}_train.json").unlink()
    (line,) = checks.check_release(folder, tasks=[TASK])
    assert line.ok and line.rebuilt and "rebuilt" in line.text


def test_every_problem_is_reported_once(folder: Path) -> None:
    assert checks.check_release(folder, tasks=[TASK])[0].ok
    rows = folder / TASK / f"{TASK}_test.json"
    rows.write_text(json.dumps(json.loads(rows.read_text())[1:]))
    (folder / TASK / "llm" / "valid_CoT_0.json").unlink()
    (line,) = checks.check_release(folder, tasks=[TASK])  # in the same process: nothing remembered may hide it
    assert not line.ok and len(line.problems) == 2
    assert f"{rows}: 2 rows, expected 3" in line.text
    assert "valid_CoT_0.json: file not found" in line.text
    assert "\n" not in line.text


@pytest.mark.release
@pytest.mark.slow
def test_the_real_release_is_whole(release: Path) -> None:
    lines = checks.check_release(release)
    assert [line.task for line in lines] == plugins.names("task")
    assert all(line.ok for line in lines), [line.text for line in lines if not line.ok]


@pytest.mark.release
def test_one_deleted_row_is_found(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(release / "obqa", folder / "obqa")
    path = folder / "obqa" / "obqa_test.json"
    path.chmod(0o644)
    path.write_text("\n".join(path.read_text().split("\n")[1:]))
    (line,) = checks.check_release(folder, tasks=["obqa"])
    assert not line.ok and f"{path}: 499 rows, expected 500" in line.text


@pytest.mark.release
@pytest.mark.parametrize(
    ("task", "chance", "majority", "overlap"),
    [
        ("obqa", 0.25, 138 / 500, 23),
        ("arc", 0.25, 309 / 1165, 7),
        ("piqa", 0.5, 461 / 919, 92),
        ("riddle", 0.2, 103 / 510, 6),
        ("pubmedqa", 1 / 3, 221 / 400, 0),
        ("bioasq", 0.5, 82 / 123, 0),
    ],
)
def test_facts_of_the_real_sets(release: Path, task: str, chance: float, majority: float, overlap: int) -> None:
    facts = checks.task_facts(Source("release", str(release)), task)
    assert facts.chance == pytest.approx(chance) and facts.majority == pytest.approx(majority)
    assert facts.overlap == overlap
    assert (facts.context_words[1] > 0) == (task in ("pubmedqa", "bioasq"))


def record(question: str, context: str = "") -> TaskRecord:
    return TaskRecord(
        id=f"t/test/{question}",
        task="t",
        split="test",
        question=question,
        choices=("a", "b"),
        answer=0,
        context=context,
    )


def test_overlap_looks_through_case_space_and_punctuation() -> None:
    assert checks.overlap([record("What  is IT?")], [record("what is it"), record("what is that?")]) == 1


def test_cut_shares() -> None:
    records = [record("1", "a b c d"), record("2", "a b"), record("3"), record("4", "a b c d e f")]
    assert checks.context_cut_share(records, 4) == 0.25
    assert checks.context_cut_share(records, 3) == 0.5
    assert checks.context_words_cut_share(records, 4) == pytest.approx(2 / 12)
    assert checks.context_cut_share([], 4) == 0 == checks.context_words_cut_share([], 4)


def test_questions_that_share_a_passage_or_their_words_are_one_cluster() -> None:
    from dataclasses import replace

    base = load_split(Source("sample"), "pubmedqa", "test")[:6]
    alone = [replace(record, context=f"Passage {n}.") for n, record in enumerate(base)]
    assert checks.clusters(alone) == ()
    pair = [*alone[:5], replace(alone[5], context=alone[0].context)]
    assert checks.clusters(pair) == (0, 1, 2, 3, 4, 0)
    same_words = [*alone[:5], replace(alone[5], question=alone[1].question.upper())]
    assert checks.clusters(same_words) == (0, 1, 2, 3, 4, 1)
    bridge = [*alone[:5], replace(alone[5], context=alone[2].context, question=alone[3].question)]
    assert checks.clusters(bridge) == (0, 1, 2, 2, 3, 2), "the last joins two that had nothing in common"
    assert checks.clusters([replace(record, context="") for record in alone]) == (), "no passage is no shared passage"
