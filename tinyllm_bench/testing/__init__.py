"""The test kit for methods and tasks, built-in or in other packages: contract tests on tiny models and sample data.

    from tinyllm_bench import MethodContract

    class TestMine(MethodContract):
        method = "mine"        # or the class itself

`TaskContract` does the same for a task. Both need pytest, which nothing else in the package imports.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm_bench.testing.methods import MethodContract, method_contract
    from tinyllm_bench.testing.tasks import TaskContract, task_contract
    from tinyllm_bench.testing.training import loss_terms

__all__ = ["MethodContract", "TaskContract", "loss_terms", "method_contract", "task_contract"]

_MODULE_OF = {
    "MethodContract": "tinyllm_bench.testing.methods",
    "method_contract": "tinyllm_bench.testing.methods",
    "TaskContract": "tinyllm_bench.testing.tasks",
    "task_contract": "tinyllm_bench.testing.tasks",
    "loss_terms": "tinyllm_bench.testing.training",
}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use: the tiny models alone need neither pytest nor torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite("tinyllm_bench.testing.methods", "tinyllm_bench.testing.tasks")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
