"""A recipe on a cluster: the only place where a TorchTrainer is made.

Ray places the workers, connects them and starts them again when one dies; everything they do is in
`worker`, which goes on from the newest checkpoint.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from trainers import provenance
from trainers.device import DEVICES
from trainers.loop import TrainingError
from trainers.progress import Follower
from trainers.recipe import Recipe
from trainers.record import RunDirectory, RunError
from trainers.sealed import write_file
from trainers.worker import Assignment, work


@dataclass(frozen=True)
class Outcome:
    """What a run came to: result.json, and how long this call took."""

    result: dict[str, Any]
    seconds: float


def fit(recipe: Recipe, cluster: ClusterSpec, run: Path, resume: bool = False) -> Outcome:
    """Train `recipe` on `cluster` in the directory `run`, which all nodes see.

    A finished run is not repeated. Workers that die are restarted up to the cluster's
    `max_failures`. Raises RunError when the directory or the cluster cannot be used, and what a
    worker raised when it cannot go on.
    """
    started, recipe = time.monotonic(), recipe.rooted()
    directory = RunDirectory(run.resolve())
    directory.claim(recipe, resume)
    result = directory.result()
    if result is None:
        assignment = Assignment(
            recipe, directory, cluster.cache, cluster.metadata.accelerator, provenance.revision()
        )
        connect(cluster)
        directory.refusal.unlink(missing_ok=True)
        with Follower(directory):
            _trainer(assignment, cluster).fit()
        if directory.refusal.is_file():
            raise TrainingError(directory.refusal.read_text(encoding="utf-8"))
        result = directory.result()
        if result is None:
            raise RunError(
                f"{directory.path}: the workers ended well, but their result is not here; metadata."
                "storage, or --run, must be a directory that all nodes see"
            )
    return Outcome(result, time.monotonic() - started)


def connect(cluster: ClusterSpec) -> None:
    """Join the cluster this process was submitted to, or start one on this machine."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized() or not cluster.num_workers:
        return
    quiet = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if cluster.is_this_machine and "RAY_ADDRESS" not in os.environ:
        # Its watcher for nodes about to leave takes a tenth of a core, and here no node can.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(address="local", **quiet)
    else:
        ray.init(**quiet)


def _trainer(assignment: Assignment, cluster: ClusterSpec) -> TorchTrainer:
    device = DEVICES[assignment.device]
    return TorchTrainer(
        _worker,
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(backend=device.backend) if cluster.num_workers else None,
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=device.resource == "GPU",
            resources_per_worker=_resources(cluster) if cluster.num_workers else None,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(assignment.run.path / "ray"),
            failure_config=FailureConfig(max_failures=cluster.metadata.max_failures),
        ),
    )


def _resources(cluster: ClusterSpec) -> dict[str, float]:
    """What each worker asks Ray for: its device, and an even share of the cores.

    Raises RunError when the cluster lacks the devices that its file names.
    """
    device = DEVICES[cluster.metadata.accelerator]
    have = ray.cluster_resources()
    if device.resource != "CPU" and have.get(device.resource, 0) < cluster.num_workers:
        raise RunError(
            f"cluster {cluster.name}: {cluster.num_workers} {device.resource} named, "
            f"{have.get(device.resource, 0):g} seen by Ray; mend metadata.devices_per_node or the "
            "nodes' resources"
        )
    share = have["CPU"] / cluster.num_workers
    cores = float(int(share)) if share >= 1 else int(share * 100) / 100
    resources = {"CPU": cores}
    return resources if device.resource == "CPU" else resources | {device.resource: 1}


def _worker(config: dict[str, Any]) -> None:
    """One worker. What only a user can mend ends the run; anything else is worth a restart."""
    assignment: Assignment = config["assignment"]
    try:
        work(assignment, report=ray.train.report)
    except BerthaError as error:
        write_file(assignment.run.refusal, str(error))
