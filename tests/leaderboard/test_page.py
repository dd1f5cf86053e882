"""The page: whole, static, escaped, the same bytes every time, and every number of the Markdown on it."""

import json
import re
from pathlib import Path
from typing import Any

from tests.html_pages import Page
from tests.leaderboard.fakes import add, flags, make_record, make_reference
from tests.leaderboard.test_board import golden_records
from tinyllm_bench.base.escaping import markdown as escaped
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.leaderboard.board import board_build, board_files, board_markdown

NASTY = '</script><script>alert(1)</script><b a="&\'">\u2028'


def build(folder: Path) -> str:
    board_build(folder)
    return (folder / "index.html").read_text()


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_whole_and_asks_for_nothing(board: Path) -> None:
    add(board, *golden_records())
    text = build(board)
    page = Page(text)
    assert page.open == []
    assert not {"img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    addresses = [value for _, given in page.tags for name, value in given.items() if name in ("src", "href", "action")]
    assert addresses == ["data:,", "#tables"]
    # Nothing is fetched: the only address in the file is the name of SVG's namespace.
    assert set(re.findall(r"https?://[^\"' )]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text and "@import" not in text


def test_the_policy_allows_this_script_and_this_style_alone(board: Path) -> None:
    import base64
    import hashlib

    add(board, *golden_records())
    text = build(board)
    policy = next(given["content"] for tag, given in Page(text).tags if tag == "meta" and "http-equiv" in given)
    assert policy and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for kind, pattern in (("script", r"<script>(.*?)</script>"), ("style", r"<style>(.*?)</style>")):
        [inside] = re.findall(pattern, text, flags=re.DOTALL)
        sha = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{sha}'" in policy


def test_no_label_breaks_out_of_the_page(board: Path) -> None:
    (board / "boards" / "main.yaml").write_text(
        (board / "boards" / "main.yaml").read_text().replace("title: Toy board", "title: '</title><i>Toy'")
    )
    add(board, make_record("m", flags(20, 10), label=NASTY, notes=(NASTY,), command=f"run {NASTY}"))
    text = build(board)
    page = Page(text)
    assert page.open == [] and [tag for tag, _ in page.tags].count("script") == 2
    assert "<i>" not in text and "alert(1)</" not in text and "\u2028" not in text
    [section] = data_of(text)["sections"]
    assert section["rows"][0]["cells"][0] == visible(NASTY)
    assert any(visible(NASTY) in note for note in section["notes"])


def test_every_cell_and_note_of_the_markdown_is_on_the_page(board: Path) -> None:
    add(board, *golden_records(), make_record("tuned", flags(10, 8), task="toy2", n=10, chance=0.5))
    markdown = board_markdown(board)
    data = data_of(build(board))
    shown = {escaped(text) for text in texts_of(data)}
    tables = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|--")]
    cells = {cell.strip() for line in tables for cell in re.split(r"(?<!\\)\|", line)[1:-1]}
    assert cells and cells - shown == set()
    notes = {line[2:] for line in markdown.splitlines() if line.startswith("- ") and not line.startswith("- [")}
    assert notes and notes - shown == set()
    assert {line[3:] for line in markdown.splitlines() if line.startswith("## ")} <= shown | {
        "Mean over tasks",
        "How to read",
    }
    facts = [line for line in markdown.splitlines() if line.startswith("Protocol ")]
    assert facts and set(facts) <= shown


def texts_of(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return set().union(*map(texts_of, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(texts_of, value)) if value else set()
    return set()


def test_rows_carry_kind_trust_and_numbers_to_plot_and_sort_by(board: Path) -> None:
    add(board, *golden_records())
    [section] = data_of(build(board))["sections"]
    rows = {row["cells"][0]: row for row in section["rows"]}
    assert [row["kind"] for row in section["rows"]] == ["reference_baseline"] * 3 + ["teacher"] + ["method"] * 4
    assert section["columns"][-1] == "trust" and rows["mine"]["cells"][-1] == "self-reported"
    assert rows["guess"]["accuracy"] == [25.0, None, None]
    assert [round(one, 1) for one in rows["tuned"]["accuracy"]] == [50.0, 29.9, 70.1]
    assert [round(one, 1) for one in rows["mine"]["gain"]] == [15.0, -7.6, 35.1]
    assert rows["tuned (one epoch)"]["gain"] is None and rows["teacher replay:release#big"]["accuracy"] is None
    assert section["costs"] == ["student tokens", "wall seconds"]
    by_column = dict(zip(section["columns"], rows["strong"]["keys"], strict=True))
    assert by_column["wall time"] == 3840 and by_column["student tokens"] == 990 and by_column["student"] is None
    assert by_column["accuracy %"] == 0.9 and by_column["rank"] == 1
    assert rows["strong"]["costs"] == [990, 3840] and rows["untrained"]["costs"] == [None, 9.6]
    assert len(section["protocol"]) == 64 and section["chance"] == 25.0


def test_runs_stand_behind_their_own_row_with_record_and_command(board: Path) -> None:
    places = add(
        board,
        *(make_record(name, flags(20, 10 + seed), seed=seed) for name in ("tuned", "mine") for seed in (0, 1, 2)),
        make_reference("guess", None, expected_accuracy=0.25),
    )
    [section] = data_of(build(board))["sections"]
    heads = section["run_columns"][1:]
    for row in section["rows"]:
        assert len(row["runs"]) == (1 if row["kind"] == "reference_baseline" else 3)
        for run in row["runs"]:
            cells = dict(zip(heads, run, strict=True))
            assert f"--method {row['cells'][0]} " in cells["command"]
            assert board / cells["record"] in places and cells["run"] in cells["record"]


def test_two_builds_give_the_same_bytes(board: Path) -> None:
    add(board, *golden_records())
    board_build(board)
    first = {file.name: file.read_bytes() for file in board.iterdir() if file.is_file()}
    board_build(board)
    assert {file.name: file.read_bytes() for file in board.iterdir() if file.is_file()} == first
    assert {name: text.encode() for name, text in board_files(board).items()}.items() <= first.items()


def test_an_empty_board_has_a_page(board: Path) -> None:
    text = build(board)
    assert "No measured rows yet" in text and 'id="filters"' not in text
    assert data_of(text)["sections"] == [] and Page(text).open == []


def test_controls_have_labels(board: Path) -> None:
    add(board, *golden_records())
    page = Page(build(board))
    named = {given.get("for") for tag, given in page.tags if tag == "label"}
    inputs = {given.get("id") for tag, given in page.tags if tag in ("input", "select")}
    assert inputs and inputs == named
    assert ("html", {"lang": "en"}) in page.tags
