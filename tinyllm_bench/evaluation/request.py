"""What is asked: everything that decides a prompt and how its answer is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import ScoringMode, Split

if TYPE_CHECKING:
    from tinyllm_bench.data.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Some records of one split, asked in one mode; its fields go to the lm-eval task as metadata.

    `max_context_words` and `shot_max_words` cut the context of the question and of the few-shot examples, in words.
    `shots` examples come from the train split; `chat` asks through the model's own chat template. `markers` replaces
    the markers of channels by name. `max_new_tokens` bounds a generated answer, in tokens; `match` says how
    it is read.
    """

    task: str
    mode: ScoringMode
    split: Split
    ids: tuple[str, ...]
    source: Source
    max_context_words: int = 160
    style: str = "marker"
    markers: Mapping[str, str] = field(default_factory=dict)
    shots: int = 0
    shot_max_words: int = 64
    chat: bool = False
    max_new_tokens: int = 64
    match: Literal["parser", "exact"] = "parser"

    def __post_init__(self) -> None:
        if not self.ids:
            raise UserError(f"{self.task}: no record ids to ask; give at least one id of split {self.split!r}")
        if len(set(self.ids)) != len(self.ids):
            raise UserError(f"{self.task}: a record id is asked twice; give each id once")
        if self.shots and self.split == "train":
            raise UserError(f"{self.task}: few-shot examples come from 'train'; ask 'valid' or 'test', or shots=0")

    def metadata(self) -> dict[str, Any]:
        """The keywords of the task's loader, plain values only (task and mode stand in the task's YAML)."""
        return {
            "source": self.source.kind,
            "source_folder": self.source.folder,
            "split": self.split,
            "ids": list(self.ids),
            "style": self.style,
            "markers": dict(self.markers),
            "max_context_words": self.max_context_words,
            "shots": self.shots,
            "shot_max_words": self.shot_max_words,
        }
