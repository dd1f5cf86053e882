"""The picture of training curves: panels, axes and paths in numbers; `templates/curves.svg` gives them their look."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.base.escaping import visible

WIDTH, MARGIN, GAP = 760, 16, 14
LEFT, TOP, BOTTOM = 52, 26, 22  # inside a panel: tick labels, title, tick labels
TALL, SHORT, SMALL = 240, 190, 140
MOST = 400  # points of a path, in buckets of their lowest and highest
KINDS = 6  # colours; further lines are told apart by their dashes
Point = tuple[float, float]


class Series(NamedTuple):
    """One line: the number of its run, its points, whether it is drawn faintly (`raw`) or with a mark at every point,
    and which point is marked as chosen."""

    run: int
    points: tuple[Point, ...]
    raw: bool = False
    marks: bool = False
    chosen: int | None = None


class Panel(NamedTuple):
    """Lines that share their axes."""

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """A value's place, to a tenth of a pixel."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def curves_svg(
    *, title: str, about: str, names: Sequence[str], axis: str, panels: Sequence[Panel], small: Sequence[Panel]
) -> str:
    """The whole picture as text: panels below each other, small ones side by side.

    Args:
        title: Of the picture.
        about: What it shows, for those who do not see it.
        names: Of the runs, for the legend; one run has none.
        axis: What all horizontal axes count.
        panels: Large panels, each as wide as the picture.
        small: Small panels, two in a row.
    """
    import jinja2

    top = MARGIN + 46 if len(names) == 1 else MARGIN + 34 + 16 * len(names)
    placed = []
    for number, panel in enumerate(panels):
        height = TALL if number == 0 else SHORT
        placed.append(_placed(panel, MARGIN, top, WIDTH - 2 * MARGIN, height))
        top += height + GAP
    half = (WIDTH - 2 * MARGIN - GAP) / 2
    for number, panel in enumerate(small):
        placed.append(_placed(panel, MARGIN + (half + GAP) * (number % 2), top, half, SMALL))
        top += (SMALL + GAP) * (number % 2 or number == len(small) - 1)
    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    template = environment.from_string((Path(__file__).with_name("templates") / "curves.svg").read_text())
    sizes = {"width": WIDTH, "height": round(top + MARGIN), "margin": MARGIN, "kinds": KINDS}
    return template.render(title=title, about=about, names=names, axis=axis, panels=placed, **sizes) + "\n"


def _placed(panel: Panel, x: float, y: float, width: float, height: float) -> dict[str, Any]:
    """A panel in numbers: its frame, its ticks and its paths."""
    points = [point for series in panel.series for point in series.points]
    across = Scale(0.0, max(max(px for px, _ in points), 1.0), x + LEFT, x + width - 12)
    low, high = _span([value for _, value in points])
    up = Scale(low, high, y + height - BOTTOM, y + TOP)
    rows = ticks(low, high, 4 if height == SMALL else 5)
    columns = [tick for tick in ticks(0.0, across.high, 4 if height == SMALL else 7) if tick == round(tick)]
    return {
        "title": panel.title,
        "x": x,
        "y": y,
        "left": x + LEFT,
        "right": x + width - 12,
        "bottom": y + height - BOTTOM,
        "rows": list(zip(map(up.at, rows), labels(rows), strict=True)),
        "columns": list(zip(map(across.at, columns), labels(columns), strict=True)),
        "lines": [_line(series, across, up) for series in panel.series],
    }


def _line(series: Series, across: Scale, up: Scale) -> dict[str, Any]:
    dots = [(across.at(px), up.at(value)) for px, value in series.points]
    chosen = None if series.chosen is None else dots[series.chosen]
    value = "" if series.chosen is None else f"{series.points[series.chosen][1]:.1f}"
    return {
        "run": series.run,
        "raw": series.raw,
        "path": path(dots),
        "marks": dots if series.marks or len(dots) == 1 else [],
        "chosen": chosen,
        "value": value,
        "anchor": "middle" if chosen is None or chosen[0] < across.end - 50 else "end",
        "below": chosen is not None and chosen[1] < up.end + 14,
    }


def path(dots: Sequence[Point]) -> str:
    """An SVG path through places; a long one keeps the lowest and the highest of each bucket."""
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in _thinned(dots))


def _thinned(dots: Sequence[Point]) -> Iterator[Point]:
    if len(dots) <= MOST:
        yield from dots
        return
    buckets = MOST // 2
    for number in range(buckets):
        part = dots[number * len(dots) // buckets : (number + 1) * len(dots) // buckets]
        ends = {min(part, key=lambda dot: dot[1]), max(part, key=lambda dot: dot[1])}
        yield from sorted(ends)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with some room around it."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + (2 * room if low < high else room)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values inside a range, about so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def labels(values: Iterable[float]) -> list[str]:
    """Short labels of ticks, all in one form: thousands with k, millions with M, small ones with an exponent."""
    found = list(values)
    most = max((abs(value) for value in found), default=0.0)
    if 0 < most < 0.001:
        return [f"{value:.3g}" for value in found]
    size, sign = (1e6, "M") if most >= 1e6 else (1e3, "k") if most >= 1e4 else (1.0, "")
    return [f"{round(value / size, 6):g}{sign if value else ''}" for value in found]
