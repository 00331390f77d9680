"""Accelerators and the machines they stand in, as values; what is unknown is None, never guessed.

The figures come from the tables of cluster/hardware/tables/ or from the user's own file
(planning/catalogue.py). Knows no models and no layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["cuda", "neuron", "tpu", "hpu", "cpu"]

TERA, GIGA = 1e12, 1e9
PCIE = "pcie"


@dataclass(frozen=True)
class Accelerator:
    """One card or chip. Rates in FLOP/s, dense; memory in bytes and bytes/s; power in watts.

    process_nm and units: of the silicon, and the multiprocessors that a product of matrices is
    spread over. measured_bf16: the best that anybody published for a product of matrices. link:
    to its neighbours, bytes/s each way. relative_energy: of an operation, against TSMC's 7 nm.
    trains: whether Bertha's training runs on it: yes, no, or `old` for only an older environment.
    cores: devices that it shows itself as, each with a worker: a Neuron chip's logical cores.
    """

    name: str
    kind: Kind
    process_nm: float | None = None
    units: int | None = None
    peaks: tuple[tuple[str, float], ...] = ()
    measured_bf16: float | None = None
    memory: float | None = None
    memory_rate: float | None = None
    link: str = PCIE
    link_rate: float | None = None
    watts: float | None = None
    trains: str = "yes"
    cores: int = 1
    relative_energy: float | None = None
    source: str = ""

    def peak(self, precision: str) -> float | None:
        """FLOP/s of a precision; fp16 and bf16 stand in for one another where only one is known."""
        rates = dict(self.peaks)
        if precision in ("fp16", "bf16"):
            return rates.get(precision) or (rates.get("bf16") if precision == "fp16" else None)
        return rates.get(precision)

    @property
    def half_precision(self) -> str:
        """What mixed precision uses here: bf16, fp16 with loss scaling (V100, T4), or fp32."""
        rates = dict(self.peaks)
        return next((name for name in ("bf16", "fp16") if name in rates), "fp32")

    @property
    def core(self) -> Accelerator:
        """What a worker has: all of it, or of several cores one, an equal share of everything."""
        if self.cores == 1:
            return self
        return replace(
            self,
            name=f"a core of {self.name}",
            units=None if self.units is None else max(1, self.units // self.cores),
            peaks=tuple((name, rate / self.cores) for name, rate in self.peaks),
            measured_bf16=self._share(self.measured_bf16),
            memory=self._share(self.memory),
            memory_rate=self._share(self.memory_rate),
            link_rate=self._share(self.link_rate),
            watts=self._share(self.watts),
            cores=1,
        )

    def _share(self, value: float | None) -> float | None:
        return None if value is None else value / self.cores

    @property
    def missing(self) -> tuple[str, ...]:
        """What must be known before anything can be predicted, and is not."""
        needed = {
            "peak FLOP/s": self.peaks,
            "memory": self.memory,
            "memory bandwidth": self.memory_rate,
        }
        return tuple(name for name, value in needed.items() if not value)


@dataclass(frozen=True)
class Machine:
    """A kind of machine that can be rented or is owned: a node.

    count: of accelerators. network: bytes/s of all its network cards together, each way.
    interfaces: EFA cards. on_demand and spot: dollars an hour. available: how many there are; None:
    as many as one likes.
    """

    name: str
    accelerator: Accelerator
    count: int
    network: float | None
    region: str = ""
    interfaces: int | None = None
    vcpus: int = 0
    host_gib: float = 0.0
    on_demand: float | None = None
    spot: float | None = None
    available: int | None = None
    ownership: Ownership | None = None
    source: str = ""

    @property
    def num_devices(self) -> int:
        """Training workers: one on each accelerator, or on each of its cores."""
        return self.count * self.accelerator.cores

    @property
    def label(self) -> str:
        """The name, and the region where one name stands in several."""
        return f"{self.name} ({self.region})" if self.region else self.name


@dataclass(frozen=True)
class Ownership:
    """What an owned machine costs: bought for dollars, written off over years of some use.

    idle_share: of the years it stands idle, so that an hour of work carries more of the price.
    """

    purchase_usd: float
    lifetime_years: float
    idle_share: float
    usd_per_kwh: float
    power_overhead: float  # PUE: the building's power over the machines'


@dataclass(frozen=True)
class Place:
    """Where a step is predicted to run: `nodes` machines of `devices_per_node` devices.

    accelerator: a device, which of a Neuron chip is a core. bridged: whether pairs of PCIe cards
    are joined by a bridge. network: bytes/s a node.
    """

    accelerator: Accelerator
    devices_per_node: int
    nodes: int
    network: float | None
    bridged: bool = False

    @property
    def devices(self) -> int:
        """All of them."""
        return self.devices_per_node * self.nodes

    @classmethod
    def of(cls, machine: Machine, nodes: int, devices_per_node: int | None = None) -> Place:
        """`nodes` of one kind of machine, a worker on each device."""
        count = machine.num_devices if devices_per_node is None else devices_per_node
        return cls(machine.accelerator.core, count, nodes, machine.network)
