"""The speed of vLLM for a local teacher's rationales, compared with transformers' `generate` in batches.

Both serve the same greedy requests, alternately in one process. The demonstrations before every question are the same,
so that vLLM computes them once (unless --select random). vLLM's prefix cache is emptied before each round, and both
engines are loaded before the clock starts.

`python benchmarks/annotate.py [--task NAME] [--model SPEC] [--questions N] [--rounds N] [--batch N ...]` uses the data
of a run (TINYLLM_BENCH_DATA), or the sample questions if that is not set.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

from tinyllm_bench.data.sources import find_source, load_rationales, load_split, rationale_keys
from tinyllm_bench.generation.hf import HfGenerator
from tinyllm_bench.generation.requests import Completion, GenerationRequest, SamplingConfig, TextGenerator
from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine
from tinyllm_bench.models.load import spec_folder
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.teachers.few_shot import ShotConfig, ShotSelector
from tinyllm_bench.teachers.prompts import annotation_prompt, stop_texts


class Form(NamedTuple):
    """A generator, and a function to call before it is timed."""

    generator: TextGenerator
    before: Callable[[], None]


class Measured(NamedTuple):
    """The seconds of every round, and the last round's texts in the order of the requests."""

    seconds: list[float]
    texts: list[Completion]


def make_requests(task: str, count: int, select: str, max_new_tokens: int) -> list[GenerationRequest]:
    """Greedy requests for the first training questions, with two demonstrations that carry a recorded rationale."""
    source = find_source("auto" if os.environ.get("TINYLLM_BENCH_DATA") else "sample", None)
    records = load_split(source, task, "train")
    texts = load_rationales(source, task, "train", rationale_keys(source, task)[0])
    shots = ShotSelector(ShotConfig.model_validate({"select": select, "shots": 2}), records, texts)
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, stop=stop_texts("forced"))
    questions = records[-count:]  # fixed demonstrations are the first records
    prompts = [annotation_prompt(record, shots.select(record), "forced") for record in questions]
    return [GenerationRequest(prompt, sampling, 0) for prompt in prompts]


def measure(forms: Mapping[str, Form], requests: Sequence[GenerationRequest], rounds: int) -> dict[str, Measured]:
    """Run the forms in turn; the first round warms up and is not counted."""
    results = {name: Measured([], []) for name in forms}
    for round_number in range(rounds + 1):
        for name, form in forms.items():
            form.before()
            began = time.perf_counter()
            answers = dict(form.generator.generate(requests))
            seconds = time.perf_counter() - began
            texts = [answers[number] for number in range(len(requests))]
            failed = [text for text in texts if not isinstance(text, Completion)]
            assert not failed, failed[0]
            results[name].texts[:] = [text for text in texts if isinstance(text, Completion)]
            if round_number:
                results[name].seconds.append(seconds)
    return results


def show(results: Mapping[str, Measured], last: str) -> None:
    """Print medians, and how many times as fast `last` is, with the quartiles of the rounds' own ratios."""
    print(f"  {'form':<26} {'seconds':>8} {'texts/s':>8} {'tokens in':>10} {'out':>6} {'vLLM gains':>14}  quartiles")
    best = results[last]
    for name, (seconds, texts) in results.items():
        ratios = [ours / fastest for ours, fastest in zip(seconds, best.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (math.nan,) * 3
        middle = statistics.median(seconds)
        ratio = middle / statistics.median(best.seconds)
        tokens_in, tokens_out = sum(text.tokens_in for text in texts), sum(text.tokens_out for text in texts)
        same = sum(text.text == other.text for text, other in zip(texts, best.texts, strict=True))
        print(
            f"  {name:<26} {middle:8.2f} {len(texts) / middle:8.2f} {tokens_in:10,} {tokens_out:6,} {ratio:14.2f}"
            f"  {low:.2f}-{high:.2f}  {same} of {len(texts)} texts alike"
        )


def main() -> None:
    """Open the generators, measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:smollm2-135m", help="teacher (default: %(default)s)")
    parser.add_argument("--task", default="obqa")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--new", type=int, default=64, help="most new tokens of a text")
    parser.add_argument("--select", default="fixed", help="how demonstrations are chosen (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="batch sizes of transformers")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    spec = parse_spec(args.model, role="teacher")
    folder = spec_folder(spec)
    if folder is None or spec.layers or spec.adapter:
        parser.error(f"--model {args.model}: name a whole local model, such as bundled:smollm2-135m or dir:FOLDER")
    requests = make_requests(args.task, args.questions, args.select, args.new)
    fast = "vLLM"
    with ExitStack() as stack:
        forms = {
            f"transformers, batch {size}": Form(stack.enter_context(HfGenerator(spec, batch=size)), lambda: None)
            for size in args.batch
        }
        vllm = stack.enter_context(VllmEngine(folder, EngineOptions(), chat="auto", batch=len(requests)))
        forms[fast] = Form(vllm, vllm.forget_prefixes)
        threads = torch.get_num_threads()
        print(
            f"{args.model} writes for {len(requests)} questions of {args.task}, two demonstrations ({args.select}),"
            f" at most {args.new} new tokens, greedy, float32, threads: {threads}, rounds: {args.rounds}"
        )
        show(measure(forms, requests, args.rounds), fast)


if __name__ == "__main__":
    main()
