"""Structured logs: a JSON object a line, of each request, and of messages where that is asked for.

A line goes to the standard output of the process, or to a file that several processes append to. It
never holds a text, a key or an answer.

    configure_logs("json", Path("requests.jsonl"))
    log_request(RequestRecord("4f0c"), "tei", "/predict", 200, 0.012)
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from serving.http.messages import RequestRecord

LogFormat = Literal["text", "json"]
MAX_LINE_BYTES = 4096  # that go into a pipe at once, so that lines of processes do not mix
MESSAGE_LENGTHS = (1500, 250)  # tried in turn: characters of a message, and of a traceback's end

access = logging.getLogger("bertha.access")


def log_request(
    record: RequestRecord, protocol: str, route: str, status: int, seconds: float
) -> None:
    """Write the line of a request."""
    line = {
        "request_id": record.id,
        "protocol": protocol,
        "route": route,
        "status": status,
        "milliseconds": round(1000 * seconds, 2),
        "model": record.model,
        "version": record.version,
        "texts": record.num_texts,
        "tokens": record.num_tokens,
        "client": record.client,
        "key": record.key,
    }
    write_line({key: each for key, each in line.items() if each != ""})


def write_line(line: Mapping[str, Any]) -> None:
    """Write a line about a request."""
    access.info("%s", line, extra={"line": line})


def configure_logs(log_format: LogFormat = "text", file: Path | None = None) -> None:
    """Send the lines of requests to `file`, by default standard output, and nowhere else.

    log_format: "json" for all messages of this process to go there too, as such lines. file: is
    made for this user alone; a pipe is never waited for. Raises OSError.
    """
    handler = logging.StreamHandler(sys.stdout) if file is None else LineFile(file)
    handler.setFormatter(LogFormatter())
    access.handlers, access.propagate = [handler], False
    access.setLevel(logging.INFO)
    if log_format == "json":
        logging.getLogger().handlers = [handler]


class LogFormatter(logging.Formatter):
    """Formats a record as one line of JSON, of at most MAX_LINE_BYTES."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        head = {"time": _timestamp(record.created), "level": record.levelname.lower()}
        of_request = getattr(record, "line", None)
        if of_request is not None:
            return json.dumps({**head, **of_request})
        head["logger"] = record.name
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        for most in MESSAGE_LENGTHS:
            line = json.dumps(
                head | {"message": message[:most]} | ({"traceback": trace[-most:]} if trace else {})
            )
            if len(line) < MAX_LINE_BYTES:
                break
        return line


class LineFile(logging.Handler):
    """Appends lines to a file or a pipe; what does not fit into a full pipe is dropped."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        self._file = os.open(path, flags, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record's line."""
        try:
            os.write(self._file, self.format(record).encode() + b"\n")
        except BlockingIOError:  # nobody reads; requests are not held up for that
            pass
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def _timestamp(seconds: float) -> str:
    """Return a time in UTC, as 2026-01-31T08:00:00.123Z."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"
