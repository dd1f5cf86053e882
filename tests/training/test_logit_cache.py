"""Distributions cached on disk: round trips, refusals, and what a crash leaves."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.top_k import ResponseDistributions, ScoredResponse, response_digest, tail_of, top_k
from tinyllm_bench.training.logit_cache import LogitCache, LogitCacheHeader

SIZE = 13
HEADER = LogitCacheHeader(teacher={"weights": "a1"}, tokenizer="t1", template="p1", vocabulary=SIZE, k=4)


def scored(name: str, tokens: int = 3, *, k: int = 4) -> ScoredResponse:
    prompt = tuple(name.encode())
    generator = torch.Generator().manual_seed(sum(name.encode()))
    logits = 3 * torch.randn(tokens, SIZE, generator=generator)
    response = torch.randint(0, SIZE, (tokens,), generator=generator)
    gold = logits.log_softmax(-1).gather(1, response[:, None])[:, 0]
    return ScoredResponse(name, prompt, response.tolist(), ResponseDistributions(*top_k(logits, k), gold))


def read(cache: LogitCache, response: ScoredResponse) -> ResponseDistributions:
    return cache.distributions_for(response.record_id, response_digest(response.prompt, response.response))


def assert_same(actual: ResponseDistributions, expected: ResponseDistributions, *, rtol: float = 1e-3) -> None:
    assert torch.equal(actual.ids_NK, expected.ids_NK)
    for mine, its in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, its, rtol=rtol, atol=0)


def test_cached_distributions_round_trip_also_in_another_process(tmp_path: Path) -> None:
    cache, many = LogitCache.create(HEADER, tmp_path), [scored(name, n) for n, name in enumerate("abc", start=1)]
    other = LogitCache.open(tmp_path)  # opened while it was empty
    assert cache.add(many[:2]) == 2 and cache.add(many) == 1
    for response in many:
        assert_same(read(cache, response), response.distributions)
        assert_same(read(other, response), response.distributions)
    assert (cache.responses, cache.tokens) == (3, 6) == (other.responses, other.tokens)
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("*.[if][24]"))
    assert on_disk == 6 * HEADER.bytes_per_token == 6 * (4 * (4 + 2) + 2 + 2)


def test_sixty_four_entries_take_about_four_hundred_bytes() -> None:
    assert replace(HEADER, vocabulary=49_152, k=64).bytes_per_token == 388


@pytest.mark.parametrize(("precision", "rtol"), [("float16", 1e-3), ("float32", 0.0)])
def test_all_of_the_vocabulary_is_the_dense_distribution(tmp_path: Path, precision: Any, rtol: float) -> None:
    cache = LogitCache.create(replace(HEADER, k=SIZE, precision=precision), tmp_path)
    logits = 5 * torch.randn(6, SIZE)
    logits[:, 3] = -torch.inf
    ids, logp, tail = top_k(logits, SIZE)
    cache.add([ScoredResponse("a", [1], [0] * 6, ResponseDistributions(ids, logp, tail, logp[:, 0]))])
    actual = cache.distributions_for("a", response_digest([1], [0] * 6))
    dense = torch.full((6, SIZE), torch.nan).scatter(1, actual.ids_NK, actual.logp_NK)
    torch.testing.assert_close(dense, logits.log_softmax(-1), rtol=rtol, atol=0)
    assert actual.tail_N.tolist() == [-torch.inf] * 6


def test_the_tail_is_the_mass_outside_the_top_k() -> None:
    logits = torch.randn(50, 1000) * 4
    ids, logp, tail = top_k(logits, 8)
    dense = logits.double().softmax(-1)
    rest = dense.scatter(1, ids, 0.0).sum(-1)
    torch.testing.assert_close(tail.double(), rest.log(), rtol=1e-5, atol=1e-5)
    assert torch.equal(logp, logp.sort(-1, descending=True).values) and tail.dtype == torch.float32


def test_a_tail_far_below_the_precision_of_1_is_not_lost() -> None:
    logits = torch.zeros(1, 100)
    logits[0, 5] = 40.0
    tail = top_k(logits.bfloat16(), 1)[2]
    assert float(tail) == pytest.approx(float(torch.tensor(99.0).log()) - 40, rel=1e-4)


def test_the_tail_from_top_k_entries_only() -> None:
    expected = torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.9, 0.100001]]).log()
    assert tail_of(expected).tolist() == [pytest.approx(-1.3862944), -torch.inf, -torch.inf]
    assert float(tail_of(torch.tensor([[-1e-4]]))) == pytest.approx(-9.21039, rel=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        {"tokenizer": "t2"},
        {"template": "p2"},
        {"teacher": {"weights": "b2"}},
        {"k": 5},
        {"vocabulary": 14},
        {"temperature": 2.0},
        {"softcap": 30.0},
        {"precision": "float32"},
    ],
)
def test_a_cache_of_another_teacher_or_setting_is_refused_with_the_difference(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    LogitCache.create(HEADER, tmp_path)
    ((name, value),) = other.items()
    with pytest.raises(UserError, match=rf"filled with {name} = .*this run has .*{re.escape(repr(value))}"):
        LogitCache.create(replace(HEADER, **other), tmp_path)
    assert replace(HEADER, **other).folder != HEADER.folder
    assert LogitCache.open(tmp_path, replace(HEADER, temperature=1)).header == HEADER  # 1 is 1.0


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 14}, {"temperature": 0.0}, {"precision": "int8"}])
def test_a_header_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(wrong))}|precision"):
        replace(HEADER, **wrong)


def test_the_error_for_an_unknown_response_names_possible_causes(tmp_path: Path) -> None:
    cache, response = LogitCache.create(HEADER, tmp_path), scored("a")
    cache.add([response])
    for changed in (
        response._replace(prompt=(7, 9)),
        response._replace(response=[*response.response[:-1], 99]),
        response._replace(record_id="b"),
    ):
        with pytest.raises(UserError, match=rf"response of '{changed.record_id}'.*the prompt, the response"):
            read(cache, changed)


def test_equal_content_is_stored_once_under_both_names(tmp_path: Path) -> None:
    cache, response = LogitCache.create(HEADER, tmp_path), scored("a")
    assert (
        cache.add([response, response._replace(record_id="b"), response]) == 1
        and cache.add([response._replace(record_id="c")]) == 0
    )
    for name in "abc":
        assert_same(read(cache, response._replace(record_id=name)), response.distributions)
    assert cache.tokens == 3


def test_rows_that_do_not_fit_are_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    cache, response = LogitCache.create(HEADER, tmp_path), scored("a")
    wrong = {
        "shapes": response._replace(response=response.response[:-1]),
        "at least one token": response._replace(response=[]),
        "name the ids": response._replace(
            distributions=response.distributions._replace(ids_NK=response.distributions.ids_NK + SIZE)
        ),
        "not log-probabilities": response._replace(
            distributions=response.distributions._replace(tail_N=response.distributions.tail_N * torch.nan)
        ),
    }
    for message, bad in wrong.items():
        with pytest.raises(UserError, match=message):
            cache.add([scored("b"), bad])
    assert cache.responses == 0 == len(list(tmp_path.glob("ids.*")))


def test_rows_of_a_killed_process_are_overwritten(tmp_path: Path) -> None:
    cache, many = LogitCache.create(HEADER, tmp_path), [scored(name) for name in "abc"]
    cache.add(many[:1])
    for kind in ("ids.i4", "logp.f2", "tail.f2"):  # killed between files: gold has no row, the index no line
        with (tmp_path / kind).open("ab") as file:
            file.write(b"\x01" * 21)
    with (tmp_path / "index.jsonl").open("ab") as file:
        file.write(b'1234abcd\t["half')
    again = LogitCache.open(tmp_path, HEADER)
    assert again.responses == 1 and again.add(many[1:]) == 2
    for response in many:
        assert_same(read(again, response), response.distributions)
    assert (tmp_path / "ids.i4").stat().st_size == 9 * 4 * 4


def test_files_shorter_than_the_index_are_refused(tmp_path: Path) -> None:
    cache, response = LogitCache.create(HEADER, tmp_path), scored("a")
    cache.add([response])
    file = tmp_path / "logp.f2"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"logp\.f2 is shorter than its index says; delete"):
        LogitCache.open(tmp_path)


def test_a_folder_without_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file not found: .*header\.json"):
        LogitCache.open(tmp_path)
    (tmp_path / "header.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match="not the header of a logit cache of format 1"):
        LogitCache.open(tmp_path)


ADDING = """
import sys
from pathlib import Path
from tests.training.test_logit_cache import HEADER, LogitCache, scored

cache = LogitCache.create(HEADER, Path(sys.argv[1]))
for number in range(40):
    cache.add([scored(f"shared {number}"), scored(f"{sys.argv[2]} {number}", 1 + number % 3)])
"""


@pytest.mark.slow
def test_two_processes_add_to_one_cache(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", ADDING, str(tmp_path), name], cwd=root, stderr=subprocess.PIPE)
        for name in ("left", "right")
    ]
    assert [process.communicate()[1] or process.returncode for process in running] == [0, 0]
    cache = LogitCache.open(tmp_path, HEADER)
    names = [
        (f"{who} {n}", 3 if who == "shared" else 1 + n % 3) for who in ("shared", "left", "right") for n in range(40)
    ]
    for name, tokens in names:
        assert_same(read(cache, scored(name, tokens)), scored(name, tokens).distributions)
    assert cache.responses == 120
