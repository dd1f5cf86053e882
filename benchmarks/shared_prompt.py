"""What shared prompts save: time, tokens and memory of TinyLLM's training step, and the time to rank options.

Four forms of the same step over the same questions, interleaved in one process: a padded pass per channel with logits
at every position (as TinyLLM's released code, model_utils.py:42-49 at 9f5bebe), the same with logits at target
positions only, a question as one sequence with its targets as branches, and that in batches filled by tokens from
length-sorted questions. Then the options of test questions, ranked by lm-eval's own hf backend and as branches.

`python benchmarks/shared_prompt.py [--task NAME] [--model SPEC] [--rounds N] [key=value ...]` uses the data of a run
(TINYLLM_BENCH_DATA), or the sample questions if that is not set.
"""

import argparse
import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance

from tinyllm_bench.base import provenance
from tinyllm_bench.evaluation.lm_eval_models import hf_lm
from tinyllm_bench.experiment.annotate import annotate
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.experiment.train import encode_groups
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, load_model
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.training.batching import Collator, Group, InputRow, collator_of, micro_batches
from tinyllm_bench.training.losses import channel_cross_entropy

MICRO = 8  # questions of a micro-batch that is not filled by tokens
MICRO_TOKENS = 4096


class Form(NamedTuple):
    """One way to do the work, and how many positions it computes (with padding) or options it ranks."""

    run: Callable[[], Any]
    amount: int


class Measured(NamedTuple):
    """The seconds of every round, and its peak memory minus the memory in use before it."""

    seconds: list[float]
    peaks: list[int]


def every_position(lm: LM, collator: Collator, parts: Sequence[Sequence[InputRow]]) -> None:
    """Forward and backward pass with logits at every position, as transformers computes them."""
    for rows in parts:
        batch = collator.collate(rows)
        mask = batch.attention_mask_BT
        logits_BTV = lm.hf_model(input_ids=batch.input_ids_BT, attention_mask=mask, use_cache=False).logits
        logits_NV = logits_BTV[batch.target_row_N, batch.target_position_N]
        torch.nn.functional.cross_entropy(logits_NV.float(), batch.target_ids_N, reduction="sum").backward()


def targets_only(lm: LM, collator: Collator, parts: Sequence[Sequence[InputRow]]) -> None:
    """Forward and backward pass as in the trainer."""
    for rows in parts:
        sums = channel_cross_entropy(collator.collate(rows), lm)
        torch.stack(list(sums.values())).sum().backward()


def training_forms(lm: LM, separate: Collator, groups: Sequence[Group]) -> dict[str, Form]:
    """The four forms of one step over `groups`."""
    shared = replace(separate, layout="shared")
    eights = [groups[start : start + MICRO] for start in range(0, len(groups), MICRO)]
    channels = list(dict.fromkeys(item.channel for group in groups for item in group.items))
    passes = [
        separate.rows([item for group in eight for item in group.items if item.channel == channel])
        for eight in eights
        for channel in channels
    ]
    branches = [[row for group in eight for row in shared.rows(group.items)] for eight in eights]
    by_group = [shared.rows(group.items) for group in groups]
    packed = micro_batches(by_group, max_tokens=MICRO_TOKENS, keep_groups=False, pack=True)
    return {
        "a pass per channel, logits everywhere": _form(every_position, lm, separate, passes),
        "a pass per channel, logits at targets": _form(targets_only, lm, separate, passes),
        "shared prompts": _form(targets_only, lm, shared, branches),
        "shared prompts, batches by tokens": _form(targets_only, lm, shared, packed),
    }


def _form(work: Callable[..., None], lm: LM, collator: Collator, parts: Sequence[Sequence[InputRow]]) -> Form:
    positions = sum(len(rows) * max(row.width for row in rows) for rows in parts)
    return Form(partial(work, lm, collator, parts), positions)


def ranking_forms(cell: Cell, loaded: Loaded, count: int) -> tuple[dict[str, Form], float]:
    """Both ways to rank the options of test questions, and the largest difference of their values."""
    records = cell.truncated_records("test")[:count]
    pairs = [(cell.ask.prompt(r), f" {option}") for r in records for option in cell.ask.options(r)]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    engines: dict[str, Any] = {
        "lm-eval's hf backend": hf_lm(*loaded, batch_size=16, device="cpu", layout="separate"),
        "options as branches": hf_lm(*loaded, batch_size=16, device="cpu", layout="shared"),
    }
    values = [[value for value, _ in engine.loglikelihood(requests)] for engine in engines.values()]
    difference = max(abs(a - b) for a, b in zip(*values, strict=True))
    forms = {name: Form(partial(engine.loglikelihood, requests), len(requests)) for name, engine in engines.items()}
    return forms, difference


def measure(forms: Mapping[str, Form], rounds: int, *, before: Callable[[], None]) -> dict[str, Measured]:
    """Run the forms in turn; the first round warms up and is not counted."""
    results = {name: Measured([], []) for name in forms}
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: returns freed memory to the system
    for number in range(rounds + 1):
        for name, form in forms.items():
            before()
            if trim is not None:
                trim(0)
            provenance.reset_peak_memory()
            bytes_before = provenance.peak_memory()
            began = time.perf_counter()
            form.run()
            if number:
                results[name].seconds.append(time.perf_counter() - began)
                results[name].peaks.append(provenance.peak_memory() - bytes_before)
    return results


def show(title: str, forms: Mapping[str, Form], results: Mapping[str, Measured], unit: str) -> None:
    """Print medians, and ratios to the first form with the quartiles of the rounds' own ratios."""
    first = next(iter(results.values())).seconds
    print(f"\n{title}\n  {'form':<40} {'seconds':>8} {'ratio':>6}  {'quartiles':<11} {unit:>9} {'GiB':>6}")
    for name, (seconds, peaks) in results.items():
        ratios = [a / b for a, b in zip(seconds, first, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (math.nan,) * 3
        middle, ratio = statistics.median(seconds), statistics.median(seconds) / statistics.median(first)
        spread, peak = f"{low:.2f}-{high:.2f}", statistics.median(peaks) / 2**30
        print(f"  {name:<40} {middle:8.2f} {ratio:6.2f}  {spread:<11} {forms[name].amount:9,} {peak:6.2f}")


def main() -> None:
    """Measure both and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:smollm2-135m?layers=0:10", help="student (default: %(default)s)")
    parser.add_argument("--task", default="obqa")
    parser.add_argument("--questions", type=int, default=16, help="of the training step")
    parser.add_argument("--ranked", type=int, default=64, help="test questions to rank")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forms", default="1,2,3,4", help="which forms of the step, by number")
    parser.add_argument("settings", nargs="*", help="settings as of `tinyllm-bench run`")
    args = parser.parse_args()
    preset = "cpu" if os.environ.get("TINYLLM_BENCH_DATA") else "quickstart"
    request = Request(
        methods=("tinyllm",),
        tasks=(args.task,),
        preset=preset,
        assignments=(f"data.train_limit={args.questions}", *args.settings),
    )
    (cell,) = plan_cells(request)[1]
    loaded = load_model(parse_spec(args.model, role="student"))
    groups = encode_groups(cell, loaded, annotate(cell, report=lambda event: None))
    lm = LM(loaded.model).train()
    chosen = {int(number) for number in args.forms.split(",")}
    every = training_forms(lm, collator_of(*loaded), groups)
    forms = {name: form for number, (name, form) in enumerate(every.items(), start=1) if number in chosen}
    results = measure(forms, args.rounds, before=lambda: lm.zero_grad(set_to_none=True))
    about = f"{args.task}, preset {preset}, mode {cell.mode}, {args.model}"
    tokens = sum(group.tokens for group in groups)
    title = f"TinyLLM's step: {about}, {len(groups)} questions, {tokens:,} tokens, {args.rounds} rounds"
    show(title, forms, results, "positions")
    lm.zero_grad(set_to_none=True)
    ranking, difference = ranking_forms(cell, loaded, args.ranked)
    results = measure(ranking, args.rounds, before=lambda: None)
    show(f"Ranking: {about}, largest difference of a log-probability {difference:.1e}", ranking, results, "options")


if __name__ == "__main__":
    main()
