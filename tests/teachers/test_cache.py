"""Texts are generated once, cached as they come, found again by their requests, and never mixed up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from tests.teachers import cache_and_kill
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import AnnotationFailed, AnnotationProgress, Event
from tinyllm_bench.base.files import append_checked, checked_line, locked, read_checked
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, SamplingConfig
from tinyllm_bench.teachers.cache import TextCache, text_key, texts_folder

TEACHER = {"model": "a model", "chat": "auto"}
REQUESTS = [
    GenerationRequest(f"Question {n}: where does a river end?\nAnswer:", SamplingConfig(stop=("\n\n",)), 0)
    for n in range(40)
]
Answer = Completion | FailedRequest | BaseException


class FakeGenerator:
    """Answers from a script by prompt, everything else with the prompt's second word; records its requests."""

    engine = "fake"

    def __init__(self, script: Mapping[str, Answer] | None = None, batch: int = 8) -> None:
        self.script, self.batch = script or {}, batch
        self.requested: list[GenerationRequest] = []
        self.opened = self.closed = 0

    def __enter__(self) -> Self:
        self.opened += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.closed += 1

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        assert len(requests) <= self.batch
        for index, request in reversed(list(enumerate(requests))):
            self.requested.append(request)
            answer = self.script.get(
                request.prompt, Completion(f"to the sea {request.prompt.split()[1]}", 9, 4, "stop", 0.5)
            )
            if isinstance(answer, BaseException):
                raise answer
            yield index, answer


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    return TextCache(tmp_path / "a-model" / "0123456789abcdef", TEACHER)


def fill(
    cache: TextCache, generator: Any, requests: Sequence[GenerationRequest] = REQUESTS, **options: Any
) -> dict[str, Any]:
    options = {"on_error": "stop", "report": lambda event: None} | options
    return cache.fill(requests, lambda: generator, **options)  # type: ignore[return-value]


def forbidden() -> Any:
    raise AssertionError("the generator was opened although nothing is missing")


def a_shard(cache: TextCache) -> Path:
    return max(cache.folder.glob("?.jsonl"), key=lambda file: file.stat().st_size)


def rewrite(shard: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a file's first row and give it a checksum that fits."""
    rows = list(read_checked(shard))
    change(rows[0])
    shard.write_text("".join(checked_line(row) for row in rows))


# --- writing and finding ----------------------------------------------------------------------------------------------


def test_every_request_gets_its_text_and_is_generated_once(cache: TextCache) -> None:
    generator, events = FakeGenerator(), list[Event]()
    rows = fill(cache, generator, [*REQUESTS, *REQUESTS], report=events.append)
    assert len(rows) == 40 == len(generator.requested) == len(set(generator.requested))
    for request in REQUESTS:
        row = rows[text_key(TEACHER, request)]
        assert (row["prompt"], row["text"]) == (request.prompt, f"to the sea {request.prompt.split()[1]}")
        assert row["sampling"]["stop"] == ["\n\n"]
        assert (row["tokens_in"], row["tokens_out"], row["finish"], row["engine"]) == (9, 4, "stop", "fake")
    assert (generator.opened, generator.closed) == (1, 1)
    assert events == [AnnotationProgress(cache.name, done, 40) for done in range(1, 41)]


def test_cached_texts_are_not_generated_again_and_no_generator_is_opened(cache: TextCache) -> None:
    first = fill(cache, FakeGenerator())
    again = cache.fill(REQUESTS, forbidden, on_error="stop", report=lambda event: None)
    assert again == first
    more = FakeGenerator()
    fill(cache, more, [*REQUESTS, REQUESTS[0]._replace(seed=1)])
    assert [request.seed for request in more.requested] == [1]


def test_no_request_writes_nothing(cache: TextCache) -> None:
    assert cache.fill([], forbidden, on_error="stop", report=lambda event: None) == {}
    assert not cache.folder.exists()


def test_all_that_decides_a_text_is_in_its_key() -> None:
    request = REQUESTS[0]
    others = [
        request._replace(prompt="another"),
        request._replace(seed=1),
        *(
            request._replace(sampling=replace(request.sampling, **change))
            for change in ({"temperature": 0.5}, {"top_p": 0.9}, {"max_new_tokens": 9}, {"stop": ()})
        ),
    ]
    keys = [text_key(TEACHER, variant) for variant in [request, *others]] + [
        text_key({**TEACHER, "chat": "never"}, request)
    ]
    assert len(set(keys)) == len(others) + 2
    assert text_key(dict(reversed(TEACHER.items())), request) == keys[0]


def test_rows_hold_their_cost_and_provenance(cache: TextCache) -> None:
    row = next(iter(fill(cache, FakeGenerator(), REQUESTS[:1]).values()))
    assert row["made"].keys() == {"date", "prompts", "tinyllm_bench"}


def test_a_text_that_is_no_unicode_is_cached_all_the_same(cache: TextCache) -> None:
    broken = Completion("a \ud83d\ude00 b \ud800 c", 1, 1, "stop", 0.1)
    row = next(iter(fill(cache, FakeGenerator({REQUESTS[0].prompt: broken}), REQUESTS[:1]).values()))
    assert row["text"] == "a \U0001f600 b \ufffd c"
    assert [cached["text"] for cached in cache.rows()] == [row["text"]]


def test_the_folder_is_named_by_the_teachers_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path))
    first, second = texts_folder("a-model", TEACHER), texts_folder("a-model", {**TEACHER, "chat": "never"})
    assert first.parent == second.parent == tmp_path / "annotations" / "a-model" and first != second
    fill(TextCache(first, TEACHER), FakeGenerator(), REQUESTS[:1])
    assert dict(TextCache.open(first).teacher) == TEACHER


def test_reading_five_thousand_texts_is_fast(cache: TextCache) -> None:
    requests = [REQUESTS[0]._replace(prompt=f"{n} {'a long prompt of many words ' * 40}") for n in range(5000)]
    rows: dict[Path, list[Any]] = {}
    template = next(iter(fill(cache, FakeGenerator(), REQUESTS[:1]).values()))
    for request in requests:
        key = text_key(TEACHER, request)
        row = {**template, "key": key, "prompt": request.prompt}
        rows.setdefault(cache.shard(key), []).append(row)
    for shard, new in rows.items():
        append_checked(shard, new)
    start = time.process_time()
    assert len(cache.fill(requests, forbidden, on_error="stop", report=lambda event: None)) == 5000
    assert time.process_time() - start < 2.0  # about 0.3 s on a slow core


# --- failures ---------------------------------------------------------------------------------------------------------


def test_stop_ends_with_the_reason_and_the_rest_of_the_batch_is_cached(cache: TextCache) -> None:
    failing = FakeGenerator({REQUESTS[7].prompt: FailedRequest("no text came")}, batch=40)
    with pytest.raises(UserError, match=r"a-model failed on 1 of 40 prompts: no text came.*the same command resumes"):
        fill(cache, failing)
    assert failing.closed == 1
    second = FakeGenerator()
    assert len(fill(cache, second)) == 40
    assert second.requested == [REQUESTS[7]]


def test_skip_continues_counts_and_tries_again_next_time(cache: TextCache) -> None:
    script = {REQUESTS[n].prompt: FailedRequest(f"reason {n}") for n in (3, 4)}
    events: list[Any] = []
    first = FakeGenerator(script, batch=3)
    assert len(fill(cache, first, on_error="skip", report=events.append)) == 38
    assert len(first.requested) == 40
    assert events[-1] in [AnnotationFailed(cache.name, 2, 40, reason) for reason in ("reason 3", "reason 4")]
    second = FakeGenerator()
    assert len(fill(cache, second, on_error="skip")) == 40
    assert {request.prompt for request in second.requested} == set(script)


def test_a_teacher_that_dies_half_way_loses_nothing(cache: TextCache) -> None:
    dead = {REQUESTS[20].prompt: UserError("the server is gone.")}
    with pytest.raises(
        UserError, match=r"^the server is gone\. What was annotated is cached; the same command resumes\.$"
    ):
        fill(cache, FakeGenerator(dead))
    cached = {row["key"] for row in cache.rows()}
    assert 0 < len(cached) < 40
    events: list[Any] = []
    rows = fill(cache, FakeGenerator(dead), on_error="skip", report=events.append)
    assert cached <= rows.keys() and text_key(TEACHER, REQUESTS[20]) not in rows
    assert events[-1] == AnnotationFailed(cache.name, 40 - len(rows), events[-1].total, "the server is gone.")
    assert len(fill(cache, FakeGenerator())) == 40


def test_a_teacher_that_is_not_available_is_an_error_of_both(cache: TextCache) -> None:
    class Unreachable(FakeGenerator):
        def __enter__(self) -> Self:
            raise UserError("nobody listens there")

    for on_error in ("stop", "skip"):
        with pytest.raises(UserError, match="nobody listens there"):
            fill(cache, Unreachable(), on_error=on_error)


def test_a_generator_that_leaves_one_out_does_not_loop_for_ever(cache: TextCache) -> None:
    class Forgetful(FakeGenerator):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
            yield from list(super().generate(requests))[1:]

    rows = fill(cache, Forgetful(batch=10), on_error="skip")
    assert 0 < len(rows) < 40


def test_an_interruption_loses_no_written_text_and_frees_the_locks(cache: TextCache) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(cache, FakeGenerator({REQUESTS[30].prompt: KeyboardInterrupt()}))
    cached = list(cache.rows())
    second = FakeGenerator()
    assert len(fill(cache, second)) == 40
    assert len(second.requested) == 40 - len(cached) < 40


# --- damage -----------------------------------------------------------------------------------------------------------


def test_half_a_line_is_written_again(cache: TextCache) -> None:
    fill(cache, FakeGenerator())
    shard = a_shard(cache)
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])
    second = FakeGenerator()
    assert len(fill(cache, second)) == 40
    assert len(second.requested) == 1
    assert len(list(cache.rows())) == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(prompt="something else"), "its key is not that of its teacher and prompt"),
        (lambda row: row.update(sampling={**row["sampling"], "temperature": 1.0}), "its key is not that"),
        (lambda row: row.update(text=None), "its text is of the wrong type"),
        (lambda row: row.pop("engine"), "does not have the fields of this version"),
    ],
)
def test_an_edited_row_is_never_used(cache: TextCache, change: Callable[[Any], Any], words: str) -> None:
    fill(cache, FakeGenerator())

    shard = a_shard(cache)
    rewrite(shard, change)
    with pytest.raises(UserError, match=words) as error:
        fill(cache, FakeGenerator())
    assert str(error.value).startswith(f"{shard}: ")


def test_damage_two_texts_of_a_key_and_rows_that_are_none(cache: TextCache) -> None:
    fill(cache, FakeGenerator())
    shard = a_shard(cache)
    whole = shard.read_bytes()
    first = next(read_checked(shard))
    for rubbish, words in [
        (checked_line({**first, "text": "to the lake"}), "two texts of the key"),
        (checked_line(["a list"]), "does not have the fields"),
        ("00000000\t{}\n", "checksum does not match"),
    ]:
        shard.write_bytes(whole + rubbish.encode())
        with pytest.raises(UserError, match=words):
            fill(cache, FakeGenerator())
    shard.write_bytes(whole + checked_line(first).encode())
    assert len(fill(cache, FakeGenerator())) == 40


def test_a_folder_of_another_teacher_is_refused(cache: TextCache) -> None:
    fill(cache, FakeGenerator(), REQUESTS[:2])
    with pytest.raises(UserError, match="texts of another teacher"):
        fill(TextCache(cache.folder, {**TEACHER, "chat": "never"}), FakeGenerator(), REQUESTS[:2])
    (cache.folder / "teacher.json").write_text("[]")
    with pytest.raises(UserError, match="does not name the identity of a teacher"):
        fill(cache, FakeGenerator(), REQUESTS[:2])


# --- several processes ------------------------------------------------------------------------------------------------


def test_what_another_process_holds_is_waited_for_and_not_written(cache: TextCache) -> None:
    """Here the other one is this process: it writes all of a file's texts while the filling one waits for the file."""
    done = TextCache(cache.folder.with_name("done"), TEACHER)
    fill(done, FakeGenerator())
    shard = a_shard(done)
    held = locked(cache.folder / shard.name)
    held.__enter__()

    class Releasing(FakeGenerator):
        def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
            yield from super().generate(requests)
            if len(self.requested) == 40 - len(done.read(shard)):
                append_checked(cache.folder / shard.name, done.read(shard).values())
                held.__exit__(None, None, None)

    generator = Releasing()
    assert len(fill(cache, generator)) == 40
    assert len(generator.requested) == 40 - len(done.read(shard))


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, cache_and_kill.__file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(cache_and_kill.__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error


def calls(folder: Path) -> Counter[str]:
    """How often each text was begun, by all processes."""
    return Counter(line.split()[1] for line in (folder / "calls.log").read_text().splitlines())


@pytest.mark.slow
def test_two_processes_write_every_text_once(tmp_path: Path) -> None:
    both = [start("fill", tmp_path, *names) for names in (("one", "two"), ("two", "one"))]
    for process in both:
        finish(process)
    assert set(calls(tmp_path).values()) == {1}
    texts = cache_and_kill.texts_in(tmp_path)
    assert len(texts) == len(cache_and_kill.REQUESTS)
    assert {text.split()[0] for text in texts.values()} == {"one", "two"}  # both did some of the work


@pytest.mark.slow
def test_a_process_takes_over_the_locks_of_a_killed_one(tmp_path: Path) -> None:
    killed, other = start("fill", tmp_path, "killed", "other"), start("fill", tmp_path, "other", "killed")
    log, deadline = tmp_path / "calls.log", time.monotonic() + 60
    while not (log.exists() and {"killed", "other"} <= set(log.read_text().split())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    finish(other)
    assert killed.returncode == -signal.SIGKILL
    texts = cache_and_kill.texts_in(tmp_path)
    assert len(texts) == len(cache_and_kill.REQUESTS)
    assert sum(calls(tmp_path).values()) - len(texts) <= 1  # what was in flight


@pytest.mark.slow
def test_kill_at_ten_moments_loses_at_most_what_is_in_flight(tmp_path: Path) -> None:
    finish(start("kill", tmp_path))
    attempts = json.loads((tmp_path / "attempts.json").read_text())
    cached, requests = attempts["cached"], len(cache_and_kill.REQUESTS)
    assert attempts["killed"] == [True] * cache_and_kill.KILLS and attempts["end"] == requests
    end = cache_and_kill.texts_in(tmp_path)
    assert len(end) == requests
    for texts in cached:  # what was once kept stays as it is: each text names who wrote it and when
        assert texts.items() <= end.items()
    assert 5 < len(cached[-1]) < requests  # the kills came while it worked
    assert sum(calls(tmp_path).values()) - requests <= cache_and_kill.KILLS
    lines = sum(len(list(read_checked(file))) for file in tmp_path.rglob("?.jsonl"))
    assert lines == requests  # no text is there twice
