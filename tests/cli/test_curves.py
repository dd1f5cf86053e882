"""`curves`: what it prints and which files it writes."""

from pathlib import Path

from tests.cli.conftest import Call
from tests.leaderboard.test_curves import write_run


def test_it_prints_and_draws_every_run_of_a_folder(call: Call, tmp_path: Path) -> None:
    for name in ("run-a", "run-b"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "board").mkdir()
    said = call("curves", tmp_path / "runs")
    assert said.status == 0 and said.err == ""
    for name in ("run-a", "run-b"):
        picture = tmp_path / "runs" / name / "train" / "curves.svg"
        assert picture.read_text().endswith("</svg>\n") and f"\n  {picture}\n" in said.out and f"{name}\n" in said.out


def test_several_in_one_picture(call: Call, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("run-a", "run-b")]
    said = call("curves", *runs, "--to", tmp_path / "both.svg")
    assert said.status == 0 and said.out.splitlines()[-1] == f"2 runs: {tmp_path / 'both.svg'}"
    assert "Training of 2 runs" in (tmp_path / "both.svg").read_text()
    assert not (runs[0] / "train" / "curves.svg").exists()


def test_what_is_refused(call: Call, tmp_path: Path) -> None:
    said = call("curves", tmp_path)
    assert said.status == 2 and f"no training metrics in {tmp_path}" in said.err
    said = call("curves", write_run(tmp_path / "run-a"), "--to", tmp_path / "x.png")
    assert said.status == 2 and "name a file that ends in .svg" in said.err
