"""Progress of a long task: how far, how fast, how long it takes yet."""

import io

import pytest

from serving.batch.progress import RowProgress, format_progress


@pytest.mark.parametrize(
    ("done", "seconds", "line"),
    [
        (0, 0.0, "0 of 5,000 rows, 0/s"),
        (1000, 10.0, "1,000 of 5,000 rows, 100/s, 40s left"),
        (5000, 10.0, "5,000 of 5,000 rows, 500/s"),
    ],
)
def test_a_line(done: int, seconds: float, line: str) -> None:
    assert format_progress(done, 5000, seconds) == line


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_task_says_nothing() -> None:
    stream = io.StringIO()
    with RowProgress(stream) as progress:
        progress.update(5, 5)
    assert stream.getvalue() == ""


def test_a_terminal_has_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = _Terminal(), iter([0.0, 1.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with RowProgress(stream) as progress:
        progress.announce("counting")
        progress.update(1, 4)
        progress.update(4, 4)
    first, second = "1 of 4 rows, 1/s, 3s left", "4 of 4 rows, 2/s"
    assert stream.getvalue() == f"\rcounting …\r{first}\r{second.ljust(len(first))}\n"


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with RowProgress(stream) as progress:
        progress.announce("counting")
        for done in (1, 2, 3):
            progress.update(done, 4)
    assert stream.getvalue().splitlines() == ["2 of 4 rows, 0/s, 11s left"]
