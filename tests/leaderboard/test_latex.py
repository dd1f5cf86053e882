"""LaTeX tables: a small golden one, hard names one by one, and, where pdfLaTeX is there, the compiler itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.leaderboard.fakes import add, flags, make_record, make_reference
from tinyllm_bench.leaderboard.board import board_build
from tinyllm_bench.leaderboard.latex import latex, latex_table

GOLDEN = Path(__file__).parents[1] / "golden"
CELLS = [
    {"row": "a_b & 100 %", "student": "-", "accuracy %": "25.0", "gain (points)": "-"},
    {"row": "x <y>", "student": "dir:s#1", "accuracy %": "50.0", "gain (points)": "-7.6 (-9.0 to +1.2)"},
]
HARD = (
    *("a_b & 100 %", "x#1 ~home ^2", "back\\slash {brace} $5", "<b>|bar| \"q\" 'q' `q`", "[first] of a row", "*star"),
    *(
        "naïve Überschüler ąćł ðþ «x»",
        "e\u0301tude",
        "≥ 5 × λ → 学生 😀 ŉ",
        "lr=1e--5 --- dash",
        "!` ?` ''",
        "\u202ernd",
    ),
)


def test_equals_the_golden_table() -> None:
    made = latex_table(CELLS, "toy", ["Toy, 20 questions. Chance 25.0 %.", "x_1: -3.0 points, run a-1."])
    assert made == (GOLDEN / "table.tex").read_text()
    assert r"\textbf" not in made


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-7.6 (-9.0 to +1.2), run a-1, 1e-5", "$-$7.6 ($-$9.0 to +1.2), run a-1, 1e-5"),
        ("a--b", "a-{}-b"),
        ("\\~^", r"\textbackslash{}\textasciitilde{}\textasciicircum{}"),
        ("[a] *", r"{[}a{]} {*}"),
        ("e\u0301 é", "é é"),
        ("λ≥学\u202e", r"\ensuremath{\lambda}\ensuremath{\geq}\texttt{U+5B66}\texttt{U+202E}"),
    ],
)
def test_a_text_prints_as_it_stands(text: str, written: str) -> None:
    assert latex(text) == written


def test_more_rows_than_a_page_holds_become_several_tables() -> None:
    cells = [{"row": f"row {i}", "accuracy %": "50.0"} for i in range(80)]
    made = latex_table(cells, "toy", ["Toy.", "A note."])
    assert made.count(r"\begin{table}") == 3 and made.count(r"\toprule") == 3
    assert "Toy. Part 2 of 3." in made and r"\label{tab:toy}" in made and r"\label{tab:toy-3}" in made
    assert all(f"row {i} & 50.0" in made for i in range(80))
    # a float cannot be broken over pages, a text can
    assert made.index("A note.") > made.rindex(r"\end{table}")


def test_many_notes_stand_as_text_below_a_short_table() -> None:
    made = latex_table(CELLS, "toy", ["Toy.", *(f"note {i}" for i in range(60))])
    assert made.count(r"\begin{table}") == 1 and made.index("note 0") > made.index(r"\end{table}")


def test_a_wide_table_is_turned() -> None:
    wide = [{f"column {i}": "12.3 (10.1 to 14.2)" for i in range(9)}]
    assert r"\begin{sidewaystable}" in latex_table(wide, "toy", ["Toy."])


def compiled(files: list[Path], place: Path) -> str:
    """The compiler's log of a document that brings in some tables, with the packages that they ask for."""
    needs = set(re.findall(r"\\usepackage\S+", "".join(file.read_text().splitlines()[1] for file in files)))
    body = [f"\\input{{{file}}}\n\\clearpage" for file in files]
    text = "\n".join([r"\documentclass{article}", *sorted(needs), r"\begin{document}", *body, r"\end{document}"])
    (place / "all.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, errors="replace", timeout=300)
    log = (place / "all.log").read_text(errors="replace")
    assert done.returncode == 0, "\n".join(line for line in log.splitlines() if line.startswith(("!", "l.")))
    assert (place / "all.pdf").stat().st_size > 0
    return log


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="needs pdflatex: apt-get install texlive-latex-base texlive-latex-recommended"
)
def test_every_table_of_a_board_with_hard_names_compiles(board: Path, tmp_path: Path) -> None:
    made = [make_reference("guess", None, expected_accuracy=0.25, n=200, task="exam")]
    student, teacher = {"spec": "dir:small_%&#~^\\x"}, {"spec": "replay:release#big_1", "gold_visible": True}
    for number, name in enumerate(("tuned", *HARD)):
        for seed in range(3):
            more = {"teachers": [teacher] if number else [], "student": student}
            made.append(make_record(name, flags(200, 60 + 8 * number + seed), n=200, task="exam", seed=seed, **more))
    made += [make_record(f"row {i}", flags(20, i % 20), sample=i == 7) for i in range(50)]
    add(board, *made, make_record("tuned", flags(20, 10), student=student))
    board_build(board)
    files = sorted(board.glob("*.tex"))
    assert {"exam-cloze.tex", "toy-cloze.tex", "mean-over-tasks.tex"} == {file.name for file in files}
    log = compiled(files, tmp_path)
    # nothing sticks out of the page, is cut off at its end or is missing in the font
    for trouble in ("Overfull", "Float too large", "Missing character"):
        assert trouble not in log, [line for line in log.splitlines() if trouble in line]
