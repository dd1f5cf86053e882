"""The board as one page that works offline: tables that sort and filter, two plots, the runs behind every row.

The page is `templates/board.html` with its style and its script inside. Its content policy allows these two texts, by
their digests, and nothing else: no request can leave the file, whatever a label holds.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from tinyllm_bench.report.page_data import page_data
from tinyllm_bench.report.tables import Cells, Section

_TEMPLATES = Path(__file__).with_name("templates")


def board_page(
    title: str, sections: Sequence[Section], macro: Sequence[Cells], macro_note: str, how_to_read: str
) -> str:
    """The text of `index.html`. `title` is the board's, `macro` the table of means over tasks."""
    import jinja2
    from markupsafe import Markup

    style, script = _read("board.css"), _read("plots.js") + _read("board.js")
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("board.html").render(
        title=title,
        how_to_read=how_to_read,
        data=page_data(sections, macro, macro_note),
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def _read(name: str) -> str:
    return _TEMPLATES.joinpath(name).read_text()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
