"""What `doctor` calls an error of a model or a tokenizer, `run` refuses before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tests.experiment.runs import cells_of, quick
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import write_text
from tinyllm_bench.cli.run import run_cells
from tinyllm_bench.leaderboard.record import RECORD_FILE
from tinyllm_bench.preflight.doctor import examine
from tinyllm_bench.preflight.inspection import Preflight, this_machine
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, saved, tiny_llama, tiny_t5


def closing(token: str) -> Callable[[Any], None]:
    """Makes a tokenizer put a token behind every text."""

    def change(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {token}", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))]
        )

    return change


def _refused(cells: list[Any], runs: Path) -> str:
    with pytest.raises(UserError) as refused:
        run_cells(cells, runs)
    assert not list(runs.glob("*/train")), "nothing was trained"
    assert "\n" not in str(refused.value)
    return str(refused.value)


def _told(cells: list[Any]) -> str:
    """The first error of `doctor`."""
    return next(
        one for one in examine(Preflight(cells=cells, machine=this_machine())) if one.severity == "error"
    ).measured


def _model(folder: Path, change: Callable[[Any], None]) -> Path:
    tokenizer = bpe_tokenizer()
    change(tokenizer)
    return saved((tiny_llama(seed=3)[0], tokenizer), folder)


def _no_end(tokenizer: Any) -> None:
    tokenizer.eos_token = None


@pytest.mark.parametrize("change", [closing("<eos>"), closing("<pad>"), _no_end])
@pytest.mark.parametrize("role", ["student", "white box", "teacher of texts"])
def test_a_trap_is_refused_wherever_the_model_stands(
    change: Callable[[Any], None], role: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    bad, runs = _model(tmp_path / "bad", change), tmp_path / "runs"
    if role == "student":
        request = quick(bad, runs=runs)
    elif role == "white box":
        settings = (f"teacher.model=dir:{bad}", "teacher.init=null", "method.kd.cross_tokenizer=uld")
        request = quick(tiny_llama_dir, *settings, methods=("kd",), runs=runs)
    else:
        settings = (f"teachers=['dir:{bad}']", "method.dss.teacher=null")
        request = quick(tiny_llama_dir, *settings, methods=("dss",), runs=runs)
    cells = cells_of(request)
    assert _told(cells) in _refused(cells, runs)


def test_a_missing_chat_template_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cells = cells_of(quick(tiny_llama_dir, "eval.chat_template=always", runs=tmp_path), reference_baselines=True)
    assert "eval.chat_template" in _refused(cells, tmp_path)


@pytest.mark.parametrize(
    "modules",
    ["[lm_head]", "[embed_tokens]", "[q_proj, lm_head]", "'.*(lm_head|v_proj)'"],
)
def test_adapters_on_a_tied_head_are_refused(modules: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    lora = f"student.lora={{r: 2, target_modules: {modules}}}"
    message = _refused(cells_of(quick(tiny_llama_dir, lora, runs=tmp_path)), tmp_path)
    assert "shares its weight with another module" in message and "student.lora.target_modules=" in message
    untied = saved(tiny_llama(tie_word_embeddings=False), tmp_path / "untied")
    cells = cells_of(quick(untied, lora, runs=tmp_path))
    assert [cell.run_id for cell in run_cells(cells, tmp_path, until="annotate").failed] == []


def test_adapters_on_t5_s_shared_table_are_refused(tmp_path: Path) -> None:
    student = saved(tiny_t5(tie_word_embeddings=True), tmp_path / "t5")
    cells = cells_of(quick(student, "student.lora={r: 2, target_modules: [q, lm_head]}", runs=tmp_path))
    assert "shares its weight" in _refused(cells, tmp_path)


@pytest.mark.parametrize("modules", ["[query]", "'.*('"])
def test_adapters_on_modules_that_are_not_there_are_refused(modules: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    lora = f"student.lora={{r: 2, target_modules: {modules}}}"
    with pytest.raises(UserError, match="has no module 'query'; it has down_proj|is not a regular expression"):
        cells_of(quick(tiny_llama_dir, lora, runs=tmp_path))


def test_a_finished_run_is_read_back_and_its_models_are_not_checked(tmp_path: Path) -> None:
    cells = cells_of(quick(_model(tmp_path / "bad", closing("<eos>")), runs=tmp_path))
    write_text(tmp_path / cells[0].run_id / RECORD_FILE, "{}")
    done = run_cells(cells, tmp_path)
    assert done.failed == tuple(cells), "its record, which is damaged, was read"
