"""Fixtures of the tests of building engines."""

from pathlib import Path

import pytest


@pytest.fixture
def texts(tmp_path: Path, corpus: Path) -> Path:
    """A file of texts, one a line."""
    lines = [line.rpartition(",")[0] for line in corpus.read_text().splitlines()[1:]]
    lines = [line.replace("film", "[MASK]", 1) for line in lines]
    place = tmp_path / "texts.txt"
    place.write_text("\n".join(lines))
    return place
