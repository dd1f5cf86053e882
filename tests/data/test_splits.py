"""Fixed subsets: deterministic, in proportion, in order."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.data.splits import stratified_subset


def make(answers: list[int]) -> list[TaskRecord]:
    return [
        TaskRecord(id=f"t/test/{i}", task="t", split="test", question=f"q{i}", choices=tuple("abcd"), answer=answer)
        for i, answer in enumerate(answers)
    ]


ROOT = Path(__file__).resolve().parents[2]
RECORDS = make([0] * 138 + [1] * 126 + [2] * 132 + [3] * 104)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100, 200, 333, 499, 500])
def test_size_order_and_shares(n: int) -> None:
    chosen = stratified_subset(RECORDS, n, salt="test")
    assert len(chosen) == n == len({record.id for record in chosen})
    positions = [int(record.id.rsplit("/", 1)[1]) for record in chosen]
    assert positions == sorted(positions)
    result = Counter(record.answer for record in chosen)
    for answer, size in {0: 138, 1: 126, 2: 132, 3: 104}.items():
        assert abs(result[answer] - n * size / 500) < 1


def test_largest_remainder_by_hand() -> None:
    # 10 of 500: 2.76, 2.52, 2.64, 2.08 -> 2, 2, 2, 2 and the two places left to 0 and 2.
    result = Counter(record.answer for record in stratified_subset(RECORDS, 10, salt="test"))
    assert [result[answer] for answer in range(4)] == [3, 2, 3, 2]


def test_equal_remainders_go_to_the_lower_answer() -> None:
    result = Counter(record.answer for record in stratified_subset(make([0, 1, 2, 3] * 5), 6, salt="x"))
    assert [result[answer] for answer in range(4)] == [2, 2, 1, 1]


def test_more_than_there_are_is_everything() -> None:
    assert stratified_subset(RECORDS, 900, salt="test") == tuple(RECORDS)
    assert stratified_subset([], 5, salt="test") == ()


def test_numbers_are_one_stratum() -> None:
    records = [
        TaskRecord(id=f"t/test/{i}", task="t", split="test", question=f"q{i}", number=str(i % 3)) for i in range(50)
    ]
    chosen = stratified_subset(records, 7, salt="test")
    assert len(chosen) == 7 and {r.id for r in chosen} == {
        r.id for r in stratified_subset(records[::-1], 7, salt="test")
    }


def test_a_negative_size_is_a_bug() -> None:
    with pytest.raises(ValueError, match="-1"):
        stratified_subset(RECORDS, -1, salt="test")


def test_the_order_of_the_rows_does_not_choose() -> None:
    forward = {record.id for record in stratified_subset(RECORDS, 200, salt="test")}
    assert {record.id for record in stratified_subset(RECORDS[::-1], 200, salt="test")} == forward


def test_the_salt_chooses() -> None:
    assert stratified_subset(RECORDS, 50, salt="a") != stratified_subset(RECORDS, 50, salt="b")


def test_the_choice_is_not_the_head_of_each_answer() -> None:
    chosen = stratified_subset(RECORDS, 100, salt="test")
    assert max(int(record.id.rsplit("/", 1)[1]) for record in chosen if record.answer == 0) > 69


def test_another_process_with_another_hash_seed_chooses_the_same() -> None:
    code = (
        "from tests.data.test_splits import RECORDS, stratified_subset\n"
        "print(' '.join(record.id for record in stratified_subset(RECORDS, 40, salt='test')))"
    )
    here = " ".join(record.id for record in stratified_subset(RECORDS, 40, salt="test"))
    for seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == here


def test_the_choice_of_this_version_stays() -> None:
    """A changed choice would change every published row: it needs a new protocol, not a new expected value here."""
    assert [record.id for record in stratified_subset(RECORDS, 5, salt="test")] == [
        "t/test/10",
        "t/test/81",
        "t/test/203",
        "t/test/334",
        "t/test/436",
    ]
