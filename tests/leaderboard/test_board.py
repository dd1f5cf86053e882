"""The board: what lands on it, what is refused, and one whole page with every number derived by hand."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.leaderboard.fakes import CONFIG, add, column, flags, lines, make_record, make_reference, protocol
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import markdown as escaped
from tinyllm_bench.leaderboard.analysis import SectionAnalysis
from tinyllm_bench.leaderboard.board import (
    board_add,
    board_build,
    board_config,
    board_files,
    board_markdown,
    board_records,
    board_show,
)
from tinyllm_bench.leaderboard.protocols import check_same_protocol, differences
from tinyllm_bench.leaderboard.record import RunRecord, protocol_hash, save_record
from tinyllm_bench.leaderboard.rows import make_rows
from tinyllm_bench.leaderboard.stats.intervals import accuracy, difference, summarise
from tinyllm_bench.leaderboard.tables import duration, points

ROOT = Path(__file__).parents[2]
TEXTS = {"teacher": "big", "kind": "rationale", "used": 3}
GOLDEN = ROOT / "tests" / "golden" / "board.md"


def golden_records() -> list[RunRecord]:
    """Twenty items, chance 25 %.

    z = 1.959964, z^2 = 3.841459, n = 20: 1 + z^2/n = 1.192073, z^2/(2n) = 0.096036, z^2/(4 n^2) = 0.0024009.
    Wilson: centre (p + 0.096036) / 1.192073, half width 1.644164 * sqrt(p q / 20 + 0.0024009).

    guess        expected 25.0, exact, no interval
    majority     6/20:  centre 0.332225, half 1.644164 * sqrt(0.0129009) = 0.186748 -> 14.5 to 51.9
    untrained    8/20:  centre 0.416112, half 1.644164 * sqrt(0.0144009) = 0.197306 -> 21.9 to 61.3
    tuned       10/20:  centre 0.500000, half 1.644164 * sqrt(0.0149009) = 0.200702 -> 29.9 to 70.1
    (one epoch)  8/20 with 400 tokens: same interval as untrained; no gain, its budget is another
    mine        13/20:  centre 0.625831, half 1.644164 * sqrt(0.0137759) = 0.192977 -> 43.3 to 81.9
    strong      18/20:  centre 0.835550, half 1.644164 * sqrt(0.0069009) = 0.136583 -> 69.9 to 97.2

    mine - tuned: 9 both right, 4 only mine, 1 only tuned, 6 neither: (4 - 1) / 20 = +15.0 points.
      phi = (9*6 - 4*1 - 20/2) / sqrt(13 * 7 * 10 * 10) = 40 / 95.394 = 0.419314
      down: mine 0.65 - 0.432854 = 0.217146, tuned up 0.200702:
        sqrt(0.047152 + 0.040281 - 2 * 0.419314 * 0.043582) = sqrt(0.050884) = 0.225575 -> 0.15 - 0.2256 = -7.6
      up: mine 0.818808 - 0.65 = 0.168808, tuned down 0.200702:
        sqrt(0.028496 + 0.040281 - 2 * 0.419314 * 0.033880) = sqrt(0.040364) = 0.200909 -> 0.15 + 0.2009 = +35.1
    strong - tuned: 10 both, 8 only strong, 0 only tuned, 2 neither: +40.0 points.
      phi = (10*2 - 0 - 10) / sqrt(18 * 2 * 10 * 10) = 10 / 60 = 0.166667
      down: 0.9 - 0.698967 = 0.201033 and 0.200702: sqrt(0.040414 + 0.040281 - 0.013449) = 0.259318 -> +14.1
      up: 0.972133 - 0.9 = 0.072133 and 0.200702: sqrt(0.005203 + 0.040281 - 0.004826) = 0.201639 -> +60.2
    McNemar: mine 4 to 1: 2 (1 + 5) / 32 = 0.375; strong 8 to 0: 2 / 256 = 0.0078, times 2 by Holm: 0.016.
    Ranks, six pairs: strong above (one epoch) by 10 to 0, 2 / 1,024 times 6 = 0.012, and above tuned, 0.0078 times 5 =
      0.039; the next, 5 to 0, is 0.0625 times 4. So strong is 1st or 2nd, tuned and (one epoch) not the first.
    Budgets: mine 1,015 is 1.5 % off the baseline's 1,000, strong 990 is 1.0 % off: both count as equal (2 %).
    Context cut in 2 of 20 = 10.0 % for every row with answers. Wall time: 422 s = 7 min 02 s; 3,840 s = 1 h 04 min.
    """
    mine = [1] * 9 + [0] + [1] * 4 + [0] * 6
    scored: dict[str, Any] = {"context_cut": 2, "secondary": {"accuracy_plain": 0.45}}
    teacher = {"spec": "replay:release#big", "note": "recorded text", "gold_visible": True}
    return [
        make_reference("guess", None, expected_accuracy=0.25, command="tinyllm-bench reference-baselines --task toy"),
        make_reference("majority", flags(20, 6)),
        make_reference("untrained", flags(20, 8), student={"spec": "dir:small"}, budget={"seconds": 9.6}, **scored),
        make_record("tuned", flags(20, 10), budget={"student_tokens": 1000, "seconds": 422}, **scored),
        make_record("tuned", flags(20, 8), tokens=400, label="tuned (one epoch)", **scored),
        make_record("mine", mine, tokens=1015, teachers=(teacher,), **scored),
        make_record(
            "strong", flags(20, 18), budget={"student_tokens": 990, "seconds": 3840}, test_evaluations=2, **scored
        ),
    ]


def test_the_whole_page_equals_the_golden_one(board: Path) -> None:
    add(board, *golden_records())
    assert board_build(board).read_text() == GOLDEN.read_text()


def test_rebuilding_and_another_order_of_adding_give_the_same_bytes(board: Path, tmp_path: Path) -> None:
    add(board, *golden_records())
    first = board_build(board).read_bytes()
    assert board_build(board).read_bytes() == first
    other = tmp_path / "other" / "board"
    (other / "boards").mkdir(parents=True)
    (other / "boards" / "main.yaml").write_text(CONFIG)
    add(other, *golden_records()[::-1])
    assert board_build(other).read_bytes() == first


def test_adding_again_changes_nothing_and_other_content_is_refused(board: Path) -> None:
    record = make_record("tuned", flags(20, 10))
    [place] = add(board, record)
    assert place == board / "results" / record.protocol_hash[:12] / "toy" / f"{record.run_id}.json"
    before = place.read_bytes()
    assert add(board, record) == [place] and place.read_bytes() == before
    changed = record.model_copy(update={"notes": ("later",)})
    with pytest.raises(UserError, match="other content"):
        add(board, changed)
    assert place.read_bytes() == before
    run = save_record(changed, board.parent / "runs" / "changed")
    with pytest.raises(UserError, match="other content"):
        board_add([board.parent / "runs" / record.run_id, run], board)
    board_add([run], board, replace=True)
    assert board_records(board) == [changed]


def test_one_bad_record_and_nothing_is_added(board: Path) -> None:
    good = save_record(make_record("tuned", flags(20, 10)), board.parent / "good")
    bad = save_record(make_record("mine", flags(20, 10)), board.parent / "bad")
    bad.write_text(bad.read_text().replace('"correct": 10', '"correct": 11'))
    with pytest.raises(UserError, match="n = 20"):
        board_add([good, bad], board)
    assert board_records(board) == []


def test_sample_records_are_refused_or_marked(board: Path) -> None:
    record = make_record("tuned", flags(20, 10), sample=True)
    add(board, record)
    text = board_build(board).read_text()
    assert "# Toy board (sample data)\n\n## toy, cloze mode, 20 questions (sample data)" in text
    assert lines(board, escaped("tuned [sample]"))[2] == "50.0"
    (board / "boards" / "main.yaml").write_text(CONFIG.replace("mark", "refuse"))
    with pytest.raises(UserError, match="made from sample data"):
        add(board, record)


def test_a_new_folder_gets_the_default_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    board_add([save_record(make_record("m", flags(20, 10)), tmp_path / "run")], folder)
    assert (folder / "boards" / "main.yaml").exists()
    assert board_config(folder).baseline == "finetune"


def test_broken_board_folders_are_named(board: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no board at"):
        board_build(tmp_path / "nowhere")
    [place] = add(board, make_record("tuned", flags(20, 10)))
    place.rename(place.with_name("moved.json"))
    with pytest.raises(UserError, match="belongs at"):
        board_build(board)
    (board / "boards" / "main.yaml").write_text(CONFIG + "colour: red\n")
    with pytest.raises(UserError, match=r"main.yaml.*'colour'.*Known: baseline"):
        board_build(board)


def test_other_budgets_training_rows_and_missing_baseline_get_no_gain(board: Path) -> None:
    add(
        board,
        make_record("tuned", flags(20, 10), tokens=1000),
        make_record("far", flags(20, 15), tokens=1021),  # 21 / 1021 = 2.06 % apart
        make_record("near", flags(20, 15), tokens=1020),  # 20 / 1020 = 1.96 % apart
        make_record("rows", flags(20, 15), data={"source": "release", "train_ids_digest": "u"}),
        make_record("alone", flags(20, 15), student={"spec": "dir:other"}),
    )
    assert column(board, "far", "gain") == "other budget"
    assert column(board, "near", "gain").startswith("+25.0 (")
    assert column(board, "rows", "gain") == "other training rows"
    assert column(board, "alone", "gain") == "no baseline row"
    assert column(board, "tuned", "gain") == "baseline"


def test_no_gain_is_said(board: Path) -> None:
    add(
        board,
        make_record("tuned", flags(20, 12)),
        make_record("worse", flags(20, 1)),
        make_record("same", flags(20, 13)),
        make_record("better", flags(20, 19)),
    )
    text = board_markdown(board)
    assert "worse (dir:small) does not beat label-only fine-tuning here: its gain is below zero" in text
    assert "same (dir:small) does not beat label-only fine-tuning here: its gain is not clearly above zero" in text
    assert "better (dir:small)" not in text


def test_unparsed_is_a_column_and_more_than_half_is_said(board: Path) -> None:
    add(
        board,
        make_record("tuned", flags(20, 5), unparsed=11, mode="generate"),
        make_record("half", flags(20, 5), unparsed=10, mode="generate"),
        make_record("clean", flags(20, 5), mode="generate"),
    )
    assert column(board, "tuned", "unparsed") == "11 of 20" and column(board, "clean", "unparsed") == "0"
    text = board_markdown(board)
    assert "tuned: no answer could be read in 11 of 20 (55.0 %) questions, more than half" in text
    assert "half: no answer" not in text


def test_several_seeds_have_the_two_way_interval(board: Path) -> None:
    # mine 8, 12, 13 of 20: mean 55.0; tuned 10, 10, 10; the intervals are those of leaderboard.stats.intervals
    runs = [flags(20, right) for right in (8, 12, 13)]
    for seed, right in enumerate(runs):
        add(board, make_record("mine", right, seed=seed), make_record("tuned", flags(20, 10), seed=seed))
    ours, theirs = summarise(np.array(runs).T), summarise(np.array([flags(20, 10)] * 3).T)
    alone, gain = accuracy(ours), difference(ours, theirs)
    assert column(board, "mine", "accuracy") == "55.0" and column(board, "mine", "seeds") == "3"
    assert column(board, "mine", "95 %") == f"{100 * alone.low:.1f} to {100 * alone.high:.1f}"
    assert column(board, "mine", "gain") == f"+5.0 ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    assert column(board, "mine", "p (Holm)") == f"{gain.p:.3f}"
    text = board_markdown(board)
    assert "mine (dir:small) does not beat label-only fine-tuning here: its gain is not clearly above zero" in text
    assert "two-way intervals" in text and "Newcombe" not in text


def test_unequal_seeds_speak_of_these_students_and_a_repeated_seed_is_its_own_row(board: Path) -> None:
    add(
        board,
        make_record("tuned", flags(20, 10), seed=0),
        make_record("mine", flags(20, 12), seed=0),
        make_record("mine", flags(20, 14), seed=1),
        make_record("twice", flags(20, 12), run_id="twice-toy-cloze-s0-aaaaaaaaaa"),
        make_record("twice", flags(20, 13), run_id="twice-toy-cloze-s0-bbbbbbbbbb"),
    )
    assert column(board, "mine", "gain").startswith("+15.0 (") and "for these trained students only" in board_markdown(
        board
    )
    assert column(board, "twice (aaaaaaaa)", "accuracy") == "60.0"
    assert column(board, "twice (bbbbbbbb)", "seeds") == "1"


def test_questions_that_share_a_passage_are_told_and_widen_the_interval(board: Path) -> None:
    alone = make_record("tuned", flags(20, 10))
    together = make_record("tuned", flags(20, 10), clusters=[n // 5 for n in range(20)])
    [known] = SectionAnalysis(make_rows([alone], ())).accuracies.values()
    assert known.df > 0
    rows = [make_rows([one], ())[0] for one in (alone, together)]
    low, wide = (SectionAnalysis([row]).accuracies[row.key] for row in rows)
    assert low and wide and wide.high - wide.low > low.high - low.low
    add(board, together)
    assert "20 questions in 4 clusters that share a passage or a question." in board_markdown(board)


def test_another_configuration_is_another_row(board: Path) -> None:
    add(
        board,
        make_record("mine", flags(20, 12), run_id="mine-toy-cloze-s0-aaaaaaaaaa", config={"train": {"lr": 1}}),
        make_record("mine", flags(20, 14), run_id="mine-toy-cloze-s1-bbbbbbbbbb", config={"train": {"lr": 2}}, seed=1),
    )
    assert column(board, "mine (train.lr=1)", "seeds") == "1"
    assert column(board, "mine (train.lr=2)", "accuracy") == "70.0"


def test_test_questions_among_the_training_records_are_told(board: Path) -> None:
    data = {"source": "release", "train_ids_digest": "t"}
    add(
        board,
        make_record("tuned", flags(20, 10), data=data | {"overlap": 3}),
        make_record("mine", flags(20, 10), data=data | {"overlap": 3}),
        make_record("clean", flags(20, 10), data=data | {"overlap": 0}),
    )
    assert (
        "- 3 of 20 (15.0 %) scored questions are also, once normalised, among the training records of tuned, mine."
        in board_markdown(board)
    )
    assert board_markdown(board).count("once normalised") == 1


def test_many_rejected_texts_are_told_with_the_main_reason(board: Path) -> None:
    many = {"teacher": "X", "kind": "rationale", "used": 120}
    add(
        board,
        make_record("mine", flags(20, 9), annotations=[many | {"rejected": {"no_partner": 120, "empty": 10}}]),
        make_record("edge", flags(20, 9), annotations=[many | {"rejected": {"empty": 40}}]),  # 40 / 160: just 25 %
        make_record("none", flags(20, 9), annotations=[many | {"used": 0}]),
    )
    text = board_show(board)
    assert "- mine: used 120 of 250 rationales of X: 120 no_partner; 52.0 % rejected in all." in text
    assert text.count("rejected in all") == 1


def test_shuffled_texts_of_two_options_are_told(board: Path) -> None:
    for name, control, chance in (("two", "shuffled", 0.5), ("four", "shuffled", 0.25), ("gold", "gold", 0.5)):
        add(board, make_record(name, flags(20, 9), annotations=[TEXTS | {"control": control}], chance=chance))
    assert re.findall(r"- (\w+): .* argue for the wrong answer", board_markdown(board)) == ["two"]


def test_rival_protocols_stand_apart_and_the_difference_is_named(board: Path) -> None:
    add(board, make_record("tuned", flags(20, 10)), make_record("tuned", flags(40, 10), n=40))
    text = board_markdown(board)
    assert text.count("it differs in n, scored\\_ids\\_digest.") == 2
    assert "- [toy, cloze mode, 20 questions](#toy-cloze-mode-20-questions)" in text
    assert "Mean over tasks" not in text  # two protocols of one task: which belongs into a mean?


def test_mean_over_tasks(board: Path) -> None:
    # tuned: 50 % (chance 25) and 80 % (chance 50): mean 65.0; corrected 25/75 = 1/3 and 30/50 = 0.6: mean 46.7
    add(
        board,
        make_record("tuned", flags(20, 10)),
        make_record("tuned", flags(10, 8), task="toy2", n=10, chance=0.5),
        make_record("mine", flags(20, 15)),
        make_reference("guess", None, expected_accuracy=0.25),
        make_reference("guess", None, expected_accuracy=0.5, task="toy2", n=10, chance=0.5),
    )
    mean = board_markdown(board).split("## Mean over tasks")[1]
    assert re.search(
        r"\| tuned +\| dir:small +\| cloze +\| 1 +\| 2 +\| 65\.0 +\| [0-9.]+ to [0-9.]+ +\| 46\.7 +\|", mean
    )
    assert re.search(r"\| guess +\| - +\| cloze +\| 1 +\| 2 +\| 37\.5 +\| exact +\| 0\.0 +\|", mean)
    assert "| mine" not in mean
    assert "Mean over tasks" in board_show(board)


def test_a_recorded_teacher_is_named_and_not_measured(board: Path) -> None:
    teacher = {"spec": "replay:release#big"}
    add(board, make_record("mine", flags(20, 12), teachers=(teacher,)))
    assert lines(board, "teacher replay:release#big")[2] == "not measurable (recorded text)"
    own = make_reference("big", None, label="big (recorded)", student={"spec": "replay:release#big"})
    add(board, own)
    assert column(board, "big (recorded)", "accuracy") == "not measurable (recorded text)"
    assert "| teacher replay" not in board_markdown(board)


def test_controls_and_notes_of_a_run_are_told(board: Path) -> None:
    info = {"teacher": "big", "kind": "rationale", "used": 3, "control": "shuffled"}
    add(
        board,
        make_record("mine", flags(20, 12), annotations=(info,), notes=("trained\nbriefly",)),
        make_reference("untrained", flags(20, 8), student={"spec": "dir:chat", "chat_template": True}),
    )
    text = board_markdown(board)
    assert "mine: the rationale texts of big are a control (shuffled)." in text
    assert "- mine: trained briefly" in text
    assert "untrained: prompted through the model's own chat template." in text


def test_labels_cannot_break_the_table(board: Path) -> None:
    add(board, make_record("m", flags(20, 10), label="a|b <script>"))
    text = board_markdown(board)
    assert "a\\|b \\<script\\>" in text and "<script>" not in text


def test_the_terminal_shows_the_same_cells(board: Path) -> None:
    add(board, *golden_records())
    text = board_show(board)
    for expected in ("+15.0 (-7.6 to +35.1)", "29.9 to 70.1", "other budget", "1 h 04 min", "| row"):
        assert (expected in text) == (expected != "| row")
    assert not (board / "README.md").exists()


def test_small_formats() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 422, 3840)] == [
        "0 s",
        "1 min 00 s",
        "7 min 02 s",
        "1 h 04 min",
    ]
    assert [points(value) for value in (0.0004, -0.0004, 0.15, -0.076)] == ["0.0", "0.0", "+15.0", "-7.6"]


def test_the_repositorys_board_equals_its_rebuild_and_refuses_samples() -> None:
    folder = ROOT / "leaderboards"
    assert (folder / "README.md").read_text() == board_markdown(folder)
    for name, text in board_files(folder).items():
        assert (folder / name).read_text() == text, f"{name} had drifted: tinyllm-bench board build"
    assert board_config(folder).sample == "refuse"
    assert not any(record.sample for record in board_records(folder))


def test_an_empty_board_says_so(board: Path) -> None:
    assert "No measured rows yet" in board_markdown(board) and "No measured rows yet" in board_show(board)


def test_answers_of_two_versions_of_the_parser_are_never_in_one_table(board: Path) -> None:
    def of(version: str, task: str, n: int) -> RunRecord:
        own_protocol = protocol(task, n, mode="generate", parser_version=version)
        changes = {
            "protocol": own_protocol,
            "protocol_hash": protocol_hash(own_protocol),
            "run_id": f"tuned-{task}-generate-s0-{version * 12}",
        }
        return make_record("tuned", flags(n, 5), task=task, n=n, mode="generate", **changes)

    old, new = of("1", "toy", 20), of("2", "toy", 20)
    add(board, old, new, of("2", "toy2", 10), of("1", "toy3", 10), of("1", "toy4", 10))
    text = board_markdown(board)
    assert text.count("## toy, generate mode") == 2
    assert "parser version 1," in text and "parser version 2," in text
    assert "it differs in the parser's version (1 here, 2 there: a text may count otherwise)" in text
    mean = text.split("## Mean over tasks")[1]
    tasks_by_version = re.findall(r"\| tuned +\| dir:small +\| generate +\| (\d) +\| (\d) +\|", mean)
    assert tasks_by_version == [("1", "3"), ("2", "2")], "a mean of each version, over its own tasks"
    (difference,) = differences(old, new)
    assert difference[:3] == ("parser_version", "1", "2") and "another version of the parser" in difference.meaning
    with pytest.raises(UserError, match="differ in parser_version"):
        check_same_protocol(old, new)
