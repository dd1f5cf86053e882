"""Writes the small YAML files that register our tasks with lm-eval: one per task and mode, one group per suite
and mode.

lm-eval registers one task per file, so the files are generated from the tasks' own facts: `python -m
tinyllm_bench.evaluation.task_yaml` (`make tasks`) writes them, and a test checks that they are up to date.
"""

from pathlib import Path

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import write_text
from tinyllm_bench.data.records import SCORING_MODES, SUITES, ScoringMode, Suite, TaskInfo

_NOTE = "# Made by `make tasks`; change the task's .py or the shared files beside this one instead.\n"
_METRIC: dict[ScoringMode, str] = {"generate": "exact_match", "multiple_choice": "acc", "cloze": "acc_norm"}


def task_name(task: str, mode: str) -> str:
    """The lm-eval name of a task in one mode."""
    return f"tinyllm_{task}_{mode}"


def group_name(mode: str, suite: Suite = "main") -> str:
    """The lm-eval name of the group of a suite's built-in tasks in one mode; `main` is not named in it."""
    return f"tinyllm_bench_{_part(suite)}{mode}"


def _part(suite: Suite) -> str:
    return "" if suite == "main" else f"{suite}_"


def folder() -> Path:
    """The folder of the built-in tasks: what `lm_eval --include_path` needs."""
    return Path(str(plugins.folder("task")))


def task_text(info: TaskInfo, mode: ScoringMode, *, shared: str = "") -> str:
    """One task's YAML; `shared` is the folder of the shared files, with a slash, where it is another folder."""
    base = "_generate_yaml" if mode == "generate" else "_choice_yaml"
    return (
        f"{_NOTE}include: {shared}{base}\n"
        f"task: {task_name(info.name, mode)}\n"
        f"dataset_kwargs: {{task: {info.name}, mode: {mode}}}\n"
        f"metadata: {{version: {info.version}}}\n"
    )


def group_text(tasks: list[str], mode: ScoringMode, suite: Suite = "main") -> str:
    """A group's YAML; its score is the plain mean over its tasks, so that a large set does not outvote the others."""
    members = "".join(f"  - {task_name(task, mode)}\n" for task in tasks)
    return (
        f"{_NOTE}group: {group_name(mode, suite)}\ntask:\n{members}aggregate_metric_list:\n"
        f"  - {{metric: {_METRIC[mode]}, aggregation: mean, weight_by_size: false, filter_list: none}}\n"
        "metadata: {version: 1}\n"
    )


def built_in_tasks() -> list[TaskInfo]:
    """The tasks that have a file in the tasks folder, by name."""
    here = folder()
    return [plugins.load_task(name) for name in plugins.names("task") if (here / f"{name}.py").is_file()]


def files() -> dict[str, str]:
    """Every generated file: name -> text."""
    infos = built_in_tasks()
    texts = {f"{info.name}_{mode}.yaml": task_text(info, mode) for info in infos for mode in info.scoring_modes}
    for suite in SUITES:
        for mode in SCORING_MODES:
            members = [info.name for info in infos if info.suite == suite and mode in info.scoring_modes]
            if members:
                texts[f"_group_{_part(suite)}{mode}.yaml"] = group_text(members, mode, suite)
    return texts


def drift(home: Path) -> list[str]:
    """Names of YAML files in `home` that are missing, edited or left over, in order."""
    expected = files()
    actual = {path.name: path.read_text(encoding="utf-8") for path in home.glob("*.yaml")}
    return sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))


def main() -> None:
    """Write the files that differ and remove those that belong to no task."""
    home, texts = folder(), files()
    if not texts:
        raise UserError(f"no task in {home}")
    for name in drift(home):
        if name in texts:
            write_text(home / name, texts[name])
        else:
            (home / name).unlink()
        print(("wrote " if name in texts else "removed ") + name)


if __name__ == "__main__":
    main()
