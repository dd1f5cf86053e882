"""Every program of the two public files, through the real sandbox: the stored values, and nothing unexplained.

Needs the folder `mixed_distillation` beside the release folder. No row is quoted here: counts only.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.answers.codec import (
    LayoutTokens,
    decode_program,
    encode_program,
    missing_characters,
    round_trip_failures,
)
from tinyllm_bench.answers.keys import normalise, number
from tinyllm_bench.answers.programs import Prepared
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.answers.sandbox.runner import ExecResult
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, unigram_tokenizer

pytestmark = [pytest.mark.release, pytest.mark.slow]
TEACHERS = ("gpt-3.5-turbo", "gpt4")
# The stored `pot_status` names what the first executor said; ours says the same in these words. `Rejected` was its
# word for text that is no Python and for methods that its check refused on names which no program defines.
EXPLAINED = {
    "gpt-3.5-turbo": {
        ("ok", None): 966,
        ("NameError", "exec_error:NameError"): 20,
        ("Rejected", "exec_error:NameError"): 3,
        ("Rejected", "syntax"): 2,
        ("not_numeric:list", "non_numeric"): 8,
        ("not_numeric:str", "non_numeric"): 1,
    },
    "gpt4": {
        ("ok", None): 968,
        ("NameError", "exec_error:NameError"): 18,
        ("Rejected", "exec_error:NameError"): 1,
        ("Rejected", "syntax"): 11,
        ("not_numeric:list", "non_numeric"): 1,
        ("not_numeric:NoneType", "no_answer"): 1,
    },
}

NEARLY_GOLD = {"gpt-3.5-turbo": 3, "gpt4": 0}


def rows_of(release: Path, name: str) -> list[dict[str, Any]]:
    file = release.parent / "mixed_distillation" / name
    if not file.is_file():
        pytest.skip(f"needs mixed_distillation/{name} beside the release folder")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def word_problems(release: Path) -> list[dict[str, Any]]:
    return rows_of(release, "svamp_gpt35_gpt4.jsonl")


@pytest.fixture(scope="module")
def derived(release: Path) -> list[dict[str, Any]]:
    rows = rows_of(release, "gsm8k_train_gold_cot_derived_pot.jsonl")
    assert len(rows) == 7473 and sum(row["pot"] is None for row in rows) == 472
    return [row for row in rows if row["pot"] is not None]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def outcome(result: ExecResult) -> str | None:
    return normalise(result.value, ()).reason if result.ok else result.error


@pytest.mark.parametrize("teacher", TEACHERS)
def test_teachers_programs_give_the_stored_values(
    teacher: str, box: Sandbox, word_problems: list[dict[str, Any]]
) -> None:
    assert len(word_problems) == 1000
    rows = [row[teacher] for row in word_problems]
    results = box.map([one["pot"] for one in rows])
    actual = Counter((one["pot_status"], outcome(result)) for one, result in zip(rows, results, strict=True))
    assert dict(actual) == EXPLAINED[teacher]
    for one, result in zip(rows, results, strict=True):
        assert number(result.value).key == number(one["pot_value"]).key


@pytest.mark.parametrize("teacher", TEACHERS)
def test_teachers_right_programs_are_right(teacher: str, box: Sandbox, word_problems: list[dict[str, Any]]) -> None:
    results = box.map([row[teacher]["pot"] for row in word_problems])
    different = []
    for row, result in zip(word_problems, results, strict=True):
        right = result.ok and normalise(result.value, ()).key == normalise(row["gold"], ()).key
        if right != row[teacher]["pot_correct"]:
            different.append((row[teacher]["pot_correct"], abs(result.value / row["gold"] - 1) < 1e-3))
    # The stored flag lets a large value miss the gold one by less than a thousandth; six digits do not.
    assert different == [(True, True)] * NEARLY_GOLD[teacher]


def test_derived_programs_give_gold(box: Sandbox, derived: list[dict[str, Any]]) -> None:
    results = box.map([row["pot"] for row in derived])
    assert len(results) == 7001 and all(result.ok for result in results)
    for row, result in zip(derived, results, strict=True):
        assert normalise(result.value, ()) == normalise(row["gold"], ())


@pytest.fixture(scope="module")
def texts(word_problems: list[dict[str, Any]], derived: list[dict[str, Any]]) -> list[str]:
    return [row[t]["pot"] for row in word_problems for t in TEACHERS] + [row["pot"] for row in derived]


@pytest.fixture(scope="module")
def programs(box: Sandbox, texts: list[str]) -> list[Prepared]:
    return box.prepare(texts)


def test_every_text_is_prepared_or_rejected_for_a_reason(
    box: Sandbox, texts: list[str], programs: list[Prepared]
) -> None:
    assert Counter(program.reason for program in programs) == {None: 8987, "syntax": 13, "no_answer": 1}
    assert sum(program.code is not None and program.line is None for program in programs) == 7
    accepted = [(text, p.code) for text, p in zip(texts, programs, strict=True) if p.code is not None]
    assert box.map([text for text, _ in accepted]) == box.map([code for _, code in accepted]), (
        "canonical means the same"
    )
    assert [p.code for p in box.prepare([code for _, code in accepted])] == [code for _, code in accepted]


def test_the_codec_gives_every_program_back(box: Sandbox, programs: list[Prepared]) -> None:
    accepted = [program for program in programs if program.code is not None]
    layout = LayoutTokens()
    lines = [encode_program(program, layout) for program in accepted]
    assert not any("\n" in line or "  " in line for line in lines)
    back = box.prepare([decode_program(line, layout) for line in lines])
    assert [one.code for one in back] == [program.code for program in accepted]


def test_tokenizers_give_every_program_back(box: Sandbox, programs: list[Prepared]) -> None:
    accepted = [program for program in programs if program.code is not None]
    layout = LayoutTokens()
    assert set(round_trip_failures(bpe_tokenizer(), accepted, None, box.prepare)) == {None}
    tokenizer = unigram_tokenizer()
    tokenizer.add_tokens(list(layout.tokens))
    failures = Counter(round_trip_failures(tokenizer, accepted, layout, box.prepare))
    assert failures == {None: 8986, "the tokenizer loses '{' '}'": 1}
    tokenizer.add_tokens(missing_characters(tokenizer, [encode_program(program, layout) for program in accepted]))
    assert set(round_trip_failures(tokenizer, accepted, layout, box.prepare)) == {None}
