"""Comparisons of runs, rows and boards, and protocols side by side; numbers are derived by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import add, flags, make_fields, make_record, make_reference, protocol
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import Source, load_split, manifest
from tinyllm_bench.leaderboard.compare import (
    PairComparison,
    cohens_h,
    compare,
    differing_items,
    find_pairs,
    find_record,
    report_data,
    report_text,
)
from tinyllm_bench.leaderboard.protocols import diff_text, differences, foreign
from tinyllm_bench.leaderboard.record import RunRecord, protocol_hash, save_record
from tinyllm_bench.leaderboard.stats.intervals import difference, summarise
from tinyllm_bench.leaderboard.stats.significance import ANY_RUN, THESE_STUDENTS, holm

MINE = [1] * 9 + [0] + [1] * 4 + [0] * 6  # 13 of 20; tuned 10 of 20: 9 both, 4 only mine, 1 only tuned, 6 neither


def asked_as(record: dict[str, Any], **changes: Any) -> RunRecord:
    """A record with another protocol."""
    changed = record["protocol"] | changes
    return RunRecord.model_validate(record | {"protocol": changed, "protocol_hash": protocol_hash(changed)})


def save(folder: Path, *records: RunRecord) -> list[str]:
    return [str(save_record(record, folder / record.run_id).parent) for record in records]


def only(first: str, second: str, **more: Any) -> PairComparison:
    (found,) = compare(find_pairs(first, second, **more)).comparisons
    return found


# --- two runs ---------------------------------------------------------------------------------------------------------


def test_two_runs_by_hand(tmp_path: Path) -> None:
    """+15.0 (-7.6 to +35.1) is derived in test_board.py; exact McNemar of 4 and 1: 2 * (1 + 5) / 32 = 0.375.

    h = 2 asin sqrt 0.65 - 2 asin sqrt 0.5 = 1.875489 - 1.570796 = 0.304693.
    """
    mine, tuned = save(tmp_path, make_record("mine", MINE), make_record("tuned", flags(20, 10)))
    found = only(mine, tuned)
    assert found.means == (0.65, 0.5) and found.estimate.value == pytest.approx(0.15)
    assert found.estimate.low == pytest.approx(-0.0756, abs=5e-5)
    assert found.estimate.high == pytest.approx(0.3509, abs=5e-5)
    assert [found.estimate.p, found.permutation.p, found.p_holm] == pytest.approx([0.375] * 3)
    assert found.mcnemar[0][1].p == pytest.approx(0.375) and found.estimate.scope == THESE_STUDENTS
    assert found.cohens_h == pytest.approx(0.304693, abs=1e-6)
    assert found.counts == (4, 1, 15, 9, 6)
    assert found.agreement.between == 1.0, "the fakes give the same answers, right or wrong"
    assert (found.agreement.within_first, found.agreement.within_second) == (None, None)
    mirrored = only(tuned, mine)
    assert mirrored.estimate.value == -found.estimate.value and mirrored.cohens_h == -found.cohens_h
    text = report_text(compare(find_pairs(mine, tuned)))
    assert "A - B: +15.0 points, 95 % interval -7.6 to +35.1, p = 0.3750" in text
    assert "discordant questions: 5 of 20 (25.0 %): only A right 4, only B right 1; both right 9, both wrong 6" in text
    assert f"{THESE_STUDENTS}: exact McNemar p = 0.3750" in text and "effect size: Cohen's h +0.30" in text
    assert "a trained side has one seed" in text


def test_effect_sizes() -> None:
    assert cohens_h(0.5, 0.5) == 0 and cohens_h(1, 0) == pytest.approx(math.pi)


def test_a_file_and_a_folder_are_the_same_and_a_run_can_be_set_against_itself(tmp_path: Path) -> None:
    (mine,) = save(tmp_path, make_record("mine", MINE))
    found = only(mine, f"{mine}/run.json")
    assert found.estimate.value == 0 and found.estimate.p == 1 and found.cohens_h == 0
    assert found.notes[0] == "the same run is on both sides"


def test_items_that_differ_hold_ids_and_answers_and_no_text(tmp_path: Path) -> None:
    own = make_fields("mine", [1, 1, 0, 0], n=4)
    ids = [one for one, _, _ in own["items"]]
    first = RunRecord.model_validate(own | {"items": [[ids[0], 2, 1], [ids[1], 1, 1], [ids[2], 0, 0], [ids[3], 3, 0]]})
    other = make_fields("tuned", [0, 1, 0, 0], n=4, unparsed=1)
    answers = [[ids[0], 1, 0], [ids[1], 1, 1], [ids[2], 3, 0], [ids[3], None, 0]]
    report = compare(find_pairs(*save(tmp_path, first, RunRecord.model_validate(other | {"items": answers}))))
    items = differing_items(report.comparisons[0])
    assert [(one.record_id, one.first, one.second) for one in items] == [
        (ids[0], (2,), (1,)),
        (ids[2], (0,), (3,)),
        (ids[3], (3,), (None,)),
    ]
    text = report_text(report, items=True)
    assert "3 questions are answered differently (* right)" in text and "texts are not available here" in text
    assert [line.split() for line in text.splitlines() if line.startswith("toy/test/3")] == [[ids[3], "d", "unread"]]
    assert [line.split() for line in text.splitlines() if line.startswith("toy/test/0")] == [[ids[0], "c", "*", "b"]]
    data = report_data(report, items=True)["comparisons"][0]
    assert data["items"][0]["record_id"] == ids[0] and data["agreement"]["between"] == 0.25


def test_texts_come_from_the_data_at_hand_alone(tmp_path: Path) -> None:
    source = Source("sample")
    records = load_split(source, "obqa", "test")
    splits: dict[str, Any] = {name: dict(facts) for name, facts in manifest(source, "obqa").items()}
    made = []
    for name, answer in (("mine", 0), ("tuned", 1)):
        items: list[Any] = [[one.id, answer, int(one.answer == answer)] for one in records]
        fields = make_fields(name, [flag for _, _, flag in items], task="obqa", n=len(items), sample=True)
        data = {"source": "sample", "splits": splits, "train_ids_digest": "t"}
        own_protocol = protocol("obqa", len(items), scored_ids_digest=protocol_digest([one.id for one in records]))
        changed = {"items": items, "data": data, "protocol": own_protocol, "protocol_hash": protocol_hash(own_protocol)}
        made.append(RunRecord.model_validate(fields | changed))
    report = compare(find_pairs(*save(tmp_path, *made)))
    text = report_text(report, items=True)
    assert " ".join(records[0].question.split()) in text and f"[a {records[0].choices[0]}; b " in text
    assert "(sample data)" in text and "sample questions" in text
    assert records[0].question not in str(report_data(report, items=True))


def protocol_digest(ids: list[str]) -> str:
    from tinyllm_bench.leaderboard.record import ids_digest

    return ids_digest(ids)


# --- rows -------------------------------------------------------------------------------------------------------------


def seeds_of(name: str, *rights: list[int], **more: Any) -> list[RunRecord]:
    return [make_record(name, right, seed=seed, **more) for seed, right in enumerate(rights)]


def test_rows_are_compared_over_all_seeds_and_tasks_with_holm_s_correction(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    mine = [MINE, MINE[::-1], flags(20, 12)]
    tuned = [flags(20, 10), flags(20, 9), flags(20, 11)]
    easy = [flags(20, 19), flags(20, 18), flags(20, 20)]
    for task, rights in (("toy", mine), ("easy", easy)):
        save(runs, *seeds_of("mine", *rights, task=task), *seeds_of("tuned", *tuned, task=task))
    save(runs, make_record("alone", MINE, task="third"), make_record("mine", MINE, task="third"))
    report = compare(find_pairs("mine", "tuned", place=runs))
    assert [one.first.first.task for one in report.comparisons] == ["easy", "toy"]
    toy = report.comparisons[1]
    columns = [list(zip(*rights, strict=True)) for rights in (mine, tuned)]
    expected = difference(*(summarise(one) for one in columns))
    assert toy.estimate[:6] == pytest.approx(expected[:6]) and toy.estimate.scope == expected.scope == ANY_RUN
    assert [one.p_holm for one in report.comparisons] == holm([one.estimate.p or 0 for one in report.comparisons])
    assert [seed for seed, _ in toy.mcnemar] == [0, 1, 2] and toy.permutation.scope == THESE_STUDENTS
    assert report.left_out == ("third (cloze): only mine has a row",)
    values = [one.estimate.value for one in report.comparisons]
    assert report.mean and report.mean.value == pytest.approx(sum(values) / 2)
    text = report_text(report)
    assert "after Holm's correction over 2 comparisons: p " in text and "mean over 2 tasks: +" in text
    assert "not compared: third (cloze): only mine has a row" in text and "two runs of A 100.0 %" in text
    assert "exact McNemar p = " in text and "(seed 2)" in text and "one seed" not in text


def test_a_board_is_a_place_for_rows_and_a_run_id_is_a_name(board: Path) -> None:
    tuned, mine = make_record("tuned", flags(20, 10)), make_record("mine", MINE)
    add(board, tuned, mine)
    assert only("mine", tuned.run_id, place=board).estimate.value == pytest.approx(0.15)


def test_names_that_are_unknown_or_ambiguous_are_refused(board: Path) -> None:
    records = [make_record("tuned", flags(20, 10)), make_record("mine", MINE)]
    other = make_record("mine", MINE, run_id="mine-toy-cloze-s0-other", student={"spec": "dir:large"})
    add(board, *records, other)
    with pytest.raises(UserError, match=r"unknown row 'mime'\. Did you mean 'mine'\? Known: mine, tuned\."):
        find_pairs("mime", "tuned", place=board)
    with pytest.raises(UserError, match=r"mine names 2 rows of toy \(cloze\): mine on dir:large; mine on dir:small"):
        find_pairs("mine", "tuned", place=board)
    assert only("mine", "tuned", place=board, student="dir:small").first.student == "dir:small"
    with pytest.raises(UserError, match=r"unknown student 'dir:smal'. Did you mean 'dir:small'"):
        find_pairs("mine", "tuned", place=board, student="dir:smal")
    with pytest.raises(UserError, match="is a board and mine is a row"):
        find_pairs(str(board), "mine", place=board)
    with pytest.raises(UserError, match=r"nowhere/run.json: no run folder, record or board there"):
        find_pairs("nowhere/run.json", "mine", place=board)
    with pytest.raises(UserError, match="holds no records"):
        find_pairs("mine", "tuned", place=board / "boards")


def test_a_guess_has_no_answers_to_pair(board: Path) -> None:
    guess = make_reference("guess", flags(20, 5), expected_accuracy=0.25)
    add(board, guess, make_record("mine", MINE))
    with pytest.raises(UserError, match="guess: no answers to pair with: its accuracy is exact"):
        find_pairs("mine", "guess", place=board)


def test_questions_that_share_a_passage_count_together(tmp_path: Path) -> None:
    """One side may be older and tell no clusters. d by question: 1 1 0 0 in two clusters, so the sums are 2 and 0.

    Exact permutation of clusters: all four sign patterns of (2, 0) are as far from 0 as the one found, p = 1.
    """
    mine = make_record("mine", [1, 1, 1, 0], n=4, clusters=[0, 0, 1, 1])
    found = only(*save(tmp_path, make_record("tuned", [0, 0, 1, 0], n=4), mine))
    clusters = [0, 0, 1, 1]
    rows = [summarise([[x] for x in right], clusters=clusters) for right in ([0, 0, 1, 0], [1, 1, 1, 0])]
    assert found.estimate == difference(*rows) and found.permutation.p == pytest.approx(1.0)


def test_budgets_in_other_units_are_noted(tmp_path: Path) -> None:
    budget = {"student_tokens": 1000, "track": "flops", "amount": 1e9}
    mine = make_record("mine", MINE, budget=budget)
    same = make_record("same", MINE, budget=budget | {"student_tokens": 400})
    paths = save(tmp_path, mine, same, make_record("tuned", flags(20, 10)))
    assert not any("budgets" in note for note in only(paths[0], paths[1]).notes)
    assert "other budgets: 1e+09 flops and student tokens" in only(paths[0], paths[2]).notes


def test_a_reference_baseline_is_fixed_and_unequal_rows_are_noted(board: Path) -> None:
    untrained = make_reference("untrained", flags(20, 8), student={"spec": "dir:small"})
    mine = seeds_of("mine", MINE, flags(20, 12), MINE[::-1])
    tuned = make_record("tuned", flags(20, 10), tokens=700, data={"source": "release", "train_ids_digest": "u"})
    add(board, untrained, tuned, *mine)
    fixed = only("mine", "untrained", place=board)
    assert fixed.estimate.scope == ANY_RUN and fixed.notes == ()
    notes = only("mine", "tuned", place=board).notes
    assert "other budgets: 1,000 and 700 student tokens" in notes and "trained on other questions" in notes


# --- boards -----------------------------------------------------------------------------------------------------------


def test_two_boards_are_compared_row_by_row(board: Path, tmp_path: Path) -> None:
    other = tmp_path / "second" / "board"
    add(board, make_record("tuned", flags(20, 10)), make_record("mine", MINE))
    add(other, make_record("mine", flags(20, 12), run_id="mine-toy-cloze-s0-again"), make_record("new", MINE))
    report = compare(find_pairs(str(board), str(other)))
    assert [one.first.label for one in report.comparisons] == ["mine"]
    assert report.comparisons[0].estimate.value == pytest.approx(0.05) and report.mean is None
    assert [one.split(" on ")[0] for one in report.left_out] == ["tuned", "new"]


# --- protocols --------------------------------------------------------------------------------------------------------


def test_other_protocols_are_refused_and_the_field_is_named(board: Path, tmp_path: Path) -> None:
    mine = make_record("mine", MINE)
    other = asked_as(make_fields("tuned", flags(20, 10)), max_context_words=700, prompt_digest="q")
    paths = save(tmp_path / "runs", mine, other)
    expected = r"cannot be compared: .*their protocols \w+ and \w+ differ in prompt_digest, max_context_words"
    with pytest.raises(UserError, match=expected):
        find_pairs(*paths)
    with pytest.raises(UserError, match=expected):
        find_pairs("mine", "tuned", place=tmp_path / "runs")
    second = tmp_path / "second" / "board"
    add(board, mine)
    add(second, asked_as(make_fields("mine", MINE), max_context_words=700))
    with pytest.raises(UserError, match="differ in max_context_words"):
        find_pairs(str(board), str(second))


def test_protocols_side_by_side(board: Path) -> None:
    mine, short = make_record("mine", MINE), make_record("short", flags(10, 4), n=10)
    add(board, mine, short)
    found = differences(find_record(mine.run_id, board), find_record("short", board))
    assert [one.field for one in found] == ["scored_ids_digest", "n"]
    assert found[0].meaning == "other questions are scored (10 of 20 and 10 are the same)"
    text = diff_text(mine, short, ("a", "b"))
    assert "n                  20" in text and "they cannot share a table" in text
    assert diff_text(mine, mine, ("a", "b")).startswith(f"same protocol {mine.protocol_hash[:12]}")
    with pytest.raises(UserError, match=r"has rows of 2 protocols; name one run of"):
        find_record(str(board))


def test_a_foreign_record_is_told_with_the_values_that_differ() -> None:
    mine = make_record("mine", MINE)
    other = asked_as(make_fields("tuned", flags(20, 10)), max_context_words=700)
    assert foreign(mine, [mine]) is None and foreign(mine, []) is None
    assert foreign(mine, [make_record("mine", MINE, task="another")]) is None
    reason = foreign(other, [mine]) or ""
    assert reason.endswith("they differ in max_context_words (700 here, 160 there)") and other.run_id in reason
    assert foreign(other, [mine, other]) is None
