"""What it saves to project only target positions to the vocabulary, and to pack examples by length.

Three forms of the same TinyLLM training step on sample questions, interleaved in one process; the table shows medians
and
ratios to the first form. `python benchmarks/target_only.py [--model SPEC] [--task NAME] [--rounds N]`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.data.sources import Source, load_rationales, load_split
from tinyllm_bench.learn.batching import Collator, Group, micro_batches
from tinyllm_bench.learn.losses import channel_cross_entropy
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import load_model, max_input_tokens
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.models.tokens import Encoded, Encoder

SAMPLE = Source("sample")


def groups_of(task: str, loaded: object, count: int = 8) -> list[Group]:
    """One mini-batch: each question with its label and two recorded rationales."""
    method = load_method("tinyllm")(load_method("tinyllm").Config())
    ask = Ask(reading="cloze")
    room = max_input_tokens(loaded.model, loaded.tokenizer) - 256
    encoder = Encoder(
        loaded.tokenizer,
        ask,
        encoder_decoder=False,
        add_bos=False,
        max_prompt_tokens=room,
        max_target_tokens=256,
    )
    texts = {key: load_rationales(SAMPLE, task, "train", key) for key in ("terse", "stepwise")}
    groups = []
    for record in load_split(SAMPLE, task, "train")[:count]:
        said = [
            Annotation(record_id=record.id, teacher=key, kind="rationale", text=texts[key][record.id]) for key in texts
        ]
        groups.append(Group(record.id, tuple(encoder.encode(e) for e in method.examples(record, said, ask))))
    return groups


def full_logits(lm: LM, collator: Collator, batches: Sequence[Sequence[Encoded]]) -> None:
    """The released code's form: one padded pass per channel, logits at every position."""
    for items in batches:
        batch = collator.collate(items)
        logits_BTV = lm.plain(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False
        ).logits
        logits_NV = logits_BTV[batch.target_row_N, batch.target_position_N]
        torch.nn.functional.cross_entropy(logits_NV.float(), batch.target_ids_N, reduction="sum").backward()


def target_logits(lm: LM, collator: Collator, batches: Sequence[Sequence[Encoded]]) -> None:
    """This project's form: logits at target positions only."""
    for items in batches:
        sums = channel_cross_entropy(collator.collate(items), lm)
        torch.stack(list(sums.values())).sum().backward()


def main() -> None:
    """Time the three forms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled:smollm2-135m?layers=0:30:3")
    parser.add_argument("--task", default="obqa")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    loaded = load_model(parse_spec(asked.model, role="student"))
    lm = LM(loaded.model).train()
    collator = Collator(encoder_decoder=False, pad_id=loaded.tokenizer.pad_token_id or 0)
    groups = groups_of(asked.task, loaded)
    channels = list(zip(*(group.items for group in groups), strict=True))
    packed = micro_batches(groups, max_tokens=4096, keep_groups=False)
    forms: dict[str, Callable[[], None]] = {
        "a pass per channel, logits everywhere": lambda: full_logits(lm, collator, channels),
        "a pass per channel, logits at targets": lambda: target_logits(lm, collator, channels),
        "packed by length, logits at targets": lambda: target_logits(lm, collator, packed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(asked.rounds + 1):
        for name, form in forms.items():
            lm.zero_grad(set_to_none=True)
            began = time.perf_counter()
            form()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    first = statistics.median(next(iter(seconds.values())))
    print(f"{asked.task}, {asked.model}, {sum(g.tokens for g in groups)} tokens, medians of {asked.rounds}")
    for name, taken in seconds.items():
        print(f"  {name:<40} {statistics.median(taken):7.2f} s   ratio {statistics.median(taken) / first:.2f}")


if __name__ == "__main__":
    main()
