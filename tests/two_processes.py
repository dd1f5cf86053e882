"""Run under torch.distributed.run: one step of every method in float64, then a whole cell through the pipeline.

Two processes share prompts, one does not. The main process saves the gradients; the cell's last mini-batch has one
question, so that a process stands idle.
"""

import os
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file

from tests.learning import METHODS, gradients, make_groups, make_method, make_trainer
from tinyllm_bench.testing.tiny_models import tiny_llama
from tinyllm_bench.training.budget import Limit, make_plan


def main() -> None:
    folder = Path(sys.argv[1])
    # Without this, accelerate may take each process for a run of its own, and the comparison would prove nothing.
    assert Accelerator().num_processes == int(os.environ["WORLD_SIZE"])
    for name in METHODS:
        model, tokenizer = tiny_llama()
        groups = make_groups(make_method(name), tokenizer)
        trainer = make_trainer(
            model.double(),
            tokenizer,
            make_method(name),
            groups,
            folder / name,
            micro_batch_tokens=300,
            layout="shared" if Accelerator().num_processes == 2 else "separate",
        )
        actual = gradients(trainer)
        if trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: grad.contiguous() for key, grad in actual.items()}, folder / f"{name}.safetensors")
        trainer.accelerator.wait_for_everyone()

    for name, unit, amount in (("finetune", "seconds", 2.0), ("minillm", "student_tokens", 1500)):
        run_to_a_limit(folder / f"{name}-{unit}", name, unit, amount)
    run_a_cell(folder)


def run_to_a_limit(folder: Path, name: str, unit: Any, amount: float) -> None:
    """Several rounds with evaluations; every process must stop at the same step with the same weights."""
    model, tokenizer = tiny_llama()
    method = make_method(name, **({"group_size": 2, "inner_epochs": 2} if name == "minillm" else {}))
    groups = make_groups(method, tokenizer)
    sizes = {"group_size": method.group_size, "inner_epochs": method.inner_epochs}
    plan = make_plan(groups, batch_records=2, seed=0, limit=Limit(unit, amount), **sizes)
    trainer = make_trainer(
        model, tokenizer, method, groups, folder, plan=plan, learning_rate=1e-3, evaluations=(0.25, 0.5, 0.75, 1.0),
        checkpoint_seconds=0.2,
    )  # fmt: skip
    trained = trainer.run()
    total = sum(float(p.detach().double().abs().sum()) for p in trainer.module.parameters())
    actual = gather_object([(trained.steps, trained.student_tokens, trained.selected_step, total)])
    assert trained.steps > 2 and len(set(actual)) == 1, actual


def run_a_cell(folder: Path) -> None:
    """Annotate, train, predict and record with all processes; its folder is the cell's run."""
    from accelerate import PartialState

    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.experiment.predict import Engines
    from tinyllm_bench.experiment.request import Request
    from tinyllm_bench.experiment.runner import run_cell
    from tinyllm_bench.testing.tiny_models import saved

    state = PartialState()
    if state.is_main_process:
        saved(tiny_llama(), folder / "student")
    state.wait_for_everyone()
    settings = (f"student.model=dir:{folder / 'student'}", "budget.student_tokens=null", "budget.epochs=1")
    request = Request(
        methods=("tinyllm",),
        tasks=("obqa",),
        preset="quickstart",
        assignments=(*settings, "train.batch_records=23", "train.learning_rate=1e-3"),
        runs=folder / "runs",
    )
    _, cells = plan_cells(request)
    with Engines() as engines:
        run_cell(cells[0], folder / "runs", engines, report=lambda event: None)


if __name__ == "__main__":
    main()
