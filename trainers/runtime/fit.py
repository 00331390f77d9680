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
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from cluster.errors import BerthaError
from cluster.launch import spot_notice
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.distributed.device import DEVICES, Device
from trainers.planning.elastic import Elastic
from trainers.planning.layout import planned, sizes
from trainers.runtime.environment import environment
from trainers.runtime.ray_backend import Connection
from trainers.runtime.worker import Assignment, Report, work
from trainers.storage.object_store import StoreError
from trainers.tracking import provenance
from trainers.tracking.progress import Follower
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training import distillation
from trainers.training.loop import TrainingError

START_SECONDS = 1800  # that workers may take to start: machines, images, packages
RECOUNT_SECONDS = 25  # Ray counts machines every 20


@dataclass(frozen=True)
class Outcome:
    """What a run came to: result.json, and how long this call took."""

    result: dict[str, Any]
    seconds: float


def fit(
    recipe: Recipe,
    cluster: ClusterSpec,
    run: Path | str,
    resume: bool = False,
    judged: bool = True,
    report: Report = ray.train.report,
) -> Outcome:
    """Train `recipe` on `cluster` in `run`: a directory that all nodes see, or a URL as s3://...

    A finished run is not repeated. Workers that die are restarted up to the cluster's
    `max_failures`. judged: whether the test rows are looked at and a bundle is made; a run that was
    not judged can be resumed for just that. report: what every worker calls in its own process
    after each evaluation. Raises RunError or StoreError when the directory or the cluster cannot be
    used, and what a worker raised when it cannot go on.
    """
    started, recipe = time.monotonic(), recipe.rooted()
    directory = RunDirectory.at(run, cluster.cache)
    directory.probe()
    directory.claim(recipe, resume)
    directory.fetch(directory.facts.name, directory.outcome.name)
    result = directory.result()
    if result is None or (judged and result["test"] is None):
        assignment = _assignment(recipe, directory, cluster, judged)
        connect(cluster)
        directory.refusal.unlink(missing_ok=True)
        directory.publish(directory.refusal.name)
        with environment(_told(cluster)), Follower(directory, _price(cluster)):
            _fitted(_trainer(assignment, cluster, report))
        directory.fetch(directory.refusal.name, directory.outcome.name)
        if directory.refusal.is_file():
            raise TrainingError(directory.refusal.read_text(encoding="utf-8"))
        result = directory.result()
        if result is None:
            raise RunError(
                f"{directory.address}: the workers ended well, but their result is not here; "
                "metadata.storage, or --run, must be a directory that all nodes see, or "
                "s3://BUCKET/PREFIX"
            )
    return Outcome(result, time.monotonic() - started)


def _assignment(
    recipe: Recipe, run: RunDirectory, cluster: ClusterSpec, judged: bool
) -> Assignment:
    """What the workers are told: the layout is decided here, before anything starts."""
    prepared = distillation.taught(recipe, prepare.prepare(recipe, cluster.cache), cluster.cache)
    if run.record().get("teacher") not in (None, prepared.teacher):
        assert recipe.distillation is not None
        raise RunError(
            f"cannot resume {run.address}: distillation.teacher = "
            f"{recipe.distillation.teacher!r} is not the bundle it began with; put that one back, "
            "or name another directory with --run"
        )
    num_features = int(prepared.train.samples.lengths[0])
    shape = sizes(recipe, prepared.labels, num_features, cluster.cache)
    elastic = Elastic.of(shape, cluster) if cluster.is_elastic else None
    if elastic is not None:
        elastic.refuse(recipe)
    plan = planned(recipe, shape, cluster)
    return Assignment(
        recipe,
        run,
        cluster.cache,
        cluster.metadata.accelerator,
        provenance.revision(),
        plan.layout,
        plan.token_budget,
        elastic,
        judged,
    )


def _fitted(trainer: TorchTrainer) -> None:
    """Let it train. Raises RunError where a disk or a store has failed once too often."""
    try:
        trainer.fit()
    except WorkerGroupError as error:
        for cause in error.worker_failures.values():
            if isinstance(cause, (OSError, StoreError)):
                raise RunError(f"{cause}; go on with --resume once that is mended") from error
        raise


def connect(cluster: ClusterSpec, dashboard: bool = False) -> None:
    """Join the cluster this process was submitted to, or start one on this machine.

    dashboard: whether one that is started here has it.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized() or not cluster.num_workers:
        return
    quiet = {"log_to_driver": False, "logging_level": "error", "include_dashboard": dashboard}
    if cluster.is_this_machine and "RAY_ADDRESS" not in os.environ:
        ray.init(address="local", **quiet)
    else:
        ray.init(**quiet)


def _told(cluster: ClusterSpec) -> dict[str, str]:
    """What Ray Train reads from the environment when a run starts."""
    # How long the workers' places are waited for before machines are counted again. An elastic run
    # takes those that are there, so that one it waits for is one that was counted and is gone;
    # another run waits for machines that are being launched, for which Ray's minute is too short.
    seconds = RECOUNT_SECONDS if cluster.is_elastic else START_SECONDS
    told = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(seconds)}
    if not _may_leave(cluster):
        # The watcher for nodes about to leave takes a tenth of a core, and here no node can.
        told["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return told


def _price(cluster: ClusterSpec) -> float | None:
    """Dollars an hour of all nodes, where the cluster file says."""
    of_a_node = cluster.metadata.price_usd_per_hour
    return None if of_a_node is None else of_a_node * cluster.num_nodes


def _may_leave(cluster: ClusterSpec) -> bool:
    """Whether there are nodes that can be taken away, one by one."""
    return bool(cluster.num_workers) and not (
        cluster.is_this_machine and "RAY_ADDRESS" not in os.environ
    )


def _is_leaving() -> bool:
    """Whether Ray knows that a node of this run will be taken away. All workers call it at once."""
    return ray.train.get_preemption_info() is not None


def _trainer(assignment: Assignment, cluster: ClusterSpec, report: Report) -> TorchTrainer:
    """The trainer of `assignment`; a cluster without workers trains in this process."""
    device, metadata = DEVICES[assignment.device], cluster.metadata
    run_config = RunConfig(
        name=f"attempt-{time.time_ns()}",
        storage_path=str(assignment.run.path / "ray"),
        failure_config=FailureConfig(max_failures=metadata.max_failures),
    )
    config = {
        "assignment": assignment,
        "report": report,
        "leaving": _is_leaving if _may_leave(cluster) else None,
        "is_on_aws": cluster.provider == "aws",
    }
    if not cluster.num_workers:
        alone = ScalingConfig(num_workers=0, use_gpu=device.resource == "GPU")
        return TorchTrainer(
            _worker, train_loop_config=config, scaling_config=alone, run_config=run_config
        )
    numbers = cluster.sizes
    return TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=Connection(device=device),
        scaling_config=ScalingConfig(
            num_workers=(numbers[0], numbers[-1]) if cluster.is_elastic else numbers[-1],
            use_gpu=device.resource == "GPU",
            use_tpu=device.resource == "TPU",
            resources_per_worker=resources(cluster, device),
            elastic_resize_monitor_interval_s=metadata.resize_seconds,
            accelerator_type=metadata.tpu_type,
            topology=metadata.tpu_topology,
        ),
        run_config=run_config,
    )


def resources(cluster: ClusterSpec, device: Device) -> dict[str, float]:
    """What each worker asks Ray for: its device, and an even share of a node's cores.

    Raises RunError when the cluster lacks the devices that its file names.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    seen, least = sum(node.get(device.resource, 0) for node in nodes), cluster.sizes[0]
    if seen < (least if device.resource != "CPU" else 1):
        raise RunError(
            f"cluster {cluster.name}: {least} {device.resource} named, {seen:g} seen by Ray; mend "
            "metadata.devices_per_node or the nodes' resources"
        )
    cores = sorted(node.get("CPU", 0.0) for node in nodes if node.get(device.resource))
    share = cores[-cluster.num_nodes :][0] / cluster.metadata.devices_per_node
    share = min(share, sum(cores) / least)  # where a node holds more workers than the file says
    resources = {"CPU": float(int(share)) if share >= 1 else int(share * 100) / 100}
    return resources if device.resource == "CPU" else resources | {device.resource: 1}


def _worker(config: dict[str, Any]) -> None:
    """One worker. What only a user can mend ends the run; anything else is worth a restart."""
    assignment: Assignment = config["assignment"]
    if config["is_on_aws"] and ray.train.get_context().get_local_rank() == 0:
        spot_notice.beside()
    try:
        work(assignment, config["report"], config["leaving"])
    except StoreError:
        raise
    except BerthaError as error:
        assignment.run.refuse(str(error))
