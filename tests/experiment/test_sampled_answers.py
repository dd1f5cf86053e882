"""Rationales and programs through the whole pipeline: what is learned, what decides, and what stands in the record."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.answers.sandbox import pool
from tinyllm_bench.answers.voting import COT, POLICIES, POT
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import PrerequisiteStarted
from tinyllm_bench.base.files import read_json
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.evaluation.sampled_answers import gold_answer_key, parse_key, policy_report, reasoning_paths
from tinyllm_bench.experiment.annotate import annotate, rationale_target, training_targets, verified
from tinyllm_bench.experiment.predict import load_predictions, predictions_file
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

pytestmark = pytest.mark.slow

NAME = "mixed_distillation"
TEACHER = "teachers=[replay:sample#stepwise]"
SMALL = (TEACHER, "backend.engine=hf", "eval.limit=6", "eval.valid_limit=4", "train.evaluations=[1.0]")
SHORT = ("method.max_new_tokens=12", "method.n_cot=2", "method.n_pot=2")


def cell_of(student: Path, *settings: str, **changes: Any) -> Any:
    return one_cell(student, *SMALL, *SHORT, *settings, method=NAME, tasks=("svamp",), **changes)


def test_all_five_policies_are_reported_from_one_set_of_texts(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = cell_of(tiny_llama_dir, runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    assert record.mode == "generate" and record.score and record.score.n == 6
    assert {f"accuracy_{policy}" for policy in POLICIES} <= record.paths.keys()
    assert {"paths_executed", "paths_agreement", "paths_oracle", "paths_tokens"} <= record.paths.keys()
    predictions = load_predictions(predictions_file(cell, outcome.folder))
    kinds = [(path.channel, path.greedy) for path in reasoning_paths(predictions[0])]
    assert kinds == [(COT, True), (COT, False), (COT, False), (POT, True), (POT, False), (POT, False)]
    assert policy_report(predictions, cell.records("test"), (COT, POT), every=True) == pytest.approx(record.paths)
    assert [(annotation.kind, annotation.used) for annotation in record.annotations] == [
        ("rationale", 24),
        ("program", 24),
    ]
    assert record.budget and record.budget.tokens_by_channel.keys() == {COT, POT}


def test_cells_that_differ_in_decoding_alone_share_the_training(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = [("method.policy=vote",), ("method.policy=single_cot", "method.report_all=false"), ("method.n_cot=3",)]
    cells = [cell_of(tiny_llama_dir, *change, runs=tmp_path) for change in settings]
    assert len({cell.run_id for cell in cells}) == 3
    assert len({one.run_id for cell in cells for one in cell.students.values()}) == 1
    events: list[Any] = []
    outcomes = run_all(cells, tmp_path, events=events)
    assert sum(isinstance(event, PrerequisiteStarted) for event in events) == 1
    records = [load_record(outcome.folder) for outcome in outcomes]
    assert len({record.student.digest for record in records if record.student}) == 1
    assert "accuracy_vote" not in records[1].paths and records[1].paths["paths_tokens"] > 0
    again = run_all(cells, tmp_path)
    assert not any(outcome.fresh for outcome in again)


def test_an_ensemble_is_two_students_with_half_of_the_budget_each(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = cell_of(tiny_llama_dir, "method.ensemble=true", "method.report_all=false", runs=tmp_path)
    cot, pot = cell.students[COT], cell.students[POT]
    assert cot.run_id != pot.run_id
    assert cot.config.budget.student_tokens == pot.config.budget.student_tokens == 1500
    assert [t.kind for t in cot.teachers] == ["rationale"] and [t.kind for t in pot.teachers] == ["program"]
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    made = [read_json(tmp_path / one.run_id / "train" / "result.json") for one in (cot, pot)]
    assert record.budget and record.budget.student_tokens == sum(one["student_tokens"] for one in made)
    assert [set(one["tokens_by_channel"]) for one in made] == [{COT}, {POT}]
    assert record.budget.train_flops == sum(one["flops"] for one in made)
    alone = cell_of(tiny_llama_dir, "method.pot_weight=0", "method.policy=single_cot", runs=tmp_path)
    assert alone.students[COT].run_id != cot.run_id, "another budget"


def test_an_ensemble_pays_once_for_the_student_it_starts_from(tiny_llama_dir: Path, tmp_path: Path) -> None:
    init = ("student.init={method: finetune, epochs: 1}", "train.batch_records=1", "method.ensemble=true")
    cell = cell_of(tiny_llama_dir, *init, "budget.student_tokens=6000", "method.report_all=false", runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    budget = load_record(outcome.folder).budget
    assert budget and budget.student_init_tokens
    assert budget.student_tokens + budget.student_init_tokens == pytest.approx(6000, rel=0.03)


def test_what_a_method_that_samples_answers_cannot_do_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.select=loss: mixed_distillation answers by sampled texts"):
        cell_of(tiny_llama_dir, "train.select=loss", runs=tmp_path)
    with pytest.raises(UserError, match=r"init.method=mixed_distillation answers by a policy"):
        cell_of(tiny_llama_dir, "student.init={method: mixed_distillation, epochs: 1}", runs=tmp_path)


def test_the_same_student_and_seed_give_the_same_answers(tiny_llama_dir: Path, tmp_path: Path) -> None:
    lines = []
    for place in ("a", "b"):
        cell = cell_of(tiny_llama_dir, runs=tmp_path / place)
        (outcome,) = run_all([cell], tmp_path / place)
        lines.append([asdict(one) for one in load_predictions(predictions_file(cell, outcome.folder))])
    assert json.dumps(lines[0]) == json.dumps(lines[1])


def test_a_t5_student_learns_programs_in_one_line(tiny_t5_dir: Path, tmp_path: Path) -> None:
    cell = cell_of(tiny_t5_dir, runs=tmp_path)
    programs = [a for a in training_targets(cell, annotate(cell, report=lambda event: None)) if a.kind == "program"]
    assert programs and all("\n" not in a.text and "; " in a.text for a in programs)
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    result = read_json(tmp_path / cell.students[POT].run_id / "train" / "result.json")
    assert result["targets_dropped"] == 0 and record.budget and record.budget.tokens_by_channel[POT] > 0


def svamp(n: int = 4) -> Any:
    return load_split(cells_source(), "svamp", "train")[:n]


def cells_source() -> Any:
    from tinyllm_bench.data.sources import Source

    return Source("sample")


def annotation(record: Any, kind: str, text: str, **more: Any) -> Annotation:
    return Annotation(record_id=record.id, teacher="t", kind=kind, text=text, **more)  # type: ignore[arg-type]


def test_only_right_texts_are_learned_and_each_rejection_has_a_reason(tiny_llama_dir: Path) -> None:
    cell = cell_of(tiny_llama_dir)
    (record, *_) = svamp(1)
    gold = gold_answer_key(record)
    texts = [
        ("rationale", f"One adds them. The answer is {gold}.", None),
        ("rationale", "The answer is 987654.", "wrong_answer"),
        ("rationale", "It cannot be known.", "no_answer"),
        ("program", f"def solution():\n    x = {gold}\n    return x", None),
        ("program", "answer = 987654", "wrong_answer"),
        ("program", "answer = (", "syntax"),
        ("program", "x = 1", "no_answer"),
        ("program", "import os\nanswer = os.getpid()", "rejected_by_gate"),
        ("program", "answer = float('nan')", "not_finite"),
        ("program", "answer = 1 / 0", "exec_error:ZeroDivisionError"),
        ("program", "while True:\n    x = 1\nanswer = 1", "timeout"),
    ]
    actual = verified(cell, [annotation(record, kind, text) for kind, text, _ in texts])
    assert [a.rejected for a in actual] == [reason for _, _, reason in texts]
    assert actual[0].text == f"One adds them. The answer is {gold}."
    assert actual[3].text == f"x = {gold}\nanswer = x"
    stored = annotation(record, "rationale", "The answer is 987654.", gold_visible=True)
    assert verified(cell, [stored])[0].rejected is None, "a teacher that saw the answer is not checked against it"


def test_with_two_options_a_program_must_agree_with_the_teacher_s_text(tiny_llama_dir: Path) -> None:
    live = (f"teachers=[dir:{tiny_llama_dir}]", "annotations.engine=hf")
    cell = one_cell(tiny_llama_dir, *SMALL[1:], *SHORT, *live, method=NAME, tasks=("bioasq",))
    record = cell.records("train")[0]
    right, other = record.choices[record.answer], record.choices[1 - record.answer]
    good = f"rate_a = 0.2\nrate_b = 0.1\nlarger = rate_a > rate_b\nanswer = '{right}' if larger else '{other}'"
    label = f"answer = '{right}'"
    wrong_text = annotation(record, "rationale", "So.", answer=other)
    actual = verified(cell, [wrong_text, annotation(record, "program", good)])
    assert [a.rejected for a in actual] == ["wrong_answer", "disagrees"]
    actual = verified(cell, [annotation(record, "rationale", "So.", answer=right), annotation(record, "program", good)])
    assert [a.rejected for a in actual] == [None, None]
    assert actual[0].text.endswith(f"The answer is ({'ab'[record.answer]}).")
    assert verified(cell, [annotation(record, "program", label)])[0].rejected == "degenerate"
    alone = one_cell(
        tiny_llama_dir, *SMALL[1:], *SHORT, *live, "method.cot_weight=0", "method.policy=single_pot", method=NAME,
        tasks=("bioasq",),
    )  # fmt: skip
    assert [t.kind for t in alone.students[POT].teachers] == ["rationale", "program"], "the same programs as for both"
    assert verified(alone, [annotation(record, "program", good)])[0].rejected == "disagrees", "no text of its own"


def test_text_behind_an_answer_is_not_cut_off() -> None:
    record = svamp(1)[0]
    actual = rationale_target("The answer is 5. We get it by adding 2 and 3.", record)
    assert actual == f"The answer is 5. We get it by adding 2 and 3. The answer is {gold_answer_key(record)}."


@pytest.mark.parametrize("text", ["Add 2 and 3.\nThe answer is $5.", "Add 2 and 3. The answer is 5", "Add 2 and 3"])
def test_a_rationale_ends_in_the_answer_in_one_line(text: str) -> None:
    record = svamp(1)[0]
    target = rationale_target(text, record)
    assert target == f"Add 2 and 3. The answer is {gold_answer_key(record)}."
    assert parse_key(target, record) == gold_answer_key(record)


def test_without_the_sandbox_nothing_starts(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def missing() -> str:
        raise UserError('programs cannot be run: install it: pip install "tinyllm-bench[programs]"')

    monkeypatch.setattr(pool, "find_interpreter", missing)
    with pytest.raises(UserError, match=r"tinyllm-bench\[programs\]"):
        run_all([cell_of(tiny_llama_dir, runs=tmp_path)], tmp_path)
    assert not list(tmp_path.glob("*/student"))


def test_a_teacher_without_programs_is_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match="has no text or no program for task svamp"):
        cell_of(tiny_llama_dir, "teachers=[replay:sample#terse]")


def test_programs_from_a_live_teacher(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """A random teacher writes nothing that is right: the modes are empty, the counts say why."""
    wide = saved(
        tiny_llama(max_position_embeddings=4096), tmp_path / "teacher"
    )  # its tokens are short, the prompt long
    live = (
        f"teachers=[dir:{wide}]",
        "annotations.engine=hf",
        "annotations.sampling.max_new_tokens=6",
        "data.train_limit=5",
        "method.label_weight=0.5",
    )
    cell = one_cell(tiny_llama_dir, *SMALL[1:], *SHORT, *live, method=NAME, tasks=("obqa",), runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    program = next(a for a in record.annotations if a.kind == "program")
    assert program.used + sum(program.rejected.values()) == 5 and program.degenerate_rate is None
    assert record.budget and record.budget.tokens_by_channel.keys() == {"label"}


def test_the_table_is_one_preset(tiny_llama_dir: Path) -> None:
    changes = ("teachers=[replay:sample#stepwise]", "data.source=sample")
    request = quick(tiny_llama_dir, *changes, methods=(NAME,), tasks=("svamp",), preset="mixed_distillation_table")
    labels = [cell.label.removeprefix(NAME).strip(" ()") for cell in cells_of(request)]
    assert labels == [
        "", "CoT only", "PoT only", "ensemble of the two, half the budget each", "single CoT", "single PoT"
    ]  # fmt: skip


@pytest.mark.slow
def test_an_over_fitted_student_answers_by_both_modes(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Mode control on eight questions: text for one prompt, a program for the other, both right."""
    from tinyllm_bench.answers.sandbox.pool import Sandbox
    from tinyllm_bench.evaluation.sampled_answers import DecodingConfig, sample_answers
    from tinyllm_bench.generation.hf import HfSampler
    from tinyllm_bench.models.load import load_model

    long = ("budget.student_tokens=null", "budget.epochs=120", "train.learning_rate=5e-3", "data.train_limit=8")
    cell = cell_of(tiny_llama_dir, *long, "train.evaluations=[1.0]", "train.select=last", runs=tmp_path)
    run_all([cell], tmp_path, until="train")
    generate = HfSampler(load_model(cell.student_specs[COT], runs=tmp_path)).generate
    records = cell.truncated_records("train")
    with Sandbox() as box:
        for channel in (COT, POT):
            decoding = DecodingConfig(
                channels=(channel,), policy=f"single_{channel}", samples={COT: 1, POT: 1}, temperature=1.0, top_p=1.0,
                max_new_tokens=150, every=False, seed=0,
            )  # fmt: skip
            actual = sample_answers(records, cell.ask, {channel: generate}, decoding, box)
            assert sum(prediction.correct for prediction in actual) >= 0.95 * len(records)
            codes = box.prepare([prediction.samples[0].text.strip() for prediction in actual])
            found_codes = [
                (one.code is not None, text.samples[0].text) for one, text in zip(codes, actual, strict=True)
            ]
            assert [text for is_code, text in found_codes if is_code != (channel == POT)] == []
