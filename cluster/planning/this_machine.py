"""How long a run takes on this machine: where that is minutes, nothing need be rented."""

from __future__ import annotations

from dataclasses import replace

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.costmodel.layout_search import first_fitting, rank_candidates
from cluster.planning.devices import devices_of_cluster
from cluster.planning.plan import RAY_SECONDS, TOKENIZED_PER_CORE_SECOND, format_duration
from cluster.planning.workload import Workload
from cluster.spec import load_cluster_spec

SMALL_SECONDS = 1800.0  # of the slow end; longer runs begin with the machines of the catalog
CLUSTER = "local.yaml"


def describe_this_machine(workload: Workload, command: str) -> str | None:
    """Return the line that a plan begins with where this machine does it in minutes, else None.

    command: what starts the run here.
    """
    predicted = predict_this_machine(workload)
    if predicted is None or predicted[0] * NINE_IN_TEN > SMALL_SECONDS:
        return None
    seconds, description = predicted
    low, high = (format_duration(s) for s in (seconds / NINE_IN_TEN, seconds * NINE_IN_TEN))
    about = "a minute" if seconds < 90 else format_duration(seconds)
    return f"first     this machine: {about}, $0 ({low} to {high}, {description}): {command}"


def predict_this_machine(workload: Workload) -> tuple[float, str] | None:
    """Return the seconds of a run, its start included, on the cores that `local.yaml` uses.

    With them, what is assumed of the processor. None where no layout fits into memory.
    """
    cluster = load_cluster_spec(CLUSTER)
    known = devices_of_cluster(cluster)
    job = workload.job_on(known.topology, known.constants, known.stack)
    candidate = first_fitting(
        rank_candidates(replace(job, device_memory=cluster.device_memory_bytes))
    )
    if candidate is None:
        return None
    tokens = (workload.rows or 0) * workload.mean_tokens
    start = RAY_SECONDS + tokens / (TOKENIZED_PER_CORE_SECOND * known.topology.devices)
    return start + workload.steps * candidate.step.total, known.description
