"""What makes a cell that cell, its identity: everything that can change its predictions, and nothing that cannot; and
what two rows must share to stand in one table, its protocol.

Where and how fast a cell runs (folders, batch sizes, checkpoint intervals) is not in it; what a cell does not use is
not in it either, so that label-only training is not repeated because a teacher changed.
"""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench import __version__
from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.base import plugins
from tinyllm_bench.base.files import digest, digest_file
from tinyllm_bench.data.prompts import rationale_channel
from tinyllm_bench.leaderboard.record import ids_digest
from tinyllm_bench.models.identity import model_identity

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell

GUESSES = ("random", "majority")


def identity_of(cell: "Cell") -> dict[str, Any]:
    """The facts whose digest is the cell's run id."""
    facts: dict[str, Any] = {
        "version": __version__,
        "cell": [
            "training" if cell.trains_only else cell.kind,
            cell.name,
            cell.task.name,
            cell.task.version,
            cell.mode,
            cell.seed,
        ],
        "protocol": _protocol(cell),
    }
    if cell.name not in GUESSES:
        facts["student"] = [model_identity(cell.student, cell.runs), cell.config.student.model_dump(mode="json")]
        for key in ("model", "init"):  # what an initial cell made is named by the run that the student comes from
            facts["student"][1].pop(key)
        facts["asked"] = _asked(cell)
    if cell.name == "majority" or (cell.name == "random" and not cell.records("test")[0].choices):
        facts["train"] = _ids(cell, "train")
    if cell.name == "few_shot":
        shots = cell.config.eval
        facts["shots"] = [shots.shots, shots.shot_max_words, cell.data["train"]["digest"]]
    return facts if cell.method is None else facts | _training(cell)


def _protocol(cell: "Cell") -> dict[str, Any]:
    """Of a cell that only trains without the test questions, which its weights do not depend on."""
    found = protocol_of(cell)
    if cell.trains_only and not cell.select_on_test:
        for key in ("scored_ids_digest", "n", "prompt_digest"):
            found.pop(key)
    return found


def _asked(cell: "Cell") -> dict[str, Any]:
    config = cell.config
    return {
        "engine": None if cell.trains_only else config.backend.engine,
        "device": config.backend.device,
        "max_new_tokens": config.eval.max_new_tokens if cell.mode == "generate" else None,
        "chat_template": config.eval.chat_template if cell.kind == "reference_baseline" else None,
        "style": config.data.style,
        "markers": dict(config.data.markers),
        **({"cut_tokens": config.data.cut_tokens} if config.data.cut_tokens else {}),
    }


def _training(cell: "Cell") -> dict[str, Any]:
    assert cell.method is not None
    train = cell.config.train.model_dump(mode="json")
    for key in ("micro_batch_tokens", "checkpoint_seconds", "gradient_checkpointing", "layout", "attention"):
        train.pop(key)
    first = cell.asked_records("train")[0]
    examples = [asdict(example) for example in cell.method.examples(first, [], cell.ask)]
    decoding = cell.method.decoding()
    channels = [rationale_channel(teacher.key) for teacher in cell.teachers]
    channels += decoding.channels if decoding.policy is not None else ()
    plugin = plugins.origin("method", cell.name)
    return {
        "method": cell.config.method,
        "method_source": _source(type(cell.method)) if plugin is None else plugin.fingerprint,
        "train": train,
        "budget": cell.config.budget.model_dump(mode="json"),
        "records": [_ids(cell, "train"), _ids(cell, "valid")],
        "data": {split: facts["digest"] for split, facts in cell.data.items()},
        "wording": [examples, *(cell.ask.prompt(first, channel) for channel in channels)],
        "teachers": [[t.key, t.text_digest(cell.task.name)] for t in cell.teachers],
        "control": cell.config.annotations.control if cell.teachers else None,
        "signal": None if cell.signal is None else _signal(cell),
        **_plain_text(cell),
        **({"share": cell.share} if cell.share != 1 and cell.student_from is not None else {}),
        **({"select_on_test": True} if cell.select_on_test else {}),
    }


def _source(kind: type) -> str:
    return digest(inspect.getsource(inspect.getmodule(kind) or kind))


def plugins_of(cell: "Cell") -> dict[str, str]:
    """Packages and plugin files that a cell uses, by name: their version and the digest of their code."""
    used = [("task", cell.task.name), *([("method", cell.name)] if cell.kind == "method" else [])]
    used += [("teacher", teacher.spec.partition(":")[0]) for teacher in cell.teachers]
    found = [plugin.fingerprint for kind, name in used if (plugin := plugins.origin(kind, name)) is not None]
    return {one["package"]: f"{one['version']} sha256:{one['digest'][:16]}".strip() for one in found}


def _plain_text(cell: "Cell") -> dict[str, Any]:
    assert cell.method is not None
    data = cell.config.data
    if data.plain_text is None or not cell.method.needs().plain_text:
        return {}
    return {"plain_text": [digest_file(Path(data.plain_text).expanduser()), data.plain_tokens]}


def _ids(cell: "Cell", split: Any) -> str:
    return digest([record.id for record in cell.records(split)])


def _signal(cell: "Cell") -> Any:
    assert cell.signal is not None
    teacher = cell.config.teacher
    kept = None if teacher.cache is None else teacher.cache.model_dump(exclude={"engine"})
    return [model_identity(cell.signal, cell.runs), teacher.dtype, teacher.chat, kept]


_METRICS = {"cloze": "log-probability per character", "multiple_choice": "log-probability", "generate": "parsed answer"}


def protocol_of(cell: "Cell") -> dict[str, Any]:
    """Task, scored ids, mode, asked context and options, parser, metric and the cap of the context.

    The marker belongs to the method's policy, not to the protocol; so do training data, budget and backend.
    """
    records = cell.asked_records("test")
    asked = [[record.id, cell.ask.context(record), list(cell.ask.options(record))] for record in records]
    return {
        "task": cell.task.name,
        "version": cell.task.version,
        "scored_ids_digest": ids_digest(record.id for record in records),
        "n": len(records),
        "mode": cell.mode,
        "prompt_digest": digest(asked),
        "parser_version": reader_version(records[0].choices),
        "metric": _metric(cell),
        "max_context_words": cell.config.data.max_context_words,
    }


def _metric(cell: "Cell") -> str:
    exact = cell.mode == "generate" and cell.config.eval.match == "exact"
    cut = cell.config.data.cut_tokens
    named = "the choice's text to the letter" if exact else _METRICS[cell.mode]
    return f"accuracy by {named}" + (f", prompts cut behind {cut} tokens" if cut else "")
