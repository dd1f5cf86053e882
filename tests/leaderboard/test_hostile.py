"""Whatever a record, a model or a teacher wrote: no output gets a link, a heading, a column or a formula from it.

One list of hostile texts stands in every field of a record that takes text; every output is read as its reader does.
"""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.leaderboard.fakes import add, flags, make_fields, make_record, make_reference, protocol
from tinyllm_bench.base.escaping import csv_cell, markdown, markdown_block, markdown_code, terminal, visible
from tinyllm_bench.leaderboard.board import board_build, board_show
from tinyllm_bench.leaderboard.compare import compare, pair_of, report_text
from tinyllm_bench.leaderboard.curves import RunCurves, curves_text, drawing
from tinyllm_bench.leaderboard.protocols import diff_text
from tinyllm_bench.leaderboard.record import RunRecord, protocol_hash
from tinyllm_bench.leaderboard.tables import BoardNames
from tinyllm_bench.leaderboard.verdicts import refute
from tinyllm_bench.publish.model_card import Exported, model_card

ONE_LINE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!-- <details> -->",
    "[here](http://evil.example)",
    "![i](http://evil.example/x.png)",
    "<http://evil.example>",
    "https://evil.example www.evil.example",
    "a | b | c \\| d",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "```",
    "~~~",
    "`code` **bold** _it_ ~~no~~ $x^2$ &lt;b&gt; &#124;",
    "---",
    "=== trust | re-run",
    "[red]rich[/red] [link=http://evil.example]x[/link]",
    "{{ 7*7 }} {% raw %}",
    "\\input{secret} \\end{table} 50% _ ^ ~ # & $",
    '=HYPERLINK("http://evil.example")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\uff1d1+1",
    " =1+1",
    "\u202eevil\u202c \u2066x\u2069 \u200b\u200f \u061c",
    "\x9b31mred\x85next\u2028next\u2029next \ufeff \U000e0041",
]
LINES = [
    "a\n# heading\n\n| a | b |\n|---|---|\n",
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07x",
    "\t=1+1",
    "\r=1+1",
    "\x00",
]
ALL = [*ONE_LINE, *LINES]
HIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]"
)


def hostile(text: str, line: str, **changes: Any) -> RunRecord:
    """A record with `text` in every field that takes any text, `line` (without C0) where one line is required."""
    own_protocol = protocol("toy", 20, metric=text, prompt_digest=text, parser_version=text)
    fields = make_fields("mine", flags(20, 13), label=line)
    cost = {"tokens_in": 3, "tokens_out": 4, "seconds": 1.0, "engines": [text]}
    return RunRecord.model_validate(
        fields
        | {
            "protocol": own_protocol,
            "protocol_hash": protocol_hash(own_protocol),
            "student": {
                "spec": f"hf:a/b@{line}" if "?" not in line and "#" not in line else "hf:a/b",
                "architecture": text,
                "digest": text,
            },
            "teachers": [{"spec": f"replay:{line}", "note": text, "gold_visible": True, "settings": {text: text}}],
            "annotations": [
                {
                    "teacher": text,
                    "kind": text,
                    "used": 1,
                    "rejected": {text: 9},
                    "control": text,
                    "text_digest": text,
                    "cost": cost,
                }
            ],
            "data": {
                "source": text,
                "splits": {"test": {"rows": 20, "digest": text}, text: {"rows": 3, "digest": text}},
                "n_train": 2,
                "overlap": 1,
            }
            | {"train_ids_digest": text},
            "budget": {
                "student_tokens": 1000,
                "seconds": 3.0,
                "device": text,
                "tokens_by_channel": {text: 5},
                "teacher_tokens_in": 3,
            }
            | {"teacher_tokens_out": 4, "teacher_seconds": 1.0},
            "training": {"steps": 0, "select": text, "layout": text, "layout_reason": text, "measured": {text: 1.0}}
            | {"evaluations": [{"fraction": 1.0, "step": 0, "n": 4, "selected": True, "probe": {text: 1.0}}]},
            "secondary": {text: 0.5},
            "paths": {text: 0.5},
            "notes": [text],
            "own_settings": [f"train.{line}"],
            "config": {"train": {line: text}, "method": {text: [text]}, "data": {"style": text}},
            "backend": {"name": text, "dtype": text, "device": text, "layout": text, "versions": {text: text}},
            "git": {"commit": text, "dirty": True},
            "packages": {text: text, "tinyllm-bench": text},
            "predictions_digest": text,
            "command": text,
        }
        | changes
    )


PAIRS = [(text, text) for text in ONE_LINE] + [(text, ONE_LINE[0]) for text in LINES]
CASES = pytest.mark.parametrize(("text", "line"), PAIRS, ids=[ascii(text)[:30] for text, _ in PAIRS])


def tokens(text: str) -> list[Token]:
    """What GitHub would read, as far as it matters here: blocks and what stands inside of them."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [inner for block in found for inner in [block, *(block.children or ())]]


def check_markdown(text: str, plain: str) -> None:
    """The same structure as `plain`, a page of harmless records, but for the words."""
    found, expected = tokens(text), tokens(plain)

    def shape(page: list[Token]) -> list[str]:
        kinds = (
            "heading_open",
            "table_open",
            "th_open",
            "tr_open",
            "td_open",
            "bullet_list_open",
            "ordered_list_open",
            "hr",
            "fence",
        )
        return [
            f"{one.type} {one.tag} {one.info}"
            for one in page
            if one.type in (*kinds, "code_block", "blockquote_open", "image", "s_open")
        ]

    assert shape(found) == shape(expected)
    for kind in ("html_block", "html_inline"):
        assert [one.content for one in found if one.type == kind] == [
            one.content for one in expected if one.type == kind
        ]
    links = [one.attrs["href"] for one in found if one.type == "link_open"]
    assert links == [one.attrs["href"] for one in expected if one.type == "link_open"]
    # code does not count, whatever number of ticks it stands between
    source = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text.replace("\\`", ""), flags=re.DOTALL)
    assert not re.search(r"(?i)(?<![a-z])(https?|ftp)://evil|(?<![a-z])www\.evil|(?<!\\)\$x", source)


@CASES
def test_every_file_of_a_board(board: Path, text: str, line: str) -> None:
    plain, made = board.parent / "plain" / "board", board.parent / "made" / "board"
    for folder, one, other in ((plain, "word", "word"), (made, text, line)):
        (folder / "boards").mkdir(parents=True)
        (folder / "boards" / "main.yaml").write_text((board / "boards" / "main.yaml").read_text())
        record = hostile(one, other)
        guess = {"protocol": record.protocol, "protocol_hash": record.protocol_hash}
        places = add(
            folder,
            record,
            make_reference("guess", flags(20, 10), **guess),
            make_record("tuned", flags(20, 10), **guess),
        )
        refute(places[0], other.replace("\x85", " ") if visible(other) != other else other, by=other[:60])
        board_build(folder)
    for file in (one for one in made.rglob("*") if one.is_file() and "results" not in one.parts):
        found = file.read_text()
        assert not HIDDEN.search(found), file.name
    check_markdown((made / "README.md").read_text(), (plain / "README.md").read_text())
    for name in ("board.csv", "runs.csv"):
        rows = list(csv.reader(io.StringIO((made / name).read_text())))
        assert {len(row) for row in rows} == {len(rows[0])}
        for cell in (cell for row in rows for cell in row):
            if cell.lstrip()[:1] in tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20"):
                assert cell == "" or float(cell) is not None, cell
    data = json.loads((made / "data.json").read_text())
    (mine,) = [
        row
        for row in data["sections"][0]["rows"]
        if row["kind"] == "method" and row["runs"][0]["seed"] == 0 and row["label"] != "tuned"
    ]
    assert mine["label"] == line and mine["runs"][0]["commit"] == text
    for form in (made / "every_eval_ever.jsonl").read_text().split("\n")[:-1]:
        json.loads(form)
    (tex,) = made.glob("*.tex")
    body = tex.read_text()
    assert "\\input{" not in body and body.count("\\end{table}") + body.count("\\end{sidewaystable}") == 1
    for width in (None, 80):
        assert not HIDDEN.search(board_show(made, width=width))
        assert len(board_show(made, width=None).splitlines()) == len(board_show(plain, width=None).splitlines())


@CASES
def test_a_model_card(text: str, line: str) -> None:
    names = BoardNames(baseline="tuned", baseline_title="the baseline", order=())
    exported = Exported(form="full", encoder_decoder=False, add_bos=False)

    def card(one: str, other: str) -> str:
        record = hostile(one, other)
        tuned = make_record("tuned", flags(20, 10), protocol=record.protocol, protocol_hash=record.protocol_hash)
        return model_card(record, exported, [tuned], names, {})

    made, plain = card(text, line), card("word", "word")
    assert not HIDDEN.search(made)
    head, rest = re.match(r"---\n(.*?)\n---\n(.*)", made, re.DOTALL).groups()  # type: ignore[union-attr]
    import yaml

    assert yaml.safe_load(head)["model_name"].startswith(visible(line)[:10])
    check_markdown(rest, re.match(r"---\n(.*?)\n---\n(.*)", plain, re.DOTALL)[2])  # type: ignore[index]


@CASES
def test_comparisons_and_protocols_on_a_terminal(text: str, line: str) -> None:
    """What is printed goes through one function; a value's lines cannot be told apart from ours, so there are none."""
    one = hostile(text, line)
    other = make_record("tuned", flags(20, 10), protocol=one.protocol, protocol_hash=one.protocol_hash)
    shown = terminal(report_text(compare(pair_of(one, other)), items=True))
    assert not HIDDEN.search(shown) and "A - B" in shown
    assert not HIDDEN.search(terminal(diff_text(one, make_record("m", flags(20, 5)), ("a", "b"))))


@CASES
def test_curves(text: str, line: str) -> None:
    run = RunCurves(
        name=text,
        label=text,
        losses=(1.0, 0.5),
        steps=((1, 10), (2, 20)),
        rates=(),
        validations=(),
        measured={text: ((0, 1.0), (1, 2.0))},
        finished=True,
    )
    import xml.etree.ElementTree as ET

    picture = drawing([run, run])
    assert not HIDDEN.search(picture)
    drawn = [
        element for element in ET.fromstring(picture).iter() if element.tag.startswith("{http://www.w3.org/2000/svg}")
    ]
    kinds = {element.tag.rpartition("}")[2] for element in drawn}
    assert kinds <= {"svg", "metadata", "defs", "style", "text", "path", "g", "use", "clipPath", "rect", "title"}
    assert not HIDDEN.search(terminal(curves_text(run)))


def test_the_functions_say_what_they_make_of_a_text() -> None:
    assert (
        visible("a\nb\t\x1b[0m\x9b\u202e\U000e0041é日\U0001f642")
        == "a\\nb\\t\\u001b[0m\\u009b\\u202e\\udb40\\udc41é日\U0001f642"
    )
    assert terminal("a\nb\r") == "a\nb\\r" and json.loads(terminal(json.dumps(ALL, ensure_ascii=False))) == ALL
    assert [csv_cell(one) for one in (-1.5, 0, None, "-1.5", "+2e-3", "-", "-1 (-2 to 0)", "a=1")] == [
        *(-1.5, 0, None, "-1.5", "+2e-3", ""),
        *("'-1 (-2 to 0)", "a=1"),
    ]
    assert markdown("A & B, 50% of C#, -0.5 (a to b): x") == "A & B, 50% of C#, -0.5 (a to b): x"
    assert markdown(markdown("a_b")) == "a\\_b"
    assert markdown_code("a`b``c") == "``` a`b``c ```" and markdown_code("a") == "`a`"
    assert markdown_block("x\n````\n# y", "bash") == "`````bash\nx\n````\n# y\n`````"
