"""What is printed when a request is done."""

import re
from pathlib import Path

import pytest

from tests.cli.watched import cell
from tests.leaderboard.fakes import flags, make_record, make_reference
from tinyllm_bench.cli.progress import Progress
from tinyllm_bench.cli.run import summarise
from tinyllm_bench.experiment.runner import CellResult, Matrix
from tinyllm_bench.leaderboard.record import save_record


def matrix(tmp_path: Path) -> tuple[Matrix, Progress]:
    """A reference baseline, two methods, and one that failed."""
    records = [make_reference("untrained", flags(20, 5)), *(make_record(n, flags(20, 10)) for n in ("tuned", "better"))]
    cells = [cell(one.run_id, one.label, one.task, kind=one.kind) for one in records] + [cell("x", "broken", "toy")]
    progress, outcomes = Progress(cells), []
    for one, record in zip(cells, records, strict=False):
        folder = tmp_path / record.run_id
        save_record(record, folder)
        outcomes.append(CellResult(folder, record, record.label != "tuned"))
        progress.cell(one)
        progress.done(outcomes[-1])
    progress.cell(cells[-1])
    progress.failed("the loss is inf at step 3; lower train.learning_rate (now 1e30) and try again with that")
    return Matrix(tuple(outcomes), (cells[-1],)), progress


def test_cells_board_files_and_next_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, progress = matrix(tmp_path)
    summarise(done, progress.rows, runs=tmp_path, until="predict", board=tmp_path / "board")
    result = capsys.readouterr()
    rows = [re.split(r"  +", line.strip()) for line in result.out.splitlines()[1:7]]
    assert rows[0] == ["cell", "seed", "accuracy", "student tokens", "time"]
    assert rows[2][:3] == ["untrained on toy", "0", "25.0 % (5/20)"] and rows[2][3] == "-"
    assert rows[3][:4] == ["tuned on toy", "0", "50.0 % (10/20)", "1,000"] and rows[3][-1].endswith("(earlier run)")
    assert rows[5] == ["broken on toy", "0", "failed", "-", "0 s"]
    assert "broken on toy, seed 0 failed: the loss is inf at step 3" in result.out
    assert "toy, cloze mode, 20 questions" in result.out
    assert result.out.splitlines()[-2:] == [
        f"next: tinyllm-bench compare better tuned --in {tmp_path / 'board'}",
        f"      tinyllm-bench curves {tmp_path}",
    ]
    assert result.err == "1 failed: broken on toy; run the same command again to retry\n"


def test_without_a_board_the_next_command_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, progress = matrix(tmp_path)
    summarise(done._replace(failed=()), progress.rows, runs=tmp_path, until="predict", board=None)
    result = capsys.readouterr()
    assert f"next: tinyllm-bench board add {done.outcomes[0].folder} " in result.out and result.err == ""


def test_on_a_terminal_of_80_columns_tables_and_notes_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllm_bench.cli.run.terminal_width", lambda: 80)
    done, progress = matrix(tmp_path)
    summarise(done, progress.rows, runs=Path("runs"), until="predict", board=tmp_path / "board")
    out = capsys.readouterr().out
    long = [line for line in out.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert long == [] and "95 %" in out
