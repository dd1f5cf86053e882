"""The live view, drawn on a screen that is recorded, with a clock that the test sets."""

import io
import logging
import re
import sys
from typing import Any

import pytest
from rich.console import Console as Screen

from tests.cli.watched import Clock, Done, cell, evaluated, step
from tests.leaderboard.test_hostile import ALL, HIDDEN
from tinyllm_bench.base.events import AnnotationFinished, LogitCacheOpened, LogitCacheProgress, RunRecorded
from tinyllm_bench.cli.console import Console
from tinyllm_bench.cli.live import LiveView, View
from tinyllm_bench.cli.progress import Progress


def screen_of(width: int, height: int = 30, **more: Any) -> Screen:
    return Screen(file=io.StringIO(), width=width, height=height, force_terminal=True, legacy_windows=False, **more)


def lines_of(progress: Progress, width: int, height: int = 30) -> list[str]:
    """The view as text, without any colour."""
    screen = screen_of(width, height, no_color=True, color_system=None)
    view = View(progress, screen)
    screen.print(view)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).splitlines()]


def training(clock: Clock, cells: list[Any] | None = None) -> Progress:
    """One cell done, one that trains, one that waits."""
    cells = cells or [cell("r", "guess", kind="reference_baseline"), cell("a"), cell("b", seed=1)]
    progress = Progress(cells, clock=clock)
    progress.cell(cells[0])
    clock.now += 2
    progress.event(RunRecorded(0.25))
    progress.done(Done(None, True))
    progress.cell(cells[1])
    progress.event(AnnotationFinished(8))
    progress.event(step(1))
    clock.now += 8
    progress.event(step(5))
    progress.event(evaluated(0.375))
    return progress


def test_at_80_columns() -> None:
    assert lines_of(training(Clock()), 80) == [
        "3 cells: 1 done, 1 waiting, 0:10 elapsed, about 32 s left",
        "  cell                         seed annotate train    predict  accuracy     time",
        "✓ guess on quiz                   0                   done       25.0 %     0:02",
        "▶ learner on quiz                 0 done     50 %                           0:08",
        "· learner on quiz                 1",
        "",
        "now         training 5/10, 50 tokens/s, 12 s left for this cell",
        "loss        █▁  2.5",
        "validation  ▁  37.5 % of 8, best 37.5 %",
    ]


def test_a_logit_cache_that_fills_is_shown_with_its_pace() -> None:
    clock = Clock()
    progress = Progress([cell("a")], clock=clock)
    progress.cell(cell("a"))
    progress.event(AnnotationFinished(8))
    progress.event(LogitCacheOpened(40, 388))
    progress.event(LogitCacheProgress(10, 40))
    clock.now += 5
    progress.event(LogitCacheProgress(20, 40))
    assert lines_of(progress, 80)[2:] == [
        "▶ learner on quiz                 0 done     50 %                           0:05",
        "",
        "now         caching the teacher's logits 20/40, 2 responses/s, 10 s left",
    ]


def test_at_140_columns_there_are_bars_and_numbers() -> None:
    lines = lines_of(training(Clock()), 140)
    assert " ".join(lines[1].split()) == "cell seed annotate train predict tokens loss validation accuracy time"
    assert " ".join(lines[3].split()) == "▶ learner on quiz 0 done ━━━━━───── 50 % 500 2.5 37.5 % 0:08"
    assert lines[6].startswith("now         learner on quiz, seed 0: training 5/10, 50 tokens/s")
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("width", [80, 140])
def test_forty_cells_fit_with_the_one_that_runs_and_counts(width: int) -> None:
    clock = Clock()
    cells = [cell(f"c{i}", f"method {i}") for i in range(40)]
    progress = Progress(cells, clock=clock)
    for one in cells[:20]:
        progress.cell(one)
        progress.failed("boom: it did not work") if one is cells[3] else progress.done(Done(None, True))
    progress.cell(cells[20])
    progress.event(step(1))
    lines = lines_of(progress, width)
    assert len(lines) <= 30 and max(map(len, lines)) <= width
    assert lines[0].startswith("40 cells: 19 done, 1 failed, 19 waiting")
    assert lines[2].strip() == "… 10 above: 9 done, 1 failed"
    assert any(line.startswith("▶ method 20 on quiz") for line in lines)
    assert any(line.strip().startswith("… 9 below: 9 waiting") for line in lines)
    assert lines[-1].startswith("failed      method 3 on quiz, seed 0: boom")


def test_a_small_terminal_still_shows_the_cell_that_runs() -> None:
    lines = lines_of(training(Clock(), [cell(f"c{i}", f"m{i}", kind="method") for i in range(9)]), 80, height=10)
    assert len(lines) <= 10 and any(line.startswith("▶ m1 on quiz") for line in lines)


def test_a_terminal_without_utf8_gets_signs_of_ascii() -> None:
    progress = training(Clock())
    screen = screen_of(140, no_color=True, color_system=None)
    screen.file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    screen.print(View(progress, screen))
    screen.file.flush()
    text = screen.file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "> learner on quiz" in text and "#####-----" in text and "+ guess" in text


def test_states_are_signs_and_words_not_only_colours() -> None:
    progress = training(Clock())
    progress.failed("boom")
    lines = lines_of(progress, 80)
    assert lines[3].startswith("✗ learner on quiz") and "stopped" in lines[3] and "failed" in lines[3]


def test_text_of_others_is_no_markup() -> None:
    progress = Progress([cell("a", "[red]x[/red]")])
    assert any("[red]x[/red] on quiz" in line for line in lines_of(progress, 80))


def test_prints_warnings_and_logs_stand_above_the_view() -> None:
    screen, stream = screen_of(80), sys.stderr
    handler = logging.StreamHandler(stream)
    logging.getLogger("noisy").addHandler(handler)
    try:
        with LiveView(Progress([cell("a")]), screen) as live:
            print("printed", file=sys.stderr)
            logging.getLogger("noisy").warning("logged")
            live.say("said [not markup]")
    finally:
        logging.getLogger("noisy").removeHandler(handler)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    for word in ("printed", "logged", "said [not markup]"):
        assert f"{word}\n" in text
    assert handler.stream is stream and sys.stderr is stream, "all is put back"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"


def test_an_interruption_leaves_the_last_picture_and_the_cursor() -> None:
    clock, screen = Clock(), screen_of(80)
    one = cell("a")
    console = Console([one], clock=clock)
    console.live = LiveView(console.progress, screen)
    with pytest.raises(KeyboardInterrupt), console:
        console.cell(one, 1, 1)
        console.event(step(1))
        raise KeyboardInterrupt
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    last = text.rpartition("1 cell: 0 done")[2]
    assert "now         training 1/10" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)
    assert text.endswith("\x1b[?25h") or text.rstrip("\n").endswith("\x1b[?25h")


def test_a_finished_view_is_taken_away_and_failures_stay() -> None:
    one, screen = cell("a"), screen_of(80)
    console = Console([one], clock=Clock())
    console.live = LiveView(console.progress, screen)
    with console:
        console.cell(one, 1, 1)
        console.failed(one, ValueError("boom"), None)
    assert "learner on quiz failed: boom\n" in screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_no_label_or_error_acts_on_the_screen(text: str) -> None:
    clock = Clock()
    progress = Progress([cell("r", text), cell("a", text)], clock=clock)
    progress.cell(progress.rows[0] and cell("r", text))
    progress.failed(f"failed at {text}")
    result = "\n".join(lines_of(progress, 200))
    assert not HIDDEN.search(result) and ("[red]" not in text or "[red]" in result)
