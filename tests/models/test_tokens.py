"""Training reads the ids that lm-eval scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.learning import SAMPLE
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.plugins import names
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SCORING_MODES
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.evaluation.lm_eval_models import hf_lm
from tinyllm_bench.models.tokens import Encoder


def encoder(tokenizer: Any, ask: Ask, **limits: Any) -> Encoder:
    settings = {"encoder_decoder": False, "add_bos": False, "max_prompt_tokens": 4000, "max_target_tokens": 256}
    return Encoder(tokenizer, ask, **{**settings, **limits})


def assert_same_ids(model: Any, tokenizer: Any, *, encoder_decoder: bool) -> None:
    lm = hf_lm(model, tokenizer, batch_size=1, device="cpu")
    for task in names("task"):
        for mode in SCORING_MODES:
            ask = Ask(mode=mode)
            made = encoder(tokenizer, ask, encoder_decoder=encoder_decoder)
            for record in load_split(SAMPLE, task, "test"):
                example = made.encode(ask.example(record, "label", ask.label_target(record)))
                scored = lm._encode_pair(ask.prompt(record), ask.delimiter + ask.label_target(record))
                assert (list(example.prompt), list(example.target[:-1])) == scored
                assert example.target[-1] == tokenizer.eos_token_id


def test_a_decoder_only_student_is_trained_on_what_it_is_asked(tiny_llama: tuple[Any, Any]) -> None:
    assert_same_ids(*tiny_llama, encoder_decoder=False)


def test_an_encoder_decoder_student_is_trained_on_what_it_is_asked(tiny_t5: tuple[Any, Any]) -> None:
    assert_same_ids(*tiny_t5, encoder_decoder=True)


@pytest.mark.bundled
def test_the_bundled_student_is_trained_on_what_it_is_asked(bundled_smollm: Path) -> None:
    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    assert_same_ids(
        *load_model(parse_spec("bundled:smollm2-135m?layers=0:30:15", role="student")), encoder_decoder=False
    )


def test_a_long_target_is_cut_without_eos_and_says_so(tiny_llama: tuple[Any, Any]) -> None:
    ask, record = Ask(mode="cloze"), load_split(SAMPLE, "obqa", "test")[0]
    made = encoder(tiny_llama[1], ask, max_target_tokens=4).encode(ask.example(record, "why", "long " * 50))
    assert made.cut and len(made.target) == 4 and made.target[-1] != tiny_llama[1].eos_token_id


def test_a_long_prompt_is_refused_never_cut(tiny_llama: tuple[Any, Any]) -> None:
    ask, record = Ask(mode="cloze"), load_split(SAMPLE, "obqa", "test")[0]
    with pytest.raises(UserError, match=rf"{record.id}.*at most 5.*max_context_words"):
        encoder(tiny_llama[1], ask, max_prompt_tokens=5).encode(ask.example(record, "label", "x"))


def test_bos_leads_where_a_model_needs_it(tiny_llama: tuple[Any, Any]) -> None:
    tokenizer = tiny_llama[1]
    tokenizer.bos_token = "<pad>"
    ask, record = Ask(mode="cloze"), load_split(SAMPLE, "obqa", "test")[0]
    example = ask.example(record, "label", "x")
    plain, led = (encoder(tokenizer, ask, add_bos=bos).encode(example).prompt for bos in (False, True))
    assert led == (tokenizer.bos_token_id, *plain)


def test_the_paper_s_style_reads_the_marker_first(tiny_llama: tuple[Any, Any]) -> None:
    ask = replace(Ask(mode="generate"), style="paper")
    record = load_split(SAMPLE, "obqa", "test")[0]
    made = encoder(tiny_llama[1], ask).encode(ask.example(record, "label", "x"))
    assert tiny_llama[1].decode(made.prompt).startswith("predict: ")


SPELLED = "Does {name} end it,{name}or not {name}?"


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
def test_a_special_token_spelled_in_data_is_text_in_training_and_in_evaluation(
    family: str, request: pytest.FixtureRequest
) -> None:
    model, tokenizer = request.getfixturevalue(family)
    lm = hf_lm(model, tokenizer, batch_size=1, device="cpu")
    record = load_split(SAMPLE, "obqa", "test")[0]
    control = [n for n in tokenizer.all_special_tokens if n != tokenizer.unk_token]
    assert control
    for name in control:
        spelled = replace(
            record, question=SPELLED.format(name=name), choices=(name, f"a{name}b", *record.choices[2:]), answer=0
        )
        for mode in SCORING_MODES:
            ask = Ask(mode=mode)
            made = encoder(tokenizer, ask, encoder_decoder=family == "tiny_t5")
            example = made.encode(ask.example(spelled, "label", ask.label_target(spelled)))
            scored = lm._encode_pair(ask.prompt(spelled), ask.delimiter + ask.label_target(spelled))
            assert (list(example.prompt), list(example.target[:-1])) == scored
            ids = [*example.prompt, *example.target]
            plain = made.encode(ask.example(record, "label", ask.label_target(record)))
            added = [one for one in (*plain.prompt, *plain.target) if one in tokenizer.all_special_ids]
            special = [one for one in ids if one in tokenizer.all_special_ids and one != tokenizer.unk_token_id]
            assert special == [one for one in added if one != tokenizer.unk_token_id], "only what the tokenizer adds"
