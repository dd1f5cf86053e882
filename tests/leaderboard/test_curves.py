"""Training curves: what is read of a run, its lines of text, and what is drawn."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import CellStarted, Evaluation, Event, StudentEvaluated, TrainingStep, to_json
from tinyllm_bench.base.files import append_checked
from tinyllm_bench.leaderboard.curves import (
    ASCII_BARS,
    curves_text,
    draw_run,
    drawing,
    read_curves,
    smoothed,
    sparkline,
)
from tinyllm_bench.training.result import TrainResult, save_result

SVG = "{http://www.w3.org/2000/svg}"


def evaluated(step: int, accuracy: float, **more: Any) -> StudentEvaluated:
    return StudentEvaluated(Evaluation(step, step / 4, accuracy, None, 20, **more))


def add_metrics(folder: Path, *events: Event) -> None:
    append_checked(folder / "train" / "metrics.jsonl", [to_json(event) for event in events])


RESULT = TrainResult(
    steps=4,
    records=8,
    student_tokens=400,
    computed_tokens=400,
    flops=1e9,
    tokens_by_channel={"label": 40},
    first_loss=4.0,
    last_loss=1.0,
    evaluations=(),
    selected_step=4,
    seconds=1.0,
    initial_digest="a",
    student_digest="b",
    tokenizer_digest="c",
    architecture="LlamaForCausalLM",
    parameters=1000,
    encoder_decoder=False,
    layout="shared",
    layout_reason=None,
    targets_cut=0,
    targets_dropped=0,
    epochs=1.0,
    peak_memory_bytes=1,
)


def write_run(folder: Path, *, losses: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0), chosen: int | None = 2) -> Path:
    """A run of four steps with two evaluations; finished where one of them is chosen."""
    steps = [
        TrainingStep(n, len(losses), loss, {"label": loss}, 1e-4 / n, tokens=100 * n, measured={"length": 10.0 * n})
        for n, loss in enumerate(losses, start=1)
    ]
    first, second = evaluated(2, 0.5), evaluated(4, 0.25)
    add_metrics(folder, *steps[:2], first, *steps[2:], second)
    started = to_json(CellStarted(folder.name, "learner", "quiz"))
    append_checked(folder / "events.jsonl", [{"time": 1.0, **started}])
    if chosen is not None:
        evaluations = (first.evaluation, second.evaluation)
        save_result(replace(RESULT, evaluations=evaluations, selected_step=chosen), folder)
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "run-a"))
    assert (run.name, run.label, run.finished) == ("run-a", "learner on quiz", True)
    assert run.steps == ((1, 100), (2, 200), (3, 300), (4, 400)) and run.losses == (4.0, 3.0, 2.0, 1.0)
    assert [(one.step, one.tokens, one.accuracy, one.selected) for one in run.validations] == [
        (2, 200, 0.5, True),
        (4, 400, 0.25, False),
    ]
    assert run.measured == {"length": ((0, 10.0), (1, 20.0), (2, 30.0), (3, 40.0))}


def test_nothing_is_drawn_before_the_first_step(tmp_path: Path) -> None:
    assert draw_run(tmp_path) is None
    add_metrics(tmp_path, evaluated(0, 0.25))
    assert draw_run(tmp_path) is None and not (tmp_path / "train" / "curves.svg").exists()


def drawn(folder: Path) -> Path:
    file = draw_run(folder)
    assert file is not None
    return file


def texts(picture: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_picture_has_every_panel_and_marks_the_selected_evaluation(tmp_path: Path) -> None:
    picture = drawn(write_run(tmp_path / "run-a")).read_text()
    found = texts(picture)
    for title in ("training loss", "validation accuracy %", "learning rate", "length"):
        assert title in found
    assert "selected: 50.0 %" in found and "run-a" in found and "step" in found
    assert picture.count('id="selected"') == 1 and "student tokens" not in found


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "run-a"))
    assert drawing([run]) == drawing([run])


def test_the_picture_says_what_it_shows_and_is_no_program(tmp_path: Path) -> None:
    text = drawn(write_run(tmp_path / "run-a")).read_text()
    root = ElementTree.fromstring(text)
    description = " ".join("".join(one.itertext()) for one in root.iter() if "purl.org" in one.tag)
    assert "Training of learner on quiz" in description
    assert (
        "4 steps, 400 student tokens, training loss 4 to 1" in description
        and "50.0 % of 20 selected (step 2)" in description
    )
    assert "<script" not in text and not re.search(r"(href|src)=\"(?!#)", text)


def test_names_of_others_are_text_in_the_picture(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run-a")
    add_metrics(folder, evaluated(4, 0.1, probe={"<b>&x": 1.0}))
    add_metrics(folder, evaluated(4, 0.1, probe={"a $b$ c": 1.0}))
    assert {"validation: <b>&x", "validation: a $b$ c"} <= set(texts(drawn(folder).read_text()))


def test_a_training_that_goes_on_is_drawn_without_a_selection(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "run-a", chosen=None))
    assert not run.finished and "selected" not in drawing([run])
    assert curves_text(run).startswith("run-a (training is running, or was interrupted)")


def test_several_runs_lie_over_their_tokens_with_a_legend(tmp_path: Path) -> None:
    runs = [read_curves(write_run(tmp_path / name)) for name in ("run-a", "run-b")]
    picture = drawing(runs)
    found = texts(picture)
    assert {"run-a", "run-b", "student tokens", "400"} <= set(found) and "step" not in found
    assert picture.count("stroke-dasharray") == 5, "the second run is dashed in four panels and in the legend"


def test_an_evaluation_before_the_first_step_stands_at_zero(tmp_path: Path) -> None:
    folder = tmp_path / "run-a"
    add_metrics(folder, evaluated(0, 0.1, loss=2.0))
    run = read_curves(write_run(folder))
    assert run.validations[0].step == 0 and run.measured["validation: loss"][0] == (-1, 2.0)
    assert run.at(-1, by_tokens=False) == 0.0


def test_a_damaged_event_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    for row in ({"step": 1, "loss": 2.0}, {"event": "training_step", "step": "one"}):
        append_checked(tmp_path / "train" / "metrics.jsonl", [row])
        with pytest.raises(UserError, match=r"metrics.jsonl: damaged event \(\S+: .*\); delete the run's folder$"):
            read_curves(tmp_path)
        (tmp_path / "train" / "metrics.jsonl").unlink()


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
