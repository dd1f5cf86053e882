"""Public data sets from the Hugging Face hub at a pinned revision, cut to the release's splits by shipped id lists.

Not run against the real hub: tests use a local folder in a data set's own format, read by `datasets.load_dataset`.
No data set's own code is ever run.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import SPLITS, HubSource, Split, TaskInfo
from tinyllm_bench.data.splits import shipped_ids

PROVIDE_RELEASE = "give the release folder: --data-dir FOLDER or TINYLLM_BENCH_DATA"
Load = Callable[[HubSource, str], Iterable[Mapping[str, Any]]]


def load_dataset(hub: HubSource, hub_split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of one split of a data set on the hub, in its own order.

    Raises:
        UserError: The hub is switched off or not reachable, or has no such data set, revision or split.
    """
    import datasets

    try:
        return datasets.load_dataset(hub.path, name=hub.config, revision=hub.revision, split=hub_split)
    except Exception as error:  # the library raises a dozen types for "not there" and "not reachable"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"data set {hub.path!r}, revision {hub.revision}, split {hub_split!r} is not available from the hub "
            f"({reason}); connect (and unset HF_HUB_OFFLINE), or {PROVIDE_RELEASE}"
        ) from None


def reachable(*, seconds: float = 3.0) -> bool:
    """Whether the hub answers; False at once if HF_HUB_OFFLINE is set."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # for whatever reason
        return False
    return True


def read_rows(info: TaskInfo, split: Split, *, load: Load = load_dataset) -> tuple[str, list[Mapping[str, Any]]]:
    """`(name of the source, rows in the release's form)` of a split, in the order of the shipped id list.

    Args:
        info: The task; `info.hub.splits` name the hub's split for each of train, valid and test.
        split: The release's split.
        load: Gives the rows of a hub split; tests pass their own.

    Raises:
        UserError: A task that may not be fetched, a hub that is not reachable, or ids that the data set does not have.
    """
    if info.hub is None:
        raise UserError(
            f"task {info.name!r} has no copy on the hub that may be fetched ({info.licence}); {PROVIDE_RELEASE}"
        )
    hub_split = info.hub.splits[SPLITS.index(split)]
    ids = shipped_ids(info.name).get(split, ())
    if not ids:
        raise UserError(
            f"task {info.name!r} ships no id list for {split!r}, so the hub cannot be used; {PROVIDE_RELEASE}"
        )
    name = f"{info.hub.path}@{info.hub.revision} ({hub_split})"
    listed = set(ids)
    by_id: dict[str, Mapping[str, Any]] = {}
    for index, hub_row in enumerate(load(info.hub, hub_split)):
        try:
            row = info.hub.to_row(hub_row, index, hub_split)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(f"{name}: row {index} is not of the task's form ({reason}); {PROVIDE_RELEASE}") from None
        if row is not None and str(row["id"]) in listed:
            by_id[str(row["id"])] = row
    missing = [source_id for source_id in ids if source_id not in by_id]
    if missing:
        raise UserError(
            f"{name}: {len(by_id)} rows of {info.name} {split} found, expected {len(ids)}; "
            f"id {missing[0]!r} is missing; {PROVIDE_RELEASE}"
        )
    return name, [by_id[source_id] for source_id in ids]
