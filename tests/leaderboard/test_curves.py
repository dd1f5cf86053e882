"""Training curves: what is read of a run, its lines of text, and the places of its path in the picture."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import append_checked, write_json
from tinyllm_bench.leaderboard.curves import (
    ASCII_BARS,
    curves_text,
    draw_run,
    drawing,
    read_curves,
    smoothed,
    sparkline,
)
from tinyllm_bench.leaderboard.curves_svg import labels, path, ticks

SVG = "{http://www.w3.org/2000/svg}"


def look(step: int, accuracy: float, **more: Any) -> dict[str, Any]:
    found = {"step": step, "fraction": step / 4, "accuracy": accuracy, "gold_probability": None, "n": 20, "loss": None}
    return {**found, "probe": {}, **more}


def write_run(folder: Path, *, losses: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0), chosen: int | None = 2) -> Path:
    """A run of four steps with two looks; finished where a look is chosen."""
    rows: list[Any] = []
    for number, loss in enumerate(losses, start=1):
        measured = {"measured": {"length": 10.0 * number}}
        step = {"step": number, "steps": len(losses), "loss": loss, "by_channel": {"label": loss}, "lr": 1e-4 / number}
        rows.append({**step, **measured, "tokens": 100 * number})
    looks = [look(2, 0.5), look(4, 0.25)]
    append_checked(folder / "train" / "metrics.jsonl", [*rows[:2], {"look": looks[0]}, *rows[2:], {"look": looks[1]}])
    append_checked(folder / "events.jsonl", [{"time": 1.0, "cell": folder.name, "label": "learner", "task": "quiz"}])
    if chosen is not None:
        kept = [{**one, "selected": one["step"] == chosen} for one in looks]
        write_json(folder / "train" / "result.json", {"looks": kept})
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "run-a"))
    assert (run.name, run.label, run.finished) == ("run-a", "learner on quiz", True)
    assert run.steps == ((1, 100), (2, 200), (3, 300), (4, 400)) and run.losses == (4.0, 3.0, 2.0, 1.0)
    assert [(one.step, one.tokens, one.accuracy, one.selected) for one in run.looks] == [
        (2, 200, 0.5, True),
        (4, 400, 0.25, False),
    ]
    assert run.small == {"length": ((0, 10.0), (1, 20.0), (2, 30.0), (3, 40.0))}


def test_nothing_is_drawn_before_the_first_step(tmp_path: Path) -> None:
    assert draw_run(tmp_path) is None
    append_checked(tmp_path / "train" / "metrics.jsonl", [{"look": look(0, 0.25)}])
    assert draw_run(tmp_path) is None and not (tmp_path / "train" / "curves.svg").exists()


def drawn(folder: Path) -> Path:
    file = draw_run(folder)
    assert file is not None
    return file


def test_the_places_of_the_loss_and_the_selected_look(tmp_path: Path) -> None:
    root = ElementTree.parse(drawn(write_run(tmp_path / "run-a"))).getroot()
    lines = [one.get("d") for one in root.iter(f"{SVG}path") if "line" in (one.get("class") or "")]
    assert lines[0] == lines[1] == "M234,107.5L400,161.8L566,216L732,270.2", "few steps: the mean is the loss itself"
    assert lines[2] == "M400,356.4L732,476.8", "validation"
    (ring,) = [one for one in root.iter(f"{SVG}circle") if (one.get("class") or "").startswith("chosen")]
    assert (ring.get("cx"), ring.get("cy")) == ("400.0", "356.4")
    assert "selected: 50.0 %" in [one.text for one in root.iter(f"{SVG}text")]


def test_the_picture_says_what_it_shows_and_knows_dark_pages(tmp_path: Path) -> None:
    text = draw_run(write_run(tmp_path / "run-a")).read_text()
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-labelledby") == "title about"
    assert root.findtext(f"{SVG}title") == "Training of learner on quiz"
    told = root.findtext(f"{SVG}desc") or ""
    assert "4 steps, 400 student tokens, training loss 4 to 1" in told and "50.0 % of 20 selected (step 2)" in told
    assert "prefers-color-scheme: dark" in text and "<script" not in text and "http" not in text.replace(SVG[1:-1], "")


def test_names_of_others_are_text_in_the_picture(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run-a")
    append_checked(folder / "train" / "metrics.jsonl", [{"look": look(4, 0.1, probe={"<b>&x": 1.0})}])
    titles = [one.text for one in ElementTree.parse(draw_run(folder)).getroot().iter(f"{SVG}text")]
    assert "validation: <b>&x" in titles


def test_a_training_that_goes_on_is_drawn_without_a_selection(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "run-a", chosen=None))
    assert not run.finished and "selected" not in re.sub(r"<style>.*</style>", "", drawing([run]), flags=re.DOTALL)
    assert curves_text(run).startswith("run-a (training goes on, or was interrupted)")


def test_several_runs_lie_over_their_tokens_with_a_legend(tmp_path: Path) -> None:
    runs = [read_curves(write_run(tmp_path / name)) for name in ("run-a", "run-b")]
    root = ElementTree.fromstring(drawing(runs))
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert {"run-a", "run-b", "by student tokens", "400"} <= set(texts) and "by step" not in texts
    kinds = {one.get("class") for one in root.iter(f"{SVG}path") if "line" in (one.get("class") or "")}
    assert kinds == {"line s0 d0", "line s1 d1"}, "told apart by dashes too"


def test_metrics_without_a_learning_rate_are_older_and_have_no_such_panel(tmp_path: Path) -> None:
    rows = [{"step": 1, "steps": 1, "loss": 1.0, "by_channel": {"label": 1.0}, "tokens": 5}]
    append_checked(tmp_path / "train" / "metrics.jsonl", rows)
    assert "learning rate" not in draw_run(tmp_path).read_text()


def test_a_look_before_the_first_step_stands_at_zero(tmp_path: Path) -> None:
    folder = tmp_path / "run-a"
    append_checked(folder / "train" / "metrics.jsonl", [{"look": look(0, 0.1, loss=2.0)}])
    run = read_curves(write_run(folder))
    assert run.looks[0].step == 0 and run.small["validation: loss"][0] == (-1, 2.0)
    assert run.at(-1, by_tokens=False) == 0.0


def test_no_metrics_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'train' / 'metrics.jsonl'} holds no training step")):
        read_curves(tmp_path)


def test_the_text_of_a_run(tmp_path: Path) -> None:
    assert curves_text(read_curves(write_run(tmp_path / "run-a"))) == (
        "run-a\n"
        "  loss        █▆▃▁  4 to 1\n"
        "  validation  █▁  50.0 % of 20 selected (step 2)\n"
        "  length      ▁▃▆█  10 to 40\n"
        "  4 steps, 400 student tokens"
    )


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█", "means of neighbours"
    assert sparkline([2, 2]) == "▁▁" and sparkline([]) == ""
    assert sparkline([0, 7], bars=ASCII_BARS) == "_#"
    assert len(sparkline(list(range(1000)), 40)) == 40


def test_smoothing_has_no_bias_and_follows_slowly() -> None:
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    means = smoothed([0.0] * 100 + [1.0] * 100)
    assert means[99] == 0 and 0 < means[101] < 0.5 < means[130]
    assert smoothed([1.0, 5.0]) == [1.0, 5.0]


def test_ticks_are_round_and_labels_short() -> None:
    assert ticks(0.3, 9.7, 5) == [2, 4, 6, 8]
    assert labels([0, 20000, 40000]) == ["0", "20k", "40k"]
    assert labels([0.5, 1.0]) == ["0.5", "1"] and labels([0.0, 2e-5]) == ["0", "2e-05"]
    assert labels([1e6, 2.5e6]) == ["1M", "2.5M"]


def test_a_long_path_keeps_its_peaks() -> None:
    dots = [(float(x), 100.0) for x in range(10_000)]
    dots[4321] = (4321.0, 7.0)
    drawn = path(dots)
    assert drawn.count("L") < 401 and "4321,7" in drawn
