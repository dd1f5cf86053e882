"""Stage 3 for methods that answer by sampled chain-of-thought or programs: who samples, and who runs the programs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyllm_bench.answers.codec import Layout
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base.files import digest
from tinyllm_bench.evaluation.sampled_answers import DecodingConfig, policies_for, sample_answers
from tinyllm_bench.experiment.verified_texts import layout_of
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.training.result import TrainResult, ValidationScore

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell
    from tinyllm_bench.models.lm import LM


def how_to_ask(cell: "Cell", layout: Layout | None, *, greedy: bool = False) -> DecodingConfig:
    """The cell's policy, for a student that writes programs in `layout` (`layout_of`); `greedy`: the cheapest that uses
    every channel, for looks at validation.
    """
    assert cell.method is not None
    decoding = cell.method.decoding()
    policies: Any = policies_for(decoding.channels)
    quick = "pot_then_cot" if "pot_then_cot" in policies else policies[0]
    return DecodingConfig(
        channels=decoding.channels,
        policy=quick if greedy else decoding.policy,  # type: ignore[arg-type]
        samples=decoding.samples,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_new_tokens=decoding.max_new_tokens,
        every=decoding.every and not greedy,
        seed=cell.seed,
        layout=layout,
    )


def student_specs(cell: "Cell") -> dict[str, ModelSpec]:
    """Per channel the trained student that writes it."""
    return {channel: parse_spec(f"run:{one.run_id}", role="student") for channel, one in cell.students.items()}


def joint_digest(digests: Sequence[str]) -> str:
    """The digest of several students that answer together."""
    return digests[0] if len(digests) == 1 else digest(list(digests))


def path_validator(cell: "Cell", loaded: Loaded) -> "Callable[[LM], ValidationScore]":
    """Scores a student on the validation split by one greedy path of each channel."""
    valid = cell.asked_records("valid")
    how = how_to_ask(cell, layout_of(cell), greedy=True)

    def validate(student: "LM") -> ValidationScore:
        from tinyllm_bench.generation.hf import HfSampler

        generate = HfSampler(Loaded(student.plain, loaded.tokenizer)).generate
        with Sandbox() as sandbox:
            predictions = sample_answers(valid, cell.ask, dict.fromkeys(how.channels, generate), how, sandbox)
        return ValidationScore(sum(one.correct for one in predictions) / len(predictions), None, len(predictions))

    return validate


def joint_training(results: Sequence[TrainResult]) -> TrainResult:
    """What the trainings of a cell's students did, together; of one student its own result."""
    if len(results) == 1:
        return results[0]
    channels = sorted(channel for result in results for channel in result.tokens_by_channel)
    return replace(
        results[0],
        steps=sum(result.steps for result in results),
        records=sum(result.records for result in results),
        student_tokens=sum(result.student_tokens for result in results),
        computed_tokens=sum(result.computed_tokens for result in results),
        flops=sum(result.flops for result in results),
        rollout_tokens=sum(result.rollout_tokens for result in results),
        rollout_seconds=sum(result.rollout_seconds for result in results),
        seconds=sum(result.seconds for result in results),
        targets_cut=sum(result.targets_cut for result in results),
        targets_dropped=sum(result.targets_dropped for result in results),
        tokens_by_channel={
            channel: sum(result.tokens_by_channel.get(channel, 0) for result in results) for channel in channels
        },
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        student_digest=joint_digest([result.student_digest for result in results]),
        first_loss=None,
        last_loss=None,
        measured={},
        evaluations=(),
    )
