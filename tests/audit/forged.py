"""A copy of a finished run that a test can tamper with, as badly or as well as a cheat could."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import zstandard

from tinyllm_bench.base.files import append_checked, canonical_json, write_json
from tinyllm_bench.data.records import Prediction
from tinyllm_bench.experiment.predict import load_predictions, predictions_digest
from tinyllm_bench.leaderboard.record import RECORD_FILE, ids_digest, protocol_hash


class Forged:
    """A copy of a run whose record and predictions can be changed and sealed again."""

    def __init__(self, folder: Path, place: Path) -> None:
        shutil.copytree(folder.parent, place)
        self.folder = place / folder.name
        self.record: dict[str, Any] = json.loads((self.folder / RECORD_FILE).read_text())
        (self.file,) = (self.folder / "predictions").glob("*.zst")
        self.predictions = load_predictions(self.file)

    def write(self) -> None:
        """Write the record alone."""
        write_json(self.folder / RECORD_FILE, self.record)

    def write_predictions(self) -> None:
        """Write the predictions alone."""
        lines = "".join(canonical_json(asdict(one)) + "\n" for one in self.predictions)
        self.file.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))

    def seal(self) -> None:
        """Write the predictions, and a record and a ledger that agree with them in every count and digest."""
        record, predictions = self.record, self.predictions
        record["items"] = [[one.record_id, one.answer, int(one.correct)] for one in predictions]
        right, unread = sum(one.correct for one in predictions), sum(one.answer is None for one in predictions)
        counts = {
            "n": len(predictions),
            "correct": right,
            "unparsed": unread,
            "wrong": len(predictions) - right - unread,
        }
        record["score"] |= counts
        record["protocol"] |= {
            "n": len(predictions),
            "scored_ids_digest": ids_digest(one.record_id for one in predictions),
        }
        record["protocol_hash"] = protocol_hash(record["protocol"])
        record["predictions_digest"] = predictions_digest(predictions)
        (self.folder / "ledger.jsonl").unlink()
        evaluations = [{"test_evaluation": 1, "items": len(predictions), "mark": record["predictions_digest"]}]
        append_checked(self.folder / "ledger.jsonl", evaluations)
        self.write_predictions()
        self.write()

    def change(self, matches: Callable[[Prediction], bool], **changes: Any) -> str:
        """Change the first prediction that matches; returns its record's id."""
        index = next(i for i, one in enumerate(self.predictions) if matches(one))
        self.predictions[index] = replace(self.predictions[index], **changes)
        return self.predictions[index].record_id
