"""Predictions through lm-eval: order, independence of chunks, shots, perfect and chance answers, refusals."""

import logging
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import fakes
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SCORING_MODES, ScoringMode, cut_context
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation import runner
from tinyllm_bench.evaluation.lm_eval_models import hf_lm
from tinyllm_bench.evaluation.runner import EvalRequest, evaluate
from tinyllm_bench.evaluation.scoring import score
from tinyllm_bench.models.tokens import respelled
from tinyllm_bench.testing.tiny_models import unigram_tokenizer

SAMPLE = Source(kind="sample")
RECORDS = load_split(SAMPLE, "obqa", "test")
IDS = tuple(record.id for record in RECORDS)


def eval_request(mode: ScoringMode, ids: tuple[str, ...] = IDS, **more: Any) -> EvalRequest:
    return EvalRequest(**{"task": "obqa", "mode": mode, "split": "test", "ids": ids, "source": SAMPLE, **more})


@pytest.mark.parametrize("mode", SCORING_MODES)
def test_a_perfect_model_scores_one_in_the_order_requested(mode: ScoringMode) -> None:
    ids = IDS[5:] + IDS[:5]
    predictions = evaluate(fakes.perfect(RECORDS, mode), eval_request(mode, ids))
    assert [p.record_id for p in predictions] == list(ids)
    found = score(predictions, RECORDS)
    assert (found.accuracy, found.unparsed, found.ties) == (1.0, 0, 0)
    assert {p.parsed_by for p in predictions} == {
        {"generate": "exact", "multiple_choice": "logprob", "cloze": "logprob_per_char"}[mode]
    }


def test_a_model_without_a_clue_scores_about_chance() -> None:
    accuracies = [score(evaluate(fakes.chance(seed), eval_request("cloze")), RECORDS).accuracy for seed in range(20)]
    assert sum(accuracies) / len(accuracies) == pytest.approx(
        0.25, abs=0.09
    )  # 320 answers: three standard errors are 0.073


def test_validation_goes_the_same_way() -> None:
    valid = load_split(SAMPLE, "obqa", "valid")
    request = eval_request("cloze", tuple(r.id for r in valid), split="valid")
    assert score(evaluate(fakes.perfect(valid, "cloze"), request), valid).accuracy == 1.0


def test_ties_take_the_first_option_and_are_counted() -> None:
    lm = fakes.FakeLM(lambda _, text: -float(len(text) - 1))  # -1 per character for every option
    predictions = evaluate(lm, eval_request("cloze"))
    assert {p.answer for p in predictions} == {0}
    assert score(predictions, RECORDS).ties == len(RECORDS)


class Writer(fakes.FakeLM):
    """Writes to each prompt the text of a mapping, as well as its tokenizer can."""

    def __init__(self, tokenizer: Any, texts: dict[str, str]) -> None:
        super().__init__(write=lambda prompt: " " + respelled(tokenizer, texts[prompt]))
        self.tokenizer = tokenizer


def lossy(alphabet: set[str]) -> Any:
    """A tokenizer of single characters that loses what T5's does: NFKC, one space for many, no `{}<>~^\\``."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({c for text in alphabet for c in unicodedata.normalize("NFKC", text)} - set("{}<~^\\` \n\t"))
    entries = ["<pad>", "</s>", "<unk>", "▁", *letters]
    backend = Tokenizer(models.Unigram([(entry, -1.0) for entry in entries], unk_id=2))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


# Of the golds of each test split, how many this tokenizer cannot write letter for letter.
@pytest.mark.parametrize(("task", "lost"), [("piqa", 79), ("arc", 15), ("obqa", 0)])
def test_a_gold_is_compared_as_the_student_s_tokenizer_writes_it(task: str, lost: int, release: Path) -> None:
    source = Source(kind="release", folder=str(release))
    records = load_split(source, task, "test")
    tokenizer = lossy({choice for record in records for choice in record.choices})
    assert sum(respelled(tokenizer, record.gold_text) != record.gold_text for record in records) == lost
    ask = Ask(mode="generate")
    lm = Writer(tokenizer, {ask.prompt(cut_context(record, 160)): record.gold_text for record in records})
    ids = tuple(record.id for record in records)
    predictions = evaluate(lm, eval_request("generate", ids, task=task, source=source, match="exact"))
    assert score(predictions, records).accuracy == 1.0
    assert all(one.choices_read == tuple(respelled(tokenizer, c) for c in r.choices)
               for one, r in zip(predictions, records, strict=True))  # fmt: skip


def test_exact_match_is_to_the_letter_all_the_same() -> None:
    ask = Ask(mode="generate")
    tokenizer = unigram_tokenizer()
    near = Writer(tokenizer, {ask.prompt(record): record.gold_text + "." for record in RECORDS})
    assert {one.answer for one in evaluate(near, eval_request("generate", match="exact"))} == {None}


def test_what_cannot_be_read_is_unparsed() -> None:
    predictions = evaluate(fakes.FakeLM(write=lambda _: " hm"), eval_request("generate"))
    found = score(predictions, RECORDS)
    assert found.unparsed == found.n == len(RECORDS)
    assert predictions[0].samples[0].text == " hm" and predictions[0].samples[0].tokens is None


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="diverge"):
        evaluate(fakes.FakeLM(lambda *_: float("nan")), eval_request("multiple_choice"))


@pytest.mark.parametrize("mode", SCORING_MODES)
def test_answers_do_not_depend_on_the_other_records(mode: ScoringMode, tiny_llama: Any) -> None:
    lm = hf_lm(*tiny_llama, batch_size=4, device="cpu")
    together = evaluate(lm, eval_request(mode, max_new_tokens=8))
    apart = [
        p
        for start in (0, 3, 10)
        for p in evaluate(lm, eval_request(mode, IDS[start : {0: 3, 3: 10, 10: 16}[start]], max_new_tokens=8))
    ]
    assert [p.record_id for p in apart] == [p.record_id for p in together]
    for one, other in zip(together, apart, strict=True):
        assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-4)
        assert (one.answer, one.samples, one.stopped) == (other.answer, other.samples, other.stopped)


@pytest.mark.parametrize("mode", SCORING_MODES)
def test_shots_are_the_first_training_records_whichever_record_is_evaluated(mode: ScoringMode) -> None:
    lm = fakes.Recorder()
    evaluate(lm, eval_request(mode, IDS[:2], shots=3))
    evaluate(lm, eval_request(mode, IDS[7:8], shots=3))
    ask, train = Ask(mode=mode), load_split(SAMPLE, "obqa", "train")
    head = "".join(f"{ask.prompt(r)} {ask.label_target(r)}\n\n" for r in train[:3])
    prompts = {args[0] for args in lm.requests}
    assert prompts == {head + ask.prompt(record) for record in (RECORDS[0], RECORDS[1], RECORDS[7])}


def test_long_texts_of_shots_are_cut() -> None:
    lm = fakes.Recorder()
    pubmed = load_split(SAMPLE, "pubmedqa", "test")
    evaluate(
        lm,
        eval_request(
            "multiple_choice", (pubmed[0].id,), task="pubmedqa", shots=1, shot_max_words=5, max_context_words=7
        ),
    )
    shot, question = lm.requests[0][0].split("\n\n")
    first = load_split(SAMPLE, "pubmedqa", "train")[0]
    assert shot.startswith(" ".join(first.context.split()[-5:]) + "\n")
    assert question.startswith(" ".join(pubmed[0].context.split()[-7:]) + "\n")


def test_a_record_among_its_own_shots_is_noticed() -> None:
    sample = {
        "doc": {"id": "x", "prompt": "P", "options": ["a"], "target": 0, "choices": ["a"]},
        "arguments": [("P a\n\nP", " a")],
        "resps": [[(0.0, False)]],
    }
    with pytest.raises(AssertionError, match="own few-shot"):
        runner._prediction(eval_request("multiple_choice", ("x",), shots=1), sample, {})


def test_braces_and_spaces_in_a_question_reach_the_model_untouched() -> None:
    from lm_eval.tasks import TaskManager

    task = runner.build_task(eval_request("multiple_choice", IDS[:1]))
    assert isinstance(runner._task_manager("obqa"), TaskManager)
    odd = {"prompt": "{{ 7*7 }} {% if x %}  42 \n ", "options": ["{{a}}", " b "], "target": 1, "id": "i"}
    assert task.doc_to_text(odd) == odd["prompt"] and task.doc_to_choice(odd) == odd["options"]
    requests: Any = task.construct_requests(odd, task.fewshot_context(odd, 0))
    assert [r.args for r in requests] == [(odd["prompt"], " {{a}}"), (odd["prompt"], "  b ")]


def test_paper_style_and_other_markers() -> None:
    lm = fakes.Recorder()
    evaluate(lm, eval_request("cloze", IDS[:1], style="paper"))
    assert lm.requests[0][0] == f"predict: Question: {RECORDS[0].question}"
    lm = fakes.Recorder()
    evaluate(lm, eval_request("cloze", IDS[:1], markers={"label": "\nA:"}))
    assert lm.requests[0][0] == f"Question: {RECORDS[0].question}\nA:"


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(UserError, match="no record 'obqa/test/nowhere'"):
        evaluate(fakes.Recorder(), eval_request("multiple_choice", ("obqa/test/nowhere",)))
    with pytest.raises(UserError, match="at least one id"):
        eval_request("multiple_choice", ())
    with pytest.raises(UserError, match="twice"):
        eval_request("multiple_choice", IDS[:1] * 2)
    with pytest.raises(UserError, match="few-shot"):
        eval_request("multiple_choice", ("obqa/train/1",), split="train", shots=2)
    with pytest.raises(UserError, match="unknown task"):
        evaluate(fakes.Recorder(), eval_request("multiple_choice", task="obq"))


def test_an_evaluation_is_quiet_and_leaves_random_numbers_and_logging_alone(capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    state, python_state = torch.random.get_rng_state(), random.getstate()
    level = logging.getLogger("lm_eval").level
    evaluate(fakes.perfect(RECORDS, "generate"), eval_request("generate"))
    assert torch.equal(state, torch.random.get_rng_state()) and random.getstate() == python_state
    assert logging.getLogger("lm_eval").level == level
    assert capfd.readouterr() == ("", "")
