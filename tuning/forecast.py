"""What a trial and a search will take, by the cluster's cost model: seconds, dollars, kWh.

The hardware is the instances of the cluster file, as the catalogue has them, or what a probe has
measured (python -m trainers.probe --out FILE). Where it is neither, nothing is said.
"""

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import BerthaError
from cluster.planning import catalogue, here, probe
from cluster.planning.catalogue import Catalogue
from cluster.planning.demand import Demand
from cluster.planning.hardware import Place
from cluster.planning.placing import job_of, place_on
from cluster.settings import read_yaml
from cluster.spec import SHIPPED
from tuning import finals, scheduler
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
    demand = demand_of(made)
    if probed is not None:
        seconds, origin = _by_probe(made, demand, probed)
    else:
        seconds, origin = _by_catalogue(made, demand)
    plan, slots = made.terms.plan, made.terms.slots
    again = (plan.seeds - 1) * (finals.FINALISTS + 1)
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
    mean = pace.train_tokens / pace.train_samples
    momentum = recipe.optimizer.name == "sgd" and recipe.optimizer.momentum > 0
    evaluated = pace.looks * pace.validation_samples / (steps * size)
    return Demand(
        name=recipe.model.name,
        shape=made.shape,
        steps=steps,
        global_batch=size,
        max_length=recipe.batch.max_length,
        mean_tokens=mean,
        token_budget=recipe.batch.token_budget,
        masked=recipe.masking.share * mean if recipe.task == "masked-lm" else 0.0,
        precision=recipe.precision,
        optimizer="momentum" if momentum else recipe.optimizer.name,
        attention_dropout=recipe.model.attention_dropout > 0,
        evaluated=evaluated,
        rows=pace.train_samples,
        assumed=(),
    )


def _by_probe(made: Setting, demand: Demand, path: Path) -> tuple[float, str]:
    known = probe.read(path)
    local = known.local(made.capacity.devices)
    at_once = max(here.CPU_TOKENS_AT_ONCE, demand.max_length)
    work = job_of(local.place, demand).work(demand.token_budget or at_once)
    return demand.steps * local.step(work).total, f"a probe of {known.name}"


def _by_catalogue(made: Setting, demand: Demand) -> tuple[float, str]:
    instance, region = _instance(made.terms.plan.cluster)
    if instance is None:
        raise ForecastError(
            f"cluster {made.cluster.name} names no kind of machine: measure one for a minute "
            "(python -m trainers.probe --out FILE), and give --probed FILE"
        )
    tables: Catalogue = catalogue.load()
    machine, devices = tables.machine(instance, region), made.capacity.devices
    nodes = max(1, devices // machine.count)
    placed = place_on(Place.of(machine, nodes, min(devices, machine.count)), demand)
    if placed is None:
        raise ForecastError(f"{instance}: no layout of a trial fits there")
    return demand.steps * placed.step.total, f"the cost model of {instance}"


def _instance(cluster: str) -> tuple[str | None, str]:
    """The kind of machine, and the region, of the workers in a cluster file; None of owned ones."""
    path = Path(cluster) if Path(cluster).is_file() else SHIPPED / f"{Path(cluster).stem}.yaml"
    settings = read_yaml(path)
    head = settings.get("head_node_type")
    types = settings.get("available_node_types") or {}
    named = [each for name, each in types.items() if name != head] or list(types.values())
    kinds = [(each.get("node_config") or {}).get("InstanceType") for each in named]
    return next(filter(None, kinds), None), str(settings["provider"].get("region", ""))
