"""The devices of a cluster file as the cost model sees them.

From the catalog, by the instance type that the file rents or its `accelerator_name`; else a common
device of its kind is assumed. A device is what a worker has: a GPU, or a logical core of a Neuron
chip (not run on hardware).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.costmodel.constants import CALIBRATED, Constants, Stack, training_stack
from cluster.hardware.catalog import Catalog, load_catalog
from cluster.hardware.types import Machine, Topology
from cluster.planning import probe
from cluster.spec import ClusterSpec

# Assumed where a file names neither an instance type nor an accelerator.
COMMON = {"cuda": "p4d.24xlarge", "neuron": "trn2.48xlarge"}
COMMON_TPU = "TPU v5e"
NETWORK = 1.25e9  # bytes/s of a node of unknown network: 10 Gb/s


@dataclass(frozen=True)
class ClusterDevices:
    """A cluster's devices. description: what they are or are assumed to be.

    memory: bytes of a device of the catalog; None of one that is assumed.
    """

    topology: Topology
    constants: Constants
    stack: Stack
    description: str
    memory: float | None = None


def devices_of_cluster(cluster: ClusterSpec) -> ClusterDevices:
    """Return the devices of `cluster`. Raises CatalogError for an unknown `accelerator_name`."""
    metadata = cluster.metadata
    per_node = max(1, metadata.devices_per_node)
    nodes = max(1, -(-cluster.num_workers // per_node))
    catalog = load_catalog()
    machine = _find_rented_machine(cluster, catalog)
    if machine is not None:
        topology = Topology.from_machine(machine, nodes, per_node)
        return _catalog_devices(topology, f" of {machine.name}")
    if metadata.accelerator_name is not None:
        accelerator = catalog.get_accelerator(metadata.accelerator_name)
        machines = (each for each in catalog.machines if each.accelerator == accelerator)
        network = max((each.network or 0.0 for each in machines), default=NETWORK)
        return _catalog_devices(Topology(accelerator.core, per_node, nodes, network))
    if cluster.device_kind == "cpu":
        local = probe.assume_cpu(per_node)
        topology = replace(local.topology, nodes=nodes, network=NETWORK)
        description = "as on cores of 60 GFLOP/s, which is assumed"
        return ClusterDevices(topology, local.constants, local.stack, description)
    if cluster.device_kind == "tpu":
        topology = Topology(catalog.get_accelerator(COMMON_TPU), per_node, nodes, NETWORK)
    else:
        machine = catalog.get_machine(COMMON[cluster.device_kind])
        topology = Topology.from_machine(machine, nodes, per_node)
    name = topology.accelerator.name
    description = f"as on {name}, which is assumed; metadata.accelerator_name names another"
    return ClusterDevices(topology, CALIBRATED, training_stack(cluster.device_kind), description)


def _catalog_devices(topology: Topology, of: str = "") -> ClusterDevices:
    device = topology.accelerator
    stack, description = training_stack(device.kind), f"as on {device.name}{of}"
    return ClusterDevices(topology, CALIBRATED, stack, description, device.memory)


def _find_rented_machine(cluster: ClusterSpec, catalog: Catalog) -> Machine | None:
    """Return the workers' instance type, where the catalog has its figures."""
    for instance in cluster.instance_types:
        machine = catalog.find_machine(instance, cluster.region) or catalog.find_machine(instance)
        if machine is None or machine.accelerator.missing:
            return None
        kinds = ("auto", machine.accelerator.kind)
        return machine if cluster.metadata.accelerator in kinds else None
    return None
