"""What a search keeps of its trials between their reports."""

from pathlib import Path

import pytest

from tests.support.metric_rows import DAMAGED_LINES, start_row, step_row, to_line
from trainers.tracking.run_directory import RunDirectory
from tuning.execution.tuner import TrainedSeconds


def test_trained_seconds_follow_a_file_that_grows_or_is_rewritten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    trained = TrainedSeconds(run)
    assert trained.update() == 0.0, "no file yet"
    start, *rows = map(to_line, (start_row(), *(step_row(1, seconds=s) for s in (1.0, 2.0, 4.0))))
    run.metrics_path.write_bytes(start + rows[0] + rows[1][:9])
    assert trained.update() == 1.0, "half a row does not count yet"
    run.metrics_path.write_bytes(start + b"".join(rows))
    assert trained.update() == trained.update() == 7.0
    run.metrics_path.write_bytes(start + rows[2])
    assert trained.update() == 4.0, "a restart drops the steps that were lost"


@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_damaged_lines_take_no_time(tmp_path: Path, line: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.write_bytes(to_line(step_row(1)) + line + to_line(step_row(2)))
    assert TrainedSeconds(run).update() == 1.0
