"""The hub, played by local folders in each public set's own format: split by id list, checked, refused when away."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data import hub, sources
from tinyllm_bench.data.records import SPLITS, HubSource, Split, TaskInfo
from tinyllm_bench.data.rows import PASSAGE_BREAK, multiple_choice
from tinyllm_bench.data.splits import shipped_facts, shipped_ids, split_facts

ON_HUB = [name for name in plugins.names("task") if plugins.load_task(name).hub]
OFF_HUB = [name for name in plugins.names("task") if not plugins.load_task(name).hub]
LABELS = ["A", "B", "C", "D"]


def in_hub_form(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the release as the hub's data set has it, with the columns that we do not use."""
    choices, answer = row["choices"], row["answer"]
    lettered = {"text": choices, "label": LABELS[: len(choices)]}
    if task == "obqa":
        return {"id": row["id"], "question_stem": row["question"], "choices": lettered,
                "answerKey": LABELS[choices.index(answer)]}  # fmt: skip
    if task == "arc":
        return {"id": row["id"], "question": row["question"], "choices": lettered,
                "answerKey": LABELS[choices.index(answer)]}  # fmt: skip
    if task == "piqa":
        return {"goal": row["question"], "sol1": choices[0], "sol2": choices[1], "label": choices.index(answer)}
    *contexts, question = row["question"].split(PASSAGE_BREAK)
    return {"pubid": int(row["id"]), "question": question, "context": {"contexts": contexts, "meshes": ["x"]},
            "long_answer": "because", "final_decision": answer}  # fmt: skip


def local_hub(folder: Path, info: TaskInfo, rows: Mapping[Split, list[dict[str, Any]]]) -> TaskInfo:
    """Write the rows as a local data set, with rows that the release leaves out; the task that reads it."""
    assert info.hub is not None
    by_hub_split: dict[str, list[dict[str, Any]]] = {}
    for split, split_rows in rows.items():
        by_hub_split.setdefault(info.hub.splits[SPLITS.index(split)], []).extend(split_rows)
    for hub_split, hub_rows in by_hub_split.items():
        # A set whose ids are positions keeps its order; the others are turned round, with a row of no split in front.
        ordered = sorted(hub_rows, key=lambda row: row["id"]) if isinstance(hub_rows[0]["id"], int) else hub_rows[::-1]
        if isinstance(ordered[0]["id"], str):
            ordered.insert(0, {**ordered[0], "id": "999999999"})
        lines = (json.dumps(in_hub_form(info.name, row)) + "\n" for row in ordered)
        folder.mkdir(exist_ok=True)
        (folder / f"{hub_split}.jsonl").write_text("".join(lines))
    return replace(info, hub=replace(info.hub, path=str(folder), config=None))


@pytest.mark.release
@pytest.mark.parametrize("name", ON_HUB)
@pytest.mark.slow
def test_the_hub_gives_the_release_s_splits(
    name: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    info = plugins.load_task(name)
    rows = {split: sources.release.read_rows(release, info, split)[1] for split in SPLITS}
    moved = local_hub(tmp_path / "hub", info, rows)
    for split in SPLITS:
        where, read = hub.read_rows(moved, split)
        records = sources.to_records(read, moved, split, where=where, size=info.sizes[split], fix="")
        assert split_facts(records) == shipped_facts()[name][split]


@pytest.mark.parametrize("name", ON_HUB)
def test_id_lists_have_the_release_s_sizes(name: str) -> None:
    info = plugins.load_task(name)
    assert {split: len(set(ids)) for split, ids in shipped_ids(name).items()} == dict(info.sizes)
    assert len(info.hub.revision) == 40 and len(info.hub.splits) == len(SPLITS)


def test_the_three_parts_of_one_hub_split_share_no_id() -> None:
    for name in ON_HUB:
        info, ids = plugins.load_task(name), shipped_ids(name)
        for i, one in enumerate(SPLITS):
            for j, other in enumerate(SPLITS[:i]):
                if info.hub.splits[i] == info.hub.splits[j]:
                    assert not set(ids[one]) & set(ids[other])


@pytest.mark.parametrize("name", OFF_HUB)
def test_what_may_not_be_fetched_asks_for_the_release(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*give the release folder.*--data-dir"):
        sources.load_split(sources.Source("hub"), name, "test")


def test_offline_is_one_readable_line() -> None:
    sources.load_split.cache_clear()
    with pytest.raises(UserError) as caught:  # the tests' environment is offline
        sources.load_split(sources.Source("hub"), "obqa", "test")
    message = str(caught.value)
    assert "\n" not in message
    for word in ("allenai/openbookqa", plugins.load_task("obqa").hub.revision, "HF_HUB_OFFLINE", "--data-dir"):
        assert word in message


def test_the_hub_has_no_rationales() -> None:
    source = sources.Source("hub")
    assert sources.rationale_keys(source, "obqa") == ()
    with pytest.raises(UserError, match="none; recorded rationales come with the release folder"):
        sources.load_rationales(source, "obqa", "train", "flan-t5-xl")


def toy_info(ids: dict[Split, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> TaskInfo:
    """A task with its own id list; its hub rows are the release's."""
    monkeypatch.setattr(hub, "shipped_ids", lambda task: ids)
    return TaskInfo(
        name="toy",
        title="Toy",
        version=1,
        sizes={"train": 2, "valid": 1, "test": 1},
        to_record=lambda row, split: multiple_choice(row, task="toy", split=split),
        source="invented",
        licence="none",
        hub=HubSource(
            path="some/where",
            revision="r1",
            config="plain",
            splits=("train", "train", "test"),
            to_row=lambda row, index, hub_split: None if row["id"] == "skip" else row,
        ),
    )


def fake_load(hub_source: HubSource, hub_split: str) -> Iterable[Mapping[str, Any]]:
    """Both splits of the fake hub hold the id `b`, with texts that name their split."""
    assert (hub_source.path, hub_source.revision, hub_source.config) == ("some/where", "r1", "plain")
    for source_id in ("c", "skip", "b", "a"):
        yield {"id": source_id, "question": f"{hub_split} {source_id}?", "choices": ["x", "y"], "answer": "x"}


def test_rows_are_picked_by_id_in_the_list_s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    info = toy_info({"train": ("a", "c"), "valid": ("b",), "test": ("b",)}, monkeypatch)
    picked = {split: [row["question"] for row in hub.read_rows(info, split, load=fake_load)[1]] for split in SPLITS}
    assert picked == {"train": ["train a?", "train c?"], "valid": ["train b?"], "test": ["test b?"]}


def test_ids_that_are_not_there_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    info = toy_info({"train": ("a", "gone"), "valid": (), "test": ("skip",)}, monkeypatch)
    with pytest.raises(UserError, match=r"some/where@r1 \(train\): 1 rows of toy train found, expected 2; id 'gone'"):
        hub.read_rows(info, "train", load=fake_load)
    with pytest.raises(UserError, match="'skip' is missing"):
        hub.read_rows(info, "test", load=fake_load)
    with pytest.raises(UserError, match="no id list for 'valid'"):
        hub.read_rows(info, "valid", load=fake_load)


def test_the_hub_is_out_of_reach_when_offline_is_asked_for() -> None:
    assert hub.reachable() is False
