"""tinyllm-bench: every LLM distillation method on the same students, data, budget and evaluation.

`run`, `compare` and `load_record` are the Python API (`tinyllm_bench.api`), loaded when they are first asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm_bench.api import Failed as Failed
    from tinyllm_bench.api import Result as Result
    from tinyllm_bench.api import compare as compare
    from tinyllm_bench.api import load_record as load_record
    from tinyllm_bench.api import run as run
    from tinyllm_bench.base.errors import UserError as UserError

__version__ = "0.1.0"

__all__ = ["Failed", "Result", "UserError", "__version__", "compare", "load_record", "run"]

# A wheel carries baselines/ and tasks/ inside this package; a checkout has them beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "baselines").is_dir():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    """The names of the API: importing them all at once would load torch with every command."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "UserError":
        from tinyllm_bench.base import errors

        return errors.UserError
    from tinyllm_bench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
