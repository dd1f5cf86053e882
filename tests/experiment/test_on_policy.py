"""Methods that draw texts or learn what a teacher answers, through the whole pipeline."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import one_cell, run_all
from tests.tokenizer_pair import splitting
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import AnnotationProgress, LogitCacheOpened, LogitCacheProgress
from tinyllm_bench.leaderboard.analysis import SectionAnalysis
from tinyllm_bench.leaderboard.record import RunRecord, load_record
from tinyllm_bench.leaderboard.rows import make_rows
from tinyllm_bench.models.vocabulary import vocabulary
from tinyllm_bench.testing.tiny_models import saved, tiny_llama
from tinyllm_bench.training.result import load_result

pytestmark = pytest.mark.slow

SHORT = ("data.train_limit=8", "eval.limit=8", "eval.valid_limit=4")
DRAWN = {name: f"method.{name}.max_new_tokens=8" for name in ("gkd", "minillm")}
NO_INIT = ("student.init=null", "teacher.init=null")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"teacher.model=dir:{saved(tiny_llama(seed=1), tmp_path_factory.mktemp('teachers') / 'other')}"


def record_of(cell: Any, runs: Path) -> RunRecord:
    (outcome,) = run_all([cell], runs)
    return load_record(outcome.folder)


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_a_student_that_samples_is_probed_and_charged(
    name: str, tiny_llama_dir: Path, teacher: str, tmp_path: Path
) -> None:
    fine = ("train.batch_records=1", "budget.student_tokens=8000")  # steps so small that rows can meet within 2 %
    settings = (teacher, DRAWN[name], *SHORT, *fine, "teacher.init=null")
    init = "student.init={method: finetune, epochs: 1}"
    rounds = ("method.minillm.group_size=1", "method.minillm.inner_epochs=2") if name == "minillm" else ()
    record = record_of(one_cell(tiny_llama_dir, *settings, init, *rounds, method=name, runs=tmp_path), tmp_path)
    training, budget, student = record.training, record.budget, record.student
    assert training and budget and student
    assert training.start is not None and training.start.fraction == 0
    for look in (training.start, *training.evaluations):
        assert look.probe.keys() == {"reverse_kl", "length", "ended", "distinct_2", "distinct_4"}
        assert look.accuracy is not None and look.probe["reverse_kl"] > 0
    assert budget.rollout_tokens > 0 and budget.rollout_seconds > 0
    assert budget.student_init_tokens
    assert budget.student_tokens + budget.student_init_tokens == pytest.approx(8000, rel=0.01)
    assert student.spec == f"dir:{tiny_llama_dir.name}" or student.spec.endswith(tiny_llama_dir.name)
    assert student.base_digest and student.initial_digest and student.base_digest != student.initial_digest
    baseline = record_of(one_cell(tiny_llama_dir, *SHORT, *fine, runs=tmp_path), tmp_path)
    rows = make_rows([record, baseline], ())
    gains = dict(zip((row.first.name for row in rows), SectionAnalysis(rows).gains("finetune"), strict=True))
    assert gains[name].why_not is None, "a student that was fine-tuned first is the same student"


def test_making_the_student_is_charged_to_the_budget(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    small = (teacher, DRAWN["gkd"], *SHORT, "teacher.init=null", "budget.student_tokens=500")
    cell = one_cell(tiny_llama_dir, *small, "student.init={method: finetune, epochs: 9}", method="gkd", runs=tmp_path)
    with pytest.raises(UserError, match=r"student.init\) took \d+ already; raise the budget"):
        run_all([cell], tmp_path)


def test_the_first_phase_is_chosen_by_validation_loss(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    init = "student.init={method: finetune, epochs: 2}"
    cell = one_cell(
        tiny_llama_dir, teacher, DRAWN["minillm"], *SHORT, init, "teacher.init=null", method="minillm", runs=tmp_path
    )
    first = cell.student_from
    assert first is not None and first.config.train.select == "loss" and cell.config.train.select == "best"
    run_all([cell], tmp_path)
    result = load_result(tmp_path / first.run_id)
    losses = {one.step: one.loss or 0.0 for one in result.evaluations}
    assert losses[result.selected_step] == min(losses.values()) > 0


def test_a_teacher_s_answers_are_written_once_and_learned(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    settings = (teacher, *SHORT, "teacher.init=null", "annotations.engine=hf", "annotations.sampling.max_new_tokens=6")
    events: list[Any] = []
    cell = one_cell(tiny_llama_dir, *settings, method="seqkd", runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path, events=events)
    record = load_record(outcome.folder)
    (counts,) = record.annotations
    assert counts.kind == "response" and not record.teachers[0].gold_visible
    assert counts.cost is not None and 0 < counts.cost.tokens_out <= 8 * 7
    assert any(isinstance(event, AnnotationProgress) for event in events)
    again: list[Any] = []
    cut_too = ("method.kd.response=teacher", "annotations.filters=[empty]")  # as seqkd's own file has it
    both = one_cell(tiny_llama_dir, *settings, *cut_too, method="kd", runs=tmp_path)
    kd = record_of(both, tmp_path)
    assert [teacher.note for teacher in kd.teachers] == ["live", "distributions"]
    run_all([both], tmp_path, events=again)
    assert not any(isinstance(event, AnnotationProgress) for event in again), (
        "kd learns from the answers that seqkd had written"
    )
    greedy = one_cell(tiny_llama_dir, *settings, "annotations.sampling.temperature=0", method="seqkd", runs=tmp_path)
    assert greedy.run_id != cell.run_id


def test_a_rationale_and_the_answer_are_one_response(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    settings = (
        teacher,
        *SHORT,
        *NO_INIT,
        "method.kd.response=rationale",
        "method.kd.teacher=terse",
        "backend.engine=hf",
    )
    cell = one_cell(tiny_llama_dir, *settings, "eval.max_new_tokens=4", method="kd", runs=tmp_path)
    assert cell.mode == "generate" and [t.key for t in cell.teachers] == ["terse"]
    record = record_of(cell, tmp_path)
    assert record.mode == "generate" and record.annotations[0].used == 8


def test_plain_text_is_a_channel_of_its_own(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    text = tmp_path / "plain.txt"
    text.write_text("Water boils when it is hot enough.\n\n" * 40)
    settings = (teacher, *SHORT, *NO_INIT, DRAWN["minillm"])
    named = (f"data.plain_text={text}", "data.plain_tokens=16")
    without = one_cell(tiny_llama_dir, *settings, method="minillm", runs=tmp_path)
    cell = one_cell(tiny_llama_dir, *settings, *named, method="minillm", runs=tmp_path)
    assert cell.run_id != without.run_id
    record = record_of(cell, tmp_path)
    assert record.budget and record.budget.tokens_by_channel["plain"] % 15 == 0
    assert not any("plain" in note for note in record.notes)
    assert str(tmp_path) not in record.model_dump_json()
    assert any("loss on plain text is left out" in note for note in record_of(without, tmp_path).notes)
    short = (f"data.plain_text={text}", "data.plain_tokens=100000")
    with pytest.raises(UserError, match="at least data.plain_tokens"):
        run_all([one_cell(tiny_llama_dir, *settings, *short, method="minillm", runs=tmp_path)], tmp_path)
    with pytest.raises(UserError, match="no such file"):
        one_cell(tiny_llama_dir, *settings, "data.plain_text=/nowhere/plain.txt", method="minillm", runs=tmp_path)


def test_cached_distributions_are_made_once_and_all_of_them_equal_the_live_teacher(
    tiny_llama_dir: Path, teacher: str, tmp_path: Path
) -> None:
    settings = (teacher, *SHORT, *NO_INIT)
    live = record_of(one_cell(tiny_llama_dir, *settings, method="kd", runs=tmp_path), tmp_path)
    whole = "teacher.cache={k: all, precision: float32}"
    events: list[Any] = []
    (outcome,) = run_all(
        [one_cell(tiny_llama_dir, *settings, whole, method="kd", runs=tmp_path)], tmp_path, events=events
    )
    stored = load_record(outcome.folder)
    assert live.training and stored.training and live.training.last_loss
    assert stored.training.last_loss == pytest.approx(live.training.last_loss, rel=1e-4)
    assert [event.missing for event in events if isinstance(event, LogitCacheOpened)] == [8]
    assert [event for event in events if isinstance(event, LogitCacheProgress)][-1] == LogitCacheProgress(8, 8)
    cell = one_cell(tiny_llama_dir, *settings, whole, "train.learning_rate=1e-3", method="kd", runs=tmp_path)
    again: list[Any] = []
    run_all([cell], tmp_path, events=again)
    assert [event.missing for event in again if isinstance(event, LogitCacheOpened)] == [0], (
        "another run reads the same cache"
    )
    few = one_cell(tiny_llama_dir, *settings, "teacher.cache={k: 8}", method="kd", runs=tmp_path)
    assert few.run_id != cell.run_id and record_of(few, tmp_path).training


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("kd", ("method.kd.divergence={kind: reverse_kl}", "teacher.cache={k: 64}"), "teacher.cache.k=all"),
        ("kd", ("method.kd.cross_tokenizer=overlap", "teacher.cache={k: 64}"), "another tokenizer"),
        ("gkd", ("teacher.cache={k: 64}",), "no cache can know them"),
        ("minillm", ("teacher.cache={k: all}",), "no cache can know them"),
    ],
)
def test_a_cache_that_the_method_cannot_use_is_refused(
    method: str, settings: tuple[str, ...], says: str, tiny_llama_dir: Path, teacher: str
) -> None:
    with pytest.raises(UserError, match=says):
        one_cell(tiny_llama_dir, teacher, *NO_INIT, *settings, method=method)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that splits digits and shows a space as `▁`."""
    tokenizer = splitting()
    roles = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model, _ = tiny_llama(seed=1, vocab_size=len(vocabulary(tokenizer).pieces), **roles)
    return f"teacher.model=dir:{saved((model, tokenizer), tmp_path_factory.mktemp('foreign') / 'teacher')}"


@pytest.mark.parametrize("kind", ["span_projection", "overlap", "uld"])
def test_a_teacher_with_another_tokenizer_is_read_across_tokenizers(
    kind: str, tiny_llama_dir: Path, foreign: str, tmp_path: Path
) -> None:
    setting = f"method.kd.cross_tokenizer={kind}"
    record = record_of(one_cell(tiny_llama_dir, foreign, *SHORT, *NO_INIT, setting, method="kd"), tmp_path)
    assert record.training and record.training.measured.keys() == {"align_ratio", "covered_mass"}
    assert 0 < record.training.measured["align_ratio"] <= 1
    assert 0 < record.training.measured["covered_mass"] <= 1 + 1e-6


def test_sampled_texts_are_read_across_tokenizers_too(tiny_llama_dir: Path, foreign: str, tmp_path: Path) -> None:
    settings = (foreign, *SHORT, *NO_INIT, DRAWN["gkd"], "method.gkd.cross_tokenizer=span_projection")
    record = record_of(one_cell(tiny_llama_dir, *settings, method="gkd"), tmp_path)
    assert record.training and record.training.start and "reverse_kl" not in record.training.start.probe


def test_another_tokenizer_without_a_way_across_is_refused(tiny_llama_dir: Path, foreign: str) -> None:
    for name in ("kd", "gkd"):
        with pytest.raises(UserError, match="set method.cross_tokenizer=span_projection"):
            one_cell(tiny_llama_dir, foreign, *NO_INIT, method=name)
    with pytest.raises(UserError, match="choose a teacher of the student's family"):
        one_cell(tiny_llama_dir, foreign, *NO_INIT, method="minillm")


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_computes_the_same_distributions(tmp_path: Path) -> None:
    """Heads of 32 and no padded rows: what its CPU engine can take, and what both count alike."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 380}
    student, large = (saved(tiny_llama(seed=n, **shape), tmp_path / str(n)) for n in range(2))
    named = (f"teacher.model=dir:{large}", *SHORT, *NO_INIT)
    losses = []
    for engine in ("hf", "vllm"):
        cache = f"teacher.cache={{k: 32, engine: {engine}, precision: float32}}"
        cell = one_cell(student, *named, cache, method="kd", runs=tmp_path / engine)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / f"{engine}-cache"))
            training = record_of(cell, tmp_path / engine).training
        assert training and training.last_loss
        losses.append(training.last_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
