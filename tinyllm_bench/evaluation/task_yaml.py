"""Writes the small YAML files by which lm-eval knows our tasks: one per task and reading, one group per suite
and reading.

lm-eval registers one task per file, so the files are made from the tasks' own facts: `python -m
tinyllm_bench.evaluation.task_yaml` (`make tasks`) writes them, and a test checks that none has drifted.
"""

from pathlib import Path

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import write_text
from tinyllm_bench.data.records import READINGS, SUITES, Reading, Suite, TaskInfo

_NOTE = "# Made by `make tasks`; change the task's .py or the shared files beside this one instead.\n"
_METRIC: dict[Reading, str] = {"gen": "exact_match", "mc": "acc", "cloze": "acc_norm"}


def task_name(task: str, reading: str) -> str:
    """The lm-eval name of a task in one reading."""
    return f"tinyllm_{task}_{reading}"


def group_name(reading: str, suite: Suite = "main") -> str:
    """The lm-eval name of the group of a suite's built-in tasks in one reading; `main` is not named in it."""
    return f"tinyllm_bench_{_part(suite)}{reading}"


def _part(suite: Suite) -> str:
    return "" if suite == "main" else f"{suite}_"


def folder() -> Path:
    """The folder of the built-in tasks: what `lm_eval --include_path` needs."""
    return Path(str(plugins.folder("task")))


def task_text(info: TaskInfo, reading: Reading, *, shared: str = "") -> str:
    """One task's YAML; `shared` is the folder of the shared files, with a slash, where it is another one."""
    base = "_gen_yaml" if reading == "gen" else "_choice_yaml"
    return (
        f"{_NOTE}include: {shared}{base}\n"
        f"task: {task_name(info.name, reading)}\n"
        f"dataset_kwargs: {{task: {info.name}, reading: {reading}}}\n"
        f"metadata: {{version: {info.version}}}\n"
    )


def group_text(tasks: list[str], reading: Reading, suite: Suite = "main") -> str:
    """A group's YAML; its score is the plain mean over its tasks, so that a large set does not outvote the others."""
    members = "".join(f"  - {task_name(task, reading)}\n" for task in tasks)
    return (
        f"{_NOTE}group: {group_name(reading, suite)}\ntask:\n{members}aggregate_metric_list:\n"
        f"  - {{metric: {_METRIC[reading]}, aggregation: mean, weight_by_size: false, filter_list: none}}\n"
        "metadata: {version: 1}\n"
    )


def built_in_tasks() -> list[TaskInfo]:
    """The tasks that have a file in the tasks folder, by name."""
    here = folder()
    return [plugins.load_task(name) for name in plugins.names("task") if (here / f"{name}.py").is_file()]


def files() -> dict[str, str]:
    """Every generated file: name -> text."""
    infos = built_in_tasks()
    made = {f"{info.name}_{reading}.yaml": task_text(info, reading) for info in infos for reading in info.readings}
    for suite in SUITES:
        for reading in READINGS:
            members = [info.name for info in infos if info.suite == suite and reading in info.readings]
            if members:
                made[f"_group_{_part(suite)}{reading}.yaml"] = group_text(members, reading, suite)
    return made


def drift(home: Path) -> list[str]:
    """Names of YAML files in `home` that are missing, edited or left over, in order."""
    made = files()
    there = {path.name: path.read_text() for path in home.glob("*.yaml")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def main() -> None:
    """Write the files that differ and remove the ones that no task asks for."""
    home, made = folder(), files()
    if not made:
        raise UserError(f"no task in {home}")
    for name in drift(home):
        if name in made:
            write_text(home / name, made[name])
        else:
            (home / name).unlink()
        print(("wrote " if name in made else "removed ") + name)


if __name__ == "__main__":
    main()
