"""The tasks as plain lm-eval sees them: all there, none drifted, the same answers as through our runner."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import fakes
from tinyllm_bench.base import plugins
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SCORING_MODES, ScoringMode, cut_context
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation import task_yaml
from tinyllm_bench.evaluation.runner import EvalRequest, evaluate

pytestmark = pytest.mark.slow

SAMPLE = Source(kind="sample")
INFOS = {name: plugins.load_task(name) for name in plugins.names("task")}
TASKS = [name for name, info in INFOS.items() if info.suite == "main"]
NATIVE = [name for name, info in INFOS.items() if info.suite == "native"]  # a group of their own
NUMBERS = [name for name in NATIVE if not load_split(SAMPLE, name, "test")[0].choices]
ROOT = Path(__file__).resolve().parent.parent


def manager(**metadata: Any) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(task_yaml.folder()), include_defaults=False, metadata=metadata)


def test_exactly_the_expected_names_are_found() -> None:
    found = manager()
    assert found.all_subtasks == sorted(
        f"tinyllm_{n}_{mode}" for n, info in INFOS.items() for mode in info.scoring_modes
    )
    native = {f"tinyllm_bench_native_{mode}" for name in NATIVE for mode in INFOS[name].scoring_modes}
    assert found.all_groups == sorted([*(f"tinyllm_bench_{mode}" for mode in SCORING_MODES), *native])


def test_every_task_and_group_loads() -> None:
    loaded = manager(source="sample").load([f"tinyllm_bench_{mode}" for mode in SCORING_MODES])
    assert len(loaded["tasks"]) == sum(len(INFOS[name].scoring_modes) for name in TASKS)
    for name, task in loaded["tasks"].items():
        short, mode = name.removeprefix("tinyllm_").split("_", 1)
        assert [doc["id"] for doc in task.test_docs()] == [r.id for r in load_split(SAMPLE, short, "test")]
        assert len(task.validation_docs()) == len(load_split(SAMPLE, short, "valid"))
        kind = "generate_until" if mode == "generate" else "multiple_choice"
        output_type: str = task.OUTPUT_TYPE
        assert output_type == kind


def test_the_native_group_holds_the_native_tasks_alone() -> None:
    loaded = manager(source="sample").load(["tinyllm_bench_native_generate"])
    assert sorted(loaded["tasks"]) == [f"tinyllm_{task}_generate" for task in NATIVE]
    for name, task in loaded["tasks"].items():
        docs = list(task.test_docs())
        records = load_split(SAMPLE, name.removeprefix("tinyllm_").removesuffix("_generate"), "test")
        assert [(doc["id"], doc["gold"]) for doc in docs] == [(record.id, record.gold_key) for record in records]
        wanted = [record.gold_text if record.number else record.answer for record in records]
        assert [doc["target"] for doc in docs] == wanted
        assert task.OUTPUT_TYPE == "generate_until"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_asked_for_as_in_training_with_shots_that_end_in_it(name: str) -> None:
    record, ask, lm = load_split(SAMPLE, name, "test")[0], Ask(mode="generate"), fakes.Recorder()
    evaluate(lm, EvalRequest(task=name, mode="generate", split="test", ids=(record.id,), source=SAMPLE, shots=2))
    shown = "".join(f"{ask.prompt(one)} {ask.label_target(one)}\n\n" for one in load_split(SAMPLE, name, "train")[:2])
    assert [args[0] for args in lm.requests] == [shown + ask.prompt(record)]


@pytest.mark.parametrize("name", NUMBERS)
def test_plain_lm_eval_reads_numbers_as_our_runner_does(name: str) -> None:
    import lm_eval

    records = load_split(SAMPLE, name, "test")
    gold = {Ask(mode="generate").prompt(record): record.gold_text for record in records}
    written = {prompt: (f" {text} dollars", " -1", " hm")[i % 3] for i, (prompt, text) in enumerate(gold.items())}
    lm = fakes.FakeLM(write=written.__getitem__)
    ours = evaluate(
        lm, EvalRequest(task=name, mode="generate", split="test", ids=tuple(r.id for r in records), source=SAMPLE)
    )
    assert [(p.correct, p.answer is None, p.parsed_by) for p in ours[:3]] == [
        (True, False, "alone"),
        (False, False, "alone"),
        (False, True, None),
    ]
    plain: Any = lm_eval.simple_evaluate(
        model=lm,
        tasks=[f"tinyllm_{name}_generate"],
        task_manager=manager(source="sample"),
        num_fewshot=0,
        bootstrap_iters=0,
    )
    found = plain["results"][f"tinyllm_{name}_generate"]
    assert found["exact_match,none"] == sum(p.correct for p in ours) / 16
    assert found["unparsed,none"] == sum(p.answer is None for p in ours) / 16


def test_no_yaml_has_drifted() -> None:
    assert task_yaml.drift(task_yaml.folder()) == []


def test_drift_is_noticed(tmp_path: Path) -> None:
    made = task_yaml.files()
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    assert task_yaml.drift(tmp_path) == []
    (tmp_path / "obqa_multiple_choice.yaml").write_text("task: another\n")
    (tmp_path / "left_over.yaml").write_text("task: left\n")
    (tmp_path / "piqa_generate.yaml").unlink()
    assert task_yaml.drift(tmp_path) == ["left_over.yaml", "obqa_multiple_choice.yaml", "piqa_generate.yaml"]


@pytest.mark.parametrize("mode", SCORING_MODES)
@pytest.mark.parametrize("name", TASKS)
def test_prompts_and_options_are_exactly_those_of_training(name: str, mode: ScoringMode) -> None:
    record = load_split(SAMPLE, name, "test")[0]
    lm = fakes.Recorder()
    evaluate(lm, EvalRequest(task=name, mode=mode, split="test", ids=(record.id,), source=SAMPLE))
    ask, cut = Ask(mode=mode), cut_context(record, 160)
    if mode == "generate":
        assert [args[0] for args in lm.requests] == [ask.prompt(cut)]
        assert lm.requests[0][1] == {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False}
    else:
        assert lm.requests == [(ask.prompt(cut), " " + option) for option in ask.options(record)]


@pytest.mark.parametrize("mode", SCORING_MODES)
def test_simple_evaluate_gives_the_same_answers_as_our_runner(mode: ScoringMode, tiny_llama: Any) -> None:
    import lm_eval

    from tinyllm_bench.evaluation.lm_eval_models import hf_lm

    lm: Any = hf_lm(*tiny_llama, batch_size=8, device="cpu")
    records = load_split(SAMPLE, "obqa", "test")
    request = EvalRequest(task="obqa", mode=mode, split="test", ids=tuple(r.id for r in records), source=SAMPLE)
    ours = evaluate(lm, request)
    name = f"tinyllm_obqa_{mode}"
    plain: Any = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=manager(source="sample"), num_fewshot=0, bootstrap_iters=0
    )
    metric = {"generate": "exact_match", "multiple_choice": "acc", "cloze": "acc_norm"}[mode]
    assert plain["results"][name][f"{metric},none"] == pytest.approx(sum(p.correct for p in ours) / len(ours))
    for prediction, sample in zip(ours, plain["samples"][name], strict=True):
        assert prediction.record_id == sample["doc"]["id"]
        if mode == "generate":
            assert prediction.samples[0].text == sample["resps"][0][0]
            assert float(prediction.answer is None) == sample["unparsed"]
        else:
            scores = [resp[0][0] for resp in sample["resps"]]
            assert prediction.option_logprobs == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
def test_the_lm_eval_command_runs(tiny_llama_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "lm_eval"), "--model", "hf", "--device", "cpu", "--limit", "5"),
            *("--model_args", f"pretrained={tiny_llama_dir},dtype=float32", "--tasks", "tinyllm_obqa_cloze"),
            *("--include_path", "tasks", "--metadata", '{"source": "sample"}'),
            *("--log_samples", "--output_path", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["doc"]["id"] for row in rows] == [r.id for r in load_split(SAMPLE, "obqa", "test")[:5]]
