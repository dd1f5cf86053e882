"""From a request to settings: layers and their order, unknown keys, presets, scoring modes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiment.runs import cells_of, one_cell, quick
from tinyllm_bench.base import plugins
from tinyllm_bench.base.config import Layer, as_assignments, flatten, parse_yaml, resolve
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import choose_mode, plan_cells
from tinyllm_bench.experiment.record import _own_settings
from tinyllm_bench.experiment.request import (
    Preset,
    Request,
    check_method_keys,
    expand,
    load_preset,
    preset_names,
    settings_of,
)
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

PRESETS = ("cpu", "modern", "paper", "quickstart")
MAIN = tuple(name for name in plugins.names("task") if plugins.load_task(name).suite == "main")
TABLES = ("mixed_distillation_table",)  # a paper's own comparison: one method, its own tasks


def settings(*assignments: str, method: str = "tinyllm", preset: str = "quickstart", **changes: Any) -> Any:
    """The resolved settings of one method on one task."""
    request = Request(assignments=assignments, methods=(method,), tasks=("obqa",), **changes)
    check_method_keys(request, (method,))
    return settings_of(request, load_preset(preset), method=method, task="obqa", variant={})[0]


def config_file(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text)
    return file


# --- layers -----------------------------------------------------------------------------------------------------------


def test_later_layers_win_and_every_value_knows_its_layer(tmp_path: Path) -> None:
    file = config_file(tmp_path, "train: {learning_rate: 2.0e-3, warmup: 0.1}\nmethod: {alpha: 0.25}\n")
    resolved = settings("train.warmup=0.2", config_file=file)
    assert (resolved.config.train.learning_rate, resolved.config.train.warmup) == (2e-3, 0.2)
    assert (resolved.config.train.batch_records, resolved.config.train.max_grad_norm) == (8, 1.0)
    assert resolved.config.method == {"gamma": 1.0, "alpha": 0.25}
    assert resolved.origin["train.warmup"] == "command line"
    assert resolved.origin["train.learning_rate"] == "--config"
    assert resolved.origin["train.batch_records"] == "preset quickstart"
    assert "train.max_grad_norm" not in resolved.origin, "a default has no layer"
    assert resolved.origin["method.alpha"] == "--config"
    assert resolved.origin["method.gamma"] == "tinyllm.yaml"


def test_a_presets_task_part_wins_over_its_common_part_only(tmp_path: Path) -> None:
    cpu = load_preset("cpu")
    request = Request(methods=("finetune",), tasks=("pubmedqa",))
    resolved = settings_of(request, cpu, method="finetune", task="pubmedqa", variant={})[0]
    assert (
        resolved.config.data.train_limit == 250 and resolved.origin["data.train_limit"] == "preset cpu, task pubmedqa"
    )
    assert resolved.config.data.max_context_words == 160 and resolved.origin["data.max_context_words"] == "preset cpu"
    file = config_file(tmp_path, "data: {train_limit: 7}")
    over = Request(methods=("finetune",), tasks=("pubmedqa",), config_file=file)
    assert settings_of(over, cpu, method="finetune", task="pubmedqa", variant={})[0].config.data.train_limit == 7


def test_a_presets_method_part_wins_over_its_common_part_for_that_method_only() -> None:
    resolved = settings(method="minillm")
    assert (resolved.config.train.learning_rate, resolved.config.train.batch_records) == (5e-6, 64)
    assert resolved.origin["train.learning_rate"] == "preset quickstart, method minillm"
    assert settings(method="kd").config.train.learning_rate == 1e-4
    assert settings("train.learning_rate=0.5", method="minillm").config.train.learning_rate == 0.5
    resolved = settings(method="dss")
    assert resolved.config.method["teacher"] == "terse" and resolved.origin["method.teacher"].endswith("method dss")


def test_exact_match_needs_choices_to_match(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match=r"eval\.match=exact compares with a choice's text; svamp has none"):
        one_cell(tiny_llama_dir, "eval.match=exact", "teachers=[]", tasks=("svamp",))


def test_what_a_preset_sets_for_a_method_alone_counts_as_the_method_s_own(tiny_llama_dir: Path) -> None:
    cell = one_cell(tiny_llama_dir, f"teacher.model=dir:{tiny_llama_dir}", "student.init=null", method="minillm")
    assert "train.batch_records" in _own_settings(cell) and "data.source" not in _own_settings(cell)
    assert "train.learning_rate" not in _own_settings(cell), "this one is the command line's"


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("method", plugins.names("method"))
def test_no_preset_silently_changes_what_a_method_s_own_file_says(method: str, preset: str) -> None:
    own = parse_yaml(plugins.method_defaults(method), method)
    own_settings = resolve(BenchConfig, [Layer("own", {key: value for key, value in own.items() if key != "method"})])
    before = flatten(own_settings.config)
    for task in plugins.names("task"):
        resolved = settings_of(Request(), load_preset(preset), method=method, task=task, variant={})[0]
        now = flatten(resolved.config)
        changed = {key: resolved.origin[key] for key in own_settings.origin if now.get(key) != before[key]}
        assert set(changed.values()) <= {f"preset {preset}, method {method}"}, (task, changed)


def test_the_order_of_all_layers(tmp_path: Path) -> None:
    """Default, method file, preset, its task, its variant of a method, file, command line; each wins over the last."""
    layers = ("gkd.yaml", "preset p", "preset p, task obqa", "preset p, variant", "--config", "command line")

    def resolved(upto: int) -> Any:
        group = {
            "student": {"init": {"epochs": upto}},
            "train": {"batch_records": upto},
            "method": {"lmbda": 0.1},
        }
        of = [name for place, name in enumerate(layers) if place <= upto]
        preset = Preset(
            name="p",
            config=group if "preset p" in of else {},
            tasks={"obqa": group if "preset p, task obqa" in of else {}},
            methods={"gkd": {"method": {"temperature": 0.5}}},
        )
        request = Request(
            methods=("gkd",),
            tasks=("obqa",),
            config_file=config_file(tmp_path, yaml.safe_dump(group)) if "--config" in of else None,
            assignments=as_assignments(group) if "command line" in of else (),
        )
        variant = group if "preset p, variant" in of else {}
        return settings_of(request, preset, method="gkd", task="obqa", variant=variant)[0]

    for upto, name in enumerate(layers):
        one = resolved(upto)
        assert one.origin["student.init.epochs"] == name
        assert upto == 0 or one.config.train.batch_records == one.config.student.init.epochs == upto
        assert upto == 0 or (one.origin["method.lmbda"], one.config.method["lmbda"]) == (name, 0.1)
        assert (
            one.origin["method.temperature"] == "preset p, method gkd"
            and one.origin["method.max_new_tokens"] == "gkd.yaml"
        )


ROWS = Preset(
    name="rows",
    config={"student": {"model": "?"}, "data": {"source": "sample"}, "budget": {"student_tokens": 3000}},
    variants={"finetune": {"one epoch": {"budget": {"student_tokens": None, "epochs": 1}, "train": {"warmup": 0.1}}}},
)


def rows(monkeypatch: pytest.MonkeyPatch, student: Path, *assignments: str) -> dict[str, Any]:
    """The planned rows of `finetune` under a preset with a variant, by label."""
    from tinyllm_bench.experiment import plan_cells as planning

    monkeypatch.setattr(planning, "load_preset", lambda name: ROWS)
    given = (f"student.model=dir:{student}", *assignments)
    request = Request(methods=("finetune",), tasks=("obqa",), preset="rows", assignments=given)
    return {one.label: one for one in plan_cells(request)[1]}


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        (("budget.flops=2e12", "budget.student_tokens=null"), ("flops", 2e12)),
        (("budget.flops=2e12",), ("flops", 2e12)),
        (("budget.epochs=3",), ("epochs", 3.0)),
        (("budget.epochs=3", "budget.student_tokens=null"), ("epochs", 3.0)),
        (("budget={epochs: 3}",), ("epochs", 3.0)),
        (("budget.student_tokens=50",), ("student_tokens", 50)),
    ],
)
def test_a_variant_does_not_win_over_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path, given: tuple[str, ...], budget: tuple[str, float]
) -> None:
    both = rows(monkeypatch, tiny_llama_dir, *given)
    assert [cell.config.budget.limit for cell in both.values()] == [budget, budget]
    assert both["finetune (one epoch)"].origin[f"budget.{budget[0]}"] == "command line"
    assert both["finetune (one epoch)"].origin["train.warmup"] == "preset rows, variant"


def test_a_variant_that_is_an_earlier_row_is_not_run_twice(
    monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path
) -> None:
    assert list(rows(monkeypatch, tiny_llama_dir)) == ["finetune", "finetune (one epoch)"]
    assert list(rows(monkeypatch, tiny_llama_dir, "budget.epochs=3", "train.warmup=0.2")) == ["finetune"]


def test_an_initial_cell_has_its_own_budget_whatever_the_user_sets(tiny_llama_dir: Path) -> None:
    settings = ("teacher.init=null", "student.init={method: finetune, student_tokens: 700}", "budget={epochs: 2}")
    cell = one_cell(tiny_llama_dir, f"teacher.model=dir:{tiny_llama_dir}", *settings, method="gkd")
    assert cell.student_from is not None and cell.config.budget.limit == ("epochs", 2.0)
    assert cell.student_from.config.budget.limit == ("student_tokens", 700)
    assert cell.student_from.config.train.select == "loss"


def test_options_of_the_command_line_are_settings_too() -> None:
    resolved = settings(engine="hf", data_dir="/some/where", method="finetune")
    assert resolved.config.backend.engine == "hf" and resolved.origin["backend.engine"] == "command line"
    assert (resolved.config.data.dir, resolved.config.data.source) == ("/some/where", "release")


def test_numbers_null_and_lists_are_read() -> None:
    resolved = settings(
        "train.learning_rate=1e-4", "eval.limit=null", "train.evaluations=[0.5, 1]", "student.lora={r: 4}"
    )
    assert resolved.config.train.learning_rate == 1e-4 and resolved.config.eval.limit is None
    assert resolved.config.train.evaluations == (0.5, 1.0)
    assert (resolved.config.student.lora.r, resolved.config.student.lora.alpha) == (4, 32)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("trian.learning_rate=1", r"trian'\. Did you mean 'train'\? Known: .*student"),
        ("train.learning_rat=1", r"train\.learning_rat'\. Did you mean 'train\.learning_rate'\?"),
        ("student.lora.rank=4", r"student\.lora\.rank'.*Known: .*student\.lora\.r\b"),
        ("method.alhpa=1", r"method setting 'alhpa'\. Did you mean 'alpha'\?"),
        ("method.tinyllm.alhpa=1", r"alhpa'\. Did you mean 'alpha'\?"),
        ("train.learning_rate=fast", r"train\.learning_rate='fast' \(command line\): .*number"),
        ("train.learning_rate=0", r"train\.learning_rate=0 \(command line\): .*above 0"),
        ("eval.mode=aloud", r"eval\.mode='aloud' \(command line\): .*'generate', 'multiple_choice' or 'cloze'"),
        ("train=3", r"train='3' \(command line\)"),
        ("method=3", r"method='3' is not a group"),
        ("method.tinyllm=3", r"method\.tinyllm='3' is not a group"),
        ("method.alpha=-1", r"alpha=-1 \(command line\): .*at least 0"),
        ("learning", r"'learning' is not a setting; write key=value"),
        ("=3", r"'=3' is not a setting"),
        ("train.evaluations=[", r"'train\.evaluations=\[': the value is not valid YAML"),
        ("data.markers=3", r"data\.markers='3' \(command line\)"),
    ],
)
def test_wrong_settings_are_one_line_with_the_fix(assignment: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        settings(assignment)
    assert "\n" not in str(caught.value)


def test_a_group_after_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="'train' is a value already"):
        settings("train=3", "train.warmup=1")


def test_wrong_config_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file not found: .*nowhere\.yaml"):
        settings(config_file=tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"settings\.yaml must be a mapping of settings, not list"):
        settings(config_file=config_file(tmp_path, "- 1\n"))
    with pytest.raises(UserError, match=r"settings\.yaml is not valid YAML"):
        settings(config_file=config_file(tmp_path, "a: [1\n"))
    with pytest.raises(UserError, match=r"setting \(--config\) 'train\.lr'"):
        settings(config_file=config_file(tmp_path, "train: {lr: 1}\n"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ("finetun",)}, "unknown method 'finetun'. Did you mean 'finetune'?"),
        ({"tasks": ("obqaa",)}, "unknown task 'obqaa'. Did you mean 'obqa'?"),
        ({"preset": "quick"}, "unknown preset 'quick'. Did you mean 'quickstart'?"),
        ({"methods": ()}, "nothing to run: give --method"),
    ],
)
def test_unknown_names(tiny_llama_dir: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        cells_of(quick(tiny_llama_dir, **changes))
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("given", [("budget={epochs: 1, flops: 1e9}",), ("budget.student_tokens=null",)])
def test_exactly_one_budget(tiny_llama_dir: Path, given: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="exactly one of budget.student_tokens, budget.epochs"):
        one_cell(tiny_llama_dir, *given)


def test_a_teacher_recorded_on_other_data_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "other"
    rows = [{"id": "x1", "question": "What?", "choices": ["a", "b"], "answer": "a"}]
    (folder / "obqa").mkdir(parents=True)
    (folder / "obqa" / "obqa_train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"obqa_train\.json"):
        one_cell(tiny_llama_dir, f'teachers=["replay:{folder}#flan-t5-xl"]', method="tinyllm")


# --- methods' own settings --------------------------------------------------------------------------------------------


def test_a_method_setting_reaches_all_that_have_it_or_the_one_that_is_named(tiny_llama_dir: Path) -> None:
    both = ("tinyllm", "finetune")
    resolved = [cell.config.method for cell in cells_of(quick(tiny_llama_dir, "method.alpha=2", methods=both))]
    assert resolved == [{"gamma": 1.0, "alpha": 2}, {}], "finetune has no alpha and is left alone"
    named = [cell.config.method for cell in cells_of(quick(tiny_llama_dir, "method.tinyllm.alpha=2", methods=both))]
    assert named[0]["alpha"] == 2
    over = ("method.alpha=2", "method.tinyllm.alpha=3")
    assert one_cell(tiny_llama_dir, *over, method="tinyllm").config.method["alpha"] == 3
    teacher = ("method.dss.teacher=terse", "method.tinyllm.alpha=3")
    cells = cells_of(quick(tiny_llama_dir, *teacher, methods=("dss", "tinyllm")))
    assert [[t.key for t in cell.teachers] for cell in cells] == [["terse"], ["terse", "stepwise"]]


def test_a_setting_of_a_method_that_is_not_selected_is_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match="method.tinyllm is set, but tinyllm is not among --method finetune"):
        one_cell(tiny_llama_dir, "method.tinyllm.alpha=2")
    with pytest.raises(UserError, match="unknown method setting 'alpha'"):
        one_cell(tiny_llama_dir, "method.alpha=2")


def test_dss_needs_its_teacher_named_when_there_are_several(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match="teacher"):
        one_cell(tiny_llama_dir, "method.dss.teacher=null", method="dss")


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_presets() -> None:
    assert preset_names() == sorted([*PRESETS, *TABLES])
    assert all(load_preset(name).about for name in (*PRESETS, *TABLES))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", ["finetune", "dss", "tinyllm", None])
def test_presets_are_valid_for_every_task(name: str, method: str | None) -> None:
    preset, request = load_preset(name), Request()
    known = set(plugins.names("task"))
    assert {*preset.tasks} <= known and {*preset.methods, *preset.variants} <= set(plugins.names("method"))
    for task in sorted(name for name in known if plugins.load_task(name).suite == "main"):
        variants = {"": {}, **preset.variants.get(method or "", {})}
        for values in variants.values():
            config = settings_of(request, preset, method=method, task=task, variant=values)[0].config
            assert (config.budget.student_tokens is None) != (config.budget.epochs is None) or method is None


def plan(release: Path, name: str, *settings: str) -> list[Cell]:
    """What `--dry-run` plans: nothing is asked of the hub."""
    request = Request(
        methods=("finetune", "dss", "tinyllm"), tasks=("all",), preset=name, data_dir=str(release), assignments=settings
    )
    return plan_cells(request, reference_baselines=True, check_hub=False)[1]


@pytest.mark.release
@pytest.mark.parametrize("name", ["cpu", "paper", "modern"])
@pytest.mark.slow
def test_presets_plan_on_the_real_data_without_the_hub(name: str, release: Path, tiny_llama_dir: Path) -> None:
    local = (f"student.model=dir:{tiny_llama_dir}",) if name == "cpu" else ()
    cells = plan(release, name, *local)
    rows = {"cpu": 8, "paper": 7, "modern": 12}[
        name
    ]  # modern's two live teachers are asked as reference baselines, twice each
    assert len(cells) == len(MAIN) * rows and len({cell.run_id for cell in cells}) == len(cells)
    assert {cell.mode for cell in cells} == {"cloze" if name == "cpu" else "generate"}
    piqa = [cell for cell in cells if cell.task.name == "piqa" and cell.name == "tinyllm"]
    if name == "modern":
        assert [t.recorded for t in piqa[0].teachers] == [False, False] and not piqa[0].notes
    else:
        assert [t.key for t in piqa[0].teachers] == ["flan-t5-xl"] and "llama-2-7b" in piqa[0].notes[0]
    assert all(len(cell.records("test")) == (200 if name == "cpu" else cell.task.sizes["test"]) for cell in cells
               if cell.task.sizes["test"] >= 200)  # fmt: skip


def test_a_hub_student_is_checked_only_when_something_will_run(tmp_path: Path) -> None:
    request = Request(
        methods=("finetune",), tasks=("obqa",), preset="quickstart", assignments=("student.model=hf:nobody/nothing",)
    )
    assert len(plan_cells(request, check_hub=False)[1]) == 1
    with pytest.raises(UserError, match="hf:nobody/nothing is not in the local"):
        plan_cells(request)
    local = Request(
        methods=("finetune",), tasks=("obqa",), preset="quickstart", assignments=(f"student.model=dir:{tmp_path}",)
    )
    with pytest.raises(UserError, match="has no config.json"):
        plan_cells(local, check_hub=False)


# --- scoring modes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "offered", "answered", "chosen"),
    [
        ("cloze", ("generate", "multiple_choice", "cloze"), ("generate", "multiple_choice", "cloze"), "cloze"),
        ("auto", ("generate", "multiple_choice", "cloze"), ("generate", "multiple_choice", "cloze"), "generate"),
        ("cloze", ("generate",), ("generate", "cloze"), "generate"),
        ("cloze", ("generate", "multiple_choice", "cloze"), ("generate",), "generate"),
        ("generate", ("multiple_choice", "cloze"), ("cloze",), "cloze"),
    ],
)
def test_the_mode_that_task_and_method_allow(setting: str, offered: Any, answered: Any, chosen: str) -> None:
    assert choose_mode(setting, offered, answered) == chosen


def test_no_shared_mode_is_an_error() -> None:
    with pytest.raises(UserError, match="the task offers generate, the method answers cloze"):
        choose_mode("auto", ("generate",), ("cloze",))


# --- which cells ------------------------------------------------------------------------------------------------------


def test_all_tasks_methods_and_seeds(tiny_llama_dir: Path) -> None:
    cells = cells_of(
        quick(tiny_llama_dir, tasks=("all",), methods=("finetune", "tinyllm"), seeds=2), reference_baselines=True
    )
    assert len(cells) == len(MAIN) * (4 + 2 * 2)
    assert [(cell.name, cell.seed) for cell in cells[:8]] == [
        *[(name, 0) for name in ("random", "majority", "zero_shot", "few_shot", "finetune", "tinyllm")],
        ("finetune", 1),
        ("tinyllm", 1),
    ]
    assert tuple(cell.task.name for cell in cells[::8]) == MAIN


def test_all_means_the_main_suite_and_other_tasks_are_named() -> None:
    assert {"arc", "bioasq", "obqa", "piqa", "pubmedqa", "riddle"} <= set(MAIN) and "svamp" not in MAIN
    assert expand("task", ("all",)) == MAIN
    assert expand("task", ("all", "svamp", "obqa")) == (*MAIN, "svamp")
    assert expand("task", ("gsm8k", "svamp")) == ("gsm8k", "svamp")
    assert expand("method", ("all",)) == tuple(plugins.names("method"))
    with pytest.raises(UserError, match="Did you mean 'svamp'"):
        expand("task", ("svmap",))


def test_a_name_given_twice_is_one_cell(tiny_llama_dir: Path) -> None:
    assert len(cells_of(quick(tiny_llama_dir, methods=("finetune", "finetune"), tasks=("obqa", "obqa")))) == 1


def test_a_folder_is_not_recorded_with_the_request() -> None:
    request = Request(assignments=("data.dir=/data/of/someone", "train.warmup=0.1"), data_dir="/data/of/someone")
    assert "someone" not in str(request.recorded()) and request.recorded()["settings"] == ["train.warmup=0.1"]


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["finetune", "minillm"])
@pytest.mark.parametrize("more", [(), ("student.lora={r: 2}",), ("train.mixed_precision=bf16",)])
def test_weights_of_16_bits_are_evaluated_and_never_trained(
    dtype: str, method: str, more: tuple[str, ...], tiny_llama_dir: Path
) -> None:
    """Small steps would be rounded away without a word; reference baselines only read them."""
    requested = (f"student.dtype={dtype}", *more)
    with pytest.raises(UserError, match=rf"student.dtype={dtype}: .*train.mixed_precision=bf16"):
        one_cell(tiny_llama_dir, *requested, method=method)
    references = cells_of(quick(tiny_llama_dir, *requested, methods=()), reference_baselines=True)
    assert {cell.config.student.dtype for cell in references} == {dtype}


def test_a_teacher_is_trained_in_float32(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """`teacher.dtype` is what it is read in."""
    other = saved(tiny_llama(seed=1), tmp_path / "other")
    settings = (f"teacher.model=dir:{other}", "teacher.init={method: finetune, epochs: 1}", "teacher.dtype=bfloat16")
    first = one_cell(tiny_llama_dir, *settings, method="kd").teacher_from
    assert first is not None and first.config.student.dtype == "float32"


def test_dropout_of_adapters_that_has_no_effect_is_noted(tiny_llama_dir: Path, tmp_path: Path) -> None:
    other = saved(tiny_llama(seed=1), tmp_path / "other")
    settings = (f"teacher.model=dir:{other}", "teacher.init=null", "student.init=null", "student.lora={dropout: 0.1}")
    noted = {name: " ".join(one_cell(tiny_llama_dir, *settings, method=name).notes) for name in ("gkd", "kd")}
    assert "student.lora.dropout=0.1 has no effect: gkd samples texts" in noted["gkd"] and "dropout" not in noted["kd"]
