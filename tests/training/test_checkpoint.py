"""Checkpoints: exact, without pickle, and a damaged one is skipped."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tinyllm_bench.base.events import Evaluation
from tinyllm_bench.training.checkpoint import (
    State,
    load_checkpoint,
    load_trainable,
    random_state,
    remove_checkpoints,
    restore_random_state,
    save_checkpoint,
    trainable_state,
)


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        step(module, optimizer)
    return module, optimizer


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_going_on_from_a_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    module, optimizer = trained(3)
    save_checkpoint(tmp_path, step=3, module=module, optimizer=optimizer, state=State(losses=[1.5]))
    for _ in range(3):
        step(module, optimizer)
    other, other_optimizer = trained(0)
    torch.manual_seed(99)
    assert load_checkpoint(tmp_path, module=other, optimizer=other_optimizer) == (3, State(losses=[1.5]))
    for _ in range(3):
        step(other, other_optimizer)
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_all_three_generators_come_back() -> None:
    state = random_state()
    draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    restore_random_state(state)
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == draws


def test_only_the_newest_checkpoint_is_kept_and_no_pickle_is_written(tmp_path: Path) -> None:
    module, optimizer = trained(1)
    for number in (1, 2):
        save_checkpoint(tmp_path, step=number, module=module, optimizer=optimizer, state=State())
    assert [place.name for place in tmp_path.iterdir()] == ["step-00000002"]
    assert {file.suffix for file in (tmp_path / "step-00000002").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("damage", ["no_manifest", "torn_tensor"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    module, optimizer = trained(1)
    save_checkpoint(tmp_path, step=1, module=module, optimizer=optimizer, state=State())
    place = tmp_path / "step-00000001"
    if damage == "no_manifest":
        (place / "manifest.json").unlink()
    else:
        weights = place / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    assert load_checkpoint(tmp_path, module=module, optimizer=optimizer) is None


def test_other_parameters_are_refused() -> None:
    module, _ = trained(0)
    with pytest.raises(ValueError, match="other parameters"):
        load_trainable(module, {"elsewhere": torch.zeros(1)})


def test_frozen_parameters_are_not_in_the_state() -> None:
    module: Any = trained(0)[0]
    module[0].weight.requires_grad_(False)
    assert "0.weight" not in trainable_state(module) and "1.weight" in trainable_state(module)


def test_removal_leaves_the_rest(tmp_path: Path) -> None:
    module, optimizer = trained(1)
    save_checkpoint(tmp_path / "checkpoints", step=1, module=module, optimizer=optimizer, state=State())
    (tmp_path / "metrics.jsonl").write_text("kept")
    (tmp_path / "best-00000001.safetensors").write_text("gone")
    remove_checkpoints(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_state_survives_json() -> None:
    evaluation = Evaluation(1, 0.5, 0.5, None, 8, 1.5, {"length": 3.0})
    state = State(evaluations=[evaluation], losses=[1.0], start=evaluation, sums={"x": (1.0, 2.0)})
    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state
