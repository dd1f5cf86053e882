"""A board folder for every test of leaderboards."""

from pathlib import Path

import pytest

from tests.leaderboard.fakes import CONFIG


@pytest.fixture
def board(tmp_path: Path) -> Path:
    folder = tmp_path / "board"
    (folder / "boards").mkdir(parents=True)
    (folder / "boards" / "main.yaml").write_text(CONFIG)
    return folder
