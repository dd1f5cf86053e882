"""A card's sentences and front matter, from invented records."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import flags, make_record, make_reference
from tests.packages import TASK, installing
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import Gain
from tinyllm_bench.leaderboard.tables import BoardNames
from tinyllm_bench.publish.model_card import Exported, compared, gain_sentence, licence_notes, model_card

NAMES = BoardNames(baseline="baseline", baseline_title="label-only fine-tuning", order=("guess", "baseline"))
SMOLLM = {"spec": "bundled:smollm2-135m", "digest": "d", "initial_digest": "i"}
FULL = Exported(form="full", encoder_decoder=False, add_bos=False)


def trained(name: str, right: int, **changes: Any) -> RunRecord:
    return make_record(name, flags(20, right), **({"student": SMOLLM} | changes))


def card(record: RunRecord, *others: RunRecord, exported: Exported = FULL) -> str:
    return model_card(record, exported, others, NAMES, {})


def front_matter(text: str) -> dict[str, Any]:
    import yaml

    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match is not None
    values: dict[str, Any] = yaml.safe_load(match[1])
    return values


# --- gain -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "sentence"),
    [(19, "above zero."), (11, "not distinguishable from zero."), (1, "below zero. Label-only fine-tuning is better")],
)
def test_the_gain_is_stated_as_it_is(right: int, sentence: str) -> None:
    comparison = compared(trained("m", right), [trained("baseline", 10)], NAMES, {})
    assert (
        comparison is not None and sentence in comparison.gain and "for these trained students only" in comparison.gain
    )


def test_a_missing_gain_is_explained() -> None:
    assert (
        gain_sentence(Gain(why_not="other budget"), "the baseline")
        == "No gain over the baseline can be given: other budget."
    )
    assert "which gains are measured against" in gain_sentence(Gain(why_not="baseline"), "the baseline")
    comparison = compared(trained("m", 12), [trained("baseline", 10, tokens=5000)], NAMES, {})
    assert comparison is not None and "other budget" in comparison.gain


def test_only_comparable_rows_are_compared() -> None:
    other_student = {"spec": "hf:me/big", "digest": "x", "initial_digest": "y"}
    others = [
        trained("baseline", 10),
        trained("m", 12, seed=1),
        trained("rival", 19),
        trained("baseline", 10, student=other_student, seed=2),
        trained("baseline", 10, task="elsewhere"),
        trained("baseline", 10, seed=3, selected_on="test"),
        make_reference("guess", flags(20, 5)),
        make_reference("zero", flags(20, 6), student={"spec": "hf:me/big"}),
    ]
    comparison = compared(trained("m", 11), others, NAMES, {})
    assert comparison is not None
    assert [(line["row"], line["seeds"]) for line in comparison.table] == [
        ("guess", "1"),
        ("baseline", "1"),
        ("m", "2"),
    ]
    assert compared(trained("m", 11), others[2:3], NAMES, {}) is None


# --- licences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "page"),
    [
        ("bundled:smollm2-135m?layers=0:30:3", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("hf:google/flan-t5-xl@main", "google/flan-t5-xl"),
    ],
)
def test_a_hub_model_is_linked_for_its_licence(spec: str, page: str) -> None:
    note = next(licence_notes(trained("m", 10, student={"spec": spec})))
    assert f"<https://huggingface.co/{page}>" in note


@pytest.mark.parametrize("spec", ["dir:smollm2-135m", "gguf:llama-2-7b.gguf", "run:a-run"])
def test_the_licence_of_another_model_must_be_looked_up(spec: str) -> None:
    assert "its licence is not recorded; look it up" in next(licence_notes(trained("m", 10, student={"spec": spec})))


def test_the_front_matter_links_the_licence_notes_which_cover_teachers() -> None:
    text = card(trained("m", 10, teachers=[{"spec": "replay:release#llama-2-7b", "gold_visible": True}]))
    assert front_matter(text)["license"] == "other" and front_matter(text)["license_link"] == "README.md"
    assert "Teacher `replay:release#llama-2-7b`: its licence is not recorded" in text
    assert re.search(r"replay:release#llama-2-7b *\| not recorded *\| yes ", text)
    assert "a teacher's licence can extend to this student" in text


# --- front matter and blocks ------------------------------------------------------------------------------------------


def test_results_are_in_the_model_index_unless_they_are_of_sample_data() -> None:
    metadata = front_matter(card(trained("m", 12, task="obqa")))
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 60.0 and result["metrics"][0]["type"] == "accuracy"
    assert result["dataset"]["type"] == "allenai/openbookqa" and metadata["datasets"] == ["allenai/openbookqa"]
    assert metadata["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    sample = front_matter(card(trained("m", 12, task="obqa", sample=True)))
    assert "model-index" not in sample and "datasets" not in sample and "sample-data" in sample["tags"]


def test_sample_questions_are_credited_to_the_task_that_they_come_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = card(trained("m", 12, task="obqa", sample=True))
    assert "Data: sample questions written by tinyllm-bench's authors, Apache-2.0." in own
    with installing(tmp_path, monkeypatch) as site:
        site.add("colours", TASK.format(name="colours"), tasks="colours = TASK")
        foreign = card(trained("m", 12, task="colours", sample=True))
    assert "Data: sample questions that come with the task Somebody's: none." in foreign
    assert "Apache" not in foreign and "authors" not in foreign


def test_a_task_and_a_method_that_are_not_installed_are_unknown() -> None:
    text = card(trained("m", 12))
    assert "Data `toy`: licence unknown" in text and "a method that is not installed here" in text
    assert "Which of these floats on water?" in text and "No reference baselines and no label-only fine-tuning" in text


def test_a_label_cannot_break_the_card() -> None:
    text = card(trained("m", 12, label="a | b <script>"))
    assert "<script>" not in text.split("---", 2)[2]


@pytest.mark.parametrize("encoder_decoder", [False, True])
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("mode", ["cloze", "multiple_choice", "generate"])
@pytest.mark.parametrize("form", ["full", "adapter"])
@pytest.mark.parametrize("spec", ["hf:me/base@abc", "bundled:smollm2-135m?layers=0:30:3"])
def test_every_block_of_code_is_python(encoder_decoder: bool, add_bos: bool, mode: str, form: Any, spec: str) -> None:
    exported = Exported(form=form, encoder_decoder=encoder_decoder, add_bos=add_bos)
    text = card(trained("m", 12, task="obqa", mode=mode, student={"spec": spec}), exported=exported)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == (1 if encoder_decoder or form == "adapter" else 2)
    for block in blocks:
        compile(block, "card", "exec")
    assert ("tokenizer.bos_token + prompt" in blocks[0]) == add_bos
    assert ("PeftModel" in blocks[0]) == (form == "adapter" and spec.startswith("hf:"))
    assert "{{" not in text and "\n\n\n\n" not in text
