"""Plain text beside the task's questions, for methods that keep a student's language in shape (MiniLLM's L_PT)."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_text
from tinyllm_bench.data.prompts import PLAIN
from tinyllm_bench.models.tokens import Encoded, text_ids
from tinyllm_bench.training.batching import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tinyllm_bench.experiment.cell import Cell


def check_plain_text(cell: "Cell") -> None:
    """Do nothing where the cell's plain text can be read, or its method trains on none.

    Raises:
        UserError: the file is not there, or is no UTF-8 text.
    """
    assert cell.method is not None
    named = cell.config.data.plain_text
    if named is None or not cell.method.needs().plain_text:
        return
    if not Path(named).expanduser().exists():
        raise UserError(f"data.plain_text={named}: no such file; name a UTF-8 text file")
    read_text(Path(named).expanduser())


def with_plain_text(
    cell: "Cell", groups: Sequence[Group], tokenizer: "PreTrainedTokenizerBase", *, encoder_decoder: bool
) -> list[Group]:
    """Every question's group with one piece of plain text; pieces are given out in order, again from the start.

    A decoder-only student reads a piece's first token and writes the rest; an encoder-decoder reads the first half.

    Raises:
        UserError: the text is shorter than one piece.
    """
    assert cell.method is not None
    named, size = cell.config.data.plain_text, cell.config.data.plain_tokens
    if named is None or not cell.method.needs().plain_text:
        return list(groups)
    ids = _ids(Path(named).expanduser(), tokenizer)
    pieces = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    if not pieces:
        raise UserError(f"data.plain_text={named}: {len(ids)} tokens; at least data.plain_tokens={size} are needed")
    border = size // 2 if encoder_decoder else 1
    items = cycle([Encoded("", PLAIN, piece[:border], piece[border:], False) for piece in pieces])
    return [group._replace(items=(*group.items, _of(group, next(items)))) for group in groups]


def _of(group: Group, item: Encoded) -> Encoded:
    return item._replace(record_id=group.record_id)


def _ids(file: Path, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """All of the text; paragraphs (separated by blank lines) end with the end-of-text token."""
    end = tokenizer.eos_token_id
    paragraphs = [text.strip() for text in read_text(file).replace("\r\n", "\n").split("\n\n")]
    encoded = (text_ids(tokenizer, text, add_special_tokens=False) for text in paragraphs if text)
    return tuple(token for ids in encoded for token in (*ids, end))
