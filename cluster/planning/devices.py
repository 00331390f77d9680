"""The devices of a cluster as the cost model sees them: the catalogue's, or ones that are assumed.

A cluster file says what kind of accelerator it has, and may say which: `accelerator_name`. Where it
does not, layouts are weighed as on a common one of its kind. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.planning import catalogue, probe
from cluster.planning.calibration import CALIBRATED, TORCH, Constants, Stack
from cluster.planning.hardware import Machine, Place
from cluster.spec import ClusterSpec

# The machine whose accelerators and network stand for a kind that is not named.
COMMON = {"cuda": "p4d.24xlarge", "neuron": "trn2.48xlarge"}
COMMON_TPU = "TPU v5e"
NETWORK = 1.25e9  # bytes/s of a node of which nothing is known: 10 Gb/s


@dataclass(frozen=True)
class Devices:
    """Where a run's devices stand, what is known of them, and in words what was assumed.

    memory: bytes of one that is named; None of one that is assumed.
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
    if metadata.accelerator_name is not None:
        accelerator = catalogue.load().accelerator(metadata.accelerator_name)
        network = max(map(_network, _machines_with(metadata.accelerator_name)), default=NETWORK)
        place = Place(accelerator, a_node, nodes, network)
        told = f"as on {accelerator.name}"
        return Devices(place, CALIBRATED, TORCH, told, accelerator.memory)
    if metadata.accelerator == "cpu":
        local = probe.assumed(a_node)
        place = replace(local.place, nodes=nodes, network=NETWORK)
        told = "as on cores of 60 GFLOP/s, which is assumed"
        return Devices(place, local.constants, local.stack, told)
    known = catalogue.load()
    if metadata.accelerator == "tpu":
        place = Place(known.accelerator(COMMON_TPU), a_node, nodes, NETWORK)
    else:
        machine = known.machine(COMMON[metadata.accelerator])
        place = Place.of(machine, nodes, a_node)
    name = place.accelerator.name
    told = f"as on {name}, which is assumed; metadata.accelerator_name names another"
    return Devices(place, CALIBRATED, TORCH, told)


def _machines_with(accelerator: str) -> list[Machine]:
    return [each for each in catalogue.load().machines if each.accelerator.name == accelerator]


def _network(machine: Machine) -> float:
    return machine.network or 0.0
