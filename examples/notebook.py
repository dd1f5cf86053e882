"""From a question to an answer in Python: two methods, a table, a comparison, on this project's sample questions.

Cells are marked by `# %%`: editors such as VS Code, PyCharm and Spyder run them one by one, and
`python examples/notebook.py` runs them all in a minute or two on two CPU cores. The student has three layers of a 135M
model that `tinyllm-bench fetch smollm2-135m` brings, and learns for a moment: the numbers rank nothing.
"""

# %% What the work is done on
import os
from pathlib import Path

from tinyllm_bench import compare, load_record, run

RUNS = Path(os.environ.get("NOTEBOOK_RUNS", "runs/notebook"))
STUDENT = os.environ.get("NOTEBOOK_STUDENT", "bundled:smollm2-135m?layers=0:30:10")

# %% Two methods at the same budget; run it again and it reads back what is there
result = run(
    method=["finetune", "tinyllm"],
    task="obqa",
    preset="quickstart",
    settings={
        "student.model": STUDENT,
        "budget": {"student_tokens": 3000},
        "eval.valid_limit": 4,
    },
    runs_dir=RUNS,
)
assert not result.failed, result.failed

# %% One line a run, as a pandas table
table = result.table()
print(table[["method", "seed", "n", "accuracy", "low", "high", "student_tokens"]].to_string(index=False))

# %% Is the difference one? The main figure, its interval, and what it speaks of
baseline, student = result.records
report = compare(student, baseline)
for one in report.comparisons:
    found = one.estimate
    print(f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f}), p = {found.p:.3f}")
    print(f"It speaks of {found.scope}; a difference of {100 * one.detectable:.0f} points could have been seen.")

# %% A record again from its folder, and the board with both rows
record = load_record(result.folder(student))
print(record.run_id, record.score)
print("board:", result.board(RUNS / "board"))
