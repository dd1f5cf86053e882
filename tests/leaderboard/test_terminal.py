"""Tables that fit a terminal: shared values stated once, long cells wrapped, columns dropped in order."""

import pytest

from tinyllm_bench.leaderboard.tables import text_table
from tinyllm_bench.leaderboard.terminal import filled, fitted

ROWS = [
    {
        "row": name,
        "student": "dir:a-student",
        "accuracy %": "50.0",
        "95 % interval": "28.0 to 72.0",
        "n": "16",
        "gain over the baseline at equal budget (points)": gain,
        "rank": "1-2, tied with best",
        "student tokens": "2,924",
        "wall time": "1 min 17 s",
        "trust": "self-reported",
    }
    for name, gain in (("a method with quite a long name [sample]", "tuned"), ("b", "+3.0 (-1.0 to 7.0)"))
]


def lines(width: int) -> tuple[list[str], list[str]]:
    table, notes = fitted(ROWS, width)
    return text_table(table, markdown=False).splitlines(), notes


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_it_fits(width: int) -> None:
    table, _ = lines(width)
    assert max(map(len, table)) <= width


def test_what_is_the_same_in_all_rows_is_said_once() -> None:
    table, notes = lines(140)
    assert notes == ["All rows: student dir:a-student, n 16, student tokens 2,924, trust self-reported."]
    assert "self-reported" not in "\n".join(table) and "1 min 17 s" in "\n".join(table)


def test_the_least_important_goes_first_and_is_named() -> None:
    table, notes = lines(80)
    assert notes[1] == "No room for rank, wall time; the board's README.md has every column."
    table, notes = lines(90)
    assert notes[1].startswith("No room for wall time;") and "tied with" in "\n".join(table)


def test_the_accuracy_its_interval_and_the_gain_always_stay() -> None:
    text = "\n".join(lines(20)[0])
    assert "50.0" in text and "28.0 to 72.0" in text and "+3.0" in text


def test_one_row_shares_nothing() -> None:
    assert fitted(ROWS[:1], 300)[1] == []


def test_paragraphs_are_broken_between_words_only() -> None:
    text = filled("- " + "word " * 30 + "x" * 50, 40, "  ")
    assert all(len(line) <= 40 or line.strip() == "x" * 50 for line in text.splitlines())
    assert text.splitlines()[1].startswith("  word")
