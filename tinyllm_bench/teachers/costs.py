"""What teachers' texts cost: tokens, wall seconds, energy and money, whoever asked for them first.

A cell is charged in full for the texts it learns from, although they may lie in the cache already: another machine, or
another order of cells, would have paid for them here. The share beside it splits the bill among the methods that use
the same texts.
"""

from collections.abc import Sequence
from typing import Any

from tinyllm_bench.data.records import Annotation


def cost_of(annotations: Sequence[Annotation], price: tuple[float, float] | None) -> dict[str, Any]:
    """The sum over a teacher's texts. `price`: US dollars per million tokens (in, out); what is unknown is None."""
    tokens_in = sum(a.tokens_in or 0 for a in annotations)
    tokens_out = sum(a.tokens_out or 0 for a in annotations)
    told = [a.joules for a in annotations if a.joules is not None]
    return {
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "seconds": round(sum(a.seconds or 0.0 for a in annotations), 2),
        "joules": round(sum(told), 1) if told else None,
        "usd": None if price is None else round((tokens_in * price[0] + tokens_out * price[1]) / 1e6, 6),
        "engines": sorted({a.engine for a in annotations if a.engine}),
    }
