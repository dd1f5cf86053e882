"""Does one student separate rationales from programs? It is over-fitted on some questions and evaluated in both modes.

Every question has a correct rationale and a correct program of the recorded teacher. A student that learned both
answers the rationale prompt with text and the program prompt with a program, and is right in both modes.

    python benchmarks/mode_control.py --questions 50 --epochs 20 [key=value ...]
"""

import argparse
from pathlib import Path

from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.answers.voting import COT, POT
from tinyllm_bench.evaluation.sampled_answers import DecodingConfig, sample_answers
from tinyllm_bench.experiment.annotate import annotate, training_targets
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.experiment.predict import Engines
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.experiment.runner import run_cell
from tinyllm_bench.generation.hf import HfSampler
from tinyllm_bench.models.load import load_model


def quiet(event: object) -> None:
    """Report nothing."""


def cell_of(arguments: argparse.Namespace, limit: int) -> Cell:
    """The cell with that many training records, trained on those that have both texts."""
    fixed = (
        f"data.train_limit={limit}",
        f"budget.epochs={arguments.epochs}",
        "budget.student_tokens=null",
        "method.mixed_distillation.balance=paired",
        "train.select=last",
        "train.evaluations=[1.0]",
        *arguments.settings,
    )
    request = Request(
        methods=("mixed_distillation",),
        tasks=(arguments.task,),
        preset=arguments.preset,
        assignments=fixed,
        runs=Path(arguments.runs_dir),
    )
    return plan_cells(request)[1][0]


def with_two_correct_texts(cell: Cell) -> list[str]:
    """Ids of the training records with a usable rationale and a usable program, in order."""
    kinds: dict[str, set[str]] = {}
    for annotation in training_targets(cell, annotate(cell, report=quiet)):
        if annotation.rejected is None:
            kinds.setdefault(annotation.record_id, set()).add(annotation.kind)
    return [record.id for record in cell.records("train") if len(kinds.get(record.id, ())) == 2]


def main() -> None:
    """List the questions, train, evaluate both modes, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--task", default="svamp")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--runs-dir", default="runs/mode_control")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_args()
    limit = next(n for n in range(arguments.questions, 10 * arguments.questions)
                 if len(with_two_correct_texts(cell_of(arguments, n))) == arguments.questions)  # fmt: skip
    cell = cell_of(arguments, limit)
    ids = with_two_correct_texts(cell)
    print(f"{len(ids)} of {limit} training records have two correct texts:\n{' '.join(ids)}", flush=True)
    with Engines() as engines:
        run_cell(cell, cell.runs, engines, until="train", report=lambda event: print(event, flush=True))
    records = [record for record in cell.truncated_records("train") if record.id in ids]
    generate = HfSampler(load_model(cell.student_specs[COT], runs=cell.runs)).generate
    with Sandbox() as sandbox:
        for channel in (COT, POT):
            decoding = DecodingConfig(
                channels=(channel,),
                policy="single_cot" if channel == COT else "single_pot",
                samples={COT: 1, POT: 1},
                temperature=1.0,
                top_p=1.0,
                max_new_tokens=200,
                every=False,
                seed=0,
            )
            answers = sample_answers(records, cell.ask, {channel: generate}, decoding, sandbox)
            right = sum(answer.correct for answer in answers)
            prepared = sandbox.prepare([answer.samples[0].text.strip() for answer in answers])
            programs = sum(program.code is not None for program in prepared)
            print(f"{channel}: {right} of {len(answers)} right; {programs} of the texts are programs", flush=True)


if __name__ == "__main__":
    main()
