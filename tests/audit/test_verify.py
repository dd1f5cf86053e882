"""`verify` accepts real runs and names what was changed: ten ways of tampering with three kinds of cells.

Each change is made as well as a cheat could make it: digests, counts, the ledger and the protocol's hash are updated,
so that only the changed value itself gives it away.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.audit import verify as verifying
from tinyllm_bench.audit.verify import Verification, store_verdict, verify
from tinyllm_bench.base.config import read_yaml
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import append_checked, canonical_json, write_json
from tinyllm_bench.data.records import Prediction
from tinyllm_bench.experiment.predict import load_predictions, predictions_digest
from tinyllm_bench.leaderboard import consistency
from tinyllm_bench.leaderboard.board import board_add
from tinyllm_bench.leaderboard.record import (
    RECORD_FILE,
    RunRecord,
    ids_digest,
    load_record,
    protocol_hash,
    save_record,
)
from tinyllm_bench.leaderboard.verdicts import tier_of, verdict_of

pytestmark = pytest.mark.slow

SMALL = ("backend.engine=hf", "eval.valid_limit=4", "train.evaluations=[1.0]")
PATHS = ("teachers=[replay:sample#stepwise]", "method.max_new_tokens=12", "method.n_cot=2", "method.n_pot=2")
CELLS = ("multiple_choice", "generate", "paths")


class Forged:
    """A copy of a run whose record and predictions can be changed and sealed again."""

    def __init__(self, folder: Path, place: Path) -> None:
        shutil.copytree(folder.parent, place)
        self.folder = place / folder.name
        self.record: dict[str, Any] = json.loads((self.folder / RECORD_FILE).read_text())
        (self.file,) = (self.folder / "predictions").glob("*.zst")
        self.predictions = load_predictions(self.file)

    def write(self) -> None:
        """Write the record alone."""
        write_json(self.folder / RECORD_FILE, self.record)

    def write_predictions(self) -> None:
        """Write the predictions alone."""
        lines = "".join(canonical_json(asdict(one)) + "\n" for one in self.predictions)
        self.file.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))

    def seal(self) -> None:
        """Write the predictions, and a record and a ledger that agree with them in every count and digest."""
        record, predictions = self.record, self.predictions
        record["items"] = [[one.record_id, one.answer, int(one.correct)] for one in predictions]
        right, unread = sum(one.correct for one in predictions), sum(one.answer is None for one in predictions)
        counts = {
            "n": len(predictions),
            "correct": right,
            "unparsed": unread,
            "wrong": len(predictions) - right - unread,
        }
        record["score"] |= counts
        record["protocol"] |= {
            "n": len(predictions),
            "scored_ids_digest": ids_digest(one.record_id for one in predictions),
        }
        record["protocol_hash"] = protocol_hash(record["protocol"])
        record["predictions_digest"] = predictions_digest(predictions)
        (self.folder / "ledger.jsonl").unlink()
        evaluations = [{"test_evaluation": 1, "items": len(predictions), "mark": record["predictions_digest"]}]
        append_checked(self.folder / "ledger.jsonl", evaluations)
        self.write_predictions()
        self.write()

    def change(self, matches: Callable[[Prediction], bool], **changes: Any) -> str:
        """Change the first prediction that matches; returns its record's id."""
        index = next(i for i, one in enumerate(self.predictions) if matches(one))
        self.predictions[index] = replace(self.predictions[index], **changes)
        return self.predictions[index].record_id


@pytest.fixture(scope="module")
def made(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run of each kind, the folders of the trainings beside it, and a second seed of the first."""
    runs = tmp_path_factory.mktemp("runs")
    sampled_programs: dict[str, Any] = {"method": "mixed_distillation", "tasks": ("svamp",)}
    cells = [
        one_cell(tiny_llama_dir, *SMALL, "eval.mode=multiple_choice", runs=runs),
        one_cell(tiny_llama_dir, *SMALL, "eval.mode=generate", "eval.max_new_tokens=8", runs=runs),
        one_cell(tiny_llama_dir, *SMALL, *PATHS, "eval.limit=6", runs=runs, **sampled_programs),
    ]
    seeds = ("eval.mode=multiple_choice",), ("eval.mode=generate", "eval.max_new_tokens=8")
    others = [cells_of(quick(tiny_llama_dir, *SMALL, *one, seeds=2, runs=runs))[1] for one in seeds]
    others.append(
        one_cell(
            tiny_llama_dir, *SMALL, *PATHS, "eval.limit=6", "method.policy=single_pot", runs=runs, **sampled_programs
        )
    )
    folders = [outcome.folder for outcome in run_all([*cells, *others], runs)]
    return dict(zip((*CELLS, *(f"other {kind}" for kind in CELLS)), folders, strict=True))


def texts(result: Verification) -> str:
    return "\n".join(problem.text for problem in result.problems)


@pytest.fixture(params=CELLS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def forged(made: dict[str, Path], kind: str, tmp_path: Path) -> Forged:
    return Forged(made[kind], tmp_path / "runs")


# --- records of another version of the parser -------------------------------------------------------------------------


def test_a_record_of_another_parser_version_is_reported_as_such_and_is_no_forgery(forged: Forged, kind: str) -> None:
    now = forged.record["protocol"]["parser_version"]
    forged.record["protocol"]["parser_version"] = now.replace("2", "1", 1)
    forged.seal()
    result = verify(forged.folder)
    assert texts(result) == ""
    if kind == "multiple_choice":  # ranked options are read by no parser
        assert result.tier == "re-scored"
        return
    not_checked = " ".join(result.not_checked)
    assert result.tier == "self-reported" and "score" not in result.checked
    assert f"read by parser version {now.replace('2', '1', 1)}, this code reads by version {now}" in not_checked


# --- real runs --------------------------------------------------------------------------------------------------------


def test_a_real_run_is_re_scored(made: dict[str, Path], kind: str) -> None:
    result = verify(made[kind])
    assert texts(result) == "" and result.ok and result.tier == "re-scored"
    assert {"score", "protocol", "training", "budget", "student", "data", "run_id"} <= set(result.checked)
    assert result.not_checked == [], "the run id was derived again, too"


def test_a_sealed_copy_without_a_change_is_accepted(forged: Forged) -> None:
    forged.seal()
    assert texts(verify(forged.folder)) == ""


def test_reference_baselines_are_re_scored(tiny_llama_dir: Path, tmp_path: Path) -> None:
    request = quick(tiny_llama_dir, "eval.mode=cloze", methods=("finetune",), runs=tmp_path)
    cells = [cell for cell in cells_of(request, reference_baselines=True) if cell.kind == "reference_baseline"]
    results = [verify(outcome.folder) for outcome in run_all(cells, tmp_path)]
    assert [texts(result) for result in results] == [""] * 4
    assert {result.tier for result in results} == {"re-scored"} and [result.not_checked for result in results] == [
        []
    ] * 4


def test_exact_matches_and_evaluations_on_the_test_split_are_re_scored(tiny_llama_dir: Path, tmp_path: Path) -> None:
    short = ("eval.mode=generate", "eval.max_new_tokens=4", "eval.match=exact")
    cell = replace(one_cell(tiny_llama_dir, *SMALL, *short, runs=tmp_path), select_on_test=True)
    (outcome,) = run_all([cell], tmp_path)
    result = verify(outcome.folder)
    assert texts(result) == "" and result.not_checked == [] and load_record(outcome.folder).test_evaluations == 2


def test_named_answers_and_shared_passages_are_re_scored(tiny_llama_dir: Path, tmp_path: Path) -> None:
    short = ("eval.mode=generate", "eval.max_new_tokens=4")
    cell = one_cell(tiny_llama_dir, *SMALL, *short, tasks=("bioasq",), runs=tmp_path / "runs")
    (outcome,) = run_all([cell], tmp_path / "runs")
    assert "macro_f1" in (load_record(outcome.folder).secondary) and texts(verify(outcome.folder)) == ""
    forged = Forged(outcome.folder, tmp_path / "forged")
    forged.record["secondary"]["macro_f1"] = 0.99
    forged.record["clusters"] = [0] * len(forged.record["items"])
    forged.write()
    problems = texts(verify(forged.folder))
    assert "secondary.macro_f1 is 0.99; expected" in problems and "clusters is [0, 0" in problems
    forged = Forged(outcome.folder, tmp_path / "other")
    # A wrong answer stays wrong by a gold number that no answer has: only the data knows better.
    place = next(place for place, (_, _, flag) in enumerate(forged.record["items"]) if not flag)
    forged.record["gold"][place] = 7
    del forged.record["secondary"]["macro_f1"]
    forged.write()
    assert "gold is [" in texts(verify(forged.folder))


@pytest.mark.parametrize("method", ["kd", "seqkd"])
def test_runs_that_build_on_others_are_re_scored_with_their_run_id(
    tiny_llama_dir: Path, tmp_path: Path, method: str
) -> None:
    teacher = (f"teacher.model=dir:{tiny_llama_dir}", "teacher.init={method: finetune, epochs: 1}")
    init = "student.init={method: finetune, student_tokens: 600}"
    short = ("annotations.engine=hf", "annotations.sampling.max_new_tokens=4", "eval.limit=6", "data.train_limit=8")
    cell = one_cell(tiny_llama_dir, *SMALL, *teacher, init, *short, method=method, runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    result = verify(outcome.folder)
    assert texts(result) == "" and result.tier == "re-scored" and result.not_checked == []


def test_paths_of_a_t5_and_of_two_students_are_re_scored(tiny_t5_dir: Path, tmp_path: Path) -> None:
    changes = ("method.ensemble=true", "method.report_all=false", "eval.limit=6")
    cell = one_cell(tiny_t5_dir, *SMALL, *PATHS, *changes, method="mixed_distillation", tasks=("svamp",), runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    result = verify(outcome.folder)
    assert texts(result) == "" and result.tier == "re-scored" and result.not_checked == []
    for folder in tmp_path.glob("mixed_distillation-training-*"):
        shutil.rmtree(folder)
    assert verify(outcome.folder).not_checked[0] == "training (its result.json is not available)"


# --- ten ways of tampering --------------------------------------------------------------------------------------------


def test_a_changed_prediction(forged: Forged, kind: str) -> None:
    number = {"multiple_choice": 1, "generate": 1, "paths": "987654"}[kind]
    matches = {
        "multiple_choice": lambda one: one.answer != 1,
        "generate": lambda one: one.answer != 1,
        "paths": lambda one: True,
    }
    changed = forged.change(matches[kind], answer=number, correct=False)
    forged.seal()
    assert f"{forged.file}: answer of {changed} is {number}; expected " in texts(verify(forged.folder))


def test_a_changed_score(forged: Forged) -> None:
    index = next(i for i, one in enumerate(forged.record["items"]) if not one[2])
    was = forged.record["score"]["correct"]
    answer = forged.record["items"][index][1]
    forged.record["items"][index] = [forged.record["items"][index][0], 0 if answer is None else answer, 1]
    forged.record["score"]["correct"] += 1
    forged.record["score"]["unparsed" if answer is None else "wrong"] -= 1
    forged.write()
    problems = texts(verify(forged.folder))
    assert f"score.correct is {was + 1}; expected {was} from the stored predictions" in problems
    name, given, mark = forged.record["items"][index]
    assert f"items.{name} is [{given}, {mark}]; expected [{answer}, 0] from the stored predictions" in problems


def test_a_changed_count(forged: Forged) -> None:
    budget = forged.record["budget"]
    was = budget["student_tokens"]
    for key in ("student_tokens", "prompt_tokens"):
        budget[key] -= 100
    budget["tokens_per_second"] = round(budget["student_tokens"] / budget["train_seconds"], 2)
    forged.write()
    assert f"budget.student_tokens is {was - 100}; expected {was} from " in texts(verify(forged.folder))
    forged.record["score"]["wrong"] += 1
    forged.write()
    n = forged.record["score"]["n"]
    assert f"correct + wrong + unparsed = {n + 1}, but n = {n}" in texts(verify(forged.folder))


def test_a_changed_digest(forged: Forged) -> None:
    was = forged.record["predictions_digest"]
    forged.record["predictions_digest"] = "0" * 64
    forged.write()
    problems = texts(verify(forged.folder))
    assert f"its predictions have digest {was[:12]}; expected 000000000000 as run.json says" in problems


def test_a_changed_protocol(forged: Forged) -> None:
    forged.record["protocol"]["prompt_digest"] = "0" * 64
    forged.write()
    assert "protocol_hash is not the digest of protocol" in texts(verify(forged.folder))
    forged.record["protocol_hash"] = protocol_hash(forged.record["protocol"])
    forged.write()
    assert "protocol.prompt_digest is 000000000000; expected " in texts(verify(forged.folder))


def test_another_split(forged: Forged) -> None:
    forged.predictions = [
        replace(one, record_id=one.record_id.replace("/test/", "/valid/")) for one in forged.predictions
    ]
    forged.seal()
    problems = texts(verify(forged.folder))
    task = forged.record["task"]
    assert f"all scored questions are of {task}'s test split" in problems
    assert (
        f"items of the test split are missing: {task}/test/" in problems and "protocol.scored_ids_digest is" in problems
    )


def test_another_seed(forged: Forged) -> None:
    forged.record["seed"] = 1
    forged.record["request"]["seeds"] = 2
    forged.write()
    problems = texts(verify(forged.folder))
    assert f"run_id is {forged.folder.name}; expected " in problems and "-s1-... (a run id begins with" in problems


def test_another_seed_with_its_run_id(forged: Forged) -> None:
    forged.record["seed"], forged.record["request"]["seeds"] = 1, 2
    forged.record["run_id"] = forged.record["run_id"].replace("-s0-", "-s1-")
    forged.write()
    result = verify(forged.folder)
    assert f"events.jsonl: is of {forged.folder.name}; expected {forged.record['run_id']}" in texts(result)


def test_a_duplicated_item(forged: Forged) -> None:
    forged.predictions[1] = forged.predictions[0]
    forged.write_predictions()
    forged.record["predictions_digest"] = predictions_digest(forged.predictions)
    forged.write()
    problems = texts(verify(forged.folder))
    assert f"{forged.file}: {forged.predictions[0].record_id} occurs twice; expected every item once" in problems
    forged.seal()
    assert "distinct ids" in texts(verify(forged.folder))


def test_a_missing_item(forged: Forged) -> None:
    gone = forged.predictions.pop(2).record_id
    forged.seal()
    problems = texts(verify(forged.folder))
    assert f"{forged.file}: 1 items of the test split are missing: {gone}; expected none" in problems
    n = len(forged.predictions)
    assert f"protocol.n is {n}; expected {n + 1}" in problems


def test_a_swapped_file(forged: Forged, made: dict[str, Path], kind: str) -> None:
    (other,) = (made[f"other {kind}"] / "predictions").glob("*.zst")
    shutil.copyfile(other, forged.file)
    problems = texts(verify(forged.folder))
    assert f"{forged.file}: its predictions have digest" in problems and "as run.json says" in problems


# --- more tampering ---------------------------------------------------------------------------------------------------


def test_changed_log_probabilities_texts_and_keys_are_detected(made: dict[str, Path], tmp_path: Path) -> None:
    ranked = Forged(made["multiple_choice"], tmp_path / "a")
    best = max(ranked.predictions[0].option_logprobs)
    ranked.change(lambda one: True, option_logprobs=(best, *[0.5] * 3))
    ranked.seal()
    assert "option_logprobs of" in texts(verify(ranked.folder))
    written = Forged(made["generate"], tmp_path / "b")
    text = replace(written.predictions[0].samples[0], text="(b)")
    name = written.change(lambda one: True, samples=(text,), answer=0, correct=False)
    written.seal()
    assert f"answer of {name} is 0; expected 1, derived again" in texts(verify(written.folder))
    paths = Forged(made["paths"], tmp_path / "c")
    samples = paths.predictions[0].samples
    (number,) = [i for i, one in enumerate(samples) if one.channel == "pot" and not one.sampled]
    program = replace(samples[number], text="answer = 6 * 7", answer_key="41", executed=True)
    name = paths.change(lambda one: True, samples=(*samples[:number], program, *samples[number + 1 :]))
    paths.seal()
    assert f"answer_key of text {number} (pot) of {name} is 41; expected 42" in texts(verify(paths.folder))
    paths.change(lambda one: True, samples=samples[1:])
    paths.seal()
    assert "texts (greedy, sampled) of" in texts(verify(paths.folder))


def test_changed_settings_evaluations_training_and_student_are_detected(forged: Forged) -> None:
    forged.record["test_evaluations"] = 7
    forged.record["config"]["train"]["learning_rate"] = 1.0
    forged.record["student"]["digest"] = "0" * 64
    forged.record["training"]["last_loss"] = 0.25
    forged.record["data"]["train_ids_digest"] = "0" * 64
    forged.record["data"]["splits"]["test"]["digest"] = "0" * 64
    forged.write()
    problems = texts(verify(forged.folder))
    for expected in (
        "test_evaluations is 7; expected 1 as ledger.jsonl says",
        "config.train.learning_rate is 1.0; expected 0.003 as config.yaml says",
        "student.digest is 000000000000; expected",
        "data.train_ids_digest is 000000000000; expected",
        "data.splits.test.digest is 000000000000; expected",
    ):
        assert expected in problems


def test_every_field_is_rebuilt_or_is_listed_with_the_reason(forged: Forged) -> None:
    listed = {name.partition(".")[0] for name in verifying.NOT_REBUILT}
    assert set(RunRecord.model_fields) - set(verify(forged.folder).checked) <= listed | {"schema_version"}
    forged.record["notes"] = ["nothing of note"]
    forged.record["budget"]["epochs"] += 1
    forged.record["budget"]["train_flops"] = 1.0
    forged.record["training"]["layout"] = "another"
    forged.record["training"]["select"] = forged.record["config"]["train"]["select"] = "last"
    forged.record["student"]["base_digest"] = "0" * 64
    forged.record["data"]["overlap"] = 5
    forged.write()
    problems = texts(verify(forged.folder))
    for expected in (
        "notes is ['nothing of note']; expected",
        "budget.epochs is",
        "budget.train_flops is 1.0; expected",
        "training.layout is another; expected",
        "config.train.select is last; expected",
        "student.base_digest is 000000000000; expected None",
        "data.overlap is 5; expected 0 from settings, data and this code",
    ):
        assert expected in problems


def test_a_record_alone_is_arithmetic_and_says_so(forged: Forged, tmp_path: Path) -> None:
    place = save_record(load_record(forged.folder), tmp_path / "row.json")
    result = verify(place)
    assert result.ok and result.tier == "self-reported"
    assert result.not_checked == ["everything but arithmetic (that needs the run's folder)"]
    assert store_verdict(result, tmp_path) is None
    forged.record["budget"]["tokens_per_second"] = 1.0
    write_json(place, forged.record)
    broken = verify(place)
    assert "budget.tokens_per_second is 1.0; expected" in texts(broken)
    assert broken.tier == "self-reported"


def test_without_the_data_nothing_is_scored(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINYLLM_BENCH_DATA", raising=False)
    forged = Forged(made["multiple_choice"], tmp_path / "runs")
    forged.record["sample"], forged.record["data"]["source"] = False, "release"
    forged.write()
    assert "sample is False; expected True" in texts(verify(forged.folder)), "sample questions are known as such"
    forged.record["config"]["data"]["source"] = "release"
    forged.write()
    settings = (forged.folder / "config.yaml").read_text()
    (forged.folder / "config.yaml").write_text(settings.replace("source: sample", "source: release"))
    monkeypatch.setattr(consistency, "_sample", lambda task: ({}, frozenset()))
    result = verify(forged.folder)
    assert result.ok and result.tier == "self-reported"
    assert result.not_checked[0].startswith("answers, score and protocol: the data is not available (data source")


def test_what_this_machine_cannot_check_is_listed_and_no_problem(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("programs need the sandbox")

    monkeypatch.setattr(verifying, "Sandbox", missing)
    result = verify(made["paths"])
    assert result.ok and result.tier == "self-reported"
    assert result.not_checked == ["answers and score (programs need the sandbox)"]
    forged = Forged(made["multiple_choice"], tmp_path / "runs")
    settings = (forged.folder / "config.yaml").read_text()
    (forged.folder / "config.yaml").write_text(settings.replace("model: dir:", "model: dir:/nowhere"))
    assert "the digest in the run id, teachers and notes (dir:/nowhere" in verify(forged.folder).not_checked[0]


def test_broken_and_missing_files_are_named(forged: Forged) -> None:
    forged.file.write_bytes(b"nothing")
    (forged.folder / "ledger.jsonl").write_text("00000000\t{}\n")
    (forged.folder / "config.yaml").unlink()
    problems = texts(verify(forged.folder))
    assert f"{forged.file}: cannot be read; expected JSON lines" in problems
    assert "ledger.jsonl, line 1: checksum does not match" in problems and "config file not found" in problems
    forged.file.unlink()
    assert f"{forged.file}: missing; expected the predictions" in texts(verify(forged.folder))


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_verdict_is_stored_on_a_board_and_belongs_to_the_record_s_content(forged: Forged, tmp_path: Path) -> None:
    board = tmp_path / "board"
    with pytest.raises(UserError, match="is not on the board"):
        store_verdict(verify(forged.folder), board)
    [place] = board_add([forged.folder], board)
    file = store_verdict(verify(forged.folder), board, by="Someone\nElse")
    assert file == place.with_suffix(".verified") and tier_of(place) == "re-scored"
    verdict = verdict_of(place)
    assert verdict and verdict.by == "Someone Else" and verdict.parser_version and verdict.problems == ()
    assert str(forged.folder.parent) not in file.read_text(), "no path of this machine"
    assert not list(forged.folder.rglob("*verified*")), "a run's folder says nothing of its own trust"
    forged.record["notes"] = ["edited since"]
    forged.write()
    with pytest.raises(UserError, match="with other content than what was checked"):
        store_verdict(verify(forged.folder), board)
    board_add([forged.folder], board, replace=True)
    assert tier_of(place) == "self-reported" and verdict_of(place) is None
    forged.record["test_evaluations"] = 5
    forged.write()
    board_add([forged.folder], board, replace=True)
    store_verdict(verify(forged.folder), board)
    failed = verdict_of(place)
    assert (
        failed and not failed.ok and "test_evaluations is 5" in failed.problems[0] and tier_of(place) == "self-reported"
    )


def test_the_right_answers_are_the_checker_s_own(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submitted folder may contain a release of its own and name it in its settings."""
    monkeypatch.delenv("TINYLLM_BENCH_DATA", raising=False)
    forged = Forged(made["multiple_choice"], tmp_path / "runs")
    forged.record["sample"], forged.record["data"]["source"] = False, "release"
    forged.write()
    (forged.folder / "release").mkdir()
    settings = read_yaml(forged.folder / "config.yaml")
    settings["data"] |= {"dir": str(forged.folder / "release"), "source": "release"}
    (forged.folder / "config.yaml").write_text(json.dumps(settings))
    assert "the data is not available" in "".join(verify(forged.folder).not_checked)


def test_a_second_run_of_the_cell_makes_it_re_run(made: dict[str, Path], tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, *SMALL, "eval.mode=multiple_choice", runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    second = json.loads((outcome.folder / RECORD_FILE).read_text())
    second["created"] = "2030-01-01T00:00:00Z"  # both tests may run within one second
    write_json(outcome.folder / RECORD_FILE, second)
    result = verify(made["multiple_choice"], rerun=outcome.folder)
    assert texts(result) == "" and result.tier == "re-run"
    assert result.rerun and result.rerun.same_answers == result.rerun.n == 16
    copy = verify(made["multiple_choice"], rerun=made["multiple_choice"])
    assert "a copy; expected a second run of the cell" in texts(copy) and copy.tier == "self-reported"
    other = verify(made["multiple_choice"], rerun=made["other multiple_choice"])
    assert "seed is 1; expected 0" in texts(other)


def test_a_missing_path_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file not found"):
        load_record(tmp_path / "none")
    assert "file not found" in texts(verify(tmp_path / "none"))
