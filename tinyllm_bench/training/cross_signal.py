"""A white-box teacher with another tokenizer, and the loss that reads it.

Shape suffixes: N student's target positions, M teacher's, H hidden size, V student's vocabulary, T teacher's.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.vocabulary import vocabulary, written
from tinyllm_bench.training.batching import Batch
from tinyllm_bench.training.cross_losses import LOSSES, CrossView, make_view
from tinyllm_bench.training.distributions import CrossTokenizer, Note
from tinyllm_bench.training.losses import PerPosition
from tinyllm_bench.training.projection import Crossing


class CrossDistributions:
    """What a teacher thinks of one batch, in its own tokens; logits are made for the part that is asked for."""

    def __init__(self, view: CrossView, hidden_MH: Tensor, lm: LM, crossing: Crossing) -> None:
        self.view, self.crossing = view, crossing
        self._hidden_MH, self._lm = hidden_MH, lm

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Logits at some of the teacher's positions, (M, T)."""
        return self._lm.logits(self._hidden_MH[rows])


class CrossTeacher:
    """A teacher in memory that reads the student's responses in its own tokens.

    It reads the student's prompt as plain text, or in its own chat template (`chat`). `vocabulary` is the student's.
    """

    lm = None

    def __init__(
        self,
        lm: LM,
        tokenizer: PreTrainedTokenizerBase,
        student_tokenizer: PreTrainedTokenizerBase,
        *,
        add_bos: bool = False,
        chat: bool = False,
    ) -> None:
        self._lm = lm.eval().requires_grad_(False)
        self._tokenizer, self._student = tokenizer, student_tokenizer
        self._known = vocabulary(student_tokenizer)
        self._add_bos, self._chat = add_bos and not chat, chat
        self.vocabulary: int | None = len(student_tokenizer)
        self.parameters = sum(p.numel() for p in lm.parameters())
        self.crossing = Crossing(student_tokenizer, tokenizer, device=next(lm.parameters()).device)

    @torch.no_grad()
    def on(self, batch: Batch) -> CrossDistributions:
        """The teacher's view of the batch's examples, read once."""
        prompts = [self._prompt(item.prompt) for item in batch.items]
        view = make_view(batch.items, self._student, self._tokenizer, prompts, add_bos=self._add_bos)
        view = view.to(batch.target_ids_N.device)
        return CrossDistributions(view, self._lm.at_targets(view.teacher), self._lm, self.crossing)

    def _prompt(self, ids: tuple[int, ...]) -> str:
        """The words of a prompt; special tokens such as a BOS are the student's own affair."""
        text = written(self._known, ids).decode(errors="replace")
        if not self._chat:
            return text
        asked = [{"role": "user", "content": text}]
        found: Any = self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        bos = self._tokenizer.bos_token
        return found.removeprefix(bos) if isinstance(bos, str) and self._adds_bos() else found

    def _adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS in front by itself: the template's would be a second one."""
        return self._tokenizer("a")["input_ids"][:1] == [self._tokenizer.bos_token_id]


def crossed(found: CrossDistributions, kind: CrossTokenizer, note: Note) -> PerPosition:
    """Loss per position of the student (`crossing`); notes the share of tokens that stand one to one, and the
    teacher's probability in what is compared. Needs whole examples in a chunk."""
    note("align_ratio", found.view.single, found.view.tokens)
    loss = LOSSES[kind]

    def per_position(logits_NV: Tensor, rows: slice) -> Tensor:
        part, theirs = found.view.spans.within(rows)
        result = loss(logits_NV, found.logits(theirs), part, found.crossing)
        note("covered_mass", float(result.covered), result.groups)
        return result.loss_N

    return per_position
