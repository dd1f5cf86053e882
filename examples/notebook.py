"""From a question to an answer in Python: two methods, a table, a comparison, on this project's sample questions.

Cells are marked by `# %%`: editors such as VS Code, PyCharm and Spyder run them one by one, and
`python examples/notebook.py` runs them all in a minute or two on two CPU cores. The student has three layers of a 135M
model (`tinyllm-bench fetch smollm2-135m`) and is trained only briefly: the numbers rank nothing.
"""

# %% Where runs are saved, and the student
import os
from pathlib import Path

from tinyllm_bench import compare, load_record, run

RUNS = Path(os.environ.get("NOTEBOOK_RUNS", "runs/notebook"))
STUDENT = os.environ.get("NOTEBOOK_STUDENT", "bundled:smollm2-135m?layers=0:30:10")

# %% Two methods at the same budget; a second call reads the finished runs
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

# %% One line per run, as a pandas table
table = result.table()
print(table[["method", "seed", "n", "accuracy", "low", "high", "student_tokens"]].to_string(index=False))

# %% Is the difference real? The main figure, its interval, and its inference scope
baseline, student = result.records
report = compare(student, baseline)
for comparison in report.comparisons:
    gain = comparison.estimate
    print(f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}), p = {gain.p:.3f}")
    print(f"scope: {gain.scope}; smallest detectable difference: {100 * comparison.detectable:.0f} points")

# %% Load a record from its folder, and build a board with both rows
record = load_record(result.folder(student))
print(record.run_id, record.score)
print("board:", result.board(RUNS / "board"))
