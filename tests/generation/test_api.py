"""The API generator against a real server on the loopback: what is repeated and given up, and where no key is."""

import gzip
import json
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from tests.teachers.fake_server import MODEL, FakeServer, Reply, words
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.api import ApiGenerator
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, SamplingConfig

SECRET = "sk-this-must-never-be-seen"
BUSY = Reply(status=429, body={"error": {"message": "slow down"}})
BROKEN = Reply(status=500, body=b"oops")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "TINYLLM_BENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def requests(count: int, **sampling: Any) -> list[GenerationRequest]:
    return [GenerationRequest(f"prompt {n}", SamplingConfig(**sampling), seed=100 + n) for n in range(count)]


def generator(server: FakeServer, waits: list[float] | None = None, **more: Any) -> ApiGenerator:
    """One that notes how long it would wait and does not."""
    noted: list[float] = [] if waits is None else waits
    return ApiGenerator(server.url, MODEL, **{"concurrency": 1, "attempts": 3, "sleep": noted.append, **more})


def written(server: FakeServer, batch: list[GenerationRequest], **more: Any) -> dict[int, Completion | FailedRequest]:
    with generator(server, **more) as client:
        answers = list(client.generate(batch))
    assert len(answers) == len(dict(answers)) == len(batch)
    return dict(answers)


def only(script: list[Reply], **more: Any) -> Completion | FailedRequest:
    with FakeServer(script) as server:
        return written(server, requests(1), **more)[0]


def test_a_chat_request_holds_all_of_the_request() -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 33, "stop": ("\nQuestion:", "\n#")}
    with FakeServer([words("A hen lays eggs.")]) as server:
        answer = written(server, requests(1, **sampling))[0]
    assert isinstance(answer, Completion)
    assert answer[:4] == ("A hen lays eggs.", 7, 3, "stop") and 0 < answer.seconds < 30
    expected = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 33, "stop": ["\nQuestion:", "\n#"], "seed": 100}
    message = {"messages": [{"role": "user", "content": "prompt 0"}], "model": MODEL}
    assert server.requests_sent == [("/v1/chat/completions", {**expected, **message})]


def test_a_base_model_gets_a_completion_request() -> None:
    with FakeServer() as server:
        answer = written(server, requests(1), chat=False)[0]
    assert isinstance(answer, Completion) and answer.text == "echo of prompt 0"
    path, body = server.requests_sent[0]
    assert path == "/v1/completions" and body["prompt"] == "prompt 0" and not {"messages", "stop"} & set(body)


def test_the_limit_the_filter_and_what_a_server_leaves_out() -> None:
    cut = only([words("on and", finish_reason="length")])
    assert isinstance(cut, Completion) and cut.finish == "length"
    assert only([words("", finish_reason="content_filter")]) == FailedRequest(
        "the server's content filter withheld the text"
    )
    assert only([words("")]) == Completion("", 7, 3, "stop", pytest.approx(0, abs=30))
    silent = only([Reply(body={"choices": [{"message": {"content": "three words here"}}]})])
    assert isinstance(silent, Completion) and silent[1:4] == (2, 3, "stop")


def test_more_stop_texts_than_a_server_takes_are_cut_here() -> None:
    stops = ("\nA", "\nB", "\nC", "\nD", "\nE")
    with FakeServer([words("Yes.\nE and more", finish_reason="length")]) as server:
        answer = written(server, requests(1, stop=stops))[0]
    assert isinstance(answer, Completion) and answer.text == "Yes." and answer.finish == "stop"
    assert server.requests_sent[0][1]["stop"] == list(stops[:4])


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        BROKEN,
        Reply(status=503),
        Reply(drop=True),
        Reply(body=b'{"choices": [{"mess'),
        Reply(body=b"[1]"),
        Reply(body={"choices": []}),
        Reply(body={"choices": [{}]}),
        Reply(body={"error": {"message": "upstream"}}),
        words(None),  # type: ignore[arg-type]
    ],
    ids=["429", "500", "503", "dropped", "half json", "list", "no choice", "empty choice", "error in 200", "null text"],
)
def test_passing_failures_are_retried_and_lasting_ones_fail(trouble: Reply) -> None:
    waits: list[float] = []
    answer = only([trouble, trouble, words("at last")], waits=waits)
    assert isinstance(answer, Completion) and answer.text == "at last"
    assert len(waits) == 2 and 1 <= waits[0] <= 2 and 2 <= waits[1] <= 3
    failed = only([trouble] * 3)
    assert isinstance(failed, FailedRequest) and failed.reason.endswith(", 3 times")


def test_reasons_are_the_servers_own_words() -> None:
    assert only([BUSY] * 3) == FailedRequest("the server answers 429 (slow down), 3 times")
    assert only([BROKEN] * 3) == FailedRequest("the server answers 500 (oops), 3 times")
    assert only([Reply(body={"error": {"message": "up\nstream"}})] * 3) == FailedRequest(
        "the reply has no text (up stream), 3 times"
    )
    too_long = Reply(status=400, body={"error": {"message": "maximum context length is 64"}})
    assert only([too_long]) == FailedRequest("the server answers 400 (maximum context length is 64)")


def test_a_silent_server_times_out() -> None:
    with FakeServer([Reply(hold=True), words("awake")]) as server:
        answer = written(server, requests(1), timeout=0.2)[0]
        assert isinstance(answer, Completion) and answer.text == "awake"
        server.script = [Reply(hold=True)] * 2
        assert written(server, requests(1), timeout=0.2, attempts=2)[0] == FailedRequest(
            "no answer within 0.2 s, 2 times"
        )


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_server_that_drips_times_out_as_a_whole(slow: str) -> None:
    drip = Reply(body=b"x" * 1000, drip=0.05, headers={"from": slow})
    with FakeServer([drip, drip]) as server:
        began = time.monotonic()
        answer = written(server, requests(1), timeout=0.5, attempts=2)[0]
    assert answer == FailedRequest("no answer within 0.5 s, 2 times") and time.monotonic() - began < 10


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_server_that_drips_its_models_is_refused(slow: str) -> None:
    models = Reply(body=b"x" * 1000, drip=0.05, headers={"from": slow})
    with FakeServer(models=models) as server, pytest.raises(UserError, match=r"no answer within 0.5 s, 1 times"):
        generator(server, timeout=0.5, attempts=1).__enter__()


def test_a_slow_server_within_the_limit_is_waited_for() -> None:
    body = json.dumps({"choices": [{"message": {"content": "slow"}}]}).encode()
    answer = only([Reply(body=body, drip=0.01)], timeout=20)
    assert isinstance(answer, Completion) and answer.text == "slow"


def test_a_reply_without_end_is_cut_off() -> None:
    endless = Reply(body=b" " * (1 << 16), endless=True)
    assert only([endless], attempts=1) == FailedRequest("the reply is larger than 16 MiB, 1 times")


def test_a_compressed_reply_is_not_unpacked() -> None:
    bomb = gzip.compress(b" " * (1 << 26))
    reply = Reply(body=bomb, headers={"Content-Encoding": "gzip"})
    assert only([reply], attempts=1) == FailedRequest(
        "the reply is compressed ('gzip'), which was not requested, 1 times"
    )


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_is_sent_to_no_other_host(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_API_KEY", SECRET)
    with FakeServer() as other, FakeServer([Reply(status=status, headers={"Location": other.url})]) as server:
        with pytest.raises(UserError, match=f"cannot serve .* it answers {status}"), generator(server) as client:
            list(client.generate(requests(1)))
        assert other.keys == [] and SECRET not in repr(other.requests_sent)


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"choices": ' + b"[" * 100_000, b"\xff\xfe{", b""],
    ids=["deep list", "long number", "deep choices", "no text", "empty"],
)
def test_a_reply_that_cannot_be_read_is_one_reason(body: bytes) -> None:
    assert only([Reply(body=body)], attempts=1) == FailedRequest("the reply is not a JSON object, 1 times")


@pytest.mark.parametrize("count", [True, -1, 10**30, 1.5, "7", None])
def test_odd_counts_of_tokens_are_words(count: Any) -> None:
    reply = words("three short words")
    body = {**reply.body, "usage": {"completion_tokens": count, "prompt_tokens": count}}  # type: ignore[dict-item]
    answer = only([Reply(body=body)])
    assert isinstance(answer, Completion) and (answer.tokens_in, answer.tokens_out) == (2, 3)


def test_closing_while_a_request_is_under_way_ends_at_once() -> None:
    with FakeServer([Reply(hold=True)]) as server, generator(server, timeout=60) as client:
        threading.Thread(target=lambda: list(client.generate(requests(1))), daemon=True).start()
        while not server.requests_sent:
            time.sleep(0.01)
        began = time.monotonic()
        client.__exit__(None, None, None)
        assert time.monotonic() - began < 5


def test_retry_after_is_obeyed_up_to_a_limit() -> None:
    waits: list[float] = []
    soon = formatdate(time.time() + 100, usegmt=True)
    replies = [Reply(status=429, headers={"Retry-After": text}) for text in ("17", soon, "86400", "soon", "nan")]
    assert isinstance(only([*replies, words("ok")], waits=waits, attempts=6), Completion)
    assert waits[0] == 17 and 90 < waits[1] <= 100 and 4 <= waits[2] <= 5  # a day is not waited for
    assert 8 <= waits[3] <= 9 and 16 <= waits[4] <= 17


def test_requests_run_at_once_but_not_more_than_allowed() -> None:
    gate, count, most = threading.Barrier(3, timeout=20), threading.Semaphore(3), []

    def together() -> None:
        most.append(count.acquire(blocking=False))
        gate.wait()  # passes only when three requests are here at once
        count.release()

    with FakeServer(meanwhile=together) as server:
        answers = written(server, requests(6), concurrency=3)
    assert most == [True] * 6
    assert {n: a.text for n, a in answers.items() if isinstance(a, Completion)} == {
        n: f"echo of prompt {n}" for n in range(6)
    }


def test_a_server_that_cannot_be_used_is_refused_at_the_door() -> None:
    with FakeServer() as server:
        with pytest.raises(
            UserError, match=r"unknown model at http.*'tiny-teachr'. Did you mean 'tiny-teacher'.*other"
        ):
            ApiGenerator(server.url, "tiny-teachr").__enter__()
        dead = server.url
    with pytest.raises(UserError, match="cannot be reached.*start the server"):
        ApiGenerator(dead, MODEL).__enter__()
    for body in (b"<html>", b'{"data": 1}', b"{}"):
        with FakeServer(models=Reply(body=body)) as server, pytest.raises(UserError, match="localhost:8000/v1"):
            ApiGenerator(server.url, MODEL).__enter__()
    with FakeServer(models=BUSY) as server, pytest.raises(UserError, match="429.*3 times; try again later"):
        generator(server).__enter__()
    with FakeServer(models=Reply(status=404)) as server:  # a server need not list its models
        assert len(written(server, requests(1))) == 1
    with pytest.raises(UserError, match="malformed"):
        ApiGenerator("http://[::1", MODEL)


def test_an_unknown_model_while_writing_ends_everything() -> None:
    gone = Reply(status=404, body={"error": {"message": "no such model"}})
    with FakeServer([words("one"), gone]) as server, generator(server) as client:
        answers = client.generate(requests(5))
        assert next(answers)[0] == 0
        with pytest.raises(UserError, match=r"404 \(no such model\).*api:URL#MODEL"):
            next(answers)
        assert len(server.requests_sent) == 2


def test_a_server_that_dies_half_way_and_comes_back() -> None:
    got: dict[int, Any] = {}
    with FakeServer(dies_after=4) as server, generator(server, concurrency=2) as client:
        with pytest.raises(UserError, match="is no longer reachable.*3 times; start the server again and repeat"):
            got.update(client.generate(requests(20)))
        assert 4 <= len(got) < 20 and all(isinstance(answer, Completion) for answer in got.values())
        with FakeServer(port=server.port):
            rest = [request for n, request in enumerate(requests(20)) if n not in got]
            assert len(dict(client.generate(rest))) == len(rest)


def test_a_wrong_or_missing_key_names_the_variable_and_never_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(key="right") as server:
        with pytest.raises(UserError, match=r"requires a key \(401\); set TINYLLM_BENCH_API_KEY"):
            generator(server).__enter__()
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        assert len(written(server, requests(1))) == 1
        monkeypatch.setenv("TINYLLM_BENCH_API_KEY", SECRET)  # goes before the other
        with pytest.raises(UserError, match="refuses the key") as caught:
            generator(server).__enter__()
        assert SECRET not in everything(caught.value)
        monkeypatch.setenv("MY_KEY", " right\n")
        assert len(written(server, requests(1), key_variable="MY_KEY")) == 1
        with generator(server, key_variable="MY_KEY") as client:
            server.key = "another"
            with pytest.raises(UserError, match=r"refuses the key \(401\); set MY_KEY"):
                list(client.generate(requests(3)))
    monkeypatch.setenv("MY_KEY", f"{SECRET}ï")
    with pytest.raises(UserError, match="an HTTP header cannot carry") as caught:
        generator(server, key_variable="MY_KEY").__enter__()
    assert SECRET not in everything(caught.value)
    for url in (f"http://me:{SECRET}@127.0.0.1:1/v1", f"http://127.0.0.1:1/v1?key={SECRET}", f"HTTP://{SECRET}@h/v1"):
        with pytest.raises(UserError, match="put the key into") as caught:
            ApiGenerator(url, MODEL)
        assert SECRET not in str(caught.value)


def everything(error: BaseException) -> str:
    """The exception with what caused it and the values of local variables along the way."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.fixture
def _secret_is_sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TINYLLM_BENCH_API_KEY", SECRET)
    yield


@pytest.mark.usefixtures("_secret_is_sent")
def test_the_key_is_in_no_reason_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    telling = {"error": {"message": f"you sent {SECRET}"}}
    script = [Reply(status=status, body=telling) for status in (400, 500, 429, 200)]
    with FakeServer(script) as server, generator(server, attempts=1) as client:
        answers = dict(client.generate(requests(4)))
        assert [type(answer) for answer in answers.values()] == [FailedRequest] * 4 and SECRET not in repr(answers)
        assert all("you sent ***" in answer.reason for answer in answers.values() if isinstance(answer, FailedRequest))
        server.script = [Reply(status=404, body=telling)]
        with pytest.raises(UserError) as caught:
            list(client.generate(requests(1)))
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(client) + repr(vars(client))
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert "HTTP Request" in caplog.text and SECRET not in caplog.text


def test_leaving_early_begins_nothing_new() -> None:
    with FakeServer() as server, generator(server) as client:
        for _ in client.generate(requests(50)):
            break
        time.sleep(0.1)
        assert len(server.requests_sent) < 50


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_no_text_and_not_retried(name: str) -> None:
    thought = {"role": "assistant", "content": None, name: "Let me see"}
    answer = only([words("", message=thought, finish_reason="length")])
    assert isinstance(answer, Completion) and (answer.text, answer.finish) == ("", "length")
    whole = only([words("", message={"role": "assistant", "content": "Iron rusts.", name: "Let me see"})])
    assert isinstance(whole, Completion) and whole.text == "Iron rusts."


def test_parts_of_a_content_that_are_no_text_are_left_out() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Iron rusts."},
    ]
    answer = only([words("", message={"role": "assistant", "content": parts})])
    assert isinstance(answer, Completion) and answer.text == "Iron rusts."
