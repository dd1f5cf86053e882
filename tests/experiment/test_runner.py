"""Whole runs of tiny students on the sample data: what is trained, scored, recorded, and never done twice."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import TOKENS, cells_of, one_cell, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import (
    AnnotationFinished,
    Event,
    PredictionProgress,
    RunRecorded,
    StudentEvaluated,
    TrainingFinished,
)
from tinyllm_bench.base.files import read_checked, read_json
from tinyllm_bench.experiment.cell import Cell, protocol_of
from tinyllm_bench.experiment.predict import load_predictions, predictions_digest, predictions_file
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.experiment.runner import CellResult
from tinyllm_bench.leaderboard import board
from tinyllm_bench.leaderboard.record import RunRecord, load_record

METHODS = ("finetune", "tinyllm")
REFERENCE_BASELINES = ("random", "majority", "zero_shot", "few_shot")


class Whole:
    """One finished request: its cells, where they ran and what came out."""

    def __init__(self, student: Path, runs: Path) -> None:
        self.cells = cells_of(quick(student, methods=METHODS), reference_baselines=True)
        self.runs = runs
        self.events: list[Any] = []
        self.outcomes = run_all(self.cells, runs, events=self.events)

    def of(self, name: str) -> tuple[Cell, CellResult, RunRecord]:
        index = [cell.name for cell in self.cells].index(name)
        return self.cells[index], self.outcomes[index], load_record(self.outcomes[index].folder)


@pytest.fixture(scope="module")
def whole(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tiny_llama_dir, tmp_path_factory.mktemp("runs"))


def train_one(cell: Cell, runs: Path) -> RunRecord:
    (outcome,) = run_all([cell], runs)
    assert outcome.record is not None and outcome.fresh
    return load_record(outcome.folder)


def test_the_plan_has_the_reference_baselines_first(whole: Whole) -> None:
    assert [cell.name for cell in whole.cells] == [*REFERENCE_BASELINES, *METHODS]
    assert len({cell.run_id for cell in whole.cells}) == 6


@pytest.mark.parametrize("name", [*REFERENCE_BASELINES, *METHODS])
def test_every_record_is_valid_and_adds_up(whole: Whole, name: str) -> None:
    cell, outcome, record = whole.of(name)
    assert outcome.fresh and record == outcome.record and record.run_id == cell.run_id == outcome.folder.name
    assert record.score is not None and record.score.n == 16 == len(record.items)
    assert record.score.correct + record.score.wrong + record.score.unparsed == 16
    assert record.test_evaluations == 1 and record.sample and record.chance == 0.25
    stored = load_predictions(predictions_file(cell, outcome.folder))
    assert predictions_digest(stored) == record.predictions_digest
    assert [(p.record_id, p.answer, int(p.correct)) for p in stored] == list(record.items)
    assert all(record_id.startswith("obqa/test/") for record_id, _, _ in record.items)


def test_all_rows_share_one_protocol(whole: Whole) -> None:
    assert len({whole.of(name)[2].protocol_hash for name in (*REFERENCE_BASELINES, *METHODS)}) == 1


@pytest.mark.parametrize("name", METHODS)
def test_the_student_was_trained_within_its_budget(whole: Whole, name: str) -> None:
    _, outcome, record = whole.of(name)
    assert record.student is not None and record.budget is not None and record.training is not None
    assert record.training.steps > 0 and record.budget.steps == record.training.steps
    assert record.student.digest and record.student.initial_digest
    assert record.student.digest != record.student.initial_digest
    first, last = record.training.first_loss, record.training.last_loss
    assert first is not None and last is not None and math.isfinite(first) and math.isfinite(last)
    steps = [row for row in read_checked(outcome.folder / "train" / "metrics.jsonl") if row["event"] == "training_step"]
    spent = [0, *(row["tokens"] for row in steps)]
    largest = max(after - before for before, after in zip(spent, spent[1:], strict=False))
    assert len(steps) == record.training.steps and spent[-1] == record.budget.student_tokens
    assert abs(record.budget.student_tokens - TOKENS) <= largest
    fractions = [evaluation.fraction for evaluation in record.training.evaluations]
    assert fractions[-1] == 1.0 and sum(evaluation.selected for evaluation in record.training.evaluations) == 1
    assert not (outcome.folder / "train" / "checkpoints").exists(), "optimizer state is dropped when the cell ends"


def test_finetune_learns(whole: Whole) -> None:
    _, _, record = whole.of("finetune")
    assert record.training is not None and record.training.last_loss is not None
    assert record.training.first_loss is not None and record.training.last_loss < record.training.first_loss


def test_teachers_belong_to_the_methods_that_use_them(whole: Whole) -> None:
    learned, alone = whole.of("tinyllm")[2], whole.of("finetune")[2]
    assert [t.spec for t in learned.teachers] == ["replay:sample#terse", "replay:sample#stepwise"]
    assert all(t.gold_visible for t in learned.teachers)
    assert [(a.teacher, a.used + sum(a.rejected.values())) for a in learned.annotations] == [
        ("terse", 24),
        ("stepwise", 24),
    ]
    assert alone.teachers == () == alone.annotations
    assert learned.budget is not None and alone.budget is not None
    assert set(learned.budget.tokens_by_channel) == {"label", "rationale:terse", "rationale:stepwise"}
    assert set(alone.budget.tokens_by_channel) == {"label"}


def test_reference_baselines_say_how_they_guess(whole: Whole) -> None:
    random, shot = whole.of("random")[2], whole.of("few_shot")[2]
    assert random.expected_accuracy == 0.25 == random.accuracy and random.student is None
    assert shot.label == "few_shot (3 shots)" and shot.training is None
    assert shot.student is not None and shot.student.initial_digest is None


def test_the_same_request_does_nothing_again(whole: Whole) -> None:
    files = [outcome.folder / "run.json" for outcome in whole.outcomes]
    before = [file.stat().st_mtime_ns for file in files]
    again = run_all(whole.cells, whole.runs)
    assert [outcome.fresh for outcome in again] == [False] * 6
    assert [file.stat().st_mtime_ns for file in files] == before


def test_the_board_shows_every_row(whole: Whole, tmp_path: Path) -> None:
    board.board_add([outcome.folder for outcome in whole.outcomes], tmp_path / "board")
    page = board.board_build(tmp_path / "board")
    text = page.read_text().replace("\\_", "_")  # Markdown
    assert all(cell.label in text for cell in whole.cells)
    assert "obqa" in text


def test_the_test_split_is_not_seen_before_the_end(whole: Whole) -> None:
    letters: dict[type[Event], str] = {
        AnnotationFinished: "a",
        StudentEvaluated: "V",
        TrainingFinished: "t",
        PredictionProgress: "T",
        RunRecorded: "r",
    }
    met = "".join(letters.get(type(event), "") for event in whole.events)
    trained = met.split("a", 1)[1]
    assert met.startswith("TrTrTrTr"), "reference baselines look at nothing else"
    assert "V" in trained.split("t")[0] and "T" not in trained.split("t")[0]
    assert trained.count("T") == 2 and trained.endswith("tTr"), "each student meets the test split once, at its end"


def test_a_record_holds_ids_and_no_text(whole: Whole) -> None:
    cell, outcome, _ = whole.of("tinyllm")
    text = (outcome.folder / "run.json").read_text()
    for record in cell.records("test"):
        assert record.question not in text and json.dumps(record.choices[0]) not in text


def test_a_crash_before_the_record_costs_no_second_test_evaluation(
    whole: Whole, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    cell = one_cell(tiny_llama_dir, "train.select=last")
    first = train_one(cell, tmp_path)
    (tmp_path / cell.run_id / "run.json").unlink()
    again = train_one(cell, tmp_path)
    changing = {"created", "budget"}
    assert first.model_dump(exclude=changing) == again.model_dump(exclude=changing)
    assert again.test_evaluations == 1
    assert again.training is not None and again.training.evaluations[-1].selected and again.training.select == "last"


# --- identity ---------------------------------------------------------------------------------------------------------


def test_run_ids_depend_on_what_is_run_and_not_on_where(tiny_llama_dir: Path, tiny_t5_dir: Path) -> None:
    base = one_cell(tiny_llama_dir).run_id
    assert one_cell(tiny_llama_dir).run_id == base
    assert one_cell(tiny_llama_dir, "train.checkpoint_seconds=1").run_id == base
    others = [
        one_cell(tiny_llama_dir, "train.learning_rate=1e-5"),
        one_cell(tiny_llama_dir, "budget.student_tokens=1000"),
        one_cell(tiny_llama_dir, "eval.mode=multiple_choice"),
        one_cell(tiny_llama_dir, "train.mixed_precision=bf16"),
        one_cell(tiny_t5_dir),
        cells_of(quick(tiny_llama_dir, seeds=2))[1],
    ]
    assert len({base, *(cell.run_id for cell in others)}) == 7
    assert others[-1].seed == 1


def test_teachers_make_another_cell_only_for_methods_that_use_them(tiny_llama_dir: Path) -> None:
    one = 'teachers=["replay:sample#terse"]'
    assert one_cell(tiny_llama_dir, one).run_id == one_cell(tiny_llama_dir).run_id
    learned = [one_cell(tiny_llama_dir, *more, method="tinyllm") for more in ((), (one,))]
    assert learned[0].run_id != learned[1].run_id
    assert [t.key for t in learned[1].teachers] == ["terse"]


def test_a_reference_baseline_is_the_same_for_every_way_of_training(tiny_llama_dir: Path) -> None:
    def references(*settings: str) -> list[str]:
        return [
            cell.run_id for cell in cells_of(quick(tiny_llama_dir, *settings, methods=()), reference_baselines=True)
        ]

    assert references() == references("train.learning_rate=1e-5", "budget.student_tokens=10")
    assert references() != references("student.dtype=bfloat16")


def test_a_changed_student_folder_is_another_student(tiny_llama_dir: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "student"
    shutil.copytree(tiny_llama_dir, folder)
    before = one_cell(folder).run_id
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values()))[0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert one_cell(folder).run_id != before


# --- other students, scoring modes, controls --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lora_student_is_merged(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, "student.lora={r: 4}")
    assert cell.run_id != one_cell(tiny_llama_dir).run_id
    record = train_one(cell, tmp_path)
    assert record.student is not None and record.student.digest != record.student.initial_digest
    assert record.student.architecture == "LlamaForCausalLM"
    folder = tmp_path / cell.run_id / "student"
    assert not list(folder.glob("adapter*")) and (folder / "model.safetensors").exists()
    plain = train_one(one_cell(tiny_llama_dir, "student.lora={r: 4}", "student.lora.alpha=8"), tmp_path)
    assert plain.student is not None and plain.student.digest != record.student.digest
    assert plain.student.parameters == record.student.parameters


@pytest.mark.parametrize("mode", ["cloze", "multiple_choice", "generate"])
@pytest.mark.slow
def test_a_t5_student_trains_and_is_scored(tiny_t5_dir: Path, tmp_path: Path, mode: str) -> None:
    cell = one_cell(tiny_t5_dir, f"eval.mode={mode}", "eval.max_new_tokens=8", method="tinyllm")
    record = train_one(cell, tmp_path)
    assert record.student is not None and record.student.architecture == "T5ForConditionalGeneration"
    assert record.student.digest != record.student.initial_digest
    assert record.backend is not None and record.backend.name == "hf" and record.mode == mode


@pytest.mark.parametrize("mode", ["multiple_choice", "generate"])
@pytest.mark.slow
def test_the_other_scoring_modes(tiny_llama_dir: Path, tmp_path: Path, mode: str) -> None:
    settings = (f"eval.mode={mode}", "eval.max_new_tokens=8", "backend.engine=hf")
    record = train_one(one_cell(tiny_llama_dir, *settings), tmp_path)
    assert record.mode == mode == record.protocol["mode"] and record.score is not None
    if mode == "generate":
        assert record.score.unparsed == sum(answer is None for _, answer, _ in record.items)
        assert record.score.hit_token_limit > 0, "a student of random weights does not stop within 8 tokens"
    else:
        assert record.score.unparsed == 0 == record.score.hit_token_limit


@pytest.mark.parametrize("control", ["shuffled", "gold"])
def test_controls_run_and_are_recorded(tiny_llama_dir: Path, tmp_path: Path, control: str) -> None:
    cell = one_cell(tiny_llama_dir, f"annotations.control={control}", method="tinyllm")
    record = train_one(cell, tmp_path)
    assert [a.control for a in record.annotations] == [control, control]
    assert record.config["annotations"]["control"] == control
    assert cell.run_id != one_cell(tiny_llama_dir, method="tinyllm").run_id
    counts = {a.teacher: a.used for a in record.annotations}
    if control == "gold":
        assert counts == {"terse": 24, "stepwise": 24}


def test_a_control_does_not_reach_the_cache(tiny_llama_dir: Path, cache: Path) -> None:
    from tinyllm_bench.experiment.annotate import annotate, annotation_file, training_targets

    cell = one_cell(tiny_llama_dir, "annotations.control=gold", method="tinyllm")
    texts = annotate(cell, report=lambda event: None)
    changed = training_targets(cell, texts)
    assert annotation_file(cell, cell.teachers[0]).is_relative_to(cache)
    plain = one_cell(tiny_llama_dir, method="tinyllm")
    assert annotate(plain, report=lambda event: None) == texts == training_targets(plain, texts)
    assert [a.record_id for a in changed] == [a.record_id for a in texts]
    assert {a.text for a in changed} != {a.text for a in texts}


@pytest.mark.slow
def test_seeds_differ_and_share_data_and_protocol(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cells = cells_of(quick(tiny_llama_dir, seeds=2))
    first, second = (train_one(cell, tmp_path) for cell in cells)
    assert [first.seed, second.seed] == [0, 1] and first.protocol_hash == second.protocol_hash
    assert first.student is not None and second.student is not None
    assert first.student.initial_digest == second.student.initial_digest
    assert first.student.digest != second.student.digest
    assert first.data.train_ids_digest == second.data.train_ids_digest
    assert first.data.valid_ids_digest == second.data.valid_ids_digest


def test_paper_style_reaches_training_and_scoring(tiny_llama_dir: Path, tmp_path: Path) -> None:
    record = train_one(one_cell(tiny_llama_dir, "data.style=paper"), tmp_path)
    plain = one_cell(tiny_llama_dir)
    assert record.run_id != plain.run_id and record.config["data"]["style"] == "paper"


# --- stages, variants, teachers ---------------------------------------------------------------------------------------


def test_stages_stop_where_requested_and_resume(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, "method.teacher=terse", method="dss")
    folder = tmp_path / cell.run_id
    (annotated,) = run_all([cell], tmp_path, until="annotate")
    assert annotated.record is None and not (folder / "train").exists()
    run_all([cell], tmp_path, until="train")
    assert (folder / "student" / "config.json").exists() and not (folder / "predictions").exists()
    result = read_json(folder / "train" / "result.json")
    record = train_one(cell, tmp_path)
    assert record.student is not None and record.student.digest == result["student_digest"]
    stages = [row["event"] for row in read_checked(folder / "events.jsonl") if row["event"] != "cell_started"]
    assert stages == [
        "annotation_finished",
        "annotation_finished",
        "training_finished",
        "annotation_finished",
        "training_finished",
        "run_recorded",
    ]
    assert [t.spec for t in record.teachers] == ["replay:sample#terse"]


def test_left_over_checkpoints_of_a_finished_training_are_dropped(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir)
    run_all([cell], tmp_path, until="train")
    left = tmp_path / cell.run_id / "train" / "checkpoints" / "step-00000001"
    left.mkdir(parents=True)
    train_one(cell, tmp_path)
    assert not left.exists()


def test_the_cpu_preset_adds_finetune_at_one_epoch(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text('data: {source: sample, train_limit: 12}\nteachers: ["replay:sample#terse"]\neval: {limit: 4}\n')
    asked = {"methods": ("finetune",), "tasks": ("obqa",), "preset": "cpu", "config_file": file}
    full, one_epoch = cells_of(Request(assignments=(f"student.model=dir:{tiny_llama_dir}",), **asked))
    assert [full.label, one_epoch.label] == ["finetune", "finetune (one epoch)"]
    assert one_epoch.config.budget.student_tokens is None and one_epoch.config.budget.epochs == 1
    assert full.config.budget.student_tokens and full.config.budget.epochs is None
    record = train_one(one_epoch, tmp_path)
    assert record.budget is not None and record.budget.epochs == 1.0
    assert record.data.n_train == 12 and record.score is not None and record.score.n == 4
    assert protocol_of(full) == protocol_of(one_epoch)


def test_a_missing_teacher_is_refused_or_dropped(tiny_llama_dir: Path, tmp_path: Path) -> None:
    both = 'teachers=["replay:sample#terse", "replay:sample#chatty"]'
    with pytest.raises(UserError, match=r"replay:sample#chatty has no text for task obqa.*on_missing_teacher=drop"):
        one_cell(tiny_llama_dir, both, method="tinyllm")
    drop = "annotations.on_missing_teacher=drop"
    cell = one_cell(tiny_llama_dir, both, drop, "method.alpha={terse: 1, chatty: 2}", method="tinyllm")
    record = train_one(cell, tmp_path)
    assert [t.spec for t in record.teachers] == ["replay:sample#terse"]
    assert record.notes == ("teacher replay:sample#chatty has no text for obqa and was dropped",)
    with pytest.raises(UserError, match="no teacher has any for task obqa"):
        one_cell(tiny_llama_dir, 'teachers=["replay:sample#chatty"]', drop, method="tinyllm")


def test_a_damaged_record_is_not_taken_for_a_finished_cell(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir)
    train_one(cell, tmp_path)
    file = tmp_path / cell.run_id / "run.json"
    file.write_text(file.read_text().replace('"correct":', '"corect":'))
    with pytest.raises(UserError, match=r"run\.json is refused"):
        run_all([cell], tmp_path)


@pytest.mark.slow
def test_yes_no_sets_have_macro_f1_and_clusters_where_questions_share_something(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    (outcome,) = run_all([one_cell(tiny_llama_dir, tasks=("bioasq",), runs=tmp_path)], tmp_path)
    record = load_record(outcome.folder)
    assert 0 <= record.secondary["macro_f1"] <= 1 and record.clusters == ()
    assert len(record.gold) == len(record.items) and set(record.gold) == {0, 1}
    (other,) = run_all([one_cell(tiny_llama_dir, runs=tmp_path)], tmp_path)
    assert "macro_f1" not in load_record(other.folder).secondary and load_record(other.folder).gold == ()
