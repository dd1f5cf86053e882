"""What students and people write comes back as it was written, whatever characters it holds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Prediction, Sample
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.experiment.plan_cells import check_plain_text
from tinyllm_bench.experiment.predict import load_predictions, predict
from tinyllm_bench.experiment.train import plain_text_pieces
from tinyllm_bench.testing.tiny_models import bpe_tokenizer

ODD = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\x00\u200b\ufeff"


@pytest.mark.parametrize("char", ODD)
def test_predictions_read_back_whatever_a_student_wrote(tmp_path: Path, char: str) -> None:
    cell: Any = SimpleNamespace(task=SimpleNamespace(name="obqa"))
    records = load_split(Source("sample"), "obqa", "test")[:3]

    def answer(ids: Any) -> list[Prediction]:
        text = f"red{char}blue{char}"
        return [
            Prediction(
                record_id=i, mode="generate", answer=None, correct=False, samples=(Sample(channel="a", text=text),)
            )
            for i in ids
        ]

    def never(ids: Any) -> list[Prediction]:
        raise AssertionError("answered again")

    first = predict(cell, tmp_path, records, answer, report=lambda event: None)
    assert predict(cell, tmp_path, records, never, report=lambda event: None) == first
    assert first[0].samples[0].text == f"red{char}blue{char}"


def test_predictions_that_would_fill_the_memory_are_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "obqa.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj(size=1 << 40)  # what the frame claims to hold
    file.write_bytes(packer.compress(b"{}\n") + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    with pytest.raises(ValueError, match="more than 2147483648 bytes of predictions"):
        load_predictions(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_plain_text_of_a_windows_editor_is_the_same_text(tmp_path: Path, encoding: str) -> None:
    file, plain = tmp_path / "marked.txt", tmp_path / "plain.txt"
    plain.write_bytes(b"One hen.\n\nTwo geese swim in the pond.\n")
    file.write_bytes("One hen.\r\n\r\nTwo geese swim in the pond.\r\n".encode(encoding))
    tokenizer = bpe_tokenizer()
    first, second = (plain_text_pieces(str(f), 4, tokenizer, encoder_decoder=False) for f in (file, plain))
    assert first == second


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Œuvre".encode("utf-16"), "UTF-16 text and must be UTF-8"),
        ("é".encode("latin-1"), "line 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_plain_text_of_another_encoding_is_refused_before_anything_runs(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "plain.txt"
    file.write_bytes(content)
    method = SimpleNamespace(needs=lambda: SimpleNamespace(plain_text=True))
    cell: Any = SimpleNamespace(method=method, config=SimpleNamespace(data=SimpleNamespace(plain_text=str(file))))
    with pytest.raises(UserError, match=words):
        check_plain_text(cell)
