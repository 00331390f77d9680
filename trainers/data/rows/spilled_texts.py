"""Texts in a temporary file that has no name, so that nothing of it outlives its process.

Of each text, 12 bytes stay in memory: where it begins and how long it is.
"""

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from trainers.data.files import DataError

_BUFFER = 1 << 20  # bytes written at a time
_SPARSE = 4  # times the bytes that are wanted, up to which all between them is read at once


class SpilledTexts(Sequence[str]):
    """Texts of a `TextSpill`, any of them in any order; a slice is read at once."""

    def __init__(self, spill: "TextSpill", starts: np.ndarray, sizes: np.ndarray) -> None:
        self._spill, self._starts, self._sizes = spill, starts, sizes

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """Return a text, or the texts of a slice."""
        if isinstance(row, slice):
            return list(self._read_texts(self._starts[row], self._sizes[row]))
        return self._read_text(int(self._starts[row]), int(self._sizes[row]))

    def __iter__(self) -> Iterator[str]:
        for rows in iter_blocks(self):
            yield from self[rows]

    @property
    def sizes(self) -> np.ndarray:
        """The bytes of each text, `[n]` int32."""
        return self._sizes

    def take(self, rows: np.ndarray | slice) -> "SpilledTexts":
        """Return the texts of `rows`: a slice, places, or a mask `[n]`."""
        return SpilledTexts(self._spill, self._starts[rows], self._sizes[rows])

    def _read_texts(self, starts: np.ndarray, sizes: np.ndarray) -> Iterator[str]:
        if not len(starts):
            return
        first, end = int(starts.min()), int((starts + sizes).max())
        if end - first > _SPARSE * int(sizes.sum()) + _BUFFER:
            yield from map(self._read_text, starts.tolist(), sizes.tolist())
            return
        block = self._spill.read_bytes(first, end - first)
        for start, size in zip((starts - first).tolist(), sizes.tolist(), strict=True):
            yield _decode(block[start : start + size])

    def _read_text(self, start: int, size: int) -> str:
        return _decode(self._spill.read_bytes(start, size))


class TextSpill:
    """A temporary file in `directory` (None: the system's) that texts are appended to.

    The file goes when nothing refers to it any more, and with the process. Raises DataError where
    the disk is full.
    """

    def __init__(self, directory: Path | None = None) -> None:
        with tempfile.TemporaryFile(dir=directory) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._directory = tempfile.gettempdir() if directory is None else directory
        self._pending, self._written = bytearray(), 0

    def append_bytes(self, contents: bytes) -> int:
        """Append `contents`; return where they begin."""
        start = self._written + len(self._pending)
        self._pending += contents
        if len(self._pending) >= _BUFFER:
            self.flush()
        return start

    def flush(self) -> None:
        """Write what is still in memory."""
        try:
            while self._pending:
                written = os.write(self._descriptor, self._pending)
                del self._pending[:written]
                self._written += written
        except OSError as error:
            raise DataError(
                f"{self._directory}: the cleaned texts of the source could not be kept there "
                f"while they are prepared ({error}); make room, or put the cache on another disk"
            ) from None

    def read_bytes(self, start: int, size: int) -> bytes:
        """Read `size` bytes from `start`, all of them written before."""
        parts = []
        while size:
            parts.append(os.pread(self._descriptor, size, start))
            assert parts[-1], "nothing is read that was not written"
            start, size = start + len(parts[-1]), size - len(parts[-1])
        return b"".join(parts)


class TextWriter:
    """Collects the texts of one source in a `TextSpill`."""

    def __init__(self, spill: TextSpill) -> None:
        self._spill = spill
        self._starts, self._sizes = array("q"), array("i")

    def append(self, text: str) -> None:
        """Append a text."""
        contents = text.encode("utf-8", "surrogatepass")
        self._starts.append(self._spill.append_bytes(contents))
        self._sizes.append(len(contents))

    def finish(self) -> SpilledTexts:
        """Return all texts."""
        self._spill.flush()
        starts = np.frombuffer(self._starts, dtype=np.int64)
        return SpilledTexts(self._spill, starts, np.frombuffer(self._sizes, dtype=np.int32))


def iter_blocks(
    texts: Sequence[str], most_rows: int = 1000, most_bytes: int = 1 << 24
) -> Iterator[slice]:
    """Cut the rows of `texts` into slices of at most so many rows and bytes, or one row.

    One empty slice where there are no rows.
    """
    sizes = texts.sizes if isinstance(texts, SpilledTexts) else None
    start = 0
    while True:
        stop = min(start + most_rows, len(texts))
        if sizes is not None and start < stop:
            ends = np.cumsum(sizes[start:stop], dtype=np.int64)
            stop = start + max(1, int(np.searchsorted(ends, most_bytes, side="right")))
        yield slice(start, stop)
        start = stop
        if start >= len(texts):
            return


def _decode(contents: bytes) -> str:
    return contents.decode("utf-8", "surrogatepass")
