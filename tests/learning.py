"""Shared by tests of training: the kit of `tinyllm_bench.testing`, all built-in methods and a fake third party's."""

from collections.abc import Sequence
from typing import Any

from tinyllm_bench.base.plugins import load_method, names
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.testing import training
from tinyllm_bench.testing.training import (
    SAMPLE,
    TEACHERS,
    assert_close,
    gradients,
    make_groups,
    make_signal,
    make_trainer,
    run,
    sample_annotations,
    sample_records,
)
from tinyllm_bench.training.method import Method

__all__ = [
    "METHODS",
    "SAMPLE",
    "TEACHERS",
    "FakeMethod",
    "assert_close",
    "gradients",
    "make_groups",
    "make_method",
    "make_signal",
    "make_trainer",
    "run",
    "sample_annotations",
    "sample_records",
]


class FakeMethod(load_method("finetune")):  # type: ignore[misc]
    """A third party's method: the label twice, in two channels, one of them weighted."""

    paper = "none"

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Any]:
        label = super().examples(record, annotations, ask)
        return [*label, ask.example(record, "again", record.choices[record.answer])]


METHODS = [*names("method"), "fake_third_party"]


def make_method(name: str, **settings: Any) -> Method:
    """A method by name, the fake one too, with the settings that keep tests short, and others."""
    return training.make_method(FakeMethod if name == "fake_third_party" else name, **settings)
