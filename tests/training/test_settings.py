"""The settings of training: when the student is evaluated."""

from typing import Any

import pytest

from tinyllm_bench.training.settings import TrainConfig


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 101])
@pytest.mark.parametrize(
    "values",
    [
        {"eval_every": 1},
        {"eval_every": 3},
        {"eval_every": 500},
        {"evaluations": (1.0,)},
        {"evaluations": (0.01, 0.5)},
        {},
    ],
)
def test_the_forecast_counts_the_evaluations_that_training_makes(values: dict[str, Any], steps: int) -> None:
    config = TrainConfig(**values)
    due = [share for done in range(1, steps + 1) if (share := config.evaluation_due(done, steps)) is not None]
    assert len(due) == config.evaluation_count(steps) > 0
    assert due == sorted(due) and all(0 < share <= 1 for share in due)
    if "eval_every" in values:
        assert due[-1] == 1.0
