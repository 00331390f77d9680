"""Accelerators and machines as values, from the catalog; what is unknown is None, never guessed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["cuda", "neuron", "tpu", "hpu", "cpu"]

TERA, GIGA = 1e12, 1e9
PCIE = "pcie"


@dataclass(frozen=True)
class Accelerator:
    """One card or chip. Rates in dense FLOP/s; memory in bytes and bytes/s; power in watts.

    units: multiprocessors that a matmul is spread over. link_rate: to its neighbours, bytes/s each
    way. relative_energy: of an operation, against TSMC's 7 nm. trains: whether training runs on it:
    yes, no, or `old` for only an older environment. cores: devices that it appears as, each with a
    worker: a Neuron chip's logical cores. driver_name: as torch calls the device; "" where unknown.
    """

    name: str
    kind: Kind
    process_nm: float | None = None
    units: int | None = None
    peaks: tuple[tuple[str, float], ...] = ()
    memory: float | None = None
    memory_rate: float | None = None
    link: str = PCIE
    link_rate: float | None = None
    watts: float | None = None
    trains: str = "yes"
    cores: int = 1
    relative_energy: float | None = None
    driver_name: str = ""

    def peak_flops(self, precision: str) -> float | None:
        """Return the peak FLOP/s of a precision; bf16's for fp16 where only that is known."""
        rates = dict(self.peaks)
        if precision in ("fp16", "bf16"):
            return rates.get(precision) or (rates.get("bf16") if precision == "fp16" else None)
        return rates.get(precision)

    @property
    def half_precision(self) -> str:
        """Mixed precision's type: bf16, fp16 with loss scaling (V100, T4), or fp32."""
        rates = dict(self.peaks)
        return next((name for name in ("bf16", "fp16") if name in rates), "fp32")

    @property
    def core(self) -> Accelerator:
        """The device of a worker: one core of several, with an equal share of everything."""
        if self.cores == 1:
            return self
        return replace(
            self,
            name=f"a core of {self.name}",
            units=None if self.units is None else max(1, self.units // self.cores),
            peaks=tuple((name, rate / self.cores) for name, rate in self.peaks),
            memory=self._per_core(self.memory),
            memory_rate=self._per_core(self.memory_rate),
            link_rate=self._per_core(self.link_rate),
            watts=self._per_core(self.watts),
            cores=1,
        )

    def _per_core(self, value: float | None) -> float | None:
        return None if value is None else value / self.cores

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of unknown figures that every prediction needs."""
        needed = {
            "peak FLOP/s": self.peaks,
            "memory": self.memory,
            "memory bandwidth": self.memory_rate,
        }
        return tuple(name for name, value in needed.items() if not value)


@dataclass(frozen=True)
class Machine:
    """A kind of node, rented or owned.

    count: accelerators. network: bytes/s of all network interfaces together, each way. interfaces:
    EFA interfaces. on_demand and spot: dollars an hour. available: how many there are; None: any
    number.
    """

    name: str
    accelerator: Accelerator
    count: int
    network: float | None
    region: str = ""
    interfaces: int | None = None
    vcpus: int = 0
    on_demand: float | None = None
    spot: float | None = None
    available: int | None = None
    ownership: Ownership | None = None

    @property
    def num_devices(self) -> int:
        """Number of workers: one for each accelerator, or for each of its cores."""
        return self.count * self.accelerator.cores

    @property
    def label(self) -> str:
        """Name and region."""
        return f"{self.name} ({self.region})" if self.region else self.name


@dataclass(frozen=True)
class Ownership:
    """Costs of an owned machine. idle_share: of its lifetime, so that working hours cost more."""

    purchase_usd: float
    lifetime_years: float
    idle_share: float
    usd_per_kwh: float
    power_overhead: float  # PUE: power of the building over that of the machines


@dataclass(frozen=True)
class Topology:
    """`nodes` machines of `devices_per_node` devices.

    accelerator: a device; of a Neuron chip a core. bridged: bridges join pairs of PCIe cards.
    network: bytes/s of a node.
    """

    accelerator: Accelerator
    devices_per_node: int
    nodes: int
    network: float | None
    bridged: bool = False

    @property
    def devices(self) -> int:
        """Number of devices on all nodes."""
        return self.devices_per_node * self.nodes

    @classmethod
    def from_machine(
        cls, machine: Machine, nodes: int, devices_per_node: int | None = None
    ) -> Topology:
        """Return `nodes` of one kind of machine, with a worker on each device."""
        count = machine.num_devices if devices_per_node is None else devices_per_node
        return cls(machine.accelerator.core, count, nodes, machine.network)
