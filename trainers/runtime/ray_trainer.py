"""Train with Ray's workers: the only place where a TorchTrainer is made.

Ray places the workers, connects them and, when one dies or the cluster changes size, starts all of
them again. Nothing of that reaches the training loop: every start calls `worker.run_worker` anew,
which builds the layout for the workers there are and goes on from the newest checkpoint.
"""

import logging
import time
from typing import Any

import ray
import ray.train
from ray._private.services import canonicalize_bootstrap_address
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from cluster.launch import spot_notice
from cluster.local_ray import is_submitted, start_local_ray, temporary_env
from cluster.ray_token import close_token_file
from cluster.spec import ClusterSpec
from trainers.distributed.device import DEVICES, Device
from trainers.runtime.elastic_policy import count_free_nodes
from trainers.runtime.ray_backend import DeviceTorchConfig
from trainers.runtime.worker import ReportMetrics, run_attempt, storage_error, worker_error
from trainers.runtime.worker_config import WorkerConfig
from trainers.storage.filesystem import StoreError
from trainers.storage.lease import LeaseError
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.tracking.wait import Wait

WORKER_START_SECONDS = 1800  # that workers may take to start: machines, images, packages
NODE_RECOUNT_SECONDS = 25  # Ray counts machines every 20


def train_with_workers(
    config: WorkerConfig, cluster: ClusterSpec, report: ReportMetrics | None = None
) -> None:
    """Train to the end in workers that Ray starts, and starts again when they die.

    report: called by every worker; default: Ray Train's. Raises RunError where the cluster cannot
    be joined, or a disk or a store has failed once too often.
    """
    with temporary_env(_ray_train_env(cluster)):
        _run_trainer(_build_trainer(config, cluster, report or ray.train.report), config.run)


def _run_trainer(trainer: TorchTrainer, run: RunDirectory) -> None:
    """Run `trainer`. Raises RunError where a disk, a store or a worker failed once too often."""
    try:
        with count_free_nodes():
            trainer.fit()
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        own = getattr(error, "controller_failure", error)
        causes = [*failures.values()] or [own]
        for cause in causes:
            if isinstance(cause, LeaseError):
                raise cause from error
            if isinstance(cause, (OSError, StoreError)):
                raise storage_error(cause, run) from error
        raise worker_error(causes[0], run, str(error)) from error


def init_ray(cluster: ClusterSpec, dashboard: bool = False) -> None:
    """Join the Ray cluster this process was submitted to, or start one on this machine.

    dashboard: of a cluster that is started here. Raises RunError where there is none to join.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized() or not cluster.num_workers:
        return
    if not _has_removable_nodes(cluster):
        with Wait("starting Ray"):
            start_local_ray(dashboard)
        return
    if canonicalize_bootstrap_address(None) is None:
        # Ray would start a new one, which listens at every address of this machine. Nor may it look
        # for any other that runs here, as for "auto": whoever runs that would be sent the token.
        raise RunError(
            f"cluster {cluster.name}: no Ray to join here; run this on it with `ray job submit`, "
            "or without --cluster on this machine"
        )
    close_token_file()
    with Wait("joining Ray"):
        ray.init(log_to_driver=False, logging_level="error")


def _ray_train_env(cluster: ClusterSpec) -> dict[str, str]:
    """Return the environment variables that Ray Train reads when a run starts."""
    # Ray waits so long for the workers' placement group, then counts machines again. An elastic run
    # asks for machines that were counted, so one that does not come is gone: give up soon. Any
    # other run waits for machines that are still being launched: Ray's default minute is too short.
    seconds = NODE_RECOUNT_SECONDS if cluster.is_elastic else WORKER_START_SECONDS
    env = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(seconds)}
    if not _has_removable_nodes(cluster):
        # The preemption watcher takes a tenth of a core, and here no node can be preempted.
        env["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return env


def _has_removable_nodes(cluster: ClusterSpec) -> bool:
    """Return whether the run is on a cluster, whose nodes can be lost or reclaimed one by one."""
    return not cluster.is_this_machine or is_submitted()


def _is_preemption_announced() -> bool:
    """Return whether Ray knows that a node of this run will be reclaimed. Collective."""
    return ray.train.get_preemption_info() is not None


def _build_trainer(
    config: WorkerConfig, cluster: ClusterSpec, report: ReportMetrics
) -> TorchTrainer:
    device, metadata, counts = DEVICES[config.device], cluster.metadata, cluster.worker_counts
    return TorchTrainer(
        _train_loop_per_worker,
        train_loop_config={
            "config": config,
            "report": report,
            "is_leaving": _is_preemption_announced if _has_removable_nodes(cluster) else None,
            "is_on_aws": cluster.provider == "aws",
        },
        torch_config=DeviceTorchConfig(device=device),
        scaling_config=ScalingConfig(
            num_workers=(counts[0], counts[-1]) if cluster.is_elastic else counts[-1],
            use_gpu=device.resource == "GPU",
            use_tpu=device.resource == "TPU",
            resources_per_worker=resources_per_worker(cluster, device),
            elastic_resize_monitor_interval_s=metadata.resize_seconds,
            accelerator_type=metadata.tpu_type,
            topology=metadata.tpu_topology,
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(config.run.path / "ray"),
            failure_config=FailureConfig(max_failures=metadata.max_failures),
        ),
    )


def resources_per_worker(cluster: ClusterSpec, device: Device) -> dict[str, float]:
    """Return what each worker asks Ray for: its device, and an even share of a node's cores.

    Raises RunError when the cluster lacks the devices that its file names.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    seen, least = sum(node.get(device.resource, 0) for node in nodes), cluster.worker_counts[0]
    if seen < (least if device.resource != "CPU" else 1):
        raise RunError(
            f"cluster {cluster.name}: {least} {device.resource} named, {seen:g} seen by Ray; "
            "correct metadata.devices_per_node or the nodes' resources"
        )
    cores = sorted(node.get("CPU", 0.0) for node in nodes if node.get(device.resource))
    share = cores[-cluster.num_nodes :][0] / cluster.metadata.devices_per_node
    share = min(share, sum(cores) / least)  # where a node holds more workers than the file says
    resources = {"CPU": float(int(share)) if share >= 1 else int(share * 100) / 100}
    return resources if device.resource == "CPU" else resources | {device.resource: 1}


def _train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run one worker: Ray Train calls this in every process, at the start and at each restart.

    To Ray every exception is a failed attempt, of which it makes `max_failures` more.
    """
    if config["is_on_aws"] and ray.train.get_context().get_local_rank() == 0:
        spot_notice.start_watcher()
    run_attempt(config["config"], config["report"], config["is_leaving"])
