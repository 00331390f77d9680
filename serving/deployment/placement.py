"""Which device the replicas of an endpoint compute on, and what Ray reserves for each.

Pure functions of what Ray or torch counts: `{"CPU": 16.0, "GPU": 2.0}`. Placement on anything but
CPUs has not run on hardware.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import BerthaError
from serving.deployment.config import EndpointConfig
from serving.interface import SERVED_DEVICES

# How Ray counts a kind of device, beside the core that every replica has.
RESOURCES = {"cuda": "GPU", "xpu": "GPU", "neuron": "neuron_cores"}
REPLICAS_PER_GPU = 4  # by default: one process answers fewer requests than a GPU computes


class PlacementError(BerthaError):
    """Replicas that cannot be placed; the message names the field, its value and the way out."""


def find_local_gpus() -> tuple[str, int]:
    """Return the kind of the GPUs of this machine, as torch finds them, and their number."""
    import torch

    from serving.engine.devices import find_engine_device

    kind = find_engine_device()
    return (kind, torch.accelerator.device_count()) if RESOURCES.get(kind) == "GPU" else ("cpu", 0)


def place_endpoint(endpoint: EndpointConfig, resources: Mapping[str, float]) -> EndpointConfig:
    """Return `endpoint` with its device known, and its share of a GPU where it is one.

    auto: a GPU where there is one. resources: of all nodes together. Raises PlacementError.
    """
    gpus = int(resources.get("GPU", 0))
    device = endpoint.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
        if not gpus and endpoint.gpus_per_replica is not None:
            raise PlacementError(
                f"gpus_per_replica = {endpoint.gpus_per_replica:g}: there is no GPU; leave it out, "
                "and replicas compute on the CPU"
            )
    if device not in SERVED_DEVICES:
        raise PlacementError(
            f"device = {device}: serving has no engine for it yet; choose one of "
            f"{', '.join(SERVED_DEVICES)}"
        )
    resource = RESOURCES.get(device)
    if resource is not None and resources.get(resource, 0) < 1:
        raise PlacementError(
            f"device = {device}: there is no {resource} here that Ray could give to a replica; "
            "choose cpu, or auto for what there is, or add a node that has one"
        )
    share = _share_of_gpu(endpoint, gpus) if resource == "GPU" else None
    return endpoint.model_copy(update={"device": device, "gpus_per_replica": share})


def _share_of_gpu(endpoint: EndpointConfig, gpus: int) -> float:
    """Return what a replica gets of a GPU: as asked, else so that all replicas have one."""
    share = endpoint.gpus_per_replica
    if share is None:
        on_one = math.ceil(endpoint.max_replicas / gpus)
        return max(1, 100 // on_one) / 100
    places = gpus * _per_gpu(share)
    if places < endpoint.min_replicas:
        on_one = math.ceil(endpoint.min_replicas / gpus)
        raise PlacementError(
            f"gpus_per_replica = {share:g}: {endpoint.min_replicas} replicas of it do not fit on "
            f"{gpus} GPU{'s' if gpus > 1 else ''}; take at most {max(1, places)} replicas, or "
            f"{math.floor(100 / on_one) / 100:g} of a GPU each"
        )
    return share


def actor_options(endpoint: EndpointConfig) -> dict[str, Any]:
    """Return what Ray reserves for a replica of a placed endpoint, as options of its actor."""
    resource = RESOURCES.get(endpoint.device)
    if resource == "GPU":
        return {"num_cpus": 1, "num_gpus": endpoint.gpus_per_replica}
    return {"num_cpus": 1} | ({} if resource is None else {"resources": {resource: 1}})


def count_places(endpoint: EndpointConfig, nodes: Iterable[Mapping[str, float]]) -> list[int]:
    """Return how many replicas of a placed endpoint fit on each node that has room for one.

    nodes: the free resources of each.
    """
    resource, places = RESOURCES.get(endpoint.device), []
    for free in nodes:
        fits = int(free.get("CPU", 0))
        if resource == "GPU":
            fits = min(fits, int(free.get("GPU", 0)) * _per_gpu(endpoint.gpus_per_replica or 1))
        elif resource is not None:
            fits = min(fits, int(free.get(resource, 0)))
        places.append(fits)
    return [fits for fits in places if fits]


def describe_placement(endpoint: EndpointConfig) -> str:
    """Describe the device of each replica of a placed endpoint."""
    share = endpoint.gpus_per_replica
    if share is None:
        return endpoint.device
    return f"{endpoint.device}, " + ("a GPU each" if share == 1 else f"{share:g} of a GPU each")


def _per_gpu(share: float) -> int:
    """Return how many replicas of a share fit on one GPU: a replica is never on two."""
    return int(1 / share + 1e-9)
