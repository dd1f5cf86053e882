"""Losses between models with different tokenizers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.tokenizer_pair import bundled, numerals, splitting
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.cross_losses import (
    LOSSES,
    ColumnMap,
    CrossLoss,
    Prefix,
    TokenizerPair,
    overlap_N,
    span_projection_N,
    uld_N,
)
from tinyllm_bench.training.cross_tokenizer import CrossView, make_view

STUDENT, TEACHER = numerals(), splitting()
SPAN_LOSSES = [span_projection_N, overlap_N]


def encoded(text: str, *, tokenizer: Any = STUDENT, ended: bool = True) -> Encoded:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Encoded("r", "label", (5, 6), (*ids, tokenizer.eos_token_id) if ended else ids, not ended)


def view(*texts: str, teacher: Any = TEACHER, ended: bool = True) -> CrossView:
    items = [encoded(text, ended=ended) for text in texts]
    return make_view(items, STUDENT, teacher, ["Q:" for _ in texts])


def tokenizer_pair(**settings: Any) -> TokenizerPair:
    return TokenizerPair(STUDENT, TEACHER, **settings)


def random_logits(aligned: CrossView, *, teacher: Any = TEACHER) -> tuple[Tensor, Tensor]:
    rows = len(aligned.spans.student_ids_N), len(aligned.spans.teacher_ids_M)
    student = torch.randn(rows[0], len(STUDENT), dtype=torch.float64, requires_grad=True)
    return student, torch.randn(rows[1], len(teacher), dtype=torch.float64)


def sure(ids_N: Tensor, size: int, probability: float = 0.999) -> Tensor:
    """Logits that give the ids a probability and share the rest out evenly."""
    rest = torch.full((len(ids_N), size), (1 - probability) / (size - 1), dtype=torch.float64)
    return rest.scatter(1, ids_N[:, None], probability).log()


def token(tokenizer: Any, entry: str) -> int:
    return int(tokenizer.get_vocab()[entry])


@pytest.mark.parametrize("loss", SPAN_LOSSES)
def test_one_tokenizer_on_both_sides_is_plain_forward_kl(loss: Any) -> None:
    aligned = view("the cat sat 347 日本", " answer", teacher=STUDENT)
    student, teacher = random_logits(aligned, teacher=STUDENT)
    assert aligned.align_ratio == 1 and torch.equal(aligned.spans.student_ids_N, aligned.spans.teacher_ids_M)
    result = loss(student, teacher, aligned.spans, TokenizerPair(STUDENT, numerals()))
    logq, logp = student.log_softmax(-1), teacher.log_softmax(-1)
    expected = functional.kl_div(logq, logp, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(result.loss_N, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (result.loss_N, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert float(result.covered) / result.groups == pytest.approx(1)


def test_a_number_beside_its_digits_is_compared_by_the_chain_rule() -> None:
    aligned = view("347", ended=False)
    student, teacher = (x.detach() for x in random_logits(aligned))
    result = span_projection_N(student, teacher, aligned.spans, tokenizer_pair())
    q, p = student.softmax(-1)[0], teacher.softmax(-1)
    digits = [token(TEACHER, digit) for digit in "0123456789"]
    before = p[0, digits[3]] * p[1, digits[4]]
    ours = torch.stack([q[token(STUDENT, f"34{digit}")] for digit in range(10)])
    theirs = before * p[2, digits]
    ours, theirs = (torch.cat([x, 1 - x.sum()[None]]) for x in (ours, theirs))
    assert float(result.loss_N[0]) == pytest.approx(float((theirs * (theirs / ours).log()).sum()), rel=1e-9)
    assert float(result.covered) == pytest.approx(float(theirs[:-1].sum()))


def test_pieces_beside_a_whole_word_are_compared_by_the_chain_rule() -> None:
    aligned = view("photosynthesis", ended=False)
    assert aligned.spans.student_G2.tolist() == [[0, 1]] and aligned.spans.teacher_G2.tolist() == [[0, 0]]
    student, teacher = (x.detach() for x in random_logits(aligned))
    result = span_projection_N(student, teacher, aligned.spans, tokenizer_pair())
    q, p = student.softmax(-1), teacher.softmax(-1)[0]
    ends = ["s", "sy", "syn", "synt", "synth", "synthe", "synthes", "synthesi", "synthesis"]
    ends = [end for end in ends if end in STUDENT.get_vocab()]
    ours = q[0, token(STUDENT, "photo")] * torch.stack([q[1, token(STUDENT, end)] for end in ends])
    theirs = torch.stack([p[token(TEACHER, f"photo{end}")] for end in ends])
    ours, theirs = (torch.cat([x, 1 - x.sum()[None]]) for x in (ours, theirs))
    assert float(result.loss_N[0]) == 0  # a group's loss is at its last position
    assert float(result.loss_N[1]) == pytest.approx(float((theirs * (theirs / ours).log()).sum()), rel=1e-9)


@pytest.mark.parametrize("rule", ["split", "first"])
@pytest.mark.parametrize("number", [10, 99, 347, 999])
def test_a_teacher_that_splits_digits_does_not_take_the_student_s_numbers_away(number: int, rule: Any) -> None:
    """Losses that part the vocabulary in matched and unmatched push such tokens down: X-Token's finding on GSM8K."""
    aligned = view(str(number))
    pair = tokenizer_pair(split_rule=rule)
    logits = torch.zeros(2, len(STUDENT), dtype=torch.float64, requires_grad=True)
    teacher = sure(aligned.spans.teacher_ids_M, len(TEACHER))
    optimiser = torch.optim.SGD([logits], lr=20.0)
    before = float(logits.detach().softmax(-1)[0, token(STUDENT, str(number))])
    for _ in range(60):
        optimiser.zero_grad()
        span_projection_N(logits, teacher, aligned.spans, pair).loss_N.sum().backward()
        optimiser.step()
    after = logits.detach().softmax(-1)
    own = float(after[0, token(STUDENT, str(number))])
    assert own > 50 * before and own >= float(after[0].max()) * (1 - 1e-9)
    assert int(after[1].argmax()) == STUDENT.eos_token_id


def test_all_to_the_first_digit_is_what_the_teacher_counts_and_split_is_not() -> None:
    """At a position where the text continues with one digit, `347` is compared by what the teacher's `3` covers."""
    aligned = view("3", ended=False)
    teacher = sure(aligned.spans.teacher_ids_M, len(TEACHER), 1 - 1e-9)
    student = sure(torch.tensor([token(STUDENT, "347")]), len(STUDENT), 1 - 1e-9)
    losses = {
        rule: span_projection_N(student, teacher, aligned.spans, tokenizer_pair(split_rule=rule)).loss_N
        for rule in ("first", "split")
    }
    assert float(losses["first"][0]) == pytest.approx(0, abs=1e-6)
    assert float(losses["split"][0]) == pytest.approx(float(torch.tensor(3.0).log()), rel=1e-4)


def test_a_word_that_the_student_writes_in_pieces_counts_for_its_first_piece() -> None:
    aligned = view("photo", ended=False)
    student = sure(torch.tensor([token(STUDENT, "photo")]), len(STUDENT), 1 - 1e-9)
    teacher = sure(torch.tensor([token(TEACHER, "photosynthesis")]), len(TEACHER), 1 - 1e-9)
    result = {name: float(LOSSES[name](student, teacher, aligned.spans, tokenizer_pair()).loss_N[0]) for name in LOSSES}
    assert result["span_projection"] == pytest.approx(0, abs=1e-6)
    assert result["overlap"] > 5  # there the word is in the rest on one side and a column on the other


def test_special_tokens_of_the_teacher_alone_only_take_weight_away() -> None:
    aligned = view("cat", ended=False)
    both = torch.tensor([token(TEACHER, "<bos>"), token(TEACHER, "cat")])
    halves = torch.full((1, len(TEACHER)), -60.0, dtype=torch.float64)
    halves[0, both] = 0.0
    whole = sure(both[1:], len(TEACHER), 1 - 1e-15)
    gradients = []
    for teacher in (halves, whole):
        flat = torch.zeros(1, len(STUDENT), dtype=torch.float64, requires_grad=True)
        result = span_projection_N(flat, teacher, aligned.spans, tokenizer_pair())
        (gradient,) = torch.autograd.grad(result.loss_N.sum(), flat)
        gradients.append(torch.cat([gradient[0], result.loss_N.detach(), result.covered[None]]))
    torch.testing.assert_close(2 * gradients[0], gradients[1], rtol=1e-6, atol=1e-9)


def test_a_sampled_token_that_cannot_be_does_not_touch_other_groups() -> None:
    aligned = view("photosynthesis the photosynthesis", ended=False)
    student, teacher = (x.detach() for x in random_logits(aligned))
    last = int(aligned.spans.student_G2[-1, 1])
    expected = span_projection_N(student, teacher, aligned.spans, tokenizer_pair()).loss_N[last]
    student[0, aligned.spans.student_ids_N[0]] = -torch.inf
    result = span_projection_N(student, teacher, aligned.spans, tokenizer_pair()).loss_N
    assert bool(result.isfinite().all())
    torch.testing.assert_close(result[last], expected)


def test_a_row_s_weights_are_one_and_at_most_four() -> None:
    pair = tokenizer_pair()
    for projection in (
        pair.whole,
        pair.exact,
        pair.after(Prefix("teacher", b"3")),
        pair.after(Prefix("student", b"c")),
    ):
        column_map: ColumnMap
        for column_map in projection[:2]:
            weights = torch.zeros(int(column_map.tokens_E.max()) + 1).index_add(
                0, column_map.tokens_E, column_map.log_weights_E.exp()
            )
            assert bool(((weights - 1).abs() < 1e-6).logical_or(weights == 0).all())
            assert int(column_map.tokens_E.bincount().max()) <= 4
            assert column_map.columns_E.unique().tolist() == list(range(column_map.size))
    assert not pair.whole.student.one_to_one and pair.exact.student.one_to_one


@pytest.mark.parametrize("loss", list(LOSSES.values()))
def test_a_loss_is_not_negative_and_its_gradient_is_right(loss: Any) -> None:
    aligned = view("the photosynthesis 47 🙂", " cat")
    student, teacher = random_logits(aligned)
    pair = tokenizer_pair()
    result: CrossLoss = loss(student, teacher, aligned.spans, pair)
    assert float(result.loss_N.detach().min()) >= 0 and 0 < float(result.covered) <= result.groups
    gradient = torch.autograd.grad(result.loss_N.sum(), student)[0]
    assert float(gradient.sum(-1).abs().max()) < 1e-9  # a constant added to logits changes nothing
    for _ in range(5):
        step = 1e-6 * torch.randn_like(student)
        ends = [
            float(loss(student.detach() + sign * step, teacher, aligned.spans, pair).loss_N.sum()) for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("loss", list(LOSSES.values()))
def test_rows_beyond_the_vocabularies_and_impossible_tokens_change_nothing(loss: Any) -> None:
    aligned = view("the cat 347")
    student, teacher = random_logits(aligned)
    student = student.detach()
    student[:, 1], teacher[:, 3] = -torch.inf, -torch.inf
    padded = functional.pad(student, (0, 7), value=3.0).requires_grad_()
    result = loss(padded, functional.pad(teacher, (0, 9), value=3.0), aligned.spans, tokenizer_pair())
    torch.testing.assert_close(result.loss_N, loss(student, teacher, aligned.spans, tokenizer_pair()).loss_N)
    result.loss_N.sum().backward()
    assert padded.grad is not None and bool(padded.grad.isfinite().all())
    assert float(padded.grad[:, len(STUDENT) :].abs().max()) == 0


def test_probabilities_too_small_for_a_number_still_pull() -> None:
    aligned = view("347", ended=False)
    student = torch.zeros(1, len(STUDENT))
    student[0, token(STUDENT, "cat")] = 500.0
    student.requires_grad_()
    teacher = sure(aligned.spans.teacher_ids_M, len(TEACHER)).float()
    result = span_projection_N(student, teacher, aligned.spans, tokenizer_pair())
    result.loss_N.sum().backward()
    assert float(result.loss_N.detach()[0]) > 400 and float(student.grad[0, token(STUDENT, "347")]) < -0.9  # type: ignore[index]


@pytest.mark.parametrize("loss", list(LOSSES.values()))
def test_a_chunk_has_the_losses_of_its_positions(loss: Any) -> None:
    aligned = view("the photosynthesis 47 🙂", " cat", "347")
    student, teacher = random_logits(aligned)
    student = student.detach()
    whole = loss(student, teacher, aligned.spans, tokenizer_pair())
    for size in (1, 2, 3, 5):
        parts, groups = [], 0
        for start in range(0, len(student), size):
            part, rows = aligned.spans.within(slice(start, min(start + size, len(student))))
            result = loss(student[start : start + size], teacher[rows], part, tokenizer_pair())
            parts.append(result.loss_N)
            groups += result.groups
        cut = {last for first, last in aligned.spans.student_G2.tolist() if first // size != last // size}
        keep = torch.tensor([number not in cut or loss is uld_N for number in range(len(student))])
        torch.testing.assert_close(torch.cat(parts)[keep], whole.loss_N[keep])
        assert groups == whole.groups - (len(cut) if loss is span_projection_N else 0)


def test_uld_is_the_distance_of_the_sorted_probabilities() -> None:
    aligned = view("the cat 347")
    student, teacher = random_logits(aligned)
    result = uld_N(student, teacher, aligned.spans, tokenizer_pair())
    q, p = student.softmax(-1).sort(-1, descending=True)[0], teacher.softmax(-1).sort(-1, descending=True)[0]
    wide = max(q.shape[1], p.shape[1])
    q, p = functional.pad(q, (0, wide - q.shape[1])), functional.pad(p, (0, wide - p.shape[1]))
    pairs = len(aligned.spans.student_ids_N) - 1  # not the end; the teacher's two digits more have no partner
    torch.testing.assert_close(result.loss_N[:pairs], (q[:pairs] - p[:pairs]).abs().sum(-1))
    assert float(result.loss_N.detach()[-1]) == 0 and result.groups == pairs


@pytest.mark.parametrize("loss", list(LOSSES.values()))
def test_a_batch_without_groups_has_no_loss_and_a_gradient_of_zero(loss: Any) -> None:
    aligned = view("", ended=False)
    assert len(aligned.spans.student_ids_N) == 0 == aligned.align_ratio
    student = torch.zeros(2, len(STUDENT), requires_grad=True)
    spans = view("cat", ended=False).spans.within(slice(5, 7))[0]
    result = loss(student, torch.zeros(0, len(TEACHER)), spans, tokenizer_pair())
    result.loss_N.sum().backward()
    assert result.loss_N.tolist() == [0, 0] and result.groups == 0 and float(student.grad.abs().max()) == 0  # type: ignore[union-attr]


@pytest.mark.bundled
@pytest.mark.slow
def test_the_bundled_pair_is_covered() -> None:
    smol, gemma = bundled()
    pair = TokenizerPair(smol, gemma)
    texts = [" radiocarbon dating of 1,347 nails", " 日本 🙂"]
    aligned = make_view([encoded(text, tokenizer=smol) for text in texts], smol, gemma, ["Q:", "Q:"], add_bos=True)
    assert aligned.grouped == aligned.tokens and 0.5 < aligned.align_ratio < 1
    assert all(item.prompt[0] == gemma.bos_token_id for item in aligned.teacher.items)
    teacher = sure(aligned.spans.teacher_ids_M, len(gemma)).float()
    student = torch.zeros(aligned.tokens, len(smol), requires_grad=True)
    result = span_projection_N(student, teacher, aligned.spans, pair)
    result.loss_N.sum().backward()
    gradients = student.grad.gather(1, aligned.spans.student_ids_N[:, None])  # type: ignore[union-attr]
    assert float(gradients.max()) < 0 and float(result.covered) / result.groups > 0.99
