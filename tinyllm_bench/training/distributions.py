"""What methods that compare distributions share: which signal they need, and the divergence from whatever teacher.

Shape suffix: N target positions.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.training.divergences import NEEDS_EVERY_TOKEN, DivergenceConfig, divergence_of
from tinyllm_bench.training.losses import PerPosition

if TYPE_CHECKING:
    from tinyllm_bench.training.batching import Batch
    from tinyllm_bench.training.method import TeacherSignal

CrossTokenizer = Literal["none", "span_projection", "overlap", "uld"]
Note = Callable[[str, float, float], None]


def check_one_divergence(cross_tokenizer: CrossTokenizer, *, changed: bool) -> None:
    """Refuse a divergence that is `changed` from its default where another tokenizer's loss takes its place."""
    if cross_tokenizer != "none" and changed:
        raise UserError(
            f"cross_tokenizer={cross_tokenizer} has a divergence of its own; leave the method's `divergence` as it is"
        )


def signal_for(divergence: DivergenceConfig, cross_tokenizer: CrossTokenizer) -> Literal["cached", "live"]:
    """Whether the likeliest tokens and the mass of the rest are enough, or every token's probability is needed."""
    enough = divergence.form not in NEEDS_EVERY_TOKEN and divergence.temperature == 1 and cross_tokenizer == "none"
    return "cached" if enough else "live"


def divergence_from(
    teacher: "TeacherSignal",
    batch: "Batch",
    divergence: DivergenceConfig,
    cross_tokenizer: CrossTokenizer,
    note: Note,
) -> PerPosition:
    """Loss per position from a batch's teacher: the divergence, or with another tokenizer the crossing loss, which
    needs whole examples in a chunk."""
    found = teacher.on(batch)
    if cross_tokenizer == "none":
        return divergence_of(found, divergence, vocabulary=teacher.vocabulary)
    from tinyllm_bench.training.cross_signal import crossed

    return crossed(found, cross_tokenizer, note)
