"""From the examples of questions to tensors: rows, batches, micro-batches, and the layouts that a model supports.

1. Layout: the examples of one question become rows (sequences), each example separately or as branches of a shared
   prompt.
2. Batch: rows as padded tensors with their target positions.
3. Micro-batches: a mini-batch in parts that fit into memory. Losses are sums that only the trainer divides, so the
   split changes memory and time, never the optimisation.
4. Shared prompts are used only where a model computes the same with them as without.

Shape suffixes: B rows, T positions, D decoder rows of an encoder-decoder, N target positions, V vocabulary.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded, count_by_channel
from tinyllm_bench.training.settings import Layout, LayoutChoice, TrainConfig

if TYPE_CHECKING:
    from tinyllm_bench.training.method import Method

# The smallest common prefix of two examples that share a row; a shorter one is not worth a longer row.
MIN_SHARED = 8

# --- 1. Layout ------------------------------------------------------------------------------------------------------
# A shared row is a prefix tree of tokens in depth-first order: a common prefix of several examples occurs once, and
# every example continues from there as a branch with positions of its own. Token j is visible to the tokens
# j .. until[j] - 1, which are its subtree, and to nothing else; so no branch sees another.


class Branch(NamedTuple):
    """One example in a row: target token n is predicted at index `indices[n]` of the row (or of its decoder row)."""

    item: Encoded
    indices: tuple[int, ...]


class InputRow(NamedTuple):
    """One input sequence of the student: ids, their positions, the index up to which each is visible, its examples.

    For an encoder-decoder, `ids` are the encoder's, and every branch is a decoder row of its own.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    until: tuple[int, ...]
    branches: tuple[Branch, ...]
    decoder_tokens: int = 0

    @property
    def width(self) -> int:
        """Tokens through the student: the row itself, and its decoder rows in an encoder-decoder."""
        return len(self.ids) + self.decoder_tokens

    @property
    def is_tree(self) -> bool:
        """Whether its branches need a mask."""
        return any(until != len(self.ids) for until in self.until)


def decoder_rows(items: Sequence[Encoded], layout: Layout, *, min_shared: int = MIN_SHARED) -> list[InputRow]:
    """The rows of one question for a decoder-only student: prompts and targets in one sequence."""
    if layout == "separate":
        return [_prefix_tree([item]) for item in items]
    rows: list[list[Encoded]] = []
    for item in sorted(items, key=_sequence):
        if rows and common_prefix(_sequence(rows[-1][-1]), _sequence(item)) >= min_shared:
            rows[-1].append(item)
        else:
            rows.append([item])
    return [_prefix_tree(row) for row in rows]


def side_by_side(rows: Sequence[InputRow]) -> InputRow:
    """Rows packed into one, side by side: the mask separates them, and each has positions of its own."""
    starts = [0, *accumulate(len(row.ids) for row in rows)]
    with_starts = list(zip(rows, starts, strict=False))
    return InputRow(
        tuple(token for row in rows for token in row.ids),
        tuple(position for row in rows for position in row.positions),
        tuple(start + until for row, start in with_starts for until in row.until),
        tuple(
            Branch(branch.item, tuple(start + index for index in branch.indices))
            for row, start in with_starts
            for branch in row.branches
        ),
    )


def encoder_rows(items: Sequence[Encoded], layout: Layout) -> list[InputRow]:
    """The rows of one question for an encoder-decoder: one per distinct input, with a decoder row for each target."""
    inputs: dict[tuple[int, ...] | int, list[Encoded]] = {}
    for number, item in enumerate(items):
        inputs.setdefault(item.prompt if layout == "shared" else number, []).append(item)
    rows = []
    for of_input in inputs.values():
        ids = of_input[0].prompt
        branches = tuple(Branch(item, tuple(range(len(item.target)))) for item in of_input)
        decoder_tokens = sum(len(item.target) for item in of_input)
        rows.append(InputRow(ids, tuple(range(len(ids))), (len(ids),) * len(ids), branches, decoder_tokens))
    return rows


def _sequence(item: Encoded) -> tuple[int, ...]:
    """The input of a decoder-only model for an example; the last target token is only predicted."""
    return (*item.prompt, *item.target[:-1])


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    limit = min(len(first), len(second))
    return next((n for n in range(limit) if first[n] != second[n]), limit)


def _prefix_tree(items: Sequence[Encoded]) -> InputRow:
    """The row of examples whose sequences are sorted, which is the depth-first order of their prefix tree."""
    ids: list[int] = []
    positions: list[int] = []
    until: list[int] = []
    branches: list[Branch] = []
    path: list[int] = []  # the indices of the previous example's tokens
    previous: tuple[int, ...] = ()
    for item in items:
        sequence = _sequence(item)
        shared = common_prefix(previous, sequence)
        for index in path[shared:]:  # their subtrees end here
            until[index] = len(ids)
        path = [*path[:shared], *range(len(ids), len(ids) + len(sequence) - shared)]
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
        until += [0] * (len(sequence) - shared)
        branches.append(Branch(item, tuple(path[len(item.prompt) - 1 :])))
        previous = sequence
    for index in path:
        until[index] = len(ids)
    return InputRow(tuple(ids), tuple(positions), tuple(until), tuple(branches))


# --- 2. Batch -------------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """All examples of one question, which are trained in the same optimiser step.

    occurrence: how often the question occurred earlier in its round; each occurrence gets sampled texts of its own.
    """

    record_id: str
    items: tuple[Encoded, ...]
    occurrence: int = 0

    @property
    def key(self) -> str:
        """Identifies this occurrence in its round, to seed anything random about it."""
        return f"{self.record_id}#{self.occurrence}" if self.occurrence else self.record_id

    @property
    def tokens(self) -> int:
        """Prompt and target tokens of all examples."""
        return sum(item.tokens for item in self.items)


@dataclass(slots=True, kw_only=True)
class Batch:
    """One micro-batch.

    Target n is predicted in row `target_row_N[n]` at index `target_position_N[n]`, should be `target_ids_N[n]`, and
    belongs to example `items[item_N[n]]` and to channel `channels[channel_N[n]]`. For an encoder-decoder these are
    indices of `decoder_input_ids_DT`, whose row d attends to the encoder's row `read_row_D[d]`.
    If examples share a prompt, `position_ids_BT` and `until_BT` are set: token j is visible to the tokens j up to, not
    including, `until_BT[b, j]`. Otherwise they are None and a row is an ordinary causal sequence.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor | None
    until_BT: Tensor | None
    decoder_input_ids_DT: Tensor | None
    read_row_D: Tensor | None
    target_row_N: Tensor
    target_position_N: Tensor
    target_ids_N: Tensor
    item_N: Tensor
    channel_N: Tensor
    channels: tuple[str, ...]
    items: tuple[Encoded, ...]

    def rollout_N(self, name: str) -> Tensor:
        """A number per target position that a rollout stored, float32; 0 for examples that were not sampled."""
        numbers = [n for item in self.items for n in item.rollout.get(name, (0.0,) * len(item.target))]
        return torch.tensor(numbers, dtype=torch.float32, device=self.target_ids_N.device)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Turns a question's examples into rows, and rows into a `Batch`, for decoder-only models or encoder-decoders."""

    encoder_decoder: bool
    pad_id: int
    decoder_start_id: int | None = None
    layout: Layout = "separate"

    @property
    def packs(self) -> bool:
        """Whether a row may hold several questions, separated by the mask."""
        return self.layout == "shared" and not self.encoder_decoder

    def rows(self, items: Sequence[Encoded]) -> list[InputRow]:
        """The rows of one question's examples."""
        return (encoder_rows if self.encoder_decoder else decoder_rows)(items, self.layout)

    def collate(self, rows: Sequence[InputRow]) -> Batch:
        """Pad rows on the right and locate their targets."""
        branches = [branch for row in rows for branch in row.branches]
        owners = [number for number, row in enumerate(rows) for _ in row.branches]
        channels = tuple(dict.fromkeys(branch.item.channel for branch in branches))
        target_rows = list(range(len(branches))) if self.encoder_decoder else owners
        has_trees = not self.encoder_decoder and any(row.is_tree for row in rows)
        target_lengths = torch.tensor([len(branch.item.target) for branch in branches])
        item_N = torch.arange(len(branches)).repeat_interleave(target_lengths)
        channel_of = torch.tensor([channels.index(branch.item.channel) for branch in branches])
        until_BT = decoder_input_ids_DT = None
        if has_trees:
            # a padded token is visible to itself alone: a mask without any visible token would make attention NaN
            width = max(len(row.ids) for row in rows)
            until_BT = torch.tensor([[*row.until, *range(len(row.ids) + 1, width + 1)] for row in rows])
        if self.encoder_decoder:
            start = self.decoder_start_id if self.decoder_start_id is not None else self.pad_id
            decoder_input_ids_DT = _pad([(start, *branch.item.target[:-1]) for branch in branches], self.pad_id)
        return Batch(
            input_ids_BT=_pad([row.ids for row in rows], self.pad_id),
            attention_mask_BT=_pad([(1,) * len(row.ids) for row in rows], 0),
            position_ids_BT=_pad([row.positions for row in rows], 0) if has_trees else None,
            until_BT=until_BT,
            decoder_input_ids_DT=decoder_input_ids_DT,
            read_row_D=torch.tensor(owners) if self.encoder_decoder else None,
            target_row_N=torch.tensor(target_rows)[item_N],
            target_position_N=torch.tensor([index for branch in branches for index in branch.indices]),
            target_ids_N=torch.tensor([token for branch in branches for token in branch.item.target]),
            item_N=item_N,
            channel_N=channel_of[item_N],
            channels=channels,
            items=tuple(branch.item for branch in branches),
        )


def collator_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collator:
    """The collator for a model, in the separate layout."""
    return Collator(
        encoder_decoder=bool(model.config.is_encoder_decoder),
        pad_id=tokenizer.pad_token_id or 0,
        decoder_start_id=getattr(model.config, "decoder_start_token_id", None),
    )


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


def count_targets(groups: Sequence[Group]) -> Mapping[str, int]:
    """The target tokens of a mini-batch, per channel."""
    return count_by_channel([item for group in groups for item in group.items])


def count_examples(groups: Sequence[Group]) -> Mapping[str, int]:
    """The examples of a mini-batch, per channel."""
    return Counter(item.channel for group in groups for item in group.items)


# --- 3. Micro-batches -----------------------------------------------------------------------------------------------


def step_micro_batches(
    rows: Sequence[Sequence[InputRow]], method: "Method", collator: Collator, config: TrainConfig
) -> list[list[InputRow]]:
    """The micro-batches of one optimiser step, from the rows of its questions."""
    return micro_batches(
        rows,
        max_tokens=config.micro_batch_tokens,
        keep_groups=method.grouping == "record",
        pack=collator.packs,
    )


def micro_batches(
    groups: Sequence[Sequence[InputRow]], *, max_tokens: int, keep_groups: bool, pack: bool
) -> list[list[InputRow]]:
    """Split the rows of one mini-batch's questions into micro-batches of at most `max_tokens` padded tokens.

    Rows of similar length come together. `keep_groups` leaves a question's rows in one micro-batch; a unit larger than
    the limit is a micro-batch by itself. `pack` fills the padding of a micro-batch with other rows, first fit in order
    of falling width; it is then as wide as its first unit's longest row. A micro-batch that is an eighth full is closed
    rather than padded by more than a quarter of its tokens.
    """
    units = [list(rows) for rows in groups] if keep_groups else [[row] for rows in groups for row in rows]
    units = sorted((unit for unit in units if unit), key=lambda unit: -max(row.width for row in unit))
    batches: list[list[list[InputRow]]] = []  # each a list of bins, the rows of a bin to be packed into one
    for unit in units:
        last = batches[-1] if batches else []
        grown = _first_fit(last, unit) if pack else [*last, *([row] for row in unit)]
        width = _width(last[0]) if last and pack else max(map(_width, grown))
        padded, real = len(grown) * width, sum(map(_width, grown))
        is_worth = padded <= 1.25 * real or len(last) * width < max_tokens // 8
        if last and padded <= max_tokens and is_worth:
            batches[-1] = grown
        else:
            batches.append(_first_fit([], unit) if pack else [[row] for row in unit])
    return [[side_by_side(bin) if pack else bin[0] for bin in batch] for batch in batches]


def _first_fit(bins: Sequence[Sequence[InputRow]], unit: Sequence[InputRow]) -> list[list[InputRow]]:
    """Bins with a unit's rows added, the widest first: each to the first bin with space for it, or to a new one."""
    filled = [list(bin) for bin in bins]
    for row in sorted(unit, key=lambda row: -row.width):
        fitting = (bin for bin in filled if _width(bin) + row.width <= _width(filled[0]))
        if (bin := next(fitting, None)) is None:
            filled.append([row])
        else:
            bin.append(row)
    return filled


def _width(bin: Sequence[InputRow]) -> int:
    return sum(row.width for row in bin)


# --- 4. Which layouts a model supports ------------------------------------------------------------------------------
# transformers passes a four-dimensional mask to a model unchecked, and a model that ignores it, or the positions,
# raises no error. So shared prompts are used only if logits of random tokens, two questions in one row, equal those of
# separate rows; separate rows are always right. The texts are longer than the attention windows that they must reveal:
# a layer that attends to the last 256 tokens alone is right on shorter texts.

_MASKABLE = ("sdpa", "eager", "flex_attention")
# The largest difference of a logit relative to the largest logit: rounding of float32, and of 16 bits over many layers.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_TOLERANCE_16_BITS = 3e-2
_FULL_ATTENTION = ("full_attention", "global")
# Settings whose names say how far a layer attends, and the longest window that is tested.
_WINDOW = re.compile(r"window|local|chunk_size|block_size|attention_span")
_LONGEST_TESTED = 4096


def choose_layout(lm: LM, collator: Collator, requested: LayoutChoice, *, training: bool) -> tuple[Layout, str | None]:
    """The layout to use, and the reason if it is not `shared`.

    Raises:
        UserError: `shared` was requested and the model does not support it.
    """
    if requested == "separate":
        return "separate", "requested"
    reason = why_separate(lm, collator, training=training)
    if reason is None:
        return "shared", None
    if requested == "shared":
        raise UserError(f"layout=shared: {reason}; use auto or separate")
    return "separate", reason


def why_separate(lm: LM, collator: Collator, *, training: bool) -> str | None:
    """Why this model needs a separate sequence for every example; None if examples may share prompts."""
    config: Any = lm.hf_model.config
    if training:
        # the largest dropout rate, of dropout layers and of attention (a rate in most models, a layer in some)
        layers = [module.p for module in lm.hf_model.modules() if isinstance(module, nn.Dropout)]
        attention = [getattr(module, "attention_dropout", 0.0) for module in lm.hf_model.modules()]
        dropout = max([0.0, *layers, *(rate for rate in attention if isinstance(rate, float))])
        if dropout:
            return (
                f"the student trains with dropout {dropout:g}, which would be sampled once for all examples of a"
                " question"
            )
    if lm.encoder_decoder:
        return None
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
    if any(kind not in _FULL_ATTENTION for kind in kinds) or (not kinds and getattr(config, "sliding_window", None)):
        return f"model type {config.model_type!r} has layers that do not attend to the whole text"
    window = _longest_window(config)
    if window > _LONGEST_TESTED:
        return f"model type {config.model_type!r} may attend to {window} tokens at most, too many to try it"
    if config._attn_implementation not in _MASKABLE:
        return f"attention {config._attn_implementation!r} does not support a four-dimensional mask"
    try:
        same = _same_logits(lm, collator, window)
    except Exception as error:  # models raise all kinds of errors for inputs that they do not support
        line = next(iter(str(error).strip().splitlines()), "")
        return f"model type {config.model_type!r} fails with a shared prompt ({type(error).__name__}: {line[:200]})"
    return None if same else f"model type {config.model_type!r} computes other values with a shared prompt than without"


def _longest_window(config: Any) -> int:
    """The longest attention window that a setting names, below the longest text; 0 if there is none."""
    config = config.get_text_config()
    longest_text = getattr(config, "max_position_embeddings", None) or _LONGEST_TESTED + 1
    windows = [
        value
        for name, value in config.to_dict().items()
        if _WINDOW.search(name) and type(value) is int and 1 < value < longest_text
        if name != "sliding_window"  # was checked by layer type: no layer here uses it
    ]
    return max(windows, default=0)


def _random_question(vocabulary: int, context_tokens: int, seed: int) -> list[Encoded]:
    """Random examples with two levels of sharing: three have one context, and two of them a longer common prefix."""
    generator = random.Random(seed)
    context, more, *ends = ([generator.randrange(vocabulary) for _ in range(n)] for n in (context_tokens, 4, 5, 7, 6))
    prompts = sorted(([*context, *ends[0]], [*context, *more, *ends[1]], [*context, *more, *ends[2]]))
    return [Encoded("probe", "probe", tuple(ids[:-2]), tuple(ids[-2:]), False) for ids in prompts]


@torch.no_grad()
def _same_logits(lm: LM, collator: Collator, window: int) -> bool:
    """Whether logits are the same if examples share a prompt, with another question in the same row."""
    was_training = lm.training
    lm.eval()
    plain: Any = lm.hf_model
    vocabulary = int(plain.config.get_text_config().vocab_size)
    lengths = (MIN_SHARED + window, MIN_SHARED)
    questions = [_random_question(vocabulary, length, seed) for seed, length in enumerate(lengths)]
    logits: list[Tensor] = []
    try:
        for layout in ("separate", "shared"):
            of_layout: Collator = replace(collator, layout=layout)
            rows = [row for items in questions for row in of_layout.rows(items)]
            batch = of_layout.collate([side_by_side(rows)] if layout == "shared" else rows)
            logits.append(lm(batch.to(next(lm.parameters()).device), lambda logits_NV, rows: logits_NV).float())
    finally:
        lm.train(was_training)
    separate_NV, shared_NV = logits
    limit = _TOLERANCE.get(plain.dtype, _TOLERANCE_16_BITS) * float(separate_NV.abs().max())
    return bool((separate_NV - shared_NV).abs().max() <= limit)
