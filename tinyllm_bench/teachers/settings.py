"""The settings of teachers: their prompts, how their texts are sampled, and which of these are used."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.teachers.few_shot import ShotConfig
from tinyllm_bench.teachers.prompts import PromptKind


class _SettingsGroup(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Price = Annotated[float, Field(ge=0, le=1e6)]


class TeacherSamplingConfig(_SettingsGroup):
    """How a live teacher's texts are sampled: greedy at temperature 0; `samples` texts per record, each seeded."""

    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=1, le=10**6)
    samples: int = Field(1, ge=1, le=10**4)
    seed: int = Field(0, ge=0, lt=2**32)


class ApiConfig(_SettingsGroup):
    """Requests to an API: how many at once, seconds from the start to the end of one, and attempts of each."""

    concurrency: int = Field(8, ge=1, le=10**4)
    timeout: float = Field(60.0, gt=0, le=1e6)
    attempts: int = Field(6, ge=1, le=1000)


class AnnotationConfig(_SettingsGroup):
    """Where teachers' texts come from and what happens to them before training.

    control: `shuffled` or `gold` rationales as a control. The rest is for live teachers: kind: their prompt (`forced`:
    the gold answer is in the prompt, as in TinyLLM); demonstrations: the examples in front of the question, their
    passages cut to `demonstration_words`; chat: whether prompts use the teacher's own chat template; engine: the
    library that runs local ones; prices: US dollars per million tokens (in, out), by the teacher's key.
    """

    control: Literal["shuffled", "gold"] | None = None
    filters: tuple[str, ...] = ("thought", "cut", "empty", "nan", "short", "prompt_junk")
    on_missing_teacher: Literal["refuse", "drop"] = "refuse"
    kind: PromptKind = "forced"
    demonstrations: ShotConfig = ShotConfig()
    demonstration_words: int = Field(64, ge=1, le=10**6)
    sampling: TeacherSamplingConfig = TeacherSamplingConfig()
    chat: Literal["auto", "always", "never"] = "auto"
    engine: Literal["auto", "hf", "vllm"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch: int = Field(16, ge=1, le=10**6)
    api: ApiConfig = ApiConfig()
    on_teacher_error: Literal["stop", "skip"] = "stop"
    prices: dict[str, tuple[_Price, _Price]] = {}
