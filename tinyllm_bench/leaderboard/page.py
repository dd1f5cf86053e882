"""The board as one page that works offline: tables that sort and filter, two plots, the runs behind every row.

The page is `templates/board.html` with its style and its script inside. Its content policy allows these two texts, by
their digests, and nothing else: no request can leave the file, whatever a label holds.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllm_bench.base.escaping import all_visible, visible
from tinyllm_bench.leaderboard.markdown import HOW_TO_READ
from tinyllm_bench.leaderboard.means import MEAN_NOTE
from tinyllm_bench.leaderboard.tables import Cells

_TEMPLATES = Path(__file__).with_name("templates")


def board_page(title: str, sections: Sequence[str], macro: Sequence[Cells]) -> str:
    """The text of `index.html`: `sections` as `page_json` gives them, `macro` is the table of means over tasks."""
    import jinja2
    from markupsafe import Markup

    style, script = _read("board.css"), _read("plots.js") + _read("board.js")
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    mean = all_visible({"columns": list(macro[0]) if macro else [], "rows": [list(line.values()) for line in macro]})
    return environment.get_template("board.html").render(
        title=visible(title),
        how_to_read=HOW_TO_READ,
        sections=[Markup(section) for section in sections],
        mean=mean,
        mean_note=MEAN_NOTE,
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def page_json(section: dict[str, Any]) -> str:
    """A section's data as it may stand inside of a page's script element."""
    from jinja2.utils import htmlsafe_json_dumps

    return str(htmlsafe_json_dumps(all_visible(section), sort_keys=True))


def _read(name: str) -> str:
    return _TEMPLATES.joinpath(name).read_text()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
