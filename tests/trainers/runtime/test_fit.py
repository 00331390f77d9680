"""Joining a cluster: the one this process was submitted to, and never one made on the spot.

What its workers raise, as the one sentence that a user sees.
"""

from pathlib import Path

import pytest
import ray
from ray.train import ControllerError, WorkerGroupError

from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.runtime.ray_trainer import _run_trainer, init_ray
from trainers.runtime.worker import WorkerError
from trainers.tracking.run_directory import RunDirectory, RunError


@pytest.mark.parametrize("address", ["", "local"])
def test_for_a_cluster_that_is_elsewhere_no_ray_is_started_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where `ray start` notes the one it started
    monkeypatch.setenv("RAY_ADDRESS", address)
    far = ClusterSpec("far", "aws", 2, ClusterMetadata())
    with pytest.raises(RunError, match=r"^cluster far: no Ray to join here; .*`ray job submit`"):
        init_ray(far)
    assert not ray.is_initialized() and list(tmp_path.iterdir()) == []


class FailingTrainer:
    """A trainer whose workers have failed once too often."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fit(self) -> None:
        raise self.error


TRACEBACK = "\n".join(["Traceback (most recent call last):", *[f"  line {n}" for n in range(50)]])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            WorkerGroupError(TRACEBACK, {1: IndexError("index out of range\nin self")}),
            "IndexError: index out of range in self",
        ),
        (WorkerGroupError(TRACEBACK, {0: KeyError()}), "KeyError"),
        (ControllerError(ValueError(TRACEBACK)), "ValueError: Traceback (most recent call last): "),
    ],
)
def test_what_a_worker_raises_is_one_sentence_and_a_file(
    error: Exception, said: str, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(WorkerError) as caught:
        _run_trainer(FailingTrainer(error), run)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}: {said}") and "\n" not in text and len(text) < 600
    assert text.endswith(
        f"; its traceback is in {tmp_path}/traceback.txt. What is saved is kept: go on with "
        "--resume"
    )
    assert "  line 49" in run.traceback_path.read_text()


def test_a_disk_that_failed_is_named_without_a_traceback(tmp_path: Path) -> None:
    error = WorkerGroupError(TRACEBACK, {0: OSError(28, "No space left on device")})
    with pytest.raises(RunError, match="No space left on device; fix that, then go on") as caught:
        _run_trainer(FailingTrainer(error), RunDirectory(tmp_path))
    assert not isinstance(caught.value, WorkerError) and list(tmp_path.iterdir()) == []
