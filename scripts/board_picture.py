"""Draws a board's table as an SVG, for README.

tinyllm-bench run --method finetune,tinyllm --task obqa --preset quickstart
python scripts/board_picture.py runs/board docs/assets/board.svg
"""

import io
import re
import sys
from pathlib import Path

import pandas as pd
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table

WIDTH = 100  # characters
COLUMNS = ("row", "accuracy %", "95 % interval", "n", "seeds", "gain (points)", "p (Holm)")


def main(board: Path, picture: Path) -> None:
    """Write the main columns of `board.csv`, one table for each protocol."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    measured = pd.read_csv(board / "board.csv").dropna(subset="accuracy")
    for (task, mode, protocol), rows in measured.groupby(["task", "mode", "protocol"], sort=False):
        sample = ", sample questions" if (rows["sample"] == "yes").all() else ""
        table = Table(title=f"{task}, {mode} ({protocol}){sample}", expand=True)
        for column in COLUMNS:
            table.add_column(column, no_wrap=True)
        for row in rows.itertuples():
            interval = f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}".replace("%", "")
            gain = "" if pd.isna(row.gain) else f"{100 * row.gain:+.1f}"
            if gain and not pd.isna(row.gain_low):
                gain += f" ({100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f})"
            p = "" if pd.isna(row.gain_p_holm) else f"{row.gain_p_holm:.3f}"
            seeds = "" if pd.isna(row.seeds) else f"{row.seeds:.0f}"
            name = str(row.row).removesuffix(" [sample]")
            table.add_row(name, f"{100 * row.accuracy:.1f}", interval, f"{row.n:.0f}", seeds, gain, p)
        console.print(table)
    local = re.sub(r"@font-face {{.*?}}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # rich links fonts of another host
    console.save_svg(str(picture), title="A board of tinyllm-bench", code_format=local)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
