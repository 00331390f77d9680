"""Train a recipe on a cluster: the only place where a TorchTrainer is made.

Ray places the workers, connects them and, when one dies or the cluster changes size, starts all of
them again. Nothing of that reaches the training loop: every start calls `worker.run_worker` anew,
which builds the layout for the workers there are and goes on from the newest checkpoint.
"""

import logging
import os
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._private.services import canonicalize_bootstrap_address
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from cluster.errors import BerthaError
from cluster.launch import spot_notice
from cluster.local_ray import start_local_ray, temporary_env
from cluster.ray_token import close_token_file
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.dataset_cache import PreparedDataset
from trainers.distributed.device import DEVICES, Device
from trainers.distributed.object_collectives import run_on_rank0
from trainers.models.card import CARD_FILE, BundleError, parse_card, read_card
from trainers.planning.elastic import ElasticPlanner
from trainers.planning.layout import resolve_layout, resolve_shape
from trainers.runtime.job_sources import check_job_sources
from trainers.runtime.ray_backend import DeviceTorchConfig
from trainers.runtime.worker import ReportMetrics, WorkerConfig, run_worker
from trainers.storage.filesystem import StoreError
from trainers.storage.lease import LeaseError, hold_lease
from trainers.tracking import provenance
from trainers.tracking.progress import ProgressPrinter
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training import distillation
from trainers.training.loop import TrainingError

WORKER_START_SECONDS = 1800  # that workers may take to start: machines, images, packages
NODE_RECOUNT_SECONDS = 25  # Ray counts machines every 20


@dataclass(frozen=True)
class Outcome:
    """The contents of result.json, and the seconds this call took."""

    result: dict[str, Any]
    seconds: float


def open_run(address: Path | str, cluster: ClusterSpec) -> RunDirectory:
    """Open a run directory. Raises RunError or StoreError where this machine cannot write to it."""
    directory = RunDirectory.from_address(address, cluster.cache_dir)
    directory.check_access()
    return directory


def fit(
    recipe: Recipe,
    cluster: ClusterSpec,
    run: RunDirectory | Path | str,
    resume: bool = False,
    write_bundle: bool = True,
    report: ReportMetrics = ray.train.report,
    prepared: PreparedDataset | None = None,
) -> Outcome:
    """Train `recipe` on `cluster` in `run`: a directory that all nodes see, or a URL as s3://...

    A finished run is not repeated. Workers that die are restarted up to the cluster's
    `max_failures`. write_bundle: evaluate the test rows and write a bundle; a run without can be
    resumed for just that. report: called by every worker in its own process after each evaluation.
    prepared: the recipe's dataset with its teacher's logits, if the caller has it; default: it is
    prepared here. Raises RunError or StoreError when the directory or the cluster cannot be used,
    LeaseError when another driver has the run, and what a worker raised when it cannot go on.
    """
    started, recipe = time.monotonic(), recipe.with_absolute_paths()
    directory = run if isinstance(run, RunDirectory) else open_run(run, cluster)
    with ExitStack() as stack:
        if directory.lease is None:  # else its caller holds it
            directory = replace(directory, lease=stack.enter_context(hold_lease(directory)))
        directory.acquire(recipe, resume)
        result = directory.read_result()
        if result is None or (write_bundle and not _is_concluded(directory, result)):
            if prepared is None:
                check_job_sources(recipe, cluster)
                prepared = prepare.prepare_dataset(recipe, cluster.cache_dir)
                prepared = distillation.attach_teacher_logits(recipe, prepared, cluster.cache_dir)
            config = _build_worker_config(recipe, directory, cluster, write_bundle, prepared)
            result = _train(config, cluster, report, prepared)
    return Outcome(result, time.monotonic() - started)


def _train(
    config: WorkerConfig, cluster: ClusterSpec, report: ReportMetrics, prepared: PreparedDataset
) -> dict[str, Any]:
    """Train to the end; return the contents of result.json."""
    directory, price = config.run, cluster.metadata.price_usd_per_hour
    init_ray(cluster)
    directory.check_lease()
    directory.error_path.unlink(missing_ok=True)
    directory.publish_files(directory.error_path.name)
    printer = ProgressPrinter(directory, None if price is None else price * cluster.num_nodes)
    with temporary_env(_ray_train_env(cluster)), printer:
        _run_trainer(_build_trainer(config, cluster, report, prepared), directory)
    directory.check_lease()  # workers that lost it have ended without a word
    directory.fetch_files(directory.error_path.name, directory.result_path.name)
    if directory.error_path.is_file():
        raise TrainingError(directory.error_path.read_text(encoding="utf-8"))
    result = directory.read_result()
    if result is None:
        raise RunError(
            f"{directory.address}: the workers succeeded, but wrote no result there; "
            "metadata.storage, or --run, must be a directory that all nodes see, or "
            "s3://BUCKET/PREFIX"
        )
    return result


def _is_concluded(run: RunDirectory, result: dict[str, Any]) -> bool:
    """Return whether a run that has ended was tested, and has its bundle whole."""
    if result["test"] is None:
        return False
    try:
        if not run.home:
            read_card(run.bundle_path)
            return True
        data = run.read_file(f"{run.bundle_path.name}/{CARD_FILE}")
        if data is None:
            raise BundleError(f"{run.address}: no bundle is there")
        card, there = parse_card(data, f"{run.address}/bundle"), run.store.list_files("bundle")
        missing = set(card.files) - {path.removeprefix("bundle/") for path in there}
        if missing:
            raise BundleError(f"{run.address}/bundle: {min(missing)} is missing")
    except BundleError as error:
        warnings.warn(f"writing the bundle again: {error}", stacklevel=2)
        return False
    return True


def _build_worker_config(
    recipe: Recipe,
    run: RunDirectory,
    cluster: ClusterSpec,
    write_bundle: bool,
    prepared: PreparedDataset,
) -> WorkerConfig:
    """Decide the layout, before anything starts. Raises LayoutError or RunError."""
    if run.read_record().get("teacher") not in (None, prepared.teacher):
        assert recipe.distillation is not None
        raise RunError(
            f"cannot resume {run.address}: distillation.teacher = "
            f"{recipe.distillation.teacher!r} is not the bundle it began with; put that one back, "
            "or name another directory with --run"
        )
    num_features = int(prepared.train.samples.lengths[0])
    shape = resolve_shape(recipe, prepared.labels, num_features, cluster.cache_dir)
    elastic = ElasticPlanner.from_cluster(shape, cluster) if cluster.is_elastic else None
    if elastic is not None:
        elastic.validate_sizes(recipe)
    plan = resolve_layout(recipe, shape, cluster)
    return WorkerConfig(
        recipe,
        run,
        cluster.cache_dir,
        prepared.fingerprint,
        cluster.metadata.accelerator,
        provenance.code_revision(),
        plan.layout,
        plan.token_budget,
        elastic,
        write_bundle,
    )


def _run_trainer(trainer: TorchTrainer, run: RunDirectory) -> None:
    """Run `trainer`. Raises RunError where a disk or a store has failed once too often."""
    try:
        trainer.fit()
    except LeaseError:
        raise
    except (OSError, StoreError) as error:  # of the loop, where it runs in this process
        raise _translate(error, run) from error
    except WorkerGroupError as error:
        for cause in error.worker_failures.values():
            if isinstance(cause, LeaseError):
                raise cause from error
            if isinstance(cause, (OSError, StoreError)):
                raise _translate(cause, run) from error
        raise


def _translate(error: Exception, run: RunDirectory) -> RunError:
    """Return the error of a disk or a store as one that names the run and the way out."""
    where = "" if run.address in str(error) else f"{run.address}: "
    return RunError(f"{where}{error}; fix that, then go on with --resume")


def init_ray(cluster: ClusterSpec, dashboard: bool = False) -> None:
    """Join the Ray cluster this process was submitted to, or start one on this machine.

    dashboard: of a cluster that is started here. Raises RunError where there is none to join.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized() or not cluster.num_workers:
        return
    if not _has_removable_nodes(cluster):
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
    is_submitted = os.environ.get("RAY_ADDRESS", "") not in ("", "local")
    is_local = cluster.is_this_machine and not is_submitted
    return bool(cluster.num_workers) and not is_local


def _is_preemption_announced() -> bool:
    """Return whether Ray knows that a node of this run will be reclaimed. Collective."""
    return ray.train.get_preemption_info() is not None


def _build_trainer(
    config: WorkerConfig, cluster: ClusterSpec, report: ReportMetrics, prepared: PreparedDataset
) -> TorchTrainer:
    """Build the trainer; that of a cluster without workers trains in this process."""
    device, metadata = DEVICES[config.device], cluster.metadata
    train_loop_config = {
        "config": config,
        "report": report,
        "is_leaving": _is_preemption_announced if _has_removable_nodes(cluster) else None,
        "is_on_aws": cluster.provider == "aws",
        # A worker in another process maps the data from its machine's cache instead.
        "prepared": None if cluster.num_workers else prepared,
    }
    scaling = ScalingConfig(num_workers=0, use_gpu=device.resource == "GPU")
    if cluster.num_workers:
        counts = cluster.worker_counts
        scaling = ScalingConfig(
            num_workers=(counts[0], counts[-1]) if cluster.is_elastic else counts[-1],
            use_gpu=device.resource == "GPU",
            use_tpu=device.resource == "TPU",
            resources_per_worker=resources_per_worker(cluster, device),
            elastic_resize_monitor_interval_s=metadata.resize_seconds,
            accelerator_type=metadata.tpu_type,
            topology=metadata.tpu_topology,
        )
    return TorchTrainer(
        _train_loop_per_worker,
        train_loop_config=train_loop_config,
        torch_config=DeviceTorchConfig(device=device) if cluster.num_workers else None,
        scaling_config=scaling,
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

    To Ray every exception is a failed attempt, of which it makes `max_failures` more. What a retry
    cannot cure, a mistake of the user's or a diverged loss, is therefore written to the run
    directory and the worker returns as if it had succeeded; `fit` finds the file and raises. A
    store that fails may come back, so its error is left to Ray. Where another driver has taken the
    run over, all workers return, too, and `fit` raises.
    """
    worker_config: WorkerConfig = config["config"]
    if not run_on_rank0(lambda: worker_config.run.is_held):
        return
    if config["is_on_aws"] and ray.train.get_context().get_local_rank() == 0:
        spot_notice.start_watcher()
    try:
        run_worker(worker_config, config["report"], config["is_leaving"], config["prepared"])
    except StoreError:
        raise
    except BerthaError as error:
        worker_config.run.write_error(str(error))
