"""A wait says what it waits for, and how long it took."""

import io
import itertools
import os
import pty
import sys
from pathlib import Path

import pytest

from tests.support.metric_rows import start_row, to_line
from trainers.tracking.metric_logger import MetricLogger
from trainers.tracking.progress import ProgressPrinter
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.wait import CLEAR_LINE, Wait
from trainers.training.events import StepEvent


def clock_of(*seconds: float) -> "itertools.chain[float]":
    """A clock that shows these seconds, and then the last of them."""
    return itertools.chain(seconds, itertools.repeat(seconds[-1]))


def test_in_a_log_a_line_as_it_begins_and_one_with_its_seconds() -> None:
    log, clock = io.StringIO(), clock_of(100.0, 112.3)
    with Wait("starting Ray", log, lambda: next(clock)):
        assert log.getvalue() == "starting Ray ...\n"
    assert log.getvalue() == "starting Ray ...\nstarting Ray: 12s\n"


@pytest.mark.parametrize("failed", [False, True])
def test_a_short_wait_and_a_failed_one_leave_no_seconds(failed: bool) -> None:
    log, clock = io.StringIO(), clock_of(0.0, 20.0 if failed else 0.9)
    wait = Wait("loading", log, lambda: next(clock))
    wait.begin()
    wait.end(failed)
    wait.end()
    assert log.getvalue() == "loading ...\n"


def test_a_wait_that_never_began_says_nothing() -> None:
    log = io.StringIO()
    Wait("loading", log).end()
    assert log.getvalue() == ""


def test_on_a_terminal_it_is_one_line_that_spins() -> None:
    ours, theirs = pty.openpty()
    now = [0.0]
    with os.fdopen(theirs, "w") as terminal:
        with Wait("starting Ray", terminal, lambda: now[0]):
            seen = os.read(ours, 1000).decode()  # the spinner's first frame
            now[0] = 7.0
        assert seen.startswith(CLEAR_LINE) and seen.endswith("starting Ray (0s)")
        terminal.flush()
        rest = os.read(ours, 1000).decode()
    os.close(ours)
    assert rest.rpartition(CLEAR_LINE)[2] == "starting Ray: 7s\r\n"
    assert "\n" not in seen


def test_the_wait_for_workers_ends_with_the_first_row_of_the_run(tmp_path: Path) -> None:
    run, log, clock = RunDirectory(tmp_path), io.StringIO(), clock_of(0.0, 25.0)
    said: list[str] = []
    wait = Wait("starting 2 workers", log, lambda: next(clock))
    with ProgressPrinter(run, say=said.append, start=wait):
        assert log.getvalue() == "starting 2 workers ...\n"
        run.metrics_path.write_bytes(to_line(start_row(0)))
    assert log.getvalue() == "starting 2 workers ...\nstarting 2 workers: 25s\n"


def test_the_end_of_training_is_followed_by_a_named_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.write_bytes(to_line(start_row(0)))
    with ProgressPrinter(run, every_seconds=1e9):
        recorder = MetricLogger(run, 0, ())
        recorder.log_start(step=0, total_steps=10)
        recorder.log_event(StepEvent(1, 0, 0.5, 1e-4, 1.0, 8, 80, 100, 2, 0.5))
        recorder.log_conclusion(1)
        recorder.close()
    steps, wait = capsys.readouterr().out.splitlines()
    assert steps.startswith("step 1/10  loss 0.5000")
    assert wait == "evaluating the test rows and writing the bundle ..."


def test_workers_that_never_start_leave_no_seconds(tmp_path: Path) -> None:
    log, clock = io.StringIO(), clock_of(0.0, 25.0)
    with (
        pytest.raises(KeyError),
        ProgressPrinter(
            RunDirectory(tmp_path), start=Wait("starting 2 workers", log, lambda: next(clock))
        ),
    ):
        raise KeyError
    assert log.getvalue() == "starting 2 workers ...\n"


def test_the_default_stream_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("loading"):
        assert not sys.stdout.isatty()
    assert capsys.readouterr().out == "loading ...\n"
