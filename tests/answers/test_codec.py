"""Programs on one line, and back; what a tokenizer loses is found."""

import ast
from collections.abc import Iterator
from typing import Any

import pytest

from tinyllm_bench.answers.codec import (
    LayoutTokens,
    decode_program,
    encode_program,
    missing_characters,
    round_trip,
    round_trip_failure,
    round_trip_failures,
)
from tinyllm_bench.answers.programs import Prepared
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, unigram_tokenizer

STRAIGHT = "price = 76\noff = 25\nleft = price - off\nanswer = left"
LOOP = "total = 0\nfor i in range(4):\n    if i > 1:\n        total += i\nanswer = total"
FUNCTION = "def f(x):\n    return x + 1\nanswer = f(2)"
STRING = "a = 'two; parts'\nanswer = len(a)"
BRACES = "support = {'a': 1 > 0}\nanswer = max(support, key=support.get)"
LAYOUT = LayoutTokens()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as opened:
        yield opened


def one(box: Sandbox, code: str) -> Prepared:
    [result] = box.prepare([code])
    assert result.reason is None
    return result


@pytest.mark.parametrize("code", [STRAIGHT, STRING, BRACES, "from math import ceil\nanswer = ceil(2.5)", "answer = 1"])
def test_straight_lines_are_joined(box: Sandbox, code: str) -> None:
    result = one(box, code)
    line = encode_program(result, LAYOUT)
    assert line == result.line and "\n" not in line
    assert ast.dump(ast.parse(line)) == ast.dump(ast.parse(code))
    assert decode_program(line, LAYOUT) == line, "it is Python as it stands"
    assert box.run(line) == box.run(code)


@pytest.mark.parametrize("code", [LOOP, FUNCTION, "if 1 > 2:\n    answer = 'a'\nelse:\n    answer = 'b'"])
def test_other_programs_keep_their_lines_as_tokens(box: Sandbox, code: str) -> None:
    result = one(box, code)
    text = encode_program(result, LAYOUT)
    assert result.line is None and "\n" not in text and "    " not in text
    assert decode_program(text, LAYOUT) == result.code
    spaced = text.replace("<nl>", " <nl> ").replace("<in>", " <in> ")
    assert decode_program(spaced, LAYOUT) == result.code, "blanks beside a token mean nothing"
    assert box.run(decode_program(text, LAYOUT)) == box.run(code)


def test_the_tokens_have_names() -> None:
    layout = LayoutTokens("[N]", "[I]")
    assert layout.tokens == ("[N]", "[I]")
    assert (
        encode_program(Prepared(LOOP), layout)
        == "total = 0[N]for i in range(4):[N][I]if i > 1:[N][I][I]total += i[N]answer = total"
    )
    assert decode_program(encode_program(Prepared(LOOP), layout), layout) == LOOP


def test_causal_students_get_real_newlines(box: Sandbox) -> None:
    for code in (STRAIGHT, LOOP, BRACES):
        result = one(box, code)
        assert encode_program(result, None) == code == decode_program(code, None).replace('"', "'")
        assert round_trip_failure(bpe_tokenizer(), encode_program(result, None)) is None
    with pytest.raises(AssertionError, match="a rejected program has no target"):
        encode_program(Prepared(None, "syntax"), None)


def t5_like() -> Any:
    tokenizer = unigram_tokenizer()
    tokenizer.add_tokens(list(LAYOUT.tokens))
    return tokenizer


def test_a_tokenizer_that_collapses_white_space(box: Sandbox) -> None:
    tokenizer = t5_like()
    for code in (STRAIGHT, LOOP, FUNCTION):
        result = one(box, code)
        assert round_trip_failure(tokenizer, encode_program(result, None)) == "the tokenizer loses '\\n'"
        assert round_trip_failure(tokenizer, encode_program(result, LAYOUT), LAYOUT) is None
    assert round_trip_failure(tokenizer, "a = 'two  blanks'; answer = a") == "the tokenizer loses white space"
    assert round_trip_failure(unigram_tokenizer(), encode_program(one(box, LOOP), LAYOUT), LAYOUT) is None, (
        "it knows < and >"
    )


def test_missing_characters_are_found_and_can_be_added(box: Sandbox) -> None:
    tokenizer, target = t5_like(), encode_program(one(box, BRACES), LAYOUT)
    assert round_trip_failure(tokenizer, target, LAYOUT) == "the tokenizer loses '{' '}'"
    assert missing_characters(tokenizer, [target, "é"]) == ["{", "}", "é"]
    tokenizer.add_tokens(missing_characters(tokenizer, [target]))
    assert missing_characters(tokenizer, [target]) == []
    assert round_trip(tokenizer, target) != target, "a blank beside the added brace"
    programs = box.prepare([BRACES, STRAIGHT, LOOP, "a = 'two  blanks'\nanswer = a"])
    failures = round_trip_failures(tokenizer, programs, LAYOUT, box.prepare)
    assert failures == [None, None, None, "the tokenizer loses white space"]
    assert round_trip_failures(tokenizer, [], LAYOUT, box.prepare) == []
