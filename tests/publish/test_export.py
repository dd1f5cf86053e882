"""A run's student as a folder that transformers loads alone, and that answers as the run's predictions say."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_json, write_json
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.predict import load_predictions, predictions_file
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.publish.export import ExportBundle, find_run, make_bundle, write_bundle
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

pytestmark = pytest.mark.slow

LORA = "student.lora={r: 2}"
FEW = ("eval.limit=6", "eval.valid_limit=4", "train.evaluations=[1.0]")
PATHS = ("teachers=[replay:sample#stepwise]", "backend.engine=hf", *FEW, "method.max_new_tokens=12")


@pytest.fixture(scope="module")
def runs(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished runs by name: fine-tuning, a method, the reference baselines, in one folder of runs."""
    place = tmp_path_factory.mktemp("runs")
    cells = cells_of(quick(tiny_llama_dir, methods=("finetune", "tinyllm"), runs=place), reference_baselines=True)
    return {cell.name: outcome.folder for cell, outcome in zip(cells, run_all(cells, place), strict=True)}


def exported(folder: Path, to: Path, **how: Any) -> ExportBundle:
    bundle = make_bundle(folder, **how)
    write_bundle(bundle, to)
    return bundle


def run_card_code(to: Path) -> Mapping[str, Any]:
    """Run the card's first block of Python as a reader would; returns the names it defines."""
    block = re.search(r"```python\n(.*?)```", (to / "README.md").read_text(), re.DOTALL)
    assert block is not None and 'name = "."' in block[1]
    names: dict[str, Any] = {}
    exec(block[1].replace('name = "."', f"name = {str(to)!r}"), names)  # noqa: S102
    return names


def stored(cell: Cell, folder: Path) -> Any:
    return load_predictions(predictions_file(cell, folder))


def check_ranking(cell: Cell, folder: Path, to: Path) -> None:
    names = run_card_code(to)
    for record, prediction in zip(cell.truncated_records("test"), stored(cell, folder), strict=True):
        own = [names["log_probability"](cell.ask.prompt(record), option) for option in cell.ask.options(record)]
        assert own == pytest.approx(prediction.option_logprobs, abs=2e-3)


@pytest.mark.parametrize("mode", ["cloze", "multiple_choice"])
@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_t5_dir"])
def test_the_card_s_code_gives_the_run_s_log_probabilities(
    family: str, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cell = one_cell(request.getfixturevalue(family), *FEW, f"eval.mode={mode}", runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    exported(outcome.folder, tmp_path / "to")
    check_ranking(cell, outcome.folder, tmp_path / "to")


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_t5_dir"])
def test_the_card_s_code_writes_what_the_run_wrote(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*FEW, "eval.mode=generate", "backend.engine=hf", "eval.max_new_tokens=8")
    cell = one_cell(request.getfixturevalue(family), *settings, runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    exported(outcome.folder, tmp_path / "to")
    names = run_card_code(tmp_path / "to")
    for record, prediction in zip(cell.truncated_records("test"), stored(cell, outcome.folder), strict=True):
        assert names["write"](cell.ask.prompt(record)) == prediction.samples[0].text.split("\n\n")[0].strip()


def test_the_folder_is_complete_and_holds_no_path_of_this_machine(runs: dict[str, Path], tmp_path: Path) -> None:
    bundle = exported(runs["tinyllm"], tmp_path / "to", predictions=True)
    files = {str(file.relative_to(tmp_path / "to")) for file in (tmp_path / "to").rglob("*") if file.is_file()}
    assert files == bundle.files.keys() == bundle.sizes.keys()
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "run.json"} <= files
    assert "predictions/obqa.jsonl.zst" in files and not any(name.startswith(".eval_results") for name in files)
    assert (tmp_path / "to" / "run.json").read_bytes() == (runs["tinyllm"] / "run.json").read_bytes()
    machine = str(tmp_path.parent.parent)
    for name in files - {"model.safetensors"}:
        assert machine.encode() not in (tmp_path / "to" / name).read_bytes(), name
    assert "local_files_only" not in read_json(tmp_path / "to" / "tokenizer_config.json")


def test_the_card_covers_method_scores_teachers_and_gain(runs: dict[str, Path]) -> None:
    record = load_record(runs["tinyllm"])
    card = make_bundle(runs["tinyllm"], repo="me/student").card
    assert 'from_pretrained("me/student")' not in card and 'name = "me/student"' in card
    assert "arXiv:2402.04616" in card and record.command in card and record.student and record.student.digest
    for word in (
        record.student.digest,
        "replay:sample#terse",
        "is no benchmark result",
        "of 16)",
        r"random \[sample\]",
    ):
        assert word in card
    assert re.search(r"(points|No gain) over label-only fine-tuning (at equal budget|can be given)", card)
    assert "model-index" not in card  # sample data


def test_reference_baselines_have_no_student(runs: dict[str, Path]) -> None:
    for name in ("random", "zero_shot"):
        with pytest.raises(UserError, match="is a reference baseline: nothing was trained"):
            make_bundle(runs[name])


def test_a_run_is_found_by_folder_record_and_id(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = runs["finetune"]
    for name in (str(folder), str(folder / "run.json"), folder.name):
        assert find_run(name, folder.parent) == folder
    with pytest.raises(UserError, match=f"Did you mean '{folder.name}'"):
        find_run(folder.name[:-1], folder.parent)
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match="is not finished, or only trains"):
        find_run("half", tmp_path)


@pytest.fixture
def copied(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run that a test may spoil."""
    return Path(shutil.copytree(runs["finetune"], tmp_path / "runs" / runs["finetune"].name))


def other_weights(student: Path) -> None:
    saved(tiny_llama(seed=1), student)


def other_tokenizer(student: Path) -> None:
    settings = read_json(student / "tokenizer_config.json")
    write_json(student / "tokenizer_config.json", settings | {"chat_template": "{{ messages }}"})


def pickled(student: Path) -> None:
    (student / "optimizer.pt").write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_weights, "the weights' digest is .* this is not the student that was scored"),
        (other_tokenizer, "the tokenizer's digest is .* this is not the student that was scored"),
        (pickled, "optimizer.pt: not a file of a trained student"),
        (shutil.rmtree, "the student that the record describes is missing"),
    ],
)
def test_what_was_not_scored_is_not_exported(copied: Path, spoil: Callable[[Path], Any], message: str) -> None:
    make_bundle(copied)
    spoil(copied / "student")
    with pytest.raises(UserError, match=message):
        make_bundle(copied)


@pytest.mark.parametrize("text", ["", "student:\n", "student: 3\n", "student: {dtype: 3}\n", "[]\n", "a: ["])
def test_settings_that_a_run_did_not_write_are_one_line(copied: Path, text: str) -> None:
    (copied / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml") as refused:
        make_bundle(copied)
    assert "\n" not in str(refused.value)


def test_nothing_is_overwritten(copied: Path, tmp_path: Path) -> None:
    bundle = make_bundle(copied)
    (tmp_path / "to").mkdir()
    write_bundle(bundle, tmp_path / "to")
    with pytest.raises(UserError, match="there is something already"):
        write_bundle(bundle, tmp_path / "to")


def test_a_broken_neighbouring_record_is_reported(copied: Path) -> None:
    (copied.parent / "other").mkdir()
    (copied.parent / "other" / "run.json").write_text("{}")
    (reason,) = make_bundle(copied).left_out
    assert "other/run.json is not a run record" in reason


def test_adapters_are_exported_alone_or_merged(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, *FEW, LORA, runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    merged = exported(outcome.folder, tmp_path / "merged")
    assert "LoRA adapters merged" in merged.card
    check_ranking(cell, outcome.folder, tmp_path / "merged")

    bundle = exported(outcome.folder, tmp_path / "adapter", adapter=True)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= bundle.files.keys()
    assert "model.safetensors" not in bundle.files and "library_name: peft" in bundle.card
    assert sum(bundle.sizes.values()) < sum(merged.sizes.values())
    check_adapters(cell, outcome.folder, tiny_llama_dir, tmp_path / "adapter")


def check_adapters(cell: Cell, folder: Path, base: Path, adapter: Path) -> None:
    """peft itself loads them onto the base model, and the student answers as it did."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    record, prediction = cell.truncated_records("test")[0], stored(cell, folder)[0]
    prompt, option = cell.ask.prompt(record), cell.ask.options(record)[0]
    ids = tokenizer(f"{prompt} {option}", return_tensors="pt").input_ids
    start = len(tokenizer(prompt).input_ids)
    steps = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
    own = steps.gather(1, ids[0, start:, None]).sum().item()
    assert own == pytest.approx(prediction.option_logprobs[0], abs=2e-3)


def test_adapters_of_another_student_are_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (outcome,) = run_all([one_cell(tiny_llama_dir, *FEW, LORA, runs=tmp_path)], tmp_path)
    file = outcome.folder / "adapter" / "adapter_config.json"
    write_json(file, read_json(file) | {"lora_alpha": 64})
    make_bundle(outcome.folder)
    with pytest.raises(UserError, match="does not give the student that was scored"):
        make_bundle(outcome.folder, adapter=True)
    shutil.rmtree(outcome.folder / "adapter")
    with pytest.raises(UserError, match="has no adapters, as runs of older versions do"):
        make_bundle(outcome.folder, adapter=True)


def test_a_fully_trained_student_has_no_adapters(copied: Path) -> None:
    with pytest.raises(UserError, match=r"was trained fully \(student.lora is null\)"):
        make_bundle(copied, adapter=True)


def test_a_student_that_another_cell_trained_is_found(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, *PATHS, method="mixed_distillation", tasks=("svamp",), runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    assert not (outcome.folder / "student").exists()
    bundle = exported(outcome.folder, tmp_path / "to")
    assert "model.safetensors" in bundle.files and "in a sandbox" in bundle.card
    assert bundle.card.count("print(write(") == 2


def test_one_of_several_students_is_selected_by_channel(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = (*PATHS, "method.ensemble=true", "method.report_all=false")
    cell = one_cell(tiny_llama_dir, *settings, method="mixed_distillation", tasks=("svamp",), runs=tmp_path)
    (outcome,) = run_all([cell], tmp_path)
    with pytest.raises(UserError, match="one a channel: cot, pot; name one with --channel"):
        make_bundle(outcome.folder)
    with pytest.raises(UserError, match="unknown channel"):
        make_bundle(outcome.folder, channel="label")
    weights = {}
    for channel, student_cell in cell.students.items():
        bundle = exported(outcome.folder, tmp_path / channel, channel=channel)
        weights[channel] = (tmp_path / channel / "model.safetensors").read_bytes()
        assert weights[channel] == (tmp_path / student_cell.run_id / "student" / "model.safetensors").read_bytes()
        assert f"the one that writes channel `{channel}`" in bundle.card
    assert weights["cot"] != weights["pot"]
    assert json.loads((tmp_path / "cot" / "run.json").read_text())["run_id"] == cell.run_id
