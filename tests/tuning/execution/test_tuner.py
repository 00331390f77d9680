"""What a search keeps of its trials between their reports."""

import json
from pathlib import Path

from trainers.tracking.run_directory import RunDirectory
from tuning.execution.tuner import TrainedSeconds


def test_trained_seconds_follow_a_file_that_grows_or_is_rewritten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    trained = TrainedSeconds(run)
    assert trained.update() == 0.0, "no file yet"
    rows = [json.dumps({"kind": "step", "seconds": s}) + "\n" for s in (1.0, 2.0, 4.0)]
    run.metrics_path.write_text('{"kind": "start"}\n' + rows[0] + rows[1][:9])
    assert trained.update() == 1.0, "half a row does not count yet"
    run.metrics_path.write_text('{"kind": "start"}\n' + "".join(rows))
    assert trained.update() == trained.update() == 7.0
    run.metrics_path.write_text('{"kind": "start"}\n' + rows[2])
    assert trained.update() == 4.0, "a restart drops the steps that were lost"
