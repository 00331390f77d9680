"""The devices of a cluster as the cost model sees them: the catalogue's, or ones that are assumed.

A cluster file says what machines it rents, or which accelerator its own have: `accelerator_name`.
Where it says neither, layouts are weighed as on a common one of its kind. A device is what a worker
has: a GPU, or a logical core of a Neuron chip (not run on hardware). Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.costmodel.constants import CALIBRATED, TORCH, Constants, Stack
from cluster.hardware import catalog
from cluster.hardware.catalog import Catalogue
from cluster.hardware.types import Machine, Place
from cluster.planning import probe
from cluster.spec import ClusterSpec

# The machine whose accelerators and network stand for a kind that is not named.
COMMON = {"cuda": "p4d.24xlarge", "neuron": "trn2.48xlarge"}
COMMON_TPU = "TPU v5e"
NETWORK = 1.25e9  # bytes/s of a node of which nothing is known: 10 Gb/s


@dataclass(frozen=True)
class Devices:
    """Where a run's devices stand, what is known of them, and in words what was assumed.

    memory: bytes of one that the catalogue has; None of one that is assumed.
    """

    place: Place
    constants: Constants
    stack: Stack
    told: str
    memory: float | None = None


def of(cluster: ClusterSpec) -> Devices:
    """The devices of `cluster`. Raises CatalogueError for an `accelerator_name` nobody knows."""
    metadata = cluster.metadata
    a_node = max(1, metadata.devices_per_node)
    nodes = max(1, -(-cluster.num_workers // a_node))
    known = catalog.load()
    machine = _rented(cluster, known)
    if machine is not None:
        return _known(Place.of(machine, nodes, a_node), f" of {machine.name}")
    if metadata.accelerator_name is not None:
        accelerator = known.accelerator(metadata.accelerator_name)
        machines = (each for each in known.machines if each.accelerator == accelerator)
        network = max((each.network or 0.0 for each in machines), default=NETWORK)
        return _known(Place(accelerator.core, a_node, nodes, network))
    if metadata.accelerator == "cpu":
        local = probe.assumed(a_node)
        place = replace(local.place, nodes=nodes, network=NETWORK)
        told = "as on cores of 60 GFLOP/s, which is assumed"
        return Devices(place, local.constants, local.stack, told)
    if metadata.accelerator == "tpu":
        place = Place(known.accelerator(COMMON_TPU), a_node, nodes, NETWORK)
    else:
        place = Place.of(known.machine(COMMON[metadata.accelerator]), nodes, a_node)
    name = place.accelerator.name
    told = f"as on {name}, which is assumed; metadata.accelerator_name names another"
    return Devices(place, CALIBRATED, TORCH, told)


def _known(place: Place, of: str = "") -> Devices:
    device = place.accelerator
    return Devices(place, CALIBRATED, TORCH, f"as on {device.name}{of}", device.memory)


def _rented(cluster: ClusterSpec, known: Catalogue) -> Machine | None:
    """What the workers are rented as, where the catalogue has it and its facts are published."""
    for instance in cluster.instances:
        machine = known.find(instance, cluster.region) or known.find(instance)
        if machine is None or machine.accelerator.missing:
            return None
        return machine if machine.accelerator.kind == cluster.metadata.accelerator else None
    return None
