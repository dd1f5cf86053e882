"""Run under torch.distributed.run: one step of every method in float64, then a whole cell through the pipeline.

Two processes share prompts, one does not. The main process saves the gradients; the cell's last mini-batch has one
question, so that a process stands idle.
"""

import os
import sys
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save_file

from tests.learning import METHODS, gradients, make_groups, make_method, make_trainer
from tests.tiny_models import tiny_llama


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
        found = gradients(trainer)
        if trainer.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: grad.contiguous() for key, grad in found.items()}, folder / f"{name}.safetensors")
        trainer.accelerator.wait_for_everyone()

    run_a_cell(folder)


def run_a_cell(folder: Path) -> None:
    """Annotate, train, predict and record with all processes; its folder is the cell's run."""
    from accelerate import PartialState

    from tests.tiny_models import saved
    from tinyllm_bench.pipeline.cells import plan_cells
    from tinyllm_bench.pipeline.predict import Engines
    from tinyllm_bench.pipeline.request import Request
    from tinyllm_bench.pipeline.run import run_cell

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
