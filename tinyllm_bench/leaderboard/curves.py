"""Training curves of a run: read from `train/metrics.jsonl`, told as lines of text, drawn into `train/curves.svg`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_checked, read_json, write_text
from tinyllm_bench.leaderboard.curves_svg import Panel, Series, curves_svg

METRICS, DRAWING = Path("train") / "metrics.jsonl", Path("train") / "curves.svg"
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
SPARK = 40  # characters
LOSS, ACCURACY, RATE, LOOKED = "training loss", "validation accuracy %", "learning rate", "validation: "
Point = tuple[float, float]


class Looked(NamedTuple):
    """A look at validation; accuracy as a share. `selected`: its weights are the student's."""

    step: int
    tokens: int
    accuracy: float
    n: int
    selected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCurves:
    """What a run measured while it trained. `steps` holds per optimiser step its number and the student tokens by
    then; `losses` and `rates` go with them. `small` are further curves by name, as (index into `steps`, value), where
    index -1 is the look before the first step."""

    name: str
    label: str
    steps: tuple[tuple[int, int], ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    looks: tuple[Looked, ...]
    small: Mapping[str, tuple[Point, ...]]
    finished: bool

    def at(self, index: float, *, by_tokens: bool) -> float:
        """A step's place on the axis: its number, or the tokens by then; 0 before the first."""
        return 0.0 if index < 0 else float(self.steps[int(index)][by_tokens])


def read_curves(folder: Path) -> RunCurves:
    """The curves of a run's folder, of a training that goes on too.

    Raises:
        UserError: the folder holds no training metrics, or damaged ones.
    """
    try:
        return _curves(folder)
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())[:120]
        raise UserError(
            f"{folder / METRICS} is not as a training writes it ({type(error).__name__}: {told}); train again"
        ) from None


def _curves(folder: Path) -> RunCurves:
    rows = list(read_checked(folder / METRICS))
    steps = [row for row in rows if "step" in row]
    if not steps:
        raise UserError(f"{folder / METRICS} holds no training step; name the folder of a run that trains a student")
    result = folder / "train" / "result.json"
    kept = read_json(result)["looks"] if result.exists() else []
    chosen = {look["step"] for look in kept if look["selected"]}
    tokens = {row["step"]: row["tokens"] for row in steps}
    index = {row["step"]: number for number, row in enumerate(steps)}
    looks = [row["look"] for row in rows if "look" in row]
    return RunCurves(
        name=folder.resolve().name,
        label=_label(folder),
        steps=tuple((row["step"], row["tokens"]) for row in steps),
        losses=tuple(row["loss"] for row in steps),
        rates=tuple(row["lr"] for row in steps if "lr" in row),
        looks=tuple(
            Looked(one["step"], tokens.get(one["step"], 0), one["accuracy"], one["n"], one["step"] in chosen)
            for one in looks
        ),
        small=_small(steps, looks, index),
        finished=result.exists(),
    )


def _label(folder: Path) -> str:
    cell = next((row for row in read_checked(folder / "events.jsonl") if "cell" in row), None)
    return folder.resolve().name if cell is None else f"{cell['label']} on {cell['task']}"


def _small(
    steps: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]], index: Mapping[int, int]
) -> dict[str, tuple[Point, ...]]:
    """Loss of each channel where there are several, then what the method measured, then what looks measured."""
    found: dict[str, list[Point]] = {}
    for number, row in enumerate(steps):
        channels = row["by_channel"] if len(row["by_channel"]) > 1 else {}
        values = {f"loss of {name}": value for name, value in channels.items()} | row.get("measured", {})
        for name, value in values.items():
            found.setdefault(name, []).append((number, value))
    for look in looks:
        own = {"loss": look["loss"], "gold probability": look["gold_probability"], **look["probe"]}
        for name, value in own.items():
            if value is not None:
                found.setdefault(LOOKED + name, []).append((index.get(look["step"], -1), value))
    return {name: tuple(points) for name, points in found.items()}


def draw_run(folder: Path) -> Path | None:
    """Draw a run's curves into its folder; the file, None where no step was taken (yet, or by this cell)."""
    if not any("step" in row for row in read_checked(folder / METRICS)):
        return None
    write_text(folder / DRAWING, drawing([read_curves(folder)]))
    return folder / DRAWING


def drawing(runs: Sequence[RunCurves]) -> str:
    """One SVG of one run by its steps, or of several on top of each other by their student tokens."""
    several = len(runs) > 1
    losses = [one for i, run in enumerate(runs) for one in _measured(run, i, enumerate(run.losses), several)]
    panels = [Panel(LOSS, tuple(losses))]
    looked = [_accuracies(run, i, several) for i, run in enumerate(runs) if run.looks]
    panels += [Panel(ACCURACY, tuple(looked))] if looked else []
    rated = [_series(run, i, enumerate(run.rates), several) for i, run in enumerate(runs) if run.rates]
    small = [Panel(RATE, tuple(rated))] if rated else []
    for name in dict.fromkeys(name for run in runs for name in run.small):
        with_it = [(i, run) for i, run in enumerate(runs) if name in run.small]
        lines = [one for i, run in with_it for one in _measured(run, i, run.small[name], several)]
        small.append(Panel(name, tuple(line._replace(marks=name.startswith(LOOKED)) for line in lines)))
    title = f"Training of {runs[0].label}" if not several else f"Training of {len(runs)} runs"
    return curves_svg(
        title=title,
        about=" ".join(_sentence(run) for run in runs),
        names=[run.name for run in runs],
        axis="student tokens" if several else "step",
        panels=panels,
        small=small,
    )


def _measured(run: RunCurves, number: int, points: Iterable[Point], several: bool) -> list[Series]:
    """What was measured, faintly, and its moving mean; the mean alone where runs lie on top of each other."""
    found = list(points)
    means = zip((index for index, _ in found), smoothed([value for _, value in found]), strict=True)
    mean = _series(run, number, means, several)
    return [mean] if several else [_series(run, number, found, several)._replace(raw=True), mean]


def _series(run: RunCurves, number: int, points: Iterable[Point], by_tokens: bool) -> Series:
    return Series(number, tuple((run.at(index, by_tokens=by_tokens), value) for index, value in points))


def _accuracies(run: RunCurves, number: int, by_tokens: bool) -> Series:
    places = [look.tokens if by_tokens else look.step for look in run.looks]
    points = tuple((float(x), 100 * look.accuracy) for x, look in zip(places, run.looks, strict=True))
    chosen = next((i for i, look in enumerate(run.looks) if look.selected), None)
    return Series(number, points, marks=True, chosen=chosen)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving mean over about a twentieth of the values, without a bias towards the start."""
    keep = 1 - 2 / (1 + max(len(values) / 20, 1))
    total = weight = 0.0
    found = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(total / weight)
    return found


def sparkline(values: Sequence[float], width: int = SPARK, *, bars: str = BARS) -> str:
    """Values as one line of text, lowest to highest; where there are more than `width`, means of neighbours."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, span = min(means), max(means) - min(means)
    return "".join(bars[round((mean - low) / span * (len(bars) - 1)) if span else 0] for mean in means)


def curves_text(run: RunCurves, *, bars: str = BARS) -> str:
    """A run's curves as sparklines, each with its first and last value."""
    lines = [run.name + ("" if run.finished else " (training goes on, or was interrupted)")]
    told: list[tuple[str, Sequence[float], str]] = [("loss", run.losses, _from_to(run.losses))]
    if run.looks:
        told.append(("validation", [look.accuracy for look in run.looks], _looks_text(run.looks)))
    told += [(name, values, _from_to(values)) for name, values in _small_values(run)]
    width = min(max(len(name) for name, _, _ in told), 34)
    spark = 78 - width - max(len(text) for _, _, text in told) - 4
    for name, values, text in told:
        line = sparkline(values, max(8, min(SPARK, spark)), bars=bars)
        lines.append(f"  {name[:width]:<{width}}  {line}  {text}")
    steps, tokens = run.steps[-1]
    return "\n".join([*lines, f"  {steps:,} steps, {tokens:,} student tokens"])


def _small_values(run: RunCurves) -> list[tuple[str, list[float]]]:
    return [(name, [value for _, value in points]) for name, points in run.small.items()]


def _from_to(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}"


def _looks_text(looks: Sequence[Looked]) -> str:
    chosen = next((look for look in looks if look.selected), None)
    if chosen is None:
        return f"last {100 * looks[-1].accuracy:.1f} % of {looks[-1].n}"
    return f"{100 * chosen.accuracy:.1f} % of {chosen.n} selected (step {chosen.step})"


def _sentence(run: RunCurves) -> str:
    """What a reader who does not see the picture should know."""
    steps, tokens = run.steps[-1]
    told = f"{run.name}: {steps} steps, {tokens} student tokens, training loss {_from_to(run.losses)}"
    return f"{told}, validation accuracy {_looks_text(run.looks)}." if run.looks else f"{told}."
