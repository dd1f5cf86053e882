"""Do the intervals of a board hold? Coverage, false positives and power on records with known truth.

`python benchmarks/coverage.py [--repetitions N] [--seed N]` prints Markdown. A repetition is one table: a baseline and
five methods on the same questions. A question has a difficulty shared by all rows; a row, a run and a question x run
residual add to it, and an answer is right when the sum is above a threshold (a probit model: two runs of a row differ
on 14 % of the questions, runs of two rows on 20 %). The thresholds make the baseline's expected accuracy, over all
possible questions and runs, exactly 60 %, and a method's 60 or 65 %; the run-to-run s.d. is that of a run's
expected accuracy. The aims: 95 % intervals cover 94 to 99 %, and at most 6 % of the tables where no method differs
call one different after Holm.

"As decided" is v_items + v_seeds(A) + v_seeds(B) - residual, at least v_items, with plain Satterthwaite degrees of
freedom; `tinyllm_bench.leaderboard.stats.intervals.spread` says what it adds to that and why.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from tinyllm_bench.leaderboard.stats.intervals import (
    RowSummary,
    Spread,
    p_value,
    score_limits,
    spread,
    summarise,
    t_quantile,
)
from tinyllm_bench.leaderboard.stats.significance import ALPHA

Array = NDArray[np.float64]

SIZES = (500, 1165, 919, 510, 400, 123)  # test questions of the six sets
SEEDS = (3, 5)
RUN_SDS = (0.0, 0.01, 0.02)
METHODS = 5
BASELINE, GAIN = 0.60, 0.05
SAME_ROW, ALL_ROWS = 0.9, 0.8  # latent correlation of two runs of one row, and of runs of two rows
CLUSTERED = 0.5  # share of each latent variance that the questions of a cluster have in common
CELLS = 3_000_000  # answers sampled at a time


class Case(NamedTuple):
    """One setting. `fixed_baseline`: the baseline is one run whose result never varies."""

    name: str
    n: int
    seeds: int
    run_sd: float
    baseline_seeds: int
    baseline_sd: float
    fixed_baseline: bool = False
    cluster_size: int = 1
    same_row: float = SAME_ROW


class Tables(NamedTuple):
    """Tables of one case: methods (tables, METHODS, n, S) without and with a gain, the baseline (tables, 1, n, S)."""

    null: NDArray[np.bool_]
    gain: NDArray[np.bool_]
    baseline: NDArray[np.bool_]


class Differences(NamedTuple):
    """Differences from the baseline, (tables, METHODS), and those of the decision's plain form on the same tables."""

    spread: Spread
    decided: Spread
    accuracy_low: Array
    accuracy_high: Array


def even(n: int, seeds: int, run_sd: float) -> Case:
    """A case of the grid: baseline and methods alike."""
    return Case("", n, seeds, run_sd, seeds, run_sd)


def threshold(accuracy: float, run_sd: float) -> tuple[float, float]:
    """Threshold and run s.d. on the latent scale, where everything but the run adds up to variance 1."""
    run = run_sd / float(norm.pdf(norm.ppf(accuracy)))
    return float(norm.ppf(accuracy)) * float(np.sqrt(1 + run**2)), run


def sample_tables(case: Case, tables: int, rng: np.random.Generator) -> Tables:
    """Answers of that many tables."""

    def normal(rows: int, seeds: int, variance: float) -> NDArray[np.float32]:
        own = rng.standard_normal((tables, rows, case.n, seeds), dtype=np.float32)
        if case.cluster_size > 1:
            clusters = -(-case.n // case.cluster_size)
            common = rng.standard_normal((tables, rows, clusters, seeds), dtype=np.float32)
            common = np.repeat(common, case.cluster_size, axis=2)[:, :, : case.n]
            own = np.sqrt(np.float32(1 - CLUSTERED)) * own + np.sqrt(np.float32(CLUSTERED)) * common
        return np.sqrt(np.float32(variance)) * own

    shared = normal(1, 1, ALL_ROWS)

    def row(rows: int, seeds: int) -> NDArray[np.float32]:
        return shared + normal(rows, 1, case.same_row - ALL_ROWS) + normal(rows, seeds, 1 - case.same_row)

    methods, baseline = row(METHODS, case.seeds), row(1, case.baseline_seeds)
    runs = rng.standard_normal((tables, METHODS, 1, case.seeds), dtype=np.float32)
    (null, null_run), (gain, gain_run) = (threshold(BASELINE + more, case.run_sd) for more in (0.0, GAIN))
    low, low_run = threshold(BASELINE, case.baseline_sd)
    baseline_runs = rng.standard_normal((tables, 1, 1, case.baseline_seeds), dtype=np.float32)
    return Tables(
        methods + np.float32(null_run) * runs > -null,
        methods + np.float32(gain_run) * runs > -gain,
        baseline + np.float32(low_run) * baseline_runs > -low,
    )


def as_decided(methods: RowSummary, baseline: RowSummary) -> Spread:
    """The plain form: one lower bound for the sum, no bound on the degrees of freedom."""
    base = spread([methods, baseline], (1.0, -1.0))
    n = methods.item_means.shape[-1]
    variance, doubt = base.items, base.items**2 / (n - 1)
    for row in (methods, baseline):
        variance = variance + row.seeds - row.residual
        doubt = doubt + (row.seeds**2 + row.residual**2 / (n - 1)) / max(row.seed_df, 1)
    variance = np.maximum(variance, base.items)
    return base._replace(variance=variance, df=variance**2 / doubt)


def compare(methods: RowSummary, baseline: RowSummary, units: int) -> Differences:
    """Both forms for every method, and the interval of every method's accuracy."""
    low, high = score_limits(spread([methods], (1.0,)), units)
    return Differences(spread([methods, baseline], (1.0, -1.0)), as_decided(methods, baseline), low, high)


def simulate(case: Case, repetitions: int, rng: np.random.Generator) -> tuple[Differences, Differences]:
    """Without and with a gain of five points, over all repetitions."""
    clusters = [i // case.cluster_size for i in range(case.n)] if case.cluster_size > 1 else None
    units = len(set(clusters)) if clusters else case.n
    parts: tuple[list[Differences], list[Differences]] = ([], [])
    for size in batches(case, repetitions):
        sampled = sample_tables(case, size, rng)
        baseline = summarise(sampled.baseline, fixed=case.fixed_baseline, clusters=clusters)
        for part, methods in zip(parts, (sampled.null, sampled.gain), strict=True):
            part.append(compare(summarise(methods, clusters=clusters), baseline, units))
    return joined(parts[0]), joined(parts[1])


def batches(case: Case, repetitions: int) -> Iterator[int]:
    """Sizes that add up to the repetitions and keep memory small."""
    size = max(1, CELLS // ((METHODS + 1) * case.n * case.seeds))
    for begin in range(0, repetitions, size):
        yield min(size, repetitions - begin)


def joined(parts: Sequence[Differences]) -> Differences:
    """Concatenate batches."""

    def concatenate(spreads: Sequence[Spread]) -> Spread:
        arrays = [np.concatenate([np.asarray(part[i]) for part in spreads]) for i in range(4)]
        return Spread(arrays[0], arrays[1], arrays[2], arrays[3], spreads[0].scope)

    low, high = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    return Differences(
        concatenate([part.spread for part in parts]), concatenate([part.decided for part in parts]), low, high
    )


def covers(estimate: Spread, truth: float) -> float:
    """Share of intervals that contain the truth."""
    half = t_quantile(estimate.df) * np.sqrt(estimate.variance)
    return float((np.abs(estimate.value - truth) <= half).mean())


def family_wise(estimate: Spread, comparisons: int = METHODS) -> float:
    """Share of tables with a false positive after Holm: its first step decides, min p <= alpha / m."""
    return float((p_value(estimate).min(axis=-1) <= ALPHA / comparisons).mean())


def holm_power(null: Spread, gain: Spread) -> float:
    """How often one method with a gain is detected among four without, after Holm."""
    p = np.concatenate([p_value(gain)[:, :1], p_value(null)[:, 1:]], axis=1)
    mine, others = p[:, 0], np.sort(p[:, 1:], axis=1)
    # Step-down: the k others with a smaller p must all have passed before mine is compared with alpha / (m - k).
    before = (others < mine[:, None]).sum(axis=1)
    levels = ALPHA / (METHODS - np.arange(METHODS - 1))
    passed = np.cumsum(others <= levels, axis=1) == np.arange(1, METHODS)
    reached = np.where(before == 0, True, passed[np.arange(len(p)), np.maximum(before - 1, 0)])
    return float((reached & (mine <= ALPHA / (METHODS - before))).mean())


def percent(share: float) -> str:
    """One decimal."""
    return f"{100 * share:.1f}"


HEADS = [
    "covers 0",
    "covers +5",
    "accuracy covered",
    "false positives",
    "family-wise",
    "power at 5",
    "after Holm",
    "decided: covers 0",
    "family-wise ",
]


def cells(null: Differences, gain: Differences) -> list[str]:
    """The numbers of one case, in the order of HEADS."""
    held = (null.accuracy_low <= BASELINE) & (null.accuracy_high >= BASELINE)
    numbers = [
        covers(null.spread, 0.0),
        covers(gain.spread, GAIN),
        float(held.mean()),
        float((p_value(null.spread) <= ALPHA).mean()),
        family_wise(null.spread),
        float((p_value(gain.spread) <= ALPHA).mean()),
        holm_power(null.spread, gain.spread),
        covers(null.decided, 0.0),
        family_wise(null.decided),
    ]
    return [percent(number) for number in numbers]


def print_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print(flush=True)


def over_tasks(parts: Sequence[Differences], decided: bool = False) -> Spread:
    """The mean difference over the sets, table by table, as `averages.macro_average` computes it."""
    spreads = [part.decided if decided else part.spread for part in parts]
    count = len(spreads)
    variances = [part.variance / count**2 for part in spreads]
    total = np.sum(variances, axis=0)
    df = total**2 / np.sum([v**2 / part.df for v, part in zip(variances, spreads, strict=True)], axis=0)
    value = np.mean([part.value for part in spreads], axis=0)
    return Spread(value, total, df, total, spreads[0].scope)


def grid(repetitions: int, rng: np.random.Generator) -> None:
    """The grid of sizes, seeds and run-to-run s.d., then the mean over the six sets from the same samples."""
    lines, means = [], []
    for seeds in SEEDS:
        for run_sd in RUN_SDS:
            setting = [str(seeds), f"{100 * run_sd:.0f}"]
            results = [simulate(even(n, seeds, run_sd), repetitions, rng) for n in SIZES]
            lines += [[str(n), *setting, *cells(*pair)] for n, pair in zip(SIZES, results, strict=True)]
            null, gain = (over_tasks([pair[i] for pair in results]) for i in (0, 1))
            shares = [covers(null, 0.0), covers(gain, GAIN), family_wise(null)]
            shares += [float((p_value(gain) <= ALPHA).mean()), holm_power(null, gain)]
            means.append([*setting, *map(percent, shares)])
    print_table(["n", "seeds", "run s.d.", *HEADS], lines)
    print("Mean over the six sets:\n")
    print_table(["seeds", "run s.d.", "covers 0", "covers +5", "family-wise", "power at 5", "after Holm"], means)


def beyond(repetitions: int, rng: np.random.Generator) -> None:
    """Cases beyond the grid: unlike rows, fixed rows, few seeds, more or less residual, clusters, all pairs."""
    cases = [
        Case("only the methods vary between runs", 1165, 3, 0.02, 3, 0.0),
        Case("only the baseline varies between runs", 1165, 3, 0.0, 3, 0.02),
        Case("3 seeds against 5", 1165, 3, 0.02, 5, 0.02),
        Case("2 seeds", 1165, 2, 0.02, 2, 0.02),
        Case("3 seeds against a fixed row", 1165, 3, 0.02, 1, 0.0, fixed_baseline=True),
        Case("5 seeds against a fixed row", 1165, 5, 0.02, 1, 0.0, fixed_baseline=True),
        Case("runs of a row differ as much as rows", 500, 3, 0.0, 3, 0.0, same_row=ALL_ROWS),
        Case("the same, 2 points", 1165, 3, 0.02, 3, 0.02, same_row=ALL_ROWS),
        Case("runs of a row hardly differ", 500, 3, 0.0, 3, 0.0, same_row=0.97),
        Case("the same, 2 points ", 1165, 3, 0.02, 3, 0.02, same_row=0.97),
        Case("123 questions in 62 clusters", 123, 3, 0.01, 3, 0.01, cluster_size=2),
        Case("123 questions in 31 clusters", 123, 3, 0.01, 3, 0.01, cluster_size=4),
        Case("400 questions in 100 clusters", 400, 5, 0.01, 5, 0.01, cluster_size=4),
    ]
    print("Beyond the grid:\n")
    print_table(["case", *HEADS], [[case.name, *cells(*simulate(case, repetitions, rng))] for case in cases])
    lines = []
    for n, seeds, run_sd in ((1165, 3, 0.02), (1165, 5, 0.02), (500, 3, 0.0)):
        share = all_pairs(even(n, seeds, run_sd), repetitions, rng)
        lines.append([str(n), str(seeds), f"{100 * run_sd:.0f}", percent(share)])
    print("All 15 pairs of six equal rows, as for ranks and the group tied with the best:\n")
    print_table(["n", "seeds", "run s.d.", "family-wise"], lines)


def all_pairs(case: Case, repetitions: int, rng: np.random.Generator) -> float:
    """Family-wise error over the pairs of the baseline and the methods."""
    wrong = 0
    for size in batches(case, repetitions):
        sampled = sample_tables(case, size, rng)
        everything = summarise(np.concatenate([sampled.null, sampled.baseline], axis=1))
        rows = [slice_of(everything, i) for i in range(METHODS + 1)]
        pairs = list(combinations(rows, 2))
        p = np.stack([p_value(spread(pair, (1.0, -1.0))) for pair in pairs], axis=-1)
        wrong += int((p.min(axis=-1) <= ALPHA / len(pairs)).sum())
    return wrong / repetitions


def slice_of(row: RowSummary, index: int) -> RowSummary:
    """One row of many that were summarised together."""
    return row._replace(item_means=row.item_means[:, index], seeds=row.seeds[:, index], residual=row.residual[:, index])


def check_questions_alone(repetitions: int, rng: np.random.Generator) -> None:
    """The interval that ignores the seeds."""
    lines = []
    for n, seeds, run_sd in ((500, 3, 0.0), (500, 3, 0.02), (1165, 3, 0.02), (1165, 5, 0.02)):
        item_only = 0
        for _ in range(repetitions):
            sampled = sample_tables(even(n, seeds, run_sd), 1, rng)
            items = spread([summarise(sampled.null[0, 0]), summarise(sampled.baseline[0, 0])], (1.0, -1.0))
            item_only += abs(items.value) <= t.isf(ALPHA / 2, n - 1) * np.sqrt(items.items)
        lines.append([str(n), str(seeds), f"{100 * run_sd:.0f}", percent(item_only / repetitions)])
    print(f"Checks on {repetitions} single differences of truth 0:\n")
    print_table(["n", "seeds", "run s.d.", "questions alone cover"], lines)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin, rng = time.perf_counter(), np.random.default_rng(args.seed)
    print(f"{args.repetitions} repetitions, seed {args.seed}; all numbers in %, power at a true 5 points.")
    error = 100 * np.sqrt(0.05 * 0.95 / args.repetitions)
    print(f"A family-wise error of 5 % has a simulation error of +-{error:.1f} (one s.d.), coverage less.\n")
    grid(args.repetitions, rng)
    beyond(args.repetitions, rng)
    check_questions_alone(max(2, args.repetitions // 4), rng)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
