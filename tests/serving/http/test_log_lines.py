"""Structured logs: one line of JSON each, whole, bounded, and never waited for."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.http.log_lines import MAX_LINE_BYTES, access, configure_logs, log_request
from serving.http.messages import RequestRecord

RECORD = RequestRecord("4f0c", "10.0.0.9", "shop", "reviews", "3", 2, 17)


@pytest.fixture(autouse=True)
def old_logs() -> Iterator[None]:
    """What other tests log goes where it went."""
    root, before = logging.getLogger(), (list(logging.getLogger().handlers), list(access.handlers))
    yield
    for handler in access.handlers:
        handler.close()
    root.handlers, access.handlers = before
    access.propagate = True


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    configure_logs("text", file)
    log_request(RECORD, "tei", "/predict", 200, 0.0123)
    log_request(RequestRecord("b"), "tei", "unknown", 404, 0.001)
    full, short = read_lines(file)
    assert full.pop("time").startswith("20") and full.pop("level") == "info"
    assert full == {
        "request_id": "4f0c",
        "protocol": "tei",
        "route": "/predict",
        "status": 200,
        "milliseconds": 12.3,
        "model": "reviews",
        "version": "3",
        "texts": 2,
        "tokens": 17,
        "client": "10.0.0.9",
        "key": "shop",
    }
    assert "model" not in short and "key" not in short and short["texts"] == 0
    assert oct(file.stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_messages_are_lines_where_that_is_asked_for(log_format: Any, tmp_path: Path) -> None:
    configure_logs(log_format, tmp_path / "log")
    try:
        raise ValueError("\u00fc" * 5000)
    except ValueError:
        logging.getLogger("serving.x").exception('a "batch"\nfailed: %s', "\x00" * 5000)
    lines = read_lines(tmp_path / "log")
    if log_format == "text":
        assert lines == []
        return
    (line,) = lines
    assert (line["level"], line["logger"]) == ("error", "serving.x")
    assert line["message"].startswith('a "batch"\nfailed: \x00')
    assert line["traceback"].endswith("\u00fc")
    assert (tmp_path / "log").stat().st_size < MAX_LINE_BYTES


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    configure_logs("text", tmp_path / "pipe")
    for _ in range(2000):  # more than a pipe holds
        log_request(RECORD, "tei", "/predict", 200, 0.0)
    read = b""
    while chunk := _read_available(reader):
        read += chunk
    lines = [json.loads(line) for line in read.splitlines()]
    assert 0 < len(lines) < 2000 and all(line["request_id"] == "4f0c" for line in lines)
    log_request(RECORD, "tei", "/again", 200, 0.0)
    assert json.loads(os.read(reader, 4096))["route"] == "/again"
    os.close(reader)


def _read_available(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""


def test_without_a_file_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    log_request(RECORD, "tei", "/predict", 200, 0.0)
    sys.stdout.flush()
    assert json.loads(capsys.readouterr().out)["request_id"] == "4f0c"
