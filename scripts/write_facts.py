"""Writes tasks/digests.json and tasks/ids/ from a release folder.

    python scripts/write_facts.py RELEASE_FOLDER TASKS_FOLDER

The files of the tasks that have one of their own must be inside that folder or beside it.
"""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyllm_bench.base import plugins
from tinyllm_bench.base.files import write_json, write_text
from tinyllm_bench.data.records import SPLITS, Split
from tinyllm_bench.data.release import has_task
from tinyllm_bench.data.rows import source_id
from tinyllm_bench.data.sources import read_release_split
from tinyllm_bench.data.splits import shipped_facts, split_facts


def _pack(ids: Sequence[str]) -> list[str | list[int]]:
    """The short form of an id list: a run of whole numbers becomes its first and last one."""
    packed: list[list[int] | str] = []
    for text in ids:
        number = int(text) if text.isdecimal() and text == str(int(text)) else None
        last = packed[-1] if packed else None
        if number is not None and isinstance(last, list) and last[1] + 1 == number:
            last[1] = number
        else:
            packed.append(text if number is None else [number, number])
    return [str(item[0]) if isinstance(item, list) and item[0] == item[1] else item for item in packed]


def _ids_text(ids: Mapping[Split, Sequence[str]]) -> str:
    lists = []
    for split, found in ids.items():
        body = textwrap.fill(json.dumps(_pack(found)), 118, break_long_words=False, break_on_hyphens=False)
        lists.append(f"{json.dumps(split)}: {body}")
    return "{\n" + ",\n".join(lists) + "\n}\n"


def write_facts(release: Path, tasks: Path) -> None:
    """Write `digests.json` and `ids/*.json` of every built-in task into `tasks` from a release folder.

    A task that has no facts yet and nothing in the folder has no public data: it goes without.
    """
    digests = {}
    for name in plugins.names("task"):
        if plugins.origin("task", name) is not None:
            continue
        info = plugins.load_task(name)
        if name not in shipped_facts() and not has_task(release, info):
            continue
        records = {split: read_release_split(release, info, split) for split in SPLITS}
        digests[name] = {split: split_facts(found) for split, found in records.items()}
        if info.hub:
            ids = {split: [source_id(record) for record in found] for split, found in records.items()}
            write_text(tasks / "ids" / f"{name}.json", _ids_text(ids))
    write_json(tasks / "digests.json", digests)


if __name__ == "__main__":
    write_facts(Path(sys.argv[1]), Path(sys.argv[2]))
