"""The bridge to serving: measures engines of bundles, registers the winner as `NAME@best`.

Registering changes nothing that is served; `bertha deploy` does.
"""

import math
from pathlib import Path

from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from serving.commands import open_writable_registry
from serving.fetch import local_copy, upload_engines
from serving.registry.model_ref import check_model_name
from trainers.models.card import EngineRecord, read_card
from tuning.algorithms.pareto import (
    MILLION,
    DeploymentOption,
    estimate_p95_seconds,
    price_in_usd,
)
from tuning.execution.tuner import Search

ALIAS = "best"


class DeploymentError(BerthaError):
    """A bundle whose engines cannot be measured, or that cannot be registered; says why."""


def check_registration(name: str, address: str) -> None:
    """Raise DeploymentError if nothing can be registered as `name`: before any training."""
    try:
        check_model_name(name)
        open_writable_registry(address)
    except BerthaError as error:
        raise DeploymentError(f"--register {name}: {error}") from None


def register_winner(bundle: Path, name: str, address: str, note: str) -> str:
    """Register `bundle` as the next version of `name`, and alias it; return `name:version`."""
    try:
        registry = open_writable_registry(address)
        version = registry.register(bundle, name, note)
        registry.set_alias(name, ALIAS, version, note)
    except BerthaError as error:
        raise DeploymentError(f"--register {name}: {error}") from None
    return f"{name}:{version}"


def measure_engines(search: Search, number: int) -> list[DeploymentOption]:
    """Build and measure every engine of a trial's bundle, and store them in it."""
    from serving.optimize import optimize  # torch and every inference library

    bundle = f"{search.trial_directory(number).address}/bundle"
    metric, cluster = search.prepared.config.recipe.metric, search.prepared.cluster
    print(f"measuring the engines of trial {number}", flush=True)
    try:
        with local_copy(bundle) as directory:
            engines = optimize.build_engines(directory, log=lambda line: print(line, flush=True))
            card = read_card(directory)
            print(optimize.format_table(engines, card), flush=True)
            upload_engines(directory, bundle)
    except BerthaError as error:
        raise DeploymentError(f"the engines of trial {number}: {error}") from None
    on_cpu = [each for each in card.engines if each.device == "cpu"]  # priced by the CPU-second
    return [_to_option(number, each, card.max_length, metric, cluster) for each in on_cpu]


def _to_option(
    number: int, engine: EngineRecord, max_length: int, metric: str, cluster: ClusterSpec
) -> DeploymentOption:
    speeds = engine.texts_per_second.values()  # of short texts and of long ones
    cpu_seconds = MILLION / math.prod(speeds) ** (1 / len(speeds))
    return DeploymentOption(
        trial=number,
        engine=engine.name,
        metric=float(engine.metrics[metric]),
        p95_seconds=estimate_p95_seconds(
            engine.batch_tokens, max_length, engine.texts_per_second["long"]
        ),
        cpu_seconds=cpu_seconds,
        usd=price_in_usd(cpu_seconds, cluster),
        refused=engine.refused,
    )
