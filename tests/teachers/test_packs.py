"""Packs: texts travel with where they come from, arrive whole or not at all, and never replace others."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.teachers.test_cache import REQUESTS, FakeGenerator, fill
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import canonical_json
from tinyllm_bench.generation.requests import Completion
from tinyllm_bench.leaderboard.public import machine_paths
from tinyllm_bench.teachers.cache import TextCache, text_key, texts_folder
from tinyllm_bench.teachers.packs import cached_teachers, import_pack, pack, read_header, summaries

ONE, TWO = {"model": ["whole", {"model.safetensors": "ab12"}], "chat": "auto"}, {"model": "other", "chat": "never"}


def cache_at(name: str, identity: dict[str, Any]) -> TextCache:
    return TextCache(texts_folder(name, identity), identity)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Go to another machine: to another cache."""

    def go(name: str) -> None:
        monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / name))

    go("here")
    return go


@pytest.fixture
def packed(elsewhere: Callable[[str], None], tmp_path: Path) -> Path:
    """A pack of two teachers' texts, made here; then we are elsewhere."""
    fill(cache_at("one", ONE), FakeGenerator(), REQUESTS[:30])
    fill(
        cache_at("two", TWO),
        FakeGenerator({REQUESTS[0].prompt: Completion("ünïcode\n\u2028", 1, 2, "length", 0.25)}),
        REQUESTS,
    )
    file = tmp_path / "texts.jsonl.zst"
    pack(["one", "two"], file, private=machine_paths)
    elsewhere("there")
    return file


def lines_of(file: Path) -> list[bytes]:
    with file.open("rb") as raw:
        plain = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read()
    return bytes(plain).splitlines(keepends=True)


def write_lines(file: Path, lines: list[bytes]) -> None:
    file.write_bytes(zstandard.ZstdCompressor().compress(b"".join(lines)))


def edited(file: Path, number: int, **changes: Any) -> None:
    """Change fields of one line, and nothing else."""
    lines = lines_of(file)
    lines[number] = f"{canonical_json({**json.loads(lines[number]), **changes})}\n".encode()
    write_lines(file, lines)


def test_packed_texts_arrive_in_the_cache(packed: Path) -> None:
    header, new = import_pack(packed)
    assert (new, header.texts, [teacher.texts for teacher in header.teachers]) == (70, 70, [30, 40])
    rows = fill(cache_at("two", TWO), None)  # no generator is needed
    row = rows[text_key(TWO, REQUESTS[0])]
    assert (row["text"], row["finish"], row["seconds"]) == ("ünïcode\n\u2028", "length", 0.25)
    assert len(fill(cache_at("one", ONE), None, REQUESTS[:30])) == 30


def test_a_second_import_adds_nothing_and_a_partial_cache_is_completed(packed: Path) -> None:
    fill(cache_at("one", ONE), FakeGenerator(), REQUESTS[:7])
    assert import_pack(packed).new == 63
    before = sorted((file.name, file.read_bytes()) for file in texts_folder("one", ONE).glob("*.jsonl"))
    assert import_pack(packed).new == 0
    assert sorted((file.name, file.read_bytes()) for file in texts_folder("one", ONE).glob("*.jsonl")) == before


def test_the_same_texts_make_the_same_pack_wherever_they_were_written_first(packed: Path, tmp_path: Path) -> None:
    import_pack(packed)
    again = pack(["one", "two"], tmp_path / "again.jsonl.zst", private=machine_paths)
    assert again.digest == read_header(packed).digest
    assert lines_of(tmp_path / "again.jsonl.zst") == lines_of(packed)


def test_a_pack_tells_nothing_of_this_machine(packed: Path, tmp_path: Path) -> None:
    text = b"".join(lines_of(packed)).decode()
    assert str(tmp_path) not in text and list(machine_paths(json.loads(lines_of(packed)[0]))) == []
    served = {"model": {"served": "/srv/models/somebody"}, "chat": "auto"}
    fill(cache_at("somebody", served), FakeGenerator(), REQUESTS[:1])
    with pytest.raises(UserError, match="somebody is identified by a path of this machine"):
        pack(["somebody"], tmp_path / "b.jsonl.zst", private=machine_paths)
    assert not (tmp_path / "b.jsonl.zst").exists()


def test_folders_names_and_models_of_one_name(elsewhere: Callable[[str], None], tmp_path: Path) -> None:
    for identity in (ONE, TWO):
        fill(cache_at("same", identity), FakeGenerator(), REQUESTS[:3])
    assert len(cached_teachers()["same"]) == 2
    folder = texts_folder("same", TWO)
    assert pack([folder], tmp_path / "a.jsonl.zst", private=machine_paths).texts == 3
    assert pack(["same", folder], tmp_path / "b.jsonl.zst", private=machine_paths).texts == 6


def test_wrong_requests(elsewhere: Callable[[str], None], tmp_path: Path) -> None:
    fill(cache_at("one", ONE), FakeGenerator(), REQUESTS[:1])
    with pytest.raises(UserError, match=r"unknown teacher with cached texts 'onee'. Did you mean 'one'"):
        pack(["onee"], tmp_path / "a.jsonl.zst", private=machine_paths)
    with pytest.raises(UserError, match=r"a pack is named \*\.jsonl\.zst, such as a\.jsonl\.zst"):
        pack(["one"], tmp_path / "a.zip", private=machine_paths)
    cache_at("none", TWO).write_identity()
    with pytest.raises(UserError, match="no texts are cached of none"):
        pack(["none"], tmp_path / "a.jsonl.zst", private=machine_paths)
    with pytest.raises(UserError, match="No such file"):
        import_pack(tmp_path / "a.jsonl.zst")


# --- bad packs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_pack_adds_nothing(packed: Path, share: float) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="texts.jsonl.zst"):
        import_pack(packed)
    assert cached_teachers() == {}


@pytest.mark.parametrize("missing", [1, 4])
def test_the_last_bytes_and_the_last_text_count(packed: Path, missing: int) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[:-missing])
    with pytest.raises(UserError, match="truncated or edited"):
        import_pack(packed)
    packed.write_bytes(data)
    write_lines(packed, lines_of(packed)[:-missing])
    with pytest.raises(UserError, match=f"truncated or edited: {70 - missing} of 70 texts"):
        import_pack(packed)


@pytest.mark.parametrize(
    ("line", "changes", "words"),
    [
        (5, {"text": "to the lake"}, "truncated or edited: 70 of 70 texts"),
        (5, {"prompt": "another"}, "was edited: its key is not that of its teacher and prompt; get the pack again"),
        (5, {"teacher": 1}, "its key is not that"),
        (5, {"teacher": 7}, "a line is not a text of its teachers"),
        (5, {"tokens_in": "9"}, "its tokens_in is of the wrong type"),
        (5, {"note": "x"}, "does not have the fields"),
        (0, {"format": "other"}, "its format is not what this version reads"),
        (0, {"version": 2}, "its version is not what this version reads"),
        (0, {"digest": "0" * 64}, "truncated or edited"),
        (0, {"texts": None}, "its texts is not what"),
    ],
)
def test_an_edited_pack_adds_nothing(packed: Path, line: int, changes: dict[str, Any], words: str) -> None:
    edited(packed, line, **changes)
    with pytest.raises(UserError, match=words):
        import_pack(packed)
    assert cached_teachers() == {}


@pytest.mark.parametrize("name", ["../../out", "/out", "..", "", ".hidden", "a/b", "a\\b"])
def test_no_teachers_name_leads_out_of_the_cache(packed: Path, name: str) -> None:
    teachers = json.loads(lines_of(packed)[0])["teachers"]
    edited(packed, 0, teachers=[{**teachers[0], "name": name}, *teachers[1:]])
    with pytest.raises(UserError, match="not a teacher's short name"):
        import_pack(packed)


def test_files_that_are_no_packs(elsewhere: Callable[[str], None], tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(b"plain words")
    with pytest.raises(UserError, match="is not a pack of texts, or damaged"):
        import_pack(file)
    write_lines(file, [b"plain words\n"])
    with pytest.raises(UserError, match="its first line is not a header"):
        summaries(file)
    with pytest.raises(UserError, match="is not a file"):
        import_pack(tmp_path)


def test_swapped_lines_and_odd_json_are_noticed(packed: Path) -> None:
    lines = lines_of(packed)
    write_lines(packed, [lines[0], lines[2], lines[1], *lines[3:]])
    with pytest.raises(UserError, match="is out of order"):
        import_pack(packed)
    write_lines(packed, [lines[0], lines[1].replace(b'"seconds":0.5', b'"seconds":NaN'), *lines[2:]])
    with pytest.raises(UserError, match="a line is not a text"):
        import_pack(packed)


def test_another_text_under_the_same_key_is_never_overwritten(packed: Path) -> None:
    own = Completion("to the lake", 9, 4, "stop", 0.5)
    fill(cache_at("two", TWO), FakeGenerator({REQUESTS[5].prompt: own}), REQUESTS[:10])
    with pytest.raises(UserError, match=r"texts differ from those cached in .*set TINYLLM_BENCH_CACHE"):
        import_pack(packed)
    assert [*cached_teachers()] == ["two"]  # of the other teacher nothing was added either
    assert fill(cache_at("two", TWO), None, REQUESTS[5:6])[text_key(TWO, REQUESTS[5])]["text"] == "to the lake"


def test_info_is_the_same_of_a_pack_and_of_the_cache(packed: Path) -> None:
    of_pack = summaries(packed)
    assert [(summary.teacher, summary.texts, summary.tokens_in) for summary in of_pack] == [
        ("one", 30, 270),
        ("two", 40, 352),
    ]
    assert of_pack[0]._asdict() | {"made": ""} == {
        "teacher": "one",
        "identity": texts_folder("one", ONE).name,
        "texts": 30,
        "tokens_in": 270,
        "tokens_out": 120,
        "seconds": 15.0,
        "engine": "fake",
        "prompts": of_pack[0].prompts,
        "tinyllm_bench": of_pack[0].tinyllm_bench,
        "made": "",
    }
    assert of_pack[0].prompts.isdigit() and of_pack[0].made.startswith("20")
    assert summaries() == []
    import_pack(packed)
    assert summaries() == of_pack
    assert summaries("two") == summaries(texts_folder("two", TWO)) == of_pack[1:]


@pytest.mark.parametrize(
    "changes",
    [{"teacher": True}, {"teacher": -1}, {"teacher": 1.0}, {"text": None}, {"text": ["a"]}, {"seed": True},
     {"tokens_out": True}, {"prompt": None}, {"seconds": "1"}],
)  # fmt: skip
def test_a_field_of_another_kind_is_no_text(packed: Path, changes: dict[str, Any]) -> None:
    edited(packed, -1, **changes)
    with pytest.raises(UserError, match="edited"):
        import_pack(packed)


def test_a_pack_that_unpacks_without_end_is_refused(packed: Path) -> None:
    packed.write_bytes(zstandard.ZstdCompressor().compress(b" " * (1 << 25)))
    assert packed.stat().st_size < 10_000
    with pytest.raises(UserError, match="a line is longer than"):
        import_pack(packed)


def test_a_folder_or_a_pipe_is_no_pack(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="is not a file; name a pack"):
            import_pack(place)


def test_a_teacher_s_name_shows_what_it_is(packed: Path) -> None:
    lines = lines_of(packed)
    header = json.loads(lines[0])
    header["teachers"][0]["name"] = "one\u202eowt"
    write_lines(packed, [canonical_json(header).encode() + b"\n", *lines[1:]])
    with pytest.raises(UserError, match="is not a teacher's short name"):
        read_header(packed)
