"""How long a run takes on this machine: where that is minutes, nothing need be rented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.costmodel.layout_search import first_fitting, rank_candidates
from cluster.hardware.catalog import load_catalog
from cluster.planning.devices import devices_of_cluster
from cluster.planning.plan import RAY_SECONDS, TOKENIZED_PER_CORE_SECOND, format_duration
from cluster.planning.workload import Workload
from cluster.spec import ClusterSpec, load_cluster_spec

SMALL_SECONDS = 1800.0  # of the slow end; longer runs begin with the machines of the catalog
CLUSTER = "local.yaml"
DRIVER = Path("/proc/driver/nvidia/gpus")  # of NVIDIA's driver, on Linux: a directory a GPU


def read_gpu_models(driver: Path = DRIVER) -> list[str]:
    """Return the models of this machine's NVIDIA GPUs, as `NVIDIA H200`, without any library."""
    models = []
    for path in sorted(driver.glob("*/information")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


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
    """Return the seconds of a run, its start included, on the GPUs or cores of this machine.

    With them, what is assumed of those. None where no layout fits into memory, and for a GPU that
    the catalog does not know.
    """
    cluster = _describe_cluster(read_gpu_models())
    if cluster is None:
        return None
    known = devices_of_cluster(cluster)
    job = workload.job_on(known.topology, known.constants, known.stack)
    memory = cluster.device_memory_bytes or job.device_memory
    candidate = first_fitting(rank_candidates(replace(job, device_memory=memory)))
    if candidate is None:
        return None
    tokens = (workload.rows or 0) * workload.mean_tokens
    start = RAY_SECONDS + tokens / (TOKENIZED_PER_CORE_SECOND * known.topology.devices)
    return start + workload.steps * candidate.step.total, known.description


def _describe_cluster(gpus: list[str]) -> ClusterSpec | None:
    """Return this machine with the `gpus` that its driver names; None for unknown ones.

    Without torch nobody knows whether torch can use them: a run looks again.
    """
    cluster = load_cluster_spec(CLUSTER)
    if not gpus:
        return cluster
    known = load_catalog().find_device(gpus[0])
    if known is None:
        return None
    return cluster.with_metadata(
        accelerator="cuda", devices_per_node=len(gpus), accelerator_name=known.name
    )
