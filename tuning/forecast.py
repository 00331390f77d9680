"""How long a trial and a search will take, by the cluster's cost model.

The hardware is that of the cluster file, as the catalog describes it, or what a probe has
measured (bertha probe --out FILE).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.costmodel.layout_search import first_fitting, rank_candidates
from cluster.costmodel.microbatches import Lengths
from cluster.errors import BerthaError
from cluster.planning import devices, probe
from cluster.planning.workload import Workload
from trainers.data.microbatch import steps_per_epoch
from trainers.planning.workload import RunLength, make_workload
from tuning.algorithms import repeats, scheduler
from tuning.execution.controller import PreparedSearch


class ForecastError(BerthaError):
    """Hardware that neither the catalog nor a probe describes; the text says the way out."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of a trial, and of a search whose trials all train to their end.

    expected_seconds: of the search, as its scheduler stops trials. origin: source of the figures.
    """

    trial_seconds: float
    search_seconds: float
    expected_seconds: float
    origin: str


def forecast_search(prepared: PreparedSearch, probed: Path | None) -> Forecast:
    """Return the forecast for a search. probed: a probe of its devices.

    Raises BerthaError if nothing is known of the hardware, or the probe cannot be read.
    """
    workload = _trial_workload(prepared)
    if probed is not None:
        seconds, origin = _predict_from_probe(prepared, workload, probed)
    else:
        seconds, origin = _predict_from_catalog(prepared, workload)
    config, slots = prepared.config, prepared.capacity.slots
    num_repeats = (config.seeds - 1) * (repeats.FINALISTS + 1)
    expected_runs = 1 + num_repeats + (config.trials - 1) * expected_work_share(prepared)
    search_seconds = seconds * (config.trials + num_repeats) / slots
    return Forecast(seconds, search_seconds, seconds * expected_runs / slots, origin)


def expected_work_share(prepared: PreparedSearch) -> float:
    """Return the share of a whole run that a trial is expected to train, if all are as good.

    ASHA continues one trial in REDUCTION_FACTOR at each rung; median stopping, half of them; a
    population, all.
    """
    schedule, config = prepared.schedule, prepared.config
    if config.scheduler == "none" or config.sampler == "pbt":
        return 1.0
    survival = 1 / scheduler.REDUCTION_FACTOR if config.scheduler == "asha" else 0.5
    ends = [*(rung / schedule.total_tokens for rung in schedule.rungs), 1.0]
    share, before, alive = 0.0, 0.0, 1.0
    for end in ends:
        share += alive * (end - before)
        before, alive = end, alive * survival
    return share


def _trial_workload(prepared: PreparedSearch) -> Workload:
    """Return the work of trial 0; trials with other settings train as many samples."""
    schedule, recipe = prepared.schedule, prepared.config.recipe
    size = recipe.global_batch_size
    whole = steps_per_epoch(schedule.train_samples, size) * recipe.epochs
    steps = min(whole, recipe.stopping.max_steps or whole)
    length = RunLength(
        steps=steps,
        lengths=Lengths.assume_even(
            schedule.train_tokens / schedule.train_samples, recipe.batch.max_length
        ),
        eval_ratio=schedule.num_evals * schedule.validation_samples / (steps * size),
        rows=schedule.train_samples,
    )
    return make_workload(recipe.model.name, recipe, prepared.shape, length)


def _predict_from_probe(
    prepared: PreparedSearch, workload: Workload, path: Path
) -> tuple[float, str]:
    known = probe.read_probe(path)
    local = known.fit_devices(prepared.capacity.devices)
    step = local.predict_step(workload.work_on(local.topology))
    return workload.steps * step.total, f"a probe of {known.name}"


def _predict_from_catalog(prepared: PreparedSearch, workload: Workload) -> tuple[float, str]:
    hardware = devices.devices_of_cluster(prepared.cluster.with_workers(prepared.capacity.devices))
    if hardware.memory is None:
        rented = ", ".join(prepared.cluster.instance_types) or "no kind of machine"
        raise ForecastError(
            f"cluster {prepared.cluster.name} names {rented}, which the catalog does not have: "
            "measure one for a minute (bertha probe --out FILE), "
            "and give --probed FILE"
        )
    per_node = min(prepared.capacity.devices, hardware.topology.devices_per_node)
    topology = replace(hardware.topology, devices_per_node=per_node)
    candidate = first_fitting(rank_candidates(workload.job_on(topology, hardware.constants)))
    if candidate is None:
        raise ForecastError(f"{topology.accelerator.name}: no layout of a trial fits there")
    return workload.steps * candidate.step.total, f"the cost model, {hardware.description}"
