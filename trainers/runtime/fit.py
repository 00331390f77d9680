"""Train a recipe: check what can be checked before data are read, prepare them, and train.

In this process where the run is small or the cluster has no workers, else in workers that Ray
starts (`ray_trainer`, imported only then). Either calls `worker.run_worker`, which goes on from the
newest checkpoint.
"""

import time
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.costmodel.model_shape import ModelShape
from cluster.launch import spot_notice
from cluster.spec import ClusterSpec
from trainers.checkpoint import checkpoint
from trainers.config.defaults import apply_values, choose_settings
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.dataset_cache import PreparedDataset
from trainers.evaluation.held_out import load_held_out
from trainers.evaluation.label_errors import LABEL_ISSUES_FILE, write_label_issues
from trainers.evaluation.verdict import describe_baselines
from trainers.models.card import CARD_FILE, BundleError, parse_card, read_card
from trainers.models.heads import plan_head
from trainers.models.pretrained import check_pretrained
from trainers.planning.accelerator import check_accelerator, resolve_accelerator
from trainers.planning.elastic import ElasticPlanner
from trainers.planning.layout import resolve_layout, resolve_shape
from trainers.planning.placement import place_run
from trainers.runtime.early_checks import check_settings, open_run
from trainers.runtime.worker import ReportMetrics, run_attempt, storage_error, worker_error
from trainers.runtime.worker_config import WorkerConfig
from trainers.storage.filesystem import StoreError
from trainers.storage.lease import LeaseError, hold_lease
from trainers.tracking import provenance
from trainers.tracking.progress import ProgressPrinter
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.tracking.wait import Wait
from trainers.training import distillation, linear_probe
from trainers.training.linear_probe import Head
from trainers.training.loop import TrainingError
from trainers.training.losses import check_class_weights


@dataclass(frozen=True)
class Outcome:
    """The contents of result.json, and the seconds this call took."""

    result: dict[str, Any]
    seconds: float


def fit(
    recipe: Recipe,
    cluster: ClusterSpec,
    run: RunDirectory | Path | str,
    resume: bool = False,
    write_bundle: bool = True,
    report: ReportMetrics | None = None,
    prepared: PreparedDataset | None = None,
) -> Outcome:
    """Train `recipe` on `cluster` in `run`: a directory that all nodes see, or a URL as s3://...

    A finished run is not repeated. Workers that die are restarted up to the cluster's
    `max_failures`; a small run, which trains in this process, ends with it. write_bundle: evaluate
    the test rows and write a bundle; a run without can be resumed for just that. report: called by
    every worker in its own process after each evaluation; default: Ray Train's. prepared: the
    recipe's dataset with its teacher's logits, if the caller has it; default: it is prepared here.
    Raises RunError or StoreError when the directory or the cluster cannot be used, LeaseError when
    another driver has the run, TrainingError when it cannot go on, and WorkerError for what nobody
    foresaw.
    """
    started, recipe = time.monotonic(), recipe.with_absolute_paths()
    cluster = choose_accelerator(cluster)
    directory = run if isinstance(run, RunDirectory) else open_run(run, cluster)
    with ExitStack() as stack:
        if directory.lease is None:  # else its caller holds it
            directory = replace(directory, lease=stack.enter_context(hold_lease(directory)))
        check_settings(recipe, cluster)
        line = directory.acquire(recipe, resume).to_line()
        if line:
            print(line, flush=True)
        result = directory.read_result()
        if result is None or (write_bundle and not _is_concluded(directory, result)):
            if prepared is None:
                check_pretrained(recipe, cluster.cache_dir)
                prepared = prepare.prepare_dataset(recipe, cluster.cache_dir)
                prepared = distillation.attach_teacher_logits(recipe, prepared, cluster.cache_dir)
            check_class_weights(recipe, prepared.labels)
            num_features = int(prepared.train.samples.lengths[0])
            shape = resolve_shape(recipe, prepared.labels, num_features, cluster.cache_dir)
            recipe = _settle_recipe(recipe, directory, shape, prepared)
            cluster = _place_run(recipe, shape, cluster, prepared)
            config = _build_worker_config(recipe, shape, directory, cluster, write_bundle, prepared)
            if write_bundle:
                _fit_baselines(recipe, cluster, prepared)
            if write_bundle and recipe.evaluation.label_errors:
                _find_label_errors(config, prepared)
            config = replace(config, head=_fit_head(config, prepared))
            result = _train(config, cluster, report, prepared)
    return Outcome(result, time.monotonic() - started)


def choose_accelerator(cluster: ClusterSpec) -> ClusterSpec:
    """Return `cluster` with what `accelerator: auto` finds, and say it.

    Raises SettingsError where a run here asks for a GPU that torch cannot use.
    """
    choice = resolve_accelerator(cluster)
    check_accelerator(choice.cluster)
    if choice.line:
        print(choice.line, flush=True)
    return choice.cluster


def _settle_recipe(
    recipe: Recipe, run: RunDirectory, shape: ModelShape, prepared: PreparedDataset
) -> Recipe:
    """Return the recipe with numbers for what it leaves `auto`, and say them.

    Those of a run that is resumed are the ones that it began with.
    """
    begun = apply_values(recipe, run.read_record().get("settings") or {})
    chosen = choose_settings(begun, len(prepared.train), shape.hidden_size)
    for line in chosen.to_lines():
        print(line, flush=True)
    return chosen.recipe


def _fit_head(config: WorkerConfig, prepared: PreparedDataset) -> Head | None:
    """Fit the head that a new run on few rows begins with; None for others."""
    if checkpoint.find_latest(config.run.checkpoints) is not None:
        return None
    line = plan_head(config.recipe, prepared.labels).line
    if line:
        print(f"head      {line}", flush=True)
    if not linear_probe.is_worth_fitting(config.recipe, prepared):
        return None
    encoder = prepare.load_recipe_encoder(config.recipe, config.cache)
    with Wait("fitting a head to the frozen encoder"):
        head = linear_probe.fit_head(config.recipe, prepared, encoder)
    print(
        f"head      fitted to the frozen encoder on {head.rows:,} rows, {head.seconds:.0f}s: "
        "where training starts",
        flush=True,
    )
    return head


def _find_label_errors(config: WorkerConfig, prepared: PreparedDataset) -> None:
    """List the training rows whose label is likely wrong, once a run, and say how many."""
    recipe, run = config.recipe, config.run
    path = run.path / LABEL_ISSUES_FILE
    if run.read_file(path.name) is not None:
        return
    encoder = prepare.load_recipe_encoder(recipe, config.cache)
    with Wait("looking for wrong labels"):
        features = linear_probe.frozen_features(recipe, prepared, encoder)
        found = write_label_issues(path, recipe, prepared, features, encoder.clean)
    run.publish_files(path.name)
    rows = len(prepared.train)
    where = f"{run.address}/{path.name}"
    print(f"labels    {found:,} of {rows:,} training rows may be wrong: {where}", flush=True)


def _fit_baselines(recipe: Recipe, cluster: ClusterSpec, prepared: PreparedDataset) -> None:
    """Fit what the run has to beat, for its verdict at the end, and say it."""
    encoder = prepare.load_recipe_encoder(recipe, cluster.cache_dir)
    has_baseline = recipe.baseline and recipe.task != "masked-lm"
    with Wait("fitting a bag of words") if has_baseline else nullcontext():
        rows = load_held_out(recipe, prepared, encoder.clean, cluster.cache_dir)
    for line in describe_baselines(recipe, prepared.labels, prepared.test.take_targets(), rows):
        print(line, flush=True)


def _place_run(
    recipe: Recipe, shape: ModelShape, cluster: ClusterSpec, prepared: PreparedDataset
) -> ClusterSpec:
    """Return the cluster with the workers that this run needs: none for a small one, which says so.

    Raises LayoutError.
    """
    placement = place_run(recipe, shape, cluster, prepared.train.samples.lengths)
    if placement.reason:
        print(placement.reason, flush=True)
    return placement.cluster


def _train(
    config: WorkerConfig,
    cluster: ClusterSpec,
    report: ReportMetrics | None,
    prepared: PreparedDataset,
) -> dict[str, Any]:
    """Train to the end; return the contents of result.json."""
    directory, price, workers = config.run, cluster.metadata.price_usd_per_hour, cluster.num_workers
    if workers:
        from trainers.runtime import ray_trainer  # Ray takes seconds to import

        ray_trainer.init_ray(cluster)
    directory.check_lease()
    for path in (directory.error_path, directory.traceback_path):
        path.unlink(missing_ok=True)
        directory.publish_files(path.name)
    usd_per_hour = None if price is None else price * cluster.num_nodes
    start = f"starting {workers} worker{'s' * (workers > 1)}" if workers else "loading the model"
    with ProgressPrinter(directory, usd_per_hour, start=Wait(start)):
        if workers:
            ray_trainer.train_with_workers(config, cluster, report)
        else:
            _train_here(config, cluster, report, prepared)
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


def _train_here(
    config: WorkerConfig,
    cluster: ClusterSpec,
    report: ReportMetrics | None,
    prepared: PreparedDataset,
) -> None:
    """Train to the end in this process, which nobody restarts: what fails is raised."""
    if cluster.provider == "aws":
        spot_notice.start_watcher()
    try:
        run_attempt(config, report or (lambda metrics: None), None, prepared)
    except LeaseError:
        raise
    except (OSError, StoreError) as error:
        raise storage_error(error, config.run) from error
    except Exception as error:
        raise worker_error(error, config.run) from error


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
    shape: ModelShape,
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
    elastic = ElasticPlanner.from_cluster(shape, cluster) if cluster.is_elastic else None
    if elastic is not None:
        elastic.validate_sizes(recipe)
    plan = resolve_layout(recipe, shape, cluster)
    return WorkerConfig(
        recipe,
        run,
        cluster.cache_dir,
        prepared.fingerprint,
        cluster.device_kind,
        provenance.code_revision(),
        plan.layout,
        plan.token_budget,
        elastic,
        write_bundle,
    )
