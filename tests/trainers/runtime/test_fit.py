"""Joining a cluster: the one this process was submitted to, and never one made on the spot."""

from pathlib import Path

import pytest
import ray

from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.runtime.ray_trainer import init_ray
from trainers.tracking.run_directory import RunError


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
