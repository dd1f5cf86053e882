"""Texts that a student draws during training, alone or mixed with its teacher.

Each text has random numbers of its own, drawn from its own seed: what it becomes does not depend on who else stands in
the batch. Both models keep their caches of keys and values, and the log-probabilities of the drawn tokens come out of
the same passes, so that nothing is read twice.

The end-of-text token is part of a text and has its probabilities like any other; behind it there is nothing.

Shape suffixes: N texts, T prompt positions, V vocabulary.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Group
from tinyllm_bench.training.policy_gradient import mixed_log_probs

if TYPE_CHECKING:
    from tinyllm_bench.training.method import Step, TeacherSignal

_TOGETHER = 32  # texts drawn in one batch


class Drawn(NamedTuple):
    """One drawn text: its ids, and per token log q and log p at temperature 1, and KL(q | p), in nats.

    Without a teacher log p and KL are empty. `ended` tells whether the last id is the end of text.
    """

    ids: tuple[int, ...]
    logq: tuple[float, ...]
    logp: tuple[float, ...]
    kl: tuple[float, ...]
    ended: bool


class _Reader:
    """A model that reads prompts once and then one token at a time."""

    def __init__(self, lm: LM, prompts: Sequence[Sequence[int]], vocabulary: int | None) -> None:
        self._lm, self._vocabulary = lm, vocabulary
        self._device = next(lm.parameters()).device
        self._past: Any = None
        width = max(map(len, prompts))
        # left of the prompt where generation goes on behind it; an encoder reads it apart
        padded = [_padded(prompt, width, left=not lm.encoder_decoder) for prompt in prompts]
        self._mask_NT = torch.tensor([mask for _, mask in padded], device=self._device)
        ids_NT = torch.tensor([ids for ids, _ in padded], device=self._device)
        if lm.encoder_decoder:
            with lm.precision():
                encoded = lm.plain.get_encoder()(input_ids=ids_NT, attention_mask=self._mask_NT)
            self._encoded = encoded.last_hidden_state
            ids_NT = torch.full((len(prompts), 1), lm.plain.config.decoder_start_token_id, device=self._device)
        self._next_NT = ids_NT

    def logp_NV(self) -> Tensor:
        """Log-probabilities of the next token, float32 at least; rows beyond the vocabulary do not exist."""
        with self._lm.precision():
            logits_NV = self._lm.logits(self._hidden())[:, : self._vocabulary]
        return torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), -1)

    def read(self, ids_N: Tensor) -> None:
        """Read the token that was chosen for each text."""
        self._next_NT = ids_N[:, None].to(self._device)
        if not self._lm.encoder_decoder:
            self._mask_NT = torch.cat([self._mask_NT, torch.ones_like(self._mask_NT[:, :1])], 1)

    def _hidden(self) -> Tensor:
        model: Any = self._lm.plain
        if self._lm.encoder_decoder:
            out = model.get_decoder()(
                input_ids=self._next_NT,
                encoder_hidden_states=self._encoded,
                encoder_attention_mask=self._mask_NT,
                past_key_values=self._past,
                use_cache=True,
            )
        else:
            places_NT = (self._mask_NT.cumsum(1) - 1).clamp_min(0)[:, -self._next_NT.shape[1] :]
            out = getattr(model, model.base_model_prefix)(
                input_ids=self._next_NT,
                attention_mask=self._mask_NT,
                position_ids=places_NT,
                past_key_values=self._past,
                use_cache=True,
            )
        self._past = out.past_key_values
        return out.last_hidden_state[:, -1]


@torch.no_grad()
def draw(
    prompts: Sequence[Sequence[int]],
    student: LM,
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    teacher: LM | None = None,
    teacher_share: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    vocabulary: int | None = None,
) -> list[Drawn]:
    """Draw one text for each prompt.

    teacher_share: each token comes from `teacher_share * p + (1 - teacher_share) * q` (MiniLLM, equation 4), q at the
    given temperature; temperature 0 takes the student's likeliest token. A teacher with share 0 only tells what it
    thinks of the student's tokens. top_p below 1 keeps the likeliest tokens that reach that probability; there is no
    top-k.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    found: dict[int, Drawn] = {}
    was_training = student.training
    student.eval()
    for start in range(0, len(order), _TOGETHER):
        part = order[start : start + _TOGETHER]
        batch = _Batch([prompts[n] for n in part], [seeds[n] for n in part], student, teacher, vocabulary)
        drawn = batch.draw(max_new_tokens, teacher_share, temperature, top_p)
        found.update(zip(part, drawn, strict=True))
    student.train(was_training)
    return [found[n] for n in range(len(prompts))]


class _Batch:
    """Some texts that are drawn together."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        student: LM,
        teacher: LM | None,
        vocabulary: int | None,
    ) -> None:
        self._student = _Reader(student, prompts, vocabulary)
        self._teacher = None if teacher is None else _Reader(teacher, prompts, vocabulary)
        self._ends = end_ids(student)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, most: int, teacher_share: float, temperature: float, top_p: float) -> list[Drawn]:
        steps: list[list[tuple[float, ...]]] = [[] for _ in self._generators]
        ended = [False] * len(steps)
        for _ in range(most):
            logq_NV = self._student.logp_NV()
            logp_NV = None if self._teacher is None else self._teacher.logp_NV().to(logq_NV.device, logq_NV.dtype)
            ids_N = self._chosen(_sampler(logq_NV, logp_NV, teacher_share, temperature, top_p), temperature)
            for n, row in enumerate(_told(ids_N, logq_NV, logp_NV)):
                if not ended[n]:
                    steps[n].append(row)
                    ended[n] = int(row[0]) in self._ends
            if all(ended):
                break
            for reader in (self._student, self._teacher):
                if reader is not None:
                    reader.read(ids_N)
        return [_drawn(rows, end) for rows, end in zip(steps, ended, strict=True)]

    def _chosen(self, drawn_NV: Tensor, temperature: float) -> Tensor:
        points_N = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self._generators])
        if temperature == 0:
            return drawn_NV.argmax(-1)
        sums_NV = drawn_NV.double().exp().cumsum(-1)
        wanted_N = points_N.to(sums_NV.device) * sums_NV[:, -1]
        return torch.searchsorted(sums_NV, wanted_N[:, None], right=True)[:, 0].clamp_max(sums_NV.shape[1] - 1)


def _sampler(logq_NV: Tensor, logp_NV: Tensor | None, share: float, temperature: float, top_p: float) -> Tensor:
    """Log-probabilities that a token is drawn from."""
    if temperature not in (0, 1):
        logq_NV = torch.log_softmax(logq_NV / temperature, -1)
    if logp_NV is not None and share > 0:
        logq_NV = mixed_log_probs(logq_NV, logp_NV, share)
    if top_p >= 1:
        return logq_NV
    sorted_NV, ids_NV = logq_NV.sort(-1, descending=True)
    before_NV = sorted_NV.exp().cumsum(-1) - sorted_NV.exp()
    return logq_NV.scatter(-1, ids_NV, sorted_NV.masked_fill(before_NV >= top_p, -torch.inf))


def _told(ids_N: Tensor, logq_NV: Tensor, logp_NV: Tensor | None) -> list[tuple[float, ...]]:
    """Per text: the id, log q, and with a teacher log p and KL(q | p)."""
    columns = [ids_N.double(), logq_NV.gather(1, ids_N[:, None])[:, 0].double()]
    if logp_NV is not None:
        q_NV = logq_NV.exp()
        kl_N = torch.where(q_NV > 0, q_NV * (logq_NV - logp_NV), 0).sum(-1)
        columns += [logp_NV.gather(1, ids_N[:, None])[:, 0].double(), kl_N.double()]
    return [tuple(row) for row in torch.stack(columns, 1).tolist()]


def _drawn(rows: Sequence[tuple[float, ...]], ended: bool) -> Drawn:
    ids, logq, *theirs = zip(*rows, strict=True)
    logp, kl = theirs if theirs else ((), ())
    return Drawn(tuple(map(int, ids)), logq, logp, kl, ended)


def _padded(ids: Sequence[int], width: int, *, left: bool) -> tuple[list[int], list[int]]:
    gap = [0] * (width - len(ids))  # masked, so that any id will do
    mask = [1] * len(ids)
    return ([*gap, *ids], [*gap, *mask]) if left else ([*ids, *gap], [*mask, *gap])


def end_ids(lm: LM) -> frozenset[int]:
    """The ids that end a text of this model: its configuration's and its tokenizer's, as `models.load` names them."""
    said: Any = lm.plain.generation_config.eos_token_id
    found = said if isinstance(said, list) else [said]
    return frozenset(token for token in found if token is not None)


def named(groups: Sequence[Group]) -> list[tuple[str, Encoded]]:
    """Every example of some questions with the name that seeds what is drawn for it, different for each."""
    return [(f"{one.key}/{n}" if n else one.key, item) for one in groups for n, item in enumerate(one.items)]


def with_drawn(item: Encoded, drawn: Drawn, **numbers: Sequence[float]) -> Encoded:
    """The example with the drawn text as its target, and numbers per token beside it."""
    kept = {"logq": drawn.logq, "logp": drawn.logp, **numbers}
    drawn_numbers = {name: tuple(values) for name, values in kept.items() if values}
    return item._replace(target=drawn.ids, cut=not drawn.ended, drawn=drawn_numbers)


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Distinct-n: different n-grams of token ids over all n-grams of the texts; 1 where there are none."""
    grams = Counter(tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1))
    return len(grams) / grams.total() if grams else 1.0


def happens(seed: int, share: float) -> bool:
    """Whether an event of some probability happens, decided by a seed; independent of what `draw` makes of it."""
    return random.Random(f"happens/{seed}").random() < share


def probe(
    groups: Sequence[Group],
    student: LM,
    teacher: "TeacherSignal",
    *,
    channel: str,
    step: "Step",
    max_new_tokens: int,
) -> dict[str, float]:
    """What a student writes by itself on given questions, at temperature 1 with the same random numbers every time.

    reverse_kl: mean over tokens of the exact KL(q | p) in nats, absent where the teacher cannot read the student's
    ids; length: mean tokens of a text, its end included; ended: share of texts that end; distinct_2, distinct_4.
    """
    items = [(key, item) for key, item in named(groups) if item.channel == channel]
    if not items:
        return {}
    found = draw(
        [item.prompt for _, item in items],
        student,
        seeds=[step.seed_of(key) for key, _ in items],
        max_new_tokens=max_new_tokens,
        teacher=teacher.lm,
        vocabulary=teacher.vocabulary,
    )
    tokens = sum(len(one.ids) for one in found)
    reverse = {} if teacher.lm is None else {"reverse_kl": sum(sum(one.kl) for one in found) / tokens}
    return {
        **reverse,
        "length": tokens / len(found),
        "ended": sum(one.ended for one in found) / len(found),
        **{f"distinct_{n}": distinct([one.ids for one in found], n) for n in (2, 4)},
    }
