"""tinyllm-bench: every LLM distillation method on the same students, data, budget and evaluation."""

from pathlib import Path

__version__ = "0.1.0"

__all__ = ["__version__"]

# A wheel carries baselines/ and tasks/ inside this package; a checkout has them beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "baselines").is_dir():
    __path__.append(str(_checkout))
