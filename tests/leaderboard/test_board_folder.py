"""Sections that are made in several processes are those that are made in one."""

import os
from pathlib import Path

import pytest

from tests.leaderboard.fakes import add, flags, make_record
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard import board_folder
from tinyllm_bench.leaderboard.board import board_build, board_files, board_show
from tinyllm_bench.leaderboard.board_folder import of_sections
from tinyllm_bench.leaderboard.tables import BoardNames, Section

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
NAMES = BoardNames(baseline="floor", baseline_title="label-only", order=())


@pytest.fixture
def filled(board: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three sections, two of which are rivals, on a machine of two processors."""
    monkeypatch.setattr(board_folder, "_processors", lambda: 2)
    for task, n in (("toy", 20), ("toy", 30), ("other", 20)):
        for name, right in (("floor", 8), ("mine", 12)):
            add(board, make_record(name, flags(n, right), task=task, n=n))
    return board


def _who(section: Section, slug: str) -> tuple[str, str, int]:
    return slug, section.facts, os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_large_board_is_made_in_processes_and_is_the_same(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, shown, here = board_files(filled), board_show(filled), of_sections(filled, NAMES, _who)
    monkeypatch.setattr(board_folder, "MANY_RECORDS", 6)
    beside = of_sections(filled, NAMES, _who)
    assert {pid for _, _, pid in here} == {os.getpid()} and os.getpid() not in {pid for _, _, pid in beside}
    assert [one[:2] for one in beside] == [one[:2] for one in here] and len(beside) == 3
    assert sum("Not comparable with protocol" in facts for _, facts, _ in beside) == 2
    assert board_files(filled) == alone and board_show(filled) == shown


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_broken_record_is_told_from_another_process(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_folder, "MANY_RECORDS", 6)
    broken = sorted((filled / "results").rglob("*.json"))[-1]
    broken.write_text(broken.read_text().replace('"correct": 12', '"correct": 13'))
    with pytest.raises(UserError, match="is refused: score: correct") as told:
        board_build(filled)
    assert str(broken) in str(told.value)
