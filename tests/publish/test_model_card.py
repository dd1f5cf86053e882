"""A card's sentences and front matter, from invented records."""

import re
from typing import Any

import pytest

from tests.leaderboard.fakes import flags, make_record, make_reference
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import Gain
from tinyllm_bench.leaderboard.tables import BoardNames
from tinyllm_bench.publish.card_parts import compared, gain_sentence, licence_notes
from tinyllm_bench.publish.model_card import Exported, model_card

NAMES = BoardNames(baseline="floor", baseline_title="label-only fine-tuning", order=("guess", "floor"))
SMOLLM = {"spec": "bundled:smollm2-135m", "digest": "d", "initial_digest": "i"}
FULL = Exported(form="full", encoder_decoder=False, add_bos=False)


def trained(name: str, right: int, **changes: Any) -> RunRecord:
    return make_record(name, flags(20, right), **({"student": SMOLLM} | changes))


def card(record: RunRecord, *others: RunRecord, exported: Exported = FULL) -> str:
    return model_card(record, exported, others, NAMES, {})


def front_matter(text: str) -> dict[str, Any]:
    import yaml

    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found is not None
    values: dict[str, Any] = yaml.safe_load(found[1])
    return values


# --- gain -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "said"),
    [(19, "above zero."), (11, "not distinguishable from zero."), (1, "below zero. Label-only fine-tuning is better")],
)
def test_the_gain_is_told_as_it_is(right: int, said: str) -> None:
    found = compared(trained("m", right), [trained("floor", 10)], NAMES, {})
    assert found is not None and said in found.gain and "for these trained students only" in found.gain


def test_no_gain_says_why() -> None:
    assert (
        gain_sentence(Gain(why_not="other budget"), "the floor") == "No gain over the floor can be given: other budget."
    )
    assert "which gains are measured against" in gain_sentence(Gain(why_not="baseline"), "the floor")
    found = compared(trained("m", 12), [trained("floor", 10, tokens=5000)], NAMES, {})
    assert found is not None and "other budget" in found.gain


def test_only_what_belongs_beside_it_stands_there() -> None:
    other_student = {"spec": "hf:me/big", "digest": "x", "initial_digest": "y"}
    others = [
        trained("floor", 10),
        trained("m", 12, seed=1),
        trained("rival", 19),
        trained("floor", 10, student=other_student, seed=2),
        trained("floor", 10, task="elsewhere"),
        trained("floor", 10, seed=3, selected_on="test"),
        make_reference("guess", flags(20, 5)),
        make_reference("zero", flags(20, 6), student={"spec": "hf:me/big"}),
    ]
    found = compared(trained("m", 11), others, NAMES, {})
    assert found is not None
    assert [(line["row"], line["seeds"]) for line in found.table] == [("guess", "1"), ("floor", "1"), ("m", "2")]
    assert compared(trained("m", 11), others[2:3], NAMES, {}) is None


# --- licences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "page"),
    [
        ("bundled:smollm2-135m?layers=0:30:3", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("hf:google/flan-t5-xl@main", "google/flan-t5-xl"),
    ],
)
def test_a_model_of_the_hub_is_linked_for_its_licence(spec: str, page: str) -> None:
    told = next(licence_notes(trained("m", 10, student={"spec": spec})))
    assert f"<https://huggingface.co/{page}>" in told


@pytest.mark.parametrize("spec", ["dir:smollm2-135m", "gguf:llama-2-7b.gguf", "run:a-run"])
def test_a_model_that_has_no_page_is_to_be_looked_up(spec: str) -> None:
    assert "its licence is not recorded; look it up" in next(licence_notes(trained("m", 10, student={"spec": spec})))


def test_the_front_matter_points_to_the_notes_and_teachers_are_among_them() -> None:
    text = card(trained("m", 10, teachers=[{"spec": "replay:release#llama-2-7b", "gold_visible": True}]))
    assert front_matter(text)["license"] == "other" and front_matter(text)["license_link"] == "README.md"
    assert "Teacher `replay:release#llama-2-7b`: its licence is not recorded" in text
    assert re.search(r"replay:release#llama-2-7b *\| not recorded *\| yes ", text)
    assert "a teacher's licence can reach this student" in text


# --- front matter and blocks ------------------------------------------------------------------------------------------


def test_results_stand_in_the_model_index_unless_they_are_of_sample_data() -> None:
    found = front_matter(card(trained("m", 12, task="obqa")))
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 60.0 and result["metrics"][0]["type"] == "accuracy"
    assert result["dataset"]["type"] == "allenai/openbookqa" and found["datasets"] == ["allenai/openbookqa"]
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    sample = front_matter(card(trained("m", 12, task="obqa", sample=True)))
    assert "model-index" not in sample and "datasets" not in sample and "sample-data" in sample["tags"]


def test_a_task_and_a_method_that_are_not_installed_are_said_to_be_unknown() -> None:
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
