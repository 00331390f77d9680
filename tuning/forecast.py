"""What a trial and a search will take, by the cluster's cost model: seconds, dollars, kWh.

The hardware is what the cluster file names, as the catalogue has it, or what a probe has measured
(python -m trainers.planning.probe --out FILE). Where it is neither, nothing is said.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.costmodel.microbatches import Lengths
from cluster.errors import BerthaError
from cluster.planning import calibrate, demand, devices, probe
from cluster.planning.demand import Demand, Extent
from cluster.planning.placement import place_on
from cluster.planning.recipe_reader import Sketch
from tuning.algorithms import repeats, scheduler
from tuning.study import Setting


class ForecastError(BerthaError):
    """Hardware that nothing is known of; the text says the way out."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of a trial, and of a search whose trials all train to their end.

    expected_seconds: of the search, as its scheduler stops trials. origin: whose figures these are.
    """

    trial_seconds: float
    search_seconds: float
    expected_seconds: float
    origin: str


def forecast(made: Setting, probed: Path | None) -> Forecast:
    """The forecast for a search. probed: a probe of its devices.

    Raises BerthaError where nothing is known of the hardware, or the probe cannot be read.
    """
    asked = demand_of(made)
    if probed is not None:
        seconds, origin = _by_probe(made, asked, probed)
    else:
        seconds, origin = _by_catalogue(made, asked)
    plan, slots = made.terms.plan, made.terms.slots
    again = (plan.seeds - 1) * (repeats.FINALISTS + 1)
    runs = 1 + again + (plan.trials - 1) * share_of_work(made)
    most = seconds * (plan.trials + again) / slots
    return Forecast(seconds, most, seconds * runs / slots, origin)


def share_of_work(made: Setting) -> float:
    """The part of a whole trial that a trial is expected to train, if one is as good as another.

    Of ASHA one in `REDUCTION` goes on at each rung; of median stopping, half; in a population, all.
    """
    pace, kind = made.terms.pace, made.terms.plan.scheduler
    if kind == "none" or made.terms.plan.sampler == "pbt":
        return 1.0
    onward = 1 / scheduler.REDUCTION if kind == "asha" else 0.5
    ends = [*(rung / pace.total_tokens for rung in pace.rungs), 1.0]
    share, before, alive = 0.0, 0.0, 1.0
    for end in ends:
        share += alive * (end - before)
        before, alive = end, alive * onward
    return share


def demand_of(made: Setting) -> Demand:
    """The work of trial 0; one with other settings trains as many samples."""
    pace, recipe = made.terms.pace, made.terms.plan.recipe
    size = recipe.batch.global_size
    steps = max(1, round(pace.total_samples / size))
    extent = Extent(
        steps=steps,
        lengths=Lengths.unknown(pace.train_tokens / pace.train_samples, recipe.batch.max_length),
        evaluated=pace.looks * pace.validation_samples / (steps * size),
        rows=pace.train_samples,
    )
    sketch = Sketch.model_validate(recipe.model_dump())
    return demand.of(recipe.model.name, sketch, made.shape, extent)


def _by_probe(made: Setting, asked: Demand, path: Path) -> tuple[float, str]:
    known = probe.read(path)
    local = known.local(made.capacity.devices)
    work = calibrate.work(local.place, asked)
    return asked.steps * local.step(work).total, f"a probe of {known.name}"


def _by_catalogue(made: Setting, asked: Demand) -> tuple[float, str]:
    found = devices.of(made.cluster.at(made.capacity.devices))
    if found.memory is None:
        rented = ", ".join(made.cluster.instances) or "no kind of machine"
        raise ForecastError(
            f"cluster {made.cluster.name} names {rented}, which the catalogue does not have: "
            "measure one for a minute (python -m trainers.planning.probe --out FILE), "
            "and give --probed FILE"
        )
    a_node = min(made.capacity.devices, found.place.devices_per_node)
    place = replace(found.place, devices_per_node=a_node)
    placed = place_on(place, asked, found.constants)
    if placed is None:
        raise ForecastError(f"{place.accelerator.name}: no layout of a trial fits there")
    return asked.steps * placed.step.total, f"the cost model, {found.told}"
