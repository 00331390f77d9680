"""Right answers from those who know them, kept as JSON Lines that training reads.

    DIR/feedback.jsonl           the rows of the first model that got any: text, label, and whose
    DIR/feedback-NAME.jsonl      those of another, since a run learns one task
    DIR/recent/REPLICA.jsonl     the texts of the last requests, to be named by request id

Files are of this user alone and bounded; replicas write to them together. Neither what was asked by
token ids nor explanations and embeddings can be named.
"""

import asyncio
import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.private_files import private_directory
from serving.http.messages import HTTPError, current_request
from serving.interface import Feedback, ModelInfo, TextInput

MAX_BYTES = 256 * 2**20  # of all feedback for a model
MAX_NUMBER = 3e38  # of float32, in which regressions are learned
RECENT_BYTES = 8 * 2**20  # of the texts of requests, twice in each replica
RECENT_SECONDS = 24 * 3600  # after which those of a replica that was killed are removed

log = logging.getLogger(__name__)


class FeedbackStore:
    """Feedback in a directory. Belongs to one event loop.

    Raises UnsafePathError for a directory that others could change.
    """

    def __init__(
        self, directory: Path, max_bytes: int = MAX_BYTES, recent_bytes: int = RECENT_BYTES
    ) -> None:
        self._directory, self._max_bytes = private_directory(directory), max_bytes
        self._recent = RecentTexts(private_directory(self._directory / "recent"), recent_bytes)
        self._working = asyncio.Lock()  # one look through the recent texts at a time

    def remember(self, model: ModelInfo, texts: Sequence[str]) -> None:
        """Keep the texts of the current request for a while, by its id."""
        request = current_request.get()
        if request is not None:
            self._recent.append(
                {
                    "request_id": request.id,
                    "key": request.key,
                    "model": model.name,
                    "version": model.version,
                    "texts": [None if _has_ids(text) else str(text) for text in texts],
                }
            )

    async def find_text(self, feedback: Feedback) -> Feedback:
        """Return feedback with its text and the version that answered. Raises HTTPError."""
        if feedback.text:
            return feedback
        request = current_request.get()
        key = "" if request is None else request.key
        async with self._working:
            entry = await asyncio.to_thread(self._recent.find, feedback.request_id, key)
        if entry is None:
            raise HTTPError(
                "malformed",
                f"request_id = {feedback.request_id[:60]!r}: no such request is remembered; send "
                "`text` and `model` instead",
            )
        texts = entry["texts"]
        if not 0 <= feedback.index < len(texts):
            raise HTTPError(
                "malformed", f"index = {feedback.index}: that request had {len(texts)} texts"
            )
        text = texts[feedback.index]
        if text is None:
            raise HTTPError("malformed", "that was asked by token ids; send `text` and `model`")
        return replace(feedback, text=text, model=f"{entry['model']}:{entry['version']}")

    async def append(self, feedback: Feedback, model: ModelInfo) -> None:
        """Write a row. Raises HTTPError for an answer that the model cannot give, or when full."""
        row = {
            "text": str(feedback.text),
            "label": check_answer(feedback.answer, model),
            "model": model.name,
            "version": model.version,
            "request_id": feedback.request_id,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        async with self._working:
            await asyncio.to_thread(self._write_row, row)

    def close(self) -> None:
        """Forget the texts of requests."""
        self._recent.close()

    def _write_row(self, row: dict[str, Any]) -> None:
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # with the other replicas
            path = self._directory / "feedback.jsonl"
            if _model_of(path) not in (None, row["model"]):
                path = self._directory / f"feedback-{row['model']}.jsonl"
            line = _dump(row)
            size = path.stat().st_size if path.exists() else 0
            if size + len(line) > self._max_bytes:
                raise HTTPError(
                    "unready", f"{path.name} is full, at {size} bytes; have the file moved away"
                )
            with open(_open_private(path), "ab") as file:
                file.write(line)
        except OSError as error:
            log.error("feedback is not kept: %s", error)
            raise HTTPError("unready", "feedback cannot be written; see the server's log") from None
        finally:
            os.close(lock)


class RecentTexts:
    """The texts of the last requests of this replica on disk, where all replicas find them."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self._path = directory / f"{uuid.uuid4().hex}.jsonl"
        self._before = self._path.with_suffix(".old")
        self._file: int | None = None
        self._size = 0
        self._is_failing = False
        for path in self._list_files():
            if time.time() - path.stat().st_mtime > RECENT_SECONDS:
                path.unlink(missing_ok=True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a request. A disk that fails is logged, and no reason to refuse an answer."""
        line = _dump(entry)
        if len(line) > self._max_bytes:
            return
        try:
            if self._file is not None and self._size + len(line) > self._max_bytes:
                os.close(self._file)
                self._file, self._size = None, 0
                self._path.replace(self._before)
            if self._file is None:
                self._file = _open_private(self._path)
            self._size += os.write(self._file, line)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                log.error("%s: texts are not remembered for feedback: %s", self._path, error)
            self._is_failing = True

    def find(self, request_id: str, key: str) -> dict[str, Any] | None:
        """Return the last entry of a request of that API key, of any replica, if it is there."""
        begin = _dump({"request_id": request_id, "key": key})[:-2] + b","
        found: list[tuple[float, bytes]] = []
        for path in self._list_files():
            try:
                with path.open("rb") as file:
                    lines = [line for line in file if line.startswith(begin)]
                if lines and lines[-1].endswith(b"\n"):
                    found.append((path.stat().st_mtime, lines[-1]))
            except FileNotFoundError:  # of a replica that ends
                continue
        entry: dict[str, Any] | None = json.loads(max(found)[1]) if found else None
        return entry

    def close(self) -> None:
        """Remove what this replica has written."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        for path in (self._path, self._before):
            path.unlink(missing_ok=True)

    def _list_files(self) -> Iterator[Path]:
        for pattern in ("*.jsonl", "*.old"):
            yield from self._directory.glob(pattern)


def check_answer(answer: str | tuple[str, ...] | float, model: ModelInfo) -> Any:
    """Return an answer as training reads it. Raises HTTPError unless the model could give it."""
    if model.task == "regression":
        if isinstance(answer, float | int) and abs(answer) <= MAX_NUMBER:
            return float(answer)
        raise HTTPError(
            "malformed", f"label = {answer!r:.80}: {model.name} answers a number; send one"
        )
    given = answer if isinstance(answer, tuple) else (answer,)
    unknown = [each for each in given if each not in model.labels]
    if unknown:
        names = ", ".join(model.labels[:20]) + (", ..." if len(model.labels) > 20 else "")
        raise HTTPError("malformed", f"label = {unknown[0]!r:.80}: expected one of {names}")
    if model.task == "multi-label":
        return [label for label in model.labels if label in given]
    if len(given) != 1:
        raise HTTPError(
            "malformed", f"label holds {len(given)} labels; a text of {model.name} has one"
        )
    return given[0]


def _has_ids(text: str) -> bool:
    return isinstance(text, TextInput) and bool(text.ids)


def _model_of(path: Path) -> str | None:
    """Return whose rows a file holds; None for an empty one and for none."""
    try:
        with path.open("rb") as file:
            first = file.readline()
        return str(json.loads(first)["model"]) if first else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return ""  # somebody else's file


def _open_private(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n"
