"""Texts in a temporary file come back as they were, in any order, and leave nothing behind."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.files import DataError
from trainers.data.rows import spilled_texts
from trainers.data.rows.spilled_texts import SpilledTexts, TextSpill, TextWriter, iter_blocks

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=[])) | st.sampled_from(["", "\ud800", "x" * 9000]),
    max_size=30,
)


def spill(texts: list[str], directory: Path | None = None) -> SpilledTexts:
    writer = TextWriter(TextSpill(directory))
    for text in texts:
        writer.append(text)
    return writer.finish()


@settings(deadline=None)
@given(TEXTS, st.integers(1, 7), st.integers(0, 20_000))
def test_texts_come_back_in_blocks_of_any_size(texts: list[str], rows: int, size: int) -> None:
    spilled = spill(texts)
    assert list(spilled) == texts and len(spilled) == len(texts)
    assert [spilled[row] for row in range(len(texts))] == texts
    blocks = list(iter_blocks(spilled, rows, size))
    assert [text for block in blocks for text in spilled[block]] == texts
    assert all(block.stop - block.start <= rows for block in blocks)
    for block in blocks:
        contents = sum(len(text.encode("utf-8", "surrogatepass")) for text in spilled[block])
        assert contents <= size or block.stop - block.start == 1


def test_a_selection_reads_only_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number} " * 100 for number in range(2000)]
    rows = np.arange(3, 2000, 50)
    monkeypatch.setattr(spilled_texts, "_BUFFER", 1000)
    spilled, real = spill(texts), os.pread
    read: list[int] = []

    def note(descriptor: int, size: int, start: int) -> bytes:
        read.append(size)
        return real(descriptor, size, start)

    monkeypatch.setattr(os, "pread", note)
    assert spilled.take(rows)[:] == [texts[row] for row in rows]
    assert sum(read) == sum(len(texts[row]) for row in rows)
    read.clear()
    dense = np.arange(0, 2000) % 5 > 0
    assert spilled.take(dense)[:] == [text for text, keep in zip(texts, dense, strict=True) if keep]
    assert len(read) == 1


def test_two_sources_share_a_file() -> None:
    file = TextSpill()
    one, two = TextWriter(file), TextWriter(file)
    one.append("a")
    two.append("b")
    one.append("c")
    assert list(one.finish()) == ["a", "c"] and list(two.finish()) == ["b"]


def test_the_file_has_no_name_and_goes_with_its_last_user(tmp_path: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    spilled = spill(["text"] * 10, tmp_path)
    assert list(tmp_path.iterdir()) == []
    selected = spilled.take(np.arange(2))
    del spilled
    gc.collect()
    assert list(selected) == ["text", "text"]
    del selected
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, contents: bytes) -> int:
        raise OSError(28, "No space left on device")

    writer = TextWriter(TextSpill(tmp_path))
    writer.append("text")
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(DataError, match=r"No space left on device.*put the cache on another disk"):
        writer.finish()
