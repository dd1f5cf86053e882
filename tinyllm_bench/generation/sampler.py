"""Sampling token by token, by a student alone or by its mixture with a teacher.

This loop exists beside transformers' `generate` because it does what that cannot: each text has random numbers of its
own, from its own seed, so that it does not depend on the rest of the batch; the tokens of a text can come from a
mixture of two models; and the log-probabilities of the sampled tokens come from the same forward passes. With
`generate` and a LogitsProcessor, all texts of a batch would be sampled from one random generator.

The end-of-text token is part of a text and has its probabilities like any other; nothing follows it.

Shape suffixes: N texts, T prompt positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllm_bench.models.lm import LM

_BATCH = 32  # texts


def mixed_log_probs(logq_NV: Tensor, logp_NV: Tensor, alpha: float) -> Tensor:
    """log(alpha p + (1 - alpha) q), the sampler of MiniLLM's equation 4; also of log-probabilities of chosen tokens."""
    if alpha == 0:
        return logq_NV
    student_NV = logq_NV + (math.log1p(-alpha) if alpha < 1 else -math.inf)
    return torch.logaddexp(student_NV, logp_NV + math.log(alpha))


class SampledText(NamedTuple):
    """One sampled text: its ids, and per token log q and log p at temperature 1, and KL(q | p), in nats.

    Without a teacher log p and KL are empty. `ended`: the last id is an end-of-text token.
    """

    ids: tuple[int, ...]
    logq: tuple[float, ...]
    logp: tuple[float, ...]
    kl: tuple[float, ...]
    ended: bool


class _Decoder:
    """A model's incremental forward passes: the prompts once, then one token of each text at a time."""

    def __init__(self, lm: LM, prompts: Sequence[Sequence[int]], vocabulary: int | None) -> None:
        self._lm, self._vocabulary = lm, vocabulary
        self._device = next(lm.parameters()).device
        self._past: Any = None
        width = max(map(len, prompts))
        ids_NT = torch.zeros(len(prompts), width, dtype=torch.int64)  # padding is masked, so any id will do
        mask_NT = torch.zeros_like(ids_NT)
        for row, prompt in enumerate(prompts):
            # padding on the left where generation continues the prompt, on the right for an encoder
            columns = slice(0, len(prompt)) if lm.encoder_decoder else slice(width - len(prompt), width)
            ids_NT[row, columns], mask_NT[row, columns] = torch.tensor(prompt), 1
        ids_NT, self._mask_NT = ids_NT.to(self._device), mask_NT.to(self._device)
        if lm.encoder_decoder:
            with lm.precision():
                encoded = lm.hf_model.get_encoder()(input_ids=ids_NT, attention_mask=self._mask_NT)
            self._encoded = encoded.last_hidden_state
            ids_NT = torch.full((len(prompts), 1), lm.hf_model.config.decoder_start_token_id, device=self._device)
        self._next_NT = ids_NT

    def logp_NV(self) -> Tensor:
        """Log-probabilities of the next token, float32 at least; without the logits beyond the vocabulary."""
        with self._lm.precision():
            logits_NV = self._lm.logits(self._hidden())[:, : self._vocabulary]
        return torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), -1)

    def append(self, ids_N: Tensor) -> None:
        """Append the token chosen for each text."""
        self._next_NT = ids_N[:, None].to(self._device)
        if not self._lm.encoder_decoder:
            self._mask_NT = torch.cat([self._mask_NT, torch.ones_like(self._mask_NT[:, :1])], 1)

    def _hidden(self) -> Tensor:
        model: Any = self._lm.hf_model
        if self._lm.encoder_decoder:
            out = model.get_decoder()(
                input_ids=self._next_NT,
                encoder_hidden_states=self._encoded,
                encoder_attention_mask=self._mask_NT,
                past_key_values=self._past,
                use_cache=True,
            )
        else:
            positions_NT = (self._mask_NT.cumsum(1) - 1).clamp_min(0)[:, -self._next_NT.shape[1] :]
            out = getattr(model, model.base_model_prefix)(
                input_ids=self._next_NT,
                attention_mask=self._mask_NT,
                position_ids=positions_NT,
                past_key_values=self._past,
                use_cache=True,
            )
        self._past = out.past_key_values
        return out.last_hidden_state[:, -1]


@torch.no_grad()
def sample_texts(
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
) -> list[SampledText]:
    """Sample one text for each prompt.

    teacher_share: each token comes from `teacher_share * p + (1 - teacher_share) * q` (MiniLLM, equation 4), q at the
    given temperature; temperature 0 takes the most probable token. A teacher with share 0 only scores the
    student's tokens. top_p below 1: only the most probable tokens that reach that probability; there is no top-k.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    texts: dict[int, SampledText] = {}
    was_training = student.training
    student.eval()
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = [prompts[n] for n in part]
        student_decoder = _Decoder(student, batch, vocabulary)
        teacher_decoder = None if teacher is None else _Decoder(teacher, batch, vocabulary)
        generators = [torch.Generator().manual_seed(seeds[n]) for n in part]
        ends = end_ids(student)
        tokens: list[list[tuple[float, ...]]] = [[] for _ in part]
        ended = [False] * len(part)
        for _ in range(max_new_tokens):
            logq_NV = student_decoder.logp_NV()
            logp_NV = None if teacher_decoder is None else teacher_decoder.logp_NV().to(logq_NV.device, logq_NV.dtype)
            points_N = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
            sampler_NV = _sampling_log_probs(logq_NV, logp_NV, teacher_share, temperature, top_p)
            if temperature == 0:
                ids_N = sampler_NV.argmax(-1)
            else:  # inverse of the cumulative distribution, in float64 so that no token of a large vocabulary is lost
                sums_NV = sampler_NV.double().exp().cumsum(-1)
                points_N = points_N.to(sums_NV.device) * sums_NV[:, -1]
                ids_N = torch.searchsorted(sums_NV, points_N[:, None], right=True)[:, 0].clamp_max(sums_NV.shape[1] - 1)
            for n, token in enumerate(_token_columns(ids_N, logq_NV, logp_NV)):
                if not ended[n]:
                    tokens[n].append(token)
                    ended[n] = int(token[0]) in ends
            if all(ended):
                break
            for decoder in (student_decoder, teacher_decoder):
                if decoder is not None:
                    decoder.append(ids_N)
        for n, rows, is_ended in zip(part, tokens, ended, strict=True):
            ids, logq, *teachers = zip(*rows, strict=True)
            logp, kl = teachers or ((), ())
            texts[n] = SampledText(tuple(map(int, ids)), logq, logp, kl, is_ended)
    student.train(was_training)
    return [texts[n] for n in range(len(prompts))]


def _sampling_log_probs(
    logq_NV: Tensor, logp_NV: Tensor | None, share: float, temperature: float, top_p: float
) -> Tensor:
    """Log-probabilities from which a token is sampled."""
    if temperature not in (0, 1):
        logq_NV = torch.log_softmax(logq_NV / temperature, -1)
    if logp_NV is not None and share > 0:
        logq_NV = mixed_log_probs(logq_NV, logp_NV, share)
    if top_p >= 1:
        return logq_NV
    sorted_NV, ids_NV = logq_NV.sort(-1, descending=True)
    before_NV = sorted_NV.exp().cumsum(-1) - sorted_NV.exp()
    return logq_NV.scatter(-1, ids_NV, sorted_NV.masked_fill(before_NV >= top_p, -torch.inf))


def _token_columns(ids_N: Tensor, logq_NV: Tensor, logp_NV: Tensor | None) -> list[tuple[float, ...]]:
    """Per text: the id, log q, and with a teacher log p and KL(q | p)."""
    columns = [ids_N.double(), logq_NV.gather(1, ids_N[:, None])[:, 0].double()]
    if logp_NV is not None:
        q_NV = logq_NV.exp()
        kl_N = torch.where(q_NV > 0, q_NV * (logq_NV - logp_NV), 0).sum(-1)
        columns += [logp_NV.gather(1, ids_N[:, None])[:, 0].double(), kl_N.double()]
    return [tuple(row) for row in torch.stack(columns, 1).tolist()]


def end_ids(lm: LM) -> frozenset[int]:
    """The ids that end a text of this model: its configuration's and its tokenizer's, as `models.load` sets them."""
    configured: Any = lm.hf_model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in ends if token is not None)
