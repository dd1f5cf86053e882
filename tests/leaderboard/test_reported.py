"""Reported values: the files load, their arithmetic recomputes, and what cannot be right is refused."""

import copy
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.plugins import names
from tinyllm_bench.leaderboard.reported import (
    Reported,
    ReportedTable,
    load_reported,
    reported_table,
    reported_value,
    reported_values,
)

FOLDER = Path(__file__).resolve().parents[2] / "leaderboards" / "reported"
FILES = sorted(FOLDER.glob("*.yaml"))
SETS = ("OBQA", "ARC", "PIQA", "Riddle", "PQA", "BioASQ")
SIZES = {"OBQA": 500, "ARC": 1165, "PIQA": 919, "Riddle": 510, "PQA": 400, "BioASQ": 123}
STUDENTS = ("FLAN-T5 small 80M", "FLAN-T5 base 250M", "FLAN-T5 large 780M")
ALL = load_reported(FOLDER)
Values = dict[str, Decimal]
Key = tuple[str, str | None]


def table(table_id: str) -> ReportedTable:
    return next(one for one in ALL.tables if one.id == table_id)


def rows(table_id: str) -> dict[Key, Values]:
    return {(row.label, row.student): row.values for row in table(table_id).rows}


def by_student(table_id: str, label: str) -> dict[str, Values]:
    return {student: values for (name, student), values in rows(table_id).items() if name == label and student}


def cells(reported: Reported) -> Iterator[tuple[ReportedTable, str, str | None, str, Decimal]]:
    for one in reported.tables:
        for row in one.rows:
            for column, value in row.values.items():
                yield one, row.label, row.student, column, value


def agrees(printed: Decimal, exact: Decimal) -> bool:
    """Whether rounding the exact value to the printed digits can give what was printed."""
    return abs(printed - exact) <= Decimal("0.5") * Decimal(1).scaleb(int(printed.as_tuple().exponent))


def is_share(printed: Decimal, n: int) -> bool:
    """Whether some k of n items gives the printed percentage."""
    return any(agrees(printed, Decimal(100 * k) / n) for k in {int(printed * n / 100) + step for step in (0, 1)})


def mean(values: Values, columns: tuple[str, ...]) -> Decimal:
    return sum((values[name] for name in columns), Decimal(0)) / len(columns)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_loads_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / file.name).write_text(file.read_text())
    assert load_reported(tmp_path).tables


def test_methods_and_tasks_that_are_ours_exist() -> None:
    assert {row.method for one in ALL.tables for row in one.rows if row.method} <= set(names("method"))
    assert {column.task for one in ALL.tables for column in one.columns.values() if column.task} <= set(names("task"))


def test_no_number_stands_twice() -> None:
    keys = Counter(
        (one.source.paper, one.source.arxiv, one.certainty, one.setting.metric, label, student, column)
        for one, label, student, column, _ in cells(ALL)
    )
    assert [key for key, count in keys.items() if count > 1] == []
    assert len({one.id for one in ALL.tables}) == len({one.title for one in ALL.tables}) == len(ALL.tables)


def test_every_printed_row_carries_source_and_certainty() -> None:
    block = reported_table(ALL, kinds=("score", "gain", "cost"))
    lines = [line.strip("|").split("|") for line in block.splitlines() if line.startswith("| ")]
    printed = [line for line in lines if line[0].strip() != "reported row"]
    assert len(printed) == sum(len(one.rows) for one in ALL.tables)
    assert {line[-1].strip() for line in printed} == {"seen", "second-hand", "derived"}
    assert all(line[-2].strip() for line in printed)


def test_doubts_travel_with_the_number() -> None:
    notes = {(one.id, row.label, row.student): row.note or "" for one in ALL.tables for row in one.rows}
    assert "suspicious" in notes["bd", "SFT", "OPT 125M"]
    assert "8.47" in notes["tinyllm-over-teachers", "TinyLLM", STUDENTS[1]]
    assert "Probably copied" in notes["tinyllm-main", "Teacher LLaMA 2 7B", None]
    renamed = [note for (one, label, _), note in notes.items() if label == "SeqKD" and "table-1" in one]
    assert renamed and all("released scripts add word-level KD" in note for note in renamed)
    assert all(one.certainty == "second-hand" for one in ALL.tables if one.id.startswith("minillm-"))
    assert not any(row.label == "GKD" for row in table("abkd").rows)  # its source repeats another row


def test_averages_recompute() -> None:
    main, four = rows("tinyllm-main"), rows("tinyllm-four-sets")
    assert [key for key, values in main.items() if not agrees(values["average"], mean(values, SETS))] == []
    own = {key: mean(main[key], ("OBQA", "ARC", "Riddle", "PQA")) for key in four}
    assert [key for key, values in four.items() if not agrees(*values.values(), own[key])] == []


# Cells of tables with known test sizes that no number of right answers gives: probably copied from another split.
NO_SHARE = {("tinyllm-main", "Teacher LLaMA 2 7B", column) for column in ("ARC", "PIQA", "BioASQ")}


def test_cells_are_whole_numbers_of_right_answers() -> None:
    assert {name: column.n for name, column in table("tinyllm-main").columns.items() if column.n} == SIZES
    sized = [(one, label, column, value, one.columns[column].n) for one, label, _, column, value in cells(ALL)]
    found = {(one.id, label, column) for one, label, column, value, n in sized if n and not is_share(value, n)}
    assert found == NO_SHARE
    copied = rows("tinyllm-main")["Teacher LLaMA 2 7B", None]
    base = rows("llama-2-commonsense")["Llama-2-7B base", None]
    assert (copied["OBQA"], copied["ARC"], copied["PIQA"]) == (base["OBQA"], base["ARC-c"], base["PIQA"])


@pytest.mark.parametrize("student", STUDENTS)
def test_gains_over_fine_tuning_recompute(student: str) -> None:
    ours, tuned = (by_student("tinyllm-main", label)[student] for label in ("TinyLLM", "Full fine-tuning"))
    points, relative = (by_student(f"tinyllm-{kind}-gain", "TinyLLM")[student] for kind in ("absolute", "relative"))
    assert {name: points[name] for name in ours} == {name: ours[name] - tuned[name] for name in ours}
    assert all(agrees(relative[name], 100 * (ours[name] / tuned[name] - 1)) for name in SETS)
    unrounded = mean(ours, SETS) / mean(tuned, SETS)  # the printed averages would give 11.41 and 5.08
    assert agrees(relative["average"], 100 * (unrounded - 1))
    assert ("average without PIQA" in points) == (student == STUDENTS[2])
    if student == STUDENTS[2]:
        assert agrees(points["average without PIQA"], mean(points, tuple(name for name in SETS if name != "PIQA")))


def test_gains_over_teachers_recompute_but_for_one_slip() -> None:
    main = rows("tinyllm-main")
    wrong = {}
    for one in ("tinyllm-over-teachers", "tinyllm-over-teacher-recomputed"):
        for (label, student), values in rows(one).items():
            for column, printed in values.items():
                teacher = main[column.replace("over", "Teacher"), None]["average"]
                exact = 100 * (main[label, student]["average"] / teacher - 1)
                if not agrees(printed, exact):
                    wrong[one, student, column] = round(exact, 2)
    assert wrong == {("tinyllm-over-teachers", STUDENTS[1], "over LLaMA 2 7B"): Decimal("8.47")}


def test_what_later_versions_claim_fits_where_it_can_be_checked() -> None:
    claims = rows("tinyllm-later-versions")
    gain = by_student("tinyllm-relative-gain", "TinyLLM")
    assert claims["over full fine-tuning", None]["lowest"] == gain[STUDENTS[2]]["average"]
    assert claims["over full fine-tuning", None]["highest"] > max(values["average"] for values in gain.values())
    over = by_student("tinyllm-over-teachers", "TinyLLM")[STUDENTS[2]]["over LLaMA 2 7B"]
    assert claims["over the 7B teacher", STUDENTS[2]]["highest"] == over
    shares = claims["student's size as a share of a teacher's", None]
    assert agrees(shares["lowest"], Decimal(8000) / 7000) and agrees(shares["highest"], Decimal(78000) / 3000)


def test_the_independent_runs_gains_recompute() -> None:
    gains = by_student("purification-gain", "TinyLLM")
    ours, tuned = (by_student("purification-in-domain", label) for label in ("TinyLLM", "Fine-tuning"))
    assert {s: v["average"] for s, v in gains.items()} == {s: ours[s]["average"] - tuned[s]["average"] for s in ours}


def test_the_abstracts_differences_give_one_teacher() -> None:
    scores, gains = by_student("md-abstract-v2", "MD"), by_student("md-over-teacher", "MD")
    teacher = rows("md-teacher")["Teacher GPT-3.5-turbo", None]["SVAMP"]
    assert {scores[student]["SVAMP"] - gains[student]["SVAMP"] for student in scores} == {teacher}
    scores |= {"v1": by_student("md-abstract-v1", "MD")["LLaMA2-7B"]}
    assert all(values["SVAMP"] % Decimal("0.5") == 0 for values in scores.values())  # hence 200 items


@pytest.mark.parametrize("teacher", ["Teacher gpt-3.5-turbo", "Teacher gpt-4"])
def test_shares_among_answered_and_among_all_have_one_count(teacher: str) -> None:
    overall = rows("faithful-cot-rationales")[teacher, None]["StrategyQA"]
    answered = rows("faithful-cot-answered")[teacher, None]
    n = int(answered["answered"])
    counts = (Decimal(100 * k) for k in range(n + 1))
    assert any(agrees(overall, k / 2290) and agrees(answered["accuracy"], k / n) for k in counts)


# The cells that MiniLLM's table marks as above the teacher's.
ABOVE_TEACHER = {
    "minillm-table-1-gpt4": {"GPT-2 760M": "SelfInst", "OPT 6.7B": "Dolly SelfInst Vicuna"},
    "minillm-table-1-rouge": {"GPT-2 120M": "Vicuna", "GPT-2 760M": "Vicuna S-NI UnNI", "OPT 1.3B": "Vicuna"}
    | {"OPT 6.7B": "Vicuna S-NI UnNI", "LLaMA 7B": "Vicuna UnNI"},
}
TEACHER_OF = {"GPT-2": "Teacher GPT-2 1.5B", "OPT": "Teacher OPT 13B", "LLaMA": "Teacher LLaMA 13B"}
UNMARKED = {("GPT-2 760M", "SelfInst")}  # above its teacher and not marked: mark or number may be misread


@pytest.mark.parametrize("table_id", ABOVE_TEACHER)
def test_cells_above_the_teacher_are_the_marked_ones(table_id: str) -> None:
    found = rows(table_id)
    above = {
        (student, column)
        for student, values in by_student(table_id, "MiniLLM").items()
        for column, value in values.items()
        if value > found[TEACHER_OF[student.split()[0]], None][column]
    }
    marked = {(student, column) for student, columns in ABOVE_TEACHER[table_id].items() for column in columns.split()}
    assert above - marked == (UNMARKED if "rouge" in table_id else set())
    assert marked <= above


def test_minillms_tables_agree_with_each_other() -> None:
    ablation = rows("minillm-table-4")["MiniLLM", "GPT-2 120M"]
    assert ablation["Dolly test"] == by_student("minillm-table-1-rouge", "MiniLLM")["GPT-2 120M"]["Dolly"]
    feedback = by_student("minillm-table-1-gpt4", "MiniLLM")
    for student, values in by_student("minillm-table-7", "MiniLLM").items():
        assert agrees(values["Inst"], mean(feedback[student], ("Dolly", "SelfInst", "Vicuna")))


def test_a_later_papers_rows_repeat_minillms_but_for_one() -> None:
    original, later = rows("minillm-table-1-rouge"), rows("bd")
    of = {"SFT": "SFT w/o KD", "KD": "KD", "SeqKD": "SeqKD", "MiniLLM": "MiniLLM"}
    pairs = {label: (original[name, "GPT-2 120M"], later[label, "GPT-2 120M"]) for label, name in of.items()}
    same = {label for label, (first, second) in pairs.items() if all(first[key] == second[key] for key in second)}
    assert same == {"KD", "SeqKD", "MiniLLM"}
    assert later["SFT", "OPT 125M"] == later["SFT", "GPT-2 120M"]


@pytest.mark.parametrize(
    "student", ["FLAN-T5 small 80M", "flan-t5 SMALL 80m", "google/flan-t5-small", "hf:google/flan-t5-small@0123abc"]
)
def test_a_value_is_found_by_the_reported_name_and_by_the_models(student: str) -> None:
    found = reported_value(ALL, method="tinyllm", task="obqa", student=student)
    assert found and str(found.value) == "47.60" and found.column == "OBQA"
    assert found.table.source.citation == "TinyLLM, arXiv:2402.04616v1, main results"
    gain = reported_values(ALL, task="obqa", student=student, kind="gain", table="tinyllm-absolute-gain")
    assert [str(one.value) for one in gain] == ["6.00"]


def test_what_is_not_reported_is_none_and_what_is_ambiguous_says_how_to_choose() -> None:
    assert reported_value(ALL, method="gkd", task="obqa", student=STUDENTS[0]) is None
    cut = "hf:google/flan-t5-small@x?layers=0:30:3"
    assert reported_value(ALL, method="tinyllm", task="obqa", student=cut) is None
    with pytest.raises(UserError, match=r"several reported values; name one of: 63\.00 \(table=dss-main, label="):
        reported_value(ALL, method="dss", task="svamp", student="T5-Base 220M")
    label = "DSS, rationales of PaLM 540B"
    one = reported_value(ALL, method="dss", task="svamp", student="T5-Base 220M", label=label)
    assert one and one.value == Decimal("65.50")
    assert {one.column for one in reported_values(ALL, task="bioasq", table="tinyllm-main")} == {"BioASQ"}


def test_the_block_stands_alone_and_keeps_the_printed_digits() -> None:
    block = reported_table(ALL, tasks=["obqa"], methods=["tinyllm"])
    assert block.startswith("## Reported by papers, not measured here\n")
    assert "neither ranked nor averaged with measured rows" in block
    heads = [line for line in block.splitlines() if line.startswith("| reported row")]
    assert len(heads) == 1 and "OBQA" in heads[0] and "ARC" not in heads[0]
    shown = [line.split("|")[3].strip() for line in block.splitlines() if line.startswith("| TinyLLM")]
    assert shown == ["47.60", "64.20", "74.40"]
    assert "second-hand:" not in block and "Left out" not in block
    assert reported_table(ALL, tasks=["no such task"]) == ""


def test_the_whole_block_says_what_is_left_out() -> None:
    block = reported_table(ALL)
    assert "### Left out" in block and "not to be used" in block
    assert "second-hand: read in somebody's account" in block and "- Read in: third parties' reading notes." in block
    assert "MiniLLM's cost" not in block and "MiniLLM's cost, upper bound" in reported_table(ALL, kinds=("cost",))


GOOD: dict[str, Any] = {
    "schema_version": 1,
    "about": "a toy paper",
    "models": {"small": "toy/small"},
    "tables": [
        {
            "id": "toy-main",
            "title": "Toy | table",
            "kind": "score",
            "certainty": "second-hand",
            "source": {"paper": "Toy", "arxiv": "2401.00001v2", "table": "Table 1", "page": 7, "via": "a note"},
            "setting": {"metric": "accuracy, %", "teachers": ["big"], "seeds": "3, mean"},
            "columns": {"A|1": {"task": "toy", "n": 8}, "mean": {}},
            "rows": [
                {"label": "ours", "method": "toy", "student": "small", "values": {"A|1": 62.5, "mean": 50}},
                {"label": "theirs", "method": None, "student": None, "values": {"mean": 1.0}, "note": "blurred"},
            ],
        }
    ],
}


def written(folder: Path, change: str = "", value: Any = None, *, drop: bool = False) -> Path:
    """A folder with the good file, one dotted place of it changed or dropped."""
    content = copy.deepcopy(GOOD)
    if change:
        *path, last = (int(part) if part.isdigit() else part for part in change.split("/"))
        place: Any = content
        for part in path:
            place = place[part]
        if drop:
            del place[last]
        else:
            place[last] = value
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_the_good_file_loads_and_shows_everything(tmp_path: Path) -> None:
    block = reported_table(load_reported(written(tmp_path)))
    assert r"### Toy \| table" in block and r"A\|1" in block
    assert "Metric: accuracy, %; teachers: big; seeds: 3, mean." in block
    row = next(line for line in block.splitlines() if line.startswith("| theirs"))
    shown = [cell.strip() for cell in row.strip("|").split("|")]
    assert shown == ["theirs", "-", "-", "1.0", "Toy, arXiv:2401.00001v2, Table 1, p. 7", "second-hand"]
    assert "- Read in: a note." in block and "- theirs: blurred" in block


ROW = "tables/0/rows/0"


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("extra", 1, "extra is no key here; allowed: schema_version, about, models, tables, left_out"),
        ("tables/0/rank", 1, r"tables\[toy-main\]\.rank is no key here; allowed: id, title, kind, certainty"),
        (f"{ROW}/value", {}, r"rows\[ours, small\]\.value is no key here; allowed: label, method, student, values, n"),
        ("tables/0/source/doi", "x", "source.doi is no key here; allowed: paper, arxiv"),
        ("schema_version", 2, "schema_version: Input should be 1; correct the value"),
        ("tables/0/certainty", "sure", "certainty: Input should be 'seen', 'second-hand' or 'derived'"),
        ("tables/0/certainty", "seen", "certainty seen has no source.via; remove it, or say second-hand or derived"),
        ("tables/0/id", "Two words", "id: String should match"),
        ("tables/0/source/arxiv", 2401.00001, "source.arxiv: .*valid string; put it in quotes"),
        ("tables/0/source/arxiv", "arXiv:1", "source.arxiv: String should match .*; write it like that, in quotes"),
        ("tables/0/source", {"paper": "Toy", "via": None}, "nobody can find it; give arxiv, address, or via"),
        ("tables/0/source", {"paper": "Toy", "address": "http://x"}, "source.address: String should match"),
        ("tables/0/columns/source", {}, r"columns \['source'\] are heads of the printed table; choose other names"),
        ("tables/0/columns/more", {}, r"columns \['more'\] hold no value; remove them"),
        (f"{ROW}/values/more", 1, r"values name \['more'\], which columns do not have; add it there or correct"),
        (f"{ROW}/values", {}, "values: .*at least 1"),
        (f"{ROW}/values/mean", "50", "values.mean: '50' is not a number; write it as it was printed"),
        (f"{ROW}/values/mean", True, "values.mean: True is not a number"),
        (f"{ROW}/values/mean", None, "values.mean: None is not a number; .* leave the cell out if unseen"),
        (f"{ROW}/values/mean", float("nan"), "not valid YAML: '.nan' is not a decimal number, write it as printed"),
        ("models/large", "toy/large", r"models names \['large'\], which is no row's student"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(tmp_path: Path, change: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_reported(written(tmp_path, change, value))
    assert str(error.value).startswith(str(tmp_path / "toy.yaml")) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tables/0/certainty", r"tables\[toy-main\]\.certainty: Field required; add it"),
        ("tables/0/source", "source: Field required"),
        ("tables/0/setting/metric", "setting.metric: Field required"),
        (f"{ROW}/method", r"rows\[ours, small\]\.method: Field required; add it, null where there is none"),
        (f"{ROW}/student", r"rows\[ours\]\.student: Field required"),
        ("tables/0/source/via", "certainty second-hand needs source.via: what was read"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reported(written(tmp_path, change, drop=True))


def test_rows_keys_and_ids_that_stand_twice(tmp_path: Path) -> None:
    again = GOOD["tables"][0]["rows"] + GOOD["tables"][0]["rows"][:1]
    with pytest.raises(
        UserError, match=r"tables\[toy-main\]: ours \(small\) is listed twice; remove one or tell them apart"
    ):
        load_reported(written(tmp_path, "tables/0/rows", again))
    file = tmp_path / "toy.yaml"
    written(tmp_path)
    (tmp_path / "zoo.yaml").write_text(file.read_text())
    with pytest.raises(UserError, match=r"zoo\.yaml: tables\[toy-main\]\.id is in .*toy\.yaml too; choose another"):
        load_reported(tmp_path)
    (tmp_path / "zoo.yaml").write_text(file.read_text().replace("toy-main", "other").replace("toy/small", "zoo/small"))
    with pytest.raises(UserError, match=r"models\.small is toy/small in another file; make them agree"):
        load_reported(tmp_path)
    (tmp_path / "zoo.yaml").unlink()
    file.write_text(file.read_text() + "about: again\n")
    with pytest.raises(UserError, match=r"not valid YAML: 'about' appears twice, remove one"):
        load_reported(tmp_path)


def test_missing_folders_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reported values at .*nowhere; give a folder with one YAML file a paper"):
        load_reported(tmp_path / "nowhere")
    assert reported_table(load_reported(tmp_path)) == ""
    (tmp_path / "toy.yaml").write_text("tables: [")
    with pytest.raises(UserError, match=r"toy\.yaml is not valid YAML"):
        load_reported(tmp_path)
    (tmp_path / "toy.yaml").write_text("- a list\n")
    with pytest.raises(UserError, match=r"toy\.yaml: .*; correct the value"):
        load_reported(tmp_path)
