"""Directories that are built once on a machine."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.storage.cache import build_once


def load(directory: Path) -> str | None:
    path = directory / "value"
    return path.read_text() if path.is_file() else None


def test_one_of_several_builds(tmp_path: Path) -> None:
    builds: list[Path] = []

    def build(directory: Path) -> None:
        builds.append(directory)
        (directory / "value").write_text("built")

    target = tmp_path / "cache" / "key"
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: build_once(target, build, load), range(4)))
    assert values == ["built"] * 4 and len(builds) == 1 and builds[0] != target
    (target / "value").unlink()
    assert build_once(target, build, load) == "built" and len(builds) == 2, "a damaged entry"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "value").write_text("half")
        raise ValueError("no such column")

    with pytest.raises(ValueError, match="no such column"):
        build_once(tmp_path / "key", fail, load)
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


def test_a_build_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="key is not what was just written"):
        build_once(tmp_path / "key", lambda directory: None, load)
