"""Files that other people's reporters make of a board, and what happens when one fails."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaderboard.fakes import add, flags, make_record
from tests.packages import REPORTER, Site, installing
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.plugins import PluginWarning, add_file
from tinyllm_bench.leaderboard.board import board_build, board_files


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with installing(tmp_path, monkeypatch) as made:
        yield made


def reporter(tmp_path: Path, name: str, code: str) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(textwrap.dedent(code))
    add_file(file)


def test_a_reporter_writes_beside_the_board_and_goes_with_its_file(
    site: Site, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(board, make_record("mine", flags(20, 10)))
    plain = board_files(board)
    reporter(tmp_path, "names", REPORTER)
    board_build(board)
    written = board / "reporters" / "names" / "rows.txt"
    assert written.read_text().split() and board_files(board) == board_files(board)
    assert {name: text for name, text in board_files(board).items() if not name.startswith("reporters/")} == plain
    monkeypatch.setenv("TINYLLM_BENCH_PLUGINS", "")
    board_build(board)
    assert not written.exists() and (board / "README.md").is_file()


def test_built_in_reporters_write_into_the_board_s_folder_and_keep_their_names(
    site: Site, board: Path, tmp_path: Path
) -> None:
    add(board, make_record("mine", flags(20, 10)))
    assert {"every_eval_ever", "eval_results"} == set(plugins.names("reporter"))
    assert "every_eval_ever.jsonl" in board_files(board)
    reporter(tmp_path, "every_eval_ever", "def REPORTER(board): return {'a.txt': 'text'}")
    with pytest.raises(UserError, match="has a built-in's name"):
        plugins.load("reporter", "every_eval_ever")


def test_a_reporter_gets_the_records_of_the_board_s_runs(site: Site, board: Path, tmp_path: Path) -> None:
    record = make_record("mine", flags(20, 10))
    add(board, record)
    code = """
    def REPORTER(board):
        runs = [run for section in board.sections for row in section.rows for run in row.runs]
        return {"digests.txt": " ".join(board.records[run.record].protocol_hash for run in runs)}
    """
    reporter(tmp_path, "digests", code)
    assert board_files(board)["reporters/digests/digests.txt"] == record.protocol_hash
    assert '"records"' not in board_files(board)["data.json"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def REPORTER(board): raise RuntimeError('no ink')", "no ink"),
        ("def REPORTER(board): return 'text'", "returned str, not a mapping"),
        ("def REPORTER(board): return {'../README.md': 'text'}", "'../README.md' is no plain file name"),
        ("def REPORTER(board): return {'a.txt': 5}", "a.txt: int is no text"),
        ("REPORTER = 5", "a reporter is a function, not 5"),
    ],
)
def test_a_reporter_that_fails_is_told_about_and_the_board_is_built(
    site: Site, board: Path, tmp_path: Path, code: str, says: str
) -> None:
    add(board, make_record("mine", flags(20, 10)))
    reporter(tmp_path, f"failing{abs(hash(code))}", code)
    with pytest.warns(PluginWarning, match=says) as warned:
        board_build(board)
    assert len(warned) == 1 and (board / "README.md").is_file() and not (board / "reporters").exists()
