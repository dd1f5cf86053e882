"""Training curves of a run: read from `train/metrics.jsonl`, shown as sparklines, plotted into `train/curves.svg`."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.events import CellStarted, Evaluation, StudentEvaluated, TrainingStep, from_json
from tinyllm_bench.base.files import read_checked, write_text
from tinyllm_bench.training.result import RESULT_FILE, load_result

METRICS, DRAWING = Path("train") / "metrics.jsonl", Path("train") / "curves.svg"
EVENTS = "events.jsonl"
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
SPARK = 40  # characters
LOSS, ACCURACY, RATE, VALIDATION = "training loss", "validation accuracy %", "learning rate", "validation: "
Point = tuple[float, float]


class ValidationPoint(NamedTuple):
    """An evaluation on validation questions; accuracy as a share. `selected`: its weights are the student's."""

    step: int
    tokens: int
    accuracy: float
    n: int
    selected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCurves:
    """The measurements of a run during training. `steps` holds the number of each optimiser step and the student tokens
    so far; `losses` and `rates` have one value a step. `measured` holds further curves by name, as (index into `steps`,
    value), where index -1 is the evaluation before the first step."""

    name: str
    label: str
    steps: tuple[tuple[int, int], ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    validations: tuple[ValidationPoint, ...]
    measured: Mapping[str, tuple[Point, ...]]
    finished: bool

    def at(self, index: float, *, by_tokens: bool) -> float:
        """A step's position on the axis: its number, or the tokens so far; 0 before the first."""
        return 0.0 if index < 0 else float(self.steps[int(index)][by_tokens])


def read_curves(folder: Path) -> RunCurves:
    """The curves of a run's folder, also while the training is still running.

    Raises:
        UserError: the folder holds no training metrics, or damaged ones.
    """
    steps: list[TrainingStep] = []
    evaluations: list[Evaluation] = []
    for row in read_checked(folder / METRICS):
        match from_json(row, folder / METRICS):
            case TrainingStep() as step:
                steps.append(step)
            case StudentEvaluated(evaluation):
                evaluations.append(evaluation)
            case _:
                pass
    if not steps:
        raise UserError(f"{folder / METRICS} holds no training step; name the folder of a run that trains a student")
    finished = (folder / RESULT_FILE).exists()
    selected = load_result(folder).selected_step if finished else None
    tokens = {step.step: step.tokens for step in steps}
    events = (from_json(row, folder / EVENTS) for row in read_checked(folder / EVENTS))
    cell = next((event for event in events if isinstance(event, CellStarted)), None)
    # Loss of each channel where there are several, then the method's measurements, of steps and of evaluations.
    measured: dict[str, list[Point]] = {}
    for index, step in enumerate(steps):
        channels = step.by_channel if len(step.by_channel) > 1 else {}
        for name, value in ({f"loss of {name}": loss for name, loss in channels.items()} | dict(step.measured)).items():
            measured.setdefault(name, []).append((index, value))
    index_of = {step.step: index for index, step in enumerate(steps)}
    for evaluation in evaluations:
        figures = {"loss": evaluation.loss, "gold probability": evaluation.gold_probability, **evaluation.probe}
        for name, figure in figures.items():
            if figure is not None:
                measured.setdefault(VALIDATION + name, []).append((index_of.get(evaluation.step, -1), figure))
    return RunCurves(
        name=folder.resolve().name,
        label=folder.resolve().name if cell is None else f"{cell.label} on {cell.task}",
        steps=tuple((step.step, step.tokens) for step in steps),
        losses=tuple(step.loss for step in steps),
        rates=tuple(step.learning_rate for step in steps),
        validations=tuple(
            ValidationPoint(point.step, tokens.get(point.step, 0), point.accuracy, point.n, point.step == selected)
            for point in evaluations
        ),
        measured={name: tuple(points) for name, points in measured.items()},
        finished=finished,
    )


def draw_run(folder: Path) -> Path | None:
    """Plot a run's curves into its folder; returns the file, None where no step was taken (yet, or by this cell)."""
    events = (from_json(row, folder / METRICS) for row in read_checked(folder / METRICS))
    if not any(isinstance(event, TrainingStep) for event in events):
        return None
    write_text(folder / DRAWING, drawing([read_curves(folder)]))
    return folder / DRAWING


def drawing(runs: Sequence[RunCurves]) -> str:
    """One SVG of one run by its steps, or of several runs overlaid by their student tokens."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    several = len(runs) > 1
    axis = "student tokens" if several else "step"
    names = list(dict.fromkeys(name for run in runs for name in run.measured))
    has_validation, has_rates = any(run.validations for run in runs), any(run.rates for run in runs)
    large = [LOSS, *([ACCURACY] if has_validation else [])]
    small = [*([RATE] if has_rates else []), *names]
    # Panels are laid out by number: numpy, which holds the layout, cuts a name that ends in a NUL.
    layout: list[Any] = [[number, number] for number in range(len(large))]
    places = [*range(len(large), len(large) + len(small)), -1]
    layout += [places[i : i + 2] for i in range(0, len(small), 2)]
    settings: Any = {
        "svg.fonttype": "none",  # texts stay texts, for search and for screen readers
        "svg.hashsalt": "curves",  # the same run gives the same bytes
        "text.parse_math": False,  # a name with two dollar signs is no formula
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.4,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the viewer's font may have it
        figure = Figure(figsize=(8, 1.8 * len(layout) + 0.8), layout="constrained")
        title = f"Training of {runs[0].label}" if not several else f"Training of {len(runs)} runs"
        figure.suptitle(visible(title), fontweight="bold")
        axes = figure.subplot_mosaic(layout, empty_sentinel=-1)
        panels = {name: axes[number] for number, name in enumerate([*large, *small])}
        for name, panel in panels.items():
            panel.set_title(visible(name), loc="left")
            panel.set_xlabel(axis)
        for number, run in enumerate(runs):
            color, dashes = f"C{number}", ("-", "--", ":", "-.")[number % 4] if several else "-"
            curves = [(LOSS, tuple(enumerate(run.losses))), *run.measured.items()]
            for name, points in curves:
                xs = [run.at(index, by_tokens=several) for index, _ in points]
                values = [value for _, value in points]
                marker = "o" if name.startswith(VALIDATION) or len(points) == 1 else None
                if not several:  # one run: the values faintly and their moving mean; several: the mean alone
                    panels[name].plot(xs, values, color=color, alpha=0.35, linewidth=1)
                panels[name].plot(xs, smoothed(values), color=color, linestyle=dashes, marker=marker)
            if run.rates:
                xs = [run.at(index, by_tokens=several) for index in range(len(run.rates))]
                panels[RATE].plot(xs, run.rates, color=color, linestyle=dashes)
            if run.validations:
                xs = [point.tokens if several else point.step for point in run.validations]
                percents = [100 * point.accuracy for point in run.validations]
                panels[ACCURACY].plot(xs, percents, color=color, linestyle=dashes, marker="o")
                for x, value, point in zip(xs, percents, run.validations, strict=True):
                    if point.selected:
                        ring: Any = {"marker": "o", "markersize": 12, "fillstyle": "none", "color": "black"}
                        panels[ACCURACY].plot([x], [value], linestyle="none", gid="selected", **ring)
                        if not several:
                            text = f"selected: {value:.1f} %"
                            panels[ACCURACY].annotate(text, (x, value), (10, -3), textcoords="offset points")
        for panel in panels.values():
            panel.margins(y=0.15)
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if several:
            lines = [panels[LOSS].lines[number] for number in range(len(runs))]
            figure.legend(lines, [visible(run.name) for run in runs], loc="outside lower center", ncols=2)
        else:
            figure.text(0.01, 0.99, visible(runs[0].name), va="top", fontsize=8, alpha=0.7)
        descriptions = []  # for readers who do not see the plot
        for run in runs:
            steps, tokens = run.steps[-1]
            text = f"{run.name}: {steps} steps, {tokens} student tokens, training loss {_from_to(run.losses)}"
            validation = f", validation accuracy {_accuracy_text(run.validations)}" if run.validations else ""
            descriptions.append(f"{text}{validation}.")
        svg = io.StringIO()
        about = {"Title": visible(title), "Description": visible(" ".join(descriptions)), "Date": None}
        figure.savefig(svg, format="svg", metadata=about)
    return svg.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving mean over about a twentieth of the values, without a bias towards the start."""
    decay = 1 - 2 / (1 + max(len(values) / 20, 1))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        means.append(total / weight)
    return means


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
    lines = [run.name + ("" if run.finished else " (training is running, or was interrupted)")]
    curves: list[tuple[str, Sequence[float], str]] = [("loss", run.losses, _from_to(run.losses))]
    if run.validations:
        accuracies = [point.accuracy for point in run.validations]
        curves.append(("validation", accuracies, _accuracy_text(run.validations)))
    for name, points in run.measured.items():
        own = [value for _, value in points]
        curves.append((name, own, _from_to(own)))
    width = min(max(len(name) for name, _, _ in curves), 34)
    spark = 78 - width - max(len(text) for _, _, text in curves) - 4
    for name, values, text in curves:
        line = sparkline(values, max(8, min(SPARK, spark)), bars=bars)
        lines.append(f"  {name[:width]:<{width}}  {line}  {text}")
    steps, tokens = run.steps[-1]
    return "\n".join([*lines, f"  {steps:,} steps, {tokens:,} student tokens"])


def _from_to(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}"


def _accuracy_text(points: Sequence[ValidationPoint]) -> str:
    selected = next((point for point in points if point.selected), None)
    if selected is None:
        return f"last {100 * points[-1].accuracy:.1f} % of {points[-1].n}"
    return f"{100 * selected.accuracy:.1f} % of {selected.n} selected (step {selected.step})"
