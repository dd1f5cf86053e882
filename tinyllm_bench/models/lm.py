"""The module that training runs: logits at target positions only, chunk by chunk.

Shape suffixes: B rows, T positions, D decoder rows, N target positions of the batch, H hidden size, V vocabulary.
The loss is made inside `forward`, because calling the backbone and the head apart would bypass DDP's or FSDP's wrapper.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tinyllm_bench.base.errors import UserError

# 512 MiB in float32: 2,730 positions of SmolLM2's vocabulary, 512 of Gemma's.
CHUNK_LOGITS = 2**27
PerChunk = Callable[[Tensor, slice], Tensor]


class HasPositions(Protocol):
    """The parts of a batch that `LM.forward` reads; `training.batching.Batch` documents them."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor | None
    until_BT: Tensor | None
    decoder_input_ids_DT: Tensor | None
    read_row_D: Tensor | None
    target_row_N: Tensor
    target_position_N: Tensor


def branch_mask(until_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, T) of rows with branches: query i sees key j where `j <= i < until[j]`.

    Additive rather than boolean, because eager attention adds whatever it is given: a boolean mask would mask nothing.
    """
    places_T = torch.arange(until_BT.shape[1], device=until_BT.device)
    seen_BTT = (places_T <= places_T[:, None]) & (places_T[:, None] < until_BT[:, None, :])
    hidden = torch.finfo(dtype).min
    return torch.zeros_like(seen_BTT, dtype=dtype).masked_fill(~seen_BTT, hidden)[:, None]


def branch_block_mask(until_BT: Tensor) -> Any:
    """The same mask for FlexAttention, which skips blocks that are masked completely."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < until_BT[b, j])

    rows, width = until_BT.shape
    return create_block_mask(seen, rows, None, width, width, device=until_BT.device)


class LM(nn.Module):
    """A student or teacher: a transformers model of either family behind one call.

    `precision` is the autocast context of training; other forward passes of the student must use it, too.
    """

    def __init__(self, model: nn.Module, *, chunk_positions: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._chunk_positions = chunk_positions
        self.precision: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def hf_model(self) -> PreTrainedModel:
        """The transformers model itself; with LoRA, the one whose layers carry the adapters."""
        wrapped: Any = self.model
        return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped

    @property
    def chunk_positions(self) -> int:
        """Target positions whose logits are held at once; by default as many as fit into `CHUNK_LOGITS` numbers."""
        return self._chunk_positions or max(CHUNK_LOGITS // self.hf_model.get_output_embeddings().weight.shape[0], 1)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model is an encoder-decoder (T5)."""
        return bool(self.hf_model.config.is_encoder_decoder)

    def forward(self, batch: HasPositions, per_chunk: PerChunk, *, borders: Sequence[int] = ()) -> Tensor:
        """Sum over chunks of `per_chunk(logits_NV, rows)`.

        `rows` are the chunk's target positions (a slice of 0..N); `per_chunk` returns a tensor of one fixed shape.
        Where `borders` are given (positions in 0..N, ascending), a chunk ends at one of them.
        Where there is more than one chunk, each is recomputed in the backward pass: memory holds one chunk of logits.
        """
        hidden_NH = self.target_hidden_states(batch)
        chunks = self.chunks(hidden_NH.shape[0], borders)
        parts = []
        for rows in chunks:
            if len(chunks) > 1 and torch.is_grad_enabled():
                parts.append(checkpoint(self._chunk, hidden_NH[rows], rows, per_chunk, use_reentrant=False))
            else:
                parts.append(self._chunk(hidden_NH[rows], rows, per_chunk))
        return torch.stack(parts).sum(0)

    def target_hidden_states(self, batch: HasPositions) -> Tensor:
        """Hidden states from which the batch's targets are predicted, (N, H)."""
        return self._hidden(batch)[batch.target_row_N, batch.target_position_N]

    def chunks(self, count: int, borders: Sequence[int] = ()) -> list[slice]:
        """Target positions in parts of at most `chunk_positions`; one empty part where there are none.

        A part ends at a border if there are any, even if it becomes longer for it.
        """
        size, starts = self.chunk_positions, [0]
        while starts[-1] + size < count:
            after = [border for border in borders if border > starts[-1]]
            fitting = [border for border in after if border <= starts[-1] + size]
            starts.append(fitting[-1] if fitting else after[0] if after else starts[-1] + size)
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]

    def _chunk(self, hidden_NH: Tensor, rows: slice, per_chunk: PerChunk) -> Tensor:
        return per_chunk(self.logits(hidden_NH), rows)

    def _hidden(self, batch: HasPositions) -> Tensor:
        model = self.hf_model
        if not self.encoder_decoder:
            mask: Any = batch.attention_mask_BT
            if batch.until_BT is not None and model.config._attn_implementation == "flex_attention":
                mask = branch_block_mask(batch.until_BT)
            elif batch.until_BT is not None:
                mask = branch_mask(batch.until_BT, model.dtype)
            return getattr(model, model.base_model_prefix)(
                input_ids=batch.input_ids_BT,
                attention_mask=mask,
                position_ids=batch.position_ids_BT,
                use_cache=False,
            ).last_hidden_state
        encoded = model.get_encoder()(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT)
        read = slice(None) if batch.read_row_D is None else batch.read_row_D
        return model.get_decoder()(
            input_ids=batch.decoder_input_ids_DT,
            encoder_hidden_states=encoded.last_hidden_state[read],
            encoder_attention_mask=batch.attention_mask_BT[read],
            use_cache=False,
        ).last_hidden_state

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """The head with the family's scale and softcap: (N, H) to (N, V)."""
        config = self.hf_model.config
        if getattr(config, "scale_decoder_outputs", False):
            hidden_NH = hidden_NH * config.d_model**-0.5
        logits_NV = self.hf_model.get_output_embeddings()(hidden_NH)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)

    @torch.no_grad()
    def check(self) -> None:
        """Compare our head with the model's own on three tokens.

        Raises:
            UserError: this architecture scales its logits in a way that `logits` does not know.
        """
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        ids_BT = torch.tensor([[0, 1, 2]], device=device)
        batch = _ThreeTokens(ids_BT, self.encoder_decoder)
        decoder = {"decoder_input_ids": ids_BT} if self.encoder_decoder else {}
        try:
            own_NV = self.hf_model(
                input_ids=ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, **decoder
            ).logits[0]
            ours_NV = self.logits(self._hidden(batch)[0])
            same = torch.allclose(own_NV.float(), ours_NV.float(), rtol=1e-3, atol=1e-3)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError):
            same = False  # head and body are not separate, or it takes other inputs
        finally:
            self.train(was_training)
        if not same:
            raise UserError(
                f"model type {self.hf_model.config.model_type!r} computes its logits in a way this project does not"
                " know; use a Llama, Qwen, Gemma, SmolLM or T5 type student"
            )


def eval_mode(lm: nn.Module) -> None:
    """Put a module into evaluation mode and leave gradient checkpointing on, which transformers ties to training."""
    lm.eval()
    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.training = True  # of the layer alone, not of its submodules
            for name in [name for name, value in vars(layer).items() if "drop" in name and isinstance(value, float)]:
                setattr(layer, name, 0.0)  # a rate that the layer itself applies


class _ThreeTokens:
    """The smallest batch: one row of three tokens."""

    def __init__(self, ids_BT: Tensor, encoder_decoder: bool) -> None:
        self.input_ids_BT = ids_BT
        self.attention_mask_BT = torch.ones_like(ids_BT)
        self.position_ids_BT: Tensor | None = None
        self.until_BT: Tensor | None = None
        self.read_row_D: Tensor | None = None
        self.decoder_input_ids_DT = ids_BT if encoder_decoder else None
        self.target_row_N = torch.zeros(3, dtype=torch.long, device=ids_BT.device)
        self.target_position_N = torch.arange(3, device=ids_BT.device)
