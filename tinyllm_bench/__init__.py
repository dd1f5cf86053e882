"""tinyllm-bench: every LLM distillation method on the same students, data, budget and evaluation.

This is the public face. `run`, `compare` and `load_record` are the Python API; the other names are what a method or a
task is made of, in a package of its own as in `baselines/` and `tasks/`. Each is imported on first use: together they
would load torch with every command.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm_bench.answers.voting import COT as COT
    from tinyllm_bench.answers.voting import POT as POT
    from tinyllm_bench.answers.voting import Policy as Policy
    from tinyllm_bench.api import Failed as Failed
    from tinyllm_bench.api import Result as Result
    from tinyllm_bench.api import compare as compare
    from tinyllm_bench.api import load_record as load_record
    from tinyllm_bench.api import run as run
    from tinyllm_bench.base.errors import UserError as UserError
    from tinyllm_bench.base.plugins import load_method as load_method
    from tinyllm_bench.base.plugins import load_task as load_task
    from tinyllm_bench.data.prompts import LABEL as LABEL
    from tinyllm_bench.data.prompts import PLAIN as PLAIN
    from tinyllm_bench.data.prompts import Ask as Ask
    from tinyllm_bench.data.prompts import rationale_channel as rationale_channel
    from tinyllm_bench.data.records import SPLITS as SPLITS
    from tinyllm_bench.data.records import Annotation as Annotation
    from tinyllm_bench.data.records import Example as Example
    from tinyllm_bench.data.records import FileSource as FileSource
    from tinyllm_bench.data.records import HubSource as HubSource
    from tinyllm_bench.data.records import Recorded as Recorded
    from tinyllm_bench.data.records import ScoringMode as ScoringMode
    from tinyllm_bench.data.records import Split as Split
    from tinyllm_bench.data.records import TaskInfo as TaskInfo
    from tinyllm_bench.data.records import TaskRecord as TaskRecord
    from tinyllm_bench.data.rows import PASSAGE_BREAK as PASSAGE_BREAK
    from tinyllm_bench.data.rows import lowest_hashes as lowest_hashes
    from tinyllm_bench.data.rows import multiple_choice as multiple_choice
    from tinyllm_bench.data.rows import split_passages as split_passages
    from tinyllm_bench.data.rows import text_field as text_field
    from tinyllm_bench.data.rows import word_problem as word_problem
    from tinyllm_bench.data.sources import Source as Source
    from tinyllm_bench.data.sources import load_rationales as load_rationales
    from tinyllm_bench.data.sources import load_split as load_split
    from tinyllm_bench.generation.requests import Completion as Completion
    from tinyllm_bench.generation.requests import GenerationRequest as GenerationRequest
    from tinyllm_bench.generation.requests import SamplingConfig as SamplingConfig
    from tinyllm_bench.generation.sampler import SampledText as SampledText
    from tinyllm_bench.generation.sampler import sample_texts as sample_texts
    from tinyllm_bench.models.lm import LM as LM
    from tinyllm_bench.models.tokens import Encoded as Encoded
    from tinyllm_bench.testing import MethodContract as MethodContract
    from tinyllm_bench.testing import TaskContract as TaskContract
    from tinyllm_bench.testing import loss_terms as loss_terms
    from tinyllm_bench.training.batching import Batch as Batch
    from tinyllm_bench.training.batching import Group as Group
    from tinyllm_bench.training.cross_tokenizer import CrossTokenizer as CrossTokenizer
    from tinyllm_bench.training.cross_tokenizer import check_one_divergence as check_one_divergence
    from tinyllm_bench.training.cross_tokenizer import divergence_from as divergence_from
    from tinyllm_bench.training.cross_tokenizer import signal_for as signal_for
    from tinyllm_bench.training.divergences import DivergenceConfig as DivergenceConfig
    from tinyllm_bench.training.divergences import divergence_of as divergence_of
    from tinyllm_bench.training.losses import PerPosition as PerPosition
    from tinyllm_bench.training.losses import averaged as averaged
    from tinyllm_bench.training.losses import channel_cross_entropy as channel_cross_entropy
    from tinyllm_bench.training.losses import channel_sums as channel_sums
    from tinyllm_bench.training.losses import cross_entropy_N as cross_entropy_N
    from tinyllm_bench.training.losses import cross_entropy_of as cross_entropy_of
    from tinyllm_bench.training.method import Average as Average
    from tinyllm_bench.training.method import Decoding as Decoding
    from tinyllm_bench.training.method import Method as Method
    from tinyllm_bench.training.method import MethodConfig as MethodConfig
    from tinyllm_bench.training.method import Needs as Needs
    from tinyllm_bench.training.method import Response as Response
    from tinyllm_bench.training.method import Step as Step
    from tinyllm_bench.training.method import TeacherSignal as TeacherSignal
    from tinyllm_bench.training.method import Term as Term
    from tinyllm_bench.training.method import annotations_for as annotations_for
    from tinyllm_bench.training.method import check_teacher_names as check_teacher_names
    from tinyllm_bench.training.method import choose_teacher as choose_teacher
    from tinyllm_bench.training.method import label_and_rationales as label_and_rationales
    from tinyllm_bench.training.method import response_examples as response_examples
    from tinyllm_bench.training.method import scoring_modes_for as scoring_modes_for
    from tinyllm_bench.training.policy_gradient import clipped_policy_loss_NT as clipped_policy_loss_NT
    from tinyllm_bench.training.policy_gradient import importance_log_weight_NT as importance_log_weight_NT
    from tinyllm_bench.training.policy_gradient import returns_NT as returns_NT
    from tinyllm_bench.training.policy_gradient import rewards_NT as rewards_NT
    from tinyllm_bench.training.policy_gradient import whitened_NT as whitened_NT
    from tinyllm_bench.training.rollouts import bernoulli as bernoulli
    from tinyllm_bench.training.rollouts import keyed_examples as keyed_examples
    from tinyllm_bench.training.rollouts import sample_diagnostics as sample_diagnostics
    from tinyllm_bench.training.rollouts import with_sampled_text as with_sampled_text

__version__ = "0.1.0"

_MODULES = {
    "api": "Failed Result compare load_record run",
    "base.errors": "UserError",
    "base.plugins": "load_method load_task",
    "data.prompts": "Ask LABEL PLAIN rationale_channel",
    "data.records": "Annotation Example FileSource HubSource ScoringMode Recorded SPLITS Split TaskInfo TaskRecord",
    "data.rows": "text_field PASSAGE_BREAK lowest_hashes multiple_choice split_passages word_problem",
    "data.sources": "Source load_rationales load_split",
    "answers.voting": "COT POT Policy",
    "models.lm": "LM",
    "generation.sampler": "SampledText sample_texts",
    "generation.requests": "Completion GenerationRequest SamplingConfig",
    "training.method": "Average Decoding Method MethodConfig Needs Step "
    "Response TeacherSignal Term annotations_for choose_teacher label_and_rationales scoring_modes_for "
    "response_examples check_teacher_names",
    "training.batching": "Batch Group",
    "training.losses": "PerPosition averaged channel_cross_entropy channel_sums cross_entropy_N cross_entropy_of",
    "training.divergences": "DivergenceConfig divergence_of",
    "training.cross_tokenizer": "CrossTokenizer check_one_divergence divergence_from signal_for",
    "training.policy_gradient": "clipped_policy_loss_NT importance_log_weight_NT returns_NT rewards_NT whitened_NT",
    "training.rollouts": "bernoulli keyed_examples sample_diagnostics with_sampled_text",
    "models.tokens": "Encoded",
    "testing": "MethodContract TaskContract loss_terms",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(["__version__", *_MODULE_OF])

# A wheel carries baselines/ and tasks/ inside this package; a checkout has them beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "baselines").is_dir():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
