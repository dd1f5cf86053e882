"""Each filter on invented texts in the style of the recorded ones."""

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.teach.filters import FILTERS, body, rejected_by

ALL = tuple(FILTERS)
TRIGGER = "Let's think step by step."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (f"{TRIGGER}  ", "empty"),
        ("nan", "nan"),
        (f"{TRIGGER}\nnan", "nan"),
        ("Iron.", "short"),
        (f"{TRIGGER} Iron rusts.", "short"),
        ("Iron rusts in wet air.\nQuestion: What else rusts?", "prompt_junk"),
        ("Iron rusts in wet air.\nQ: What else rusts?", "prompt_junk"),
        ("Iron rusts in wet air. # 17. Next", "prompt_junk"),
        ("Read more at https://example.org/iron today", "prompt_junk"),
        ("Iron rusts in wet air.\nAnswer Choices:\n(a) tin", "prompt_junk"),
        ("Iron rusts in wet air because oxygen joins it.", None),
        (f"{TRIGGER}\nWet air makes iron rust.", None),
        ("The question is what makes iron rust; water does.", None),
    ],
)
def test_reasons(text: str, reason: str | None) -> None:
    assert rejected_by(text, ALL) == reason


def test_only_the_named_filters_act() -> None:
    assert rejected_by("nan", ("empty",)) is None
    assert rejected_by("", ()) is None


def test_an_unknown_filter_is_named() -> None:
    with pytest.raises(UserError, match="'emty'. Did you mean 'empty'"):
        rejected_by("x", ("emty",))


def test_the_trigger_is_not_part_of_the_rationale() -> None:
    assert body("  let's think step by step:\nIron rusts.") == "Iron rusts."
