"""The catalog: tables of accelerators, machines, models and data sets, and a user's own file.

Every row has its source; an empty cell is unknown. A user's file adds rows or overrides them by
name, and describes owned machines (docs/planning.md):

    accelerators:
      - {accelerator: Trainium2, tdp_w: 500, source: my contract}
    machines:
      - {instance: trn2.48xlarge, region: us-east-1, on_demand_usd_h: 37.0}
      - {instance: my-box, accelerator: RTX 4090, count: 4, network_gbps: 10, nodes: 2,
         owned: {purchase_usd: 12000, lifetime_years: 4, usd_per_kwh: 0.32}}
"""

from __future__ import annotations

import csv
import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import Field

from cluster.errors import BerthaError
from cluster.hardware.types import GIGA, TERA, Accelerator, Kind, Machine, Ownership
from cluster.settings import Settings, read_yaml, validate_settings

TABLES = Path(__file__).parent / "tables"
PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "int8", "fp8")


class CatalogError(BerthaError):
    """A name that no table has, or an invalid row of a user's file; the text says the way out."""


class OwnershipRow(Settings):
    """Costs of an owned machine."""

    purchase_usd: float = Field(ge=0, description="price of one machine")
    lifetime_years: float = Field(4.0, gt=0, description="years until it is written off")
    idle_share: float = Field(0.3, ge=0, lt=1, description="of its life it stands idle")
    usd_per_kwh: float = Field(0.15, ge=0, description="price of electricity")
    pue: float = Field(1.4, ge=1, description="the building's power over the machines'")

    def to_value(self) -> Ownership:
        """Return the row as the cost model's value."""
        return Ownership(**self.model_dump(exclude={"pue"}), power_overhead=self.pue)


class AcceleratorRow(Settings):
    """A row of accelerators.csv; omitted cells keep the table's values."""

    accelerator: str
    kind: str | None = None
    process_nm: float | None = None
    units: int | None = None
    cores: int | None = Field(None, ge=1)
    bf16_tflops: float | None = Field(None, gt=0)
    fp16_tflops: float | None = Field(None, gt=0)
    tf32_tflops: float | None = Field(None, gt=0)
    fp32_tflops: float | None = Field(None, gt=0)
    int8_tops: float | None = Field(None, gt=0)
    fp8_tflops: float | None = Field(None, gt=0)
    measured_bf16_tflops: float | None = Field(None, gt=0)
    memory_gb: float | None = Field(None, gt=0)
    memory_gb_per_s: float | None = Field(None, gt=0)
    link: str | None = None
    link_gb_per_s: float | None = Field(None, gt=0)
    tdp_w: float | None = Field(None, gt=0)
    driver_name: str | None = Field(None, description="as torch.cuda.get_device_name() says")
    trains: str | None = None
    source: str | None = None


class MachineRow(Settings):
    """A row of instances.csv, and of an owned machine its number and costs."""

    instance: str
    region: str | None = None
    accelerator: str | None = None
    count: int | None = Field(None, ge=1)
    vcpu: int | None = Field(None, ge=0)
    host_gib: float | None = Field(None, gt=0)
    network_gbps: float | None = Field(None, gt=0)
    efa_interfaces: int | None = Field(None, ge=0)
    on_demand_usd_h: float | None = Field(None, gt=0)
    spot_usd_h: float | None = Field(None, gt=0)
    nodes: int | None = Field(None, ge=1, description="how many there are")
    owned: OwnershipRow | None = None
    source: str | None = None


AnyRow = TypeVar("AnyRow", AcceleratorRow, MachineRow)


class UserCatalog(Settings):
    """A user's file: rows that add to the tables or override them, validated one by one."""

    accelerators: tuple[dict[str, Any], ...] = ()
    machines: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Catalog:
    """Accelerators by name, and machines, those of a user's file last."""

    accelerators: Mapping[str, Accelerator]
    machines: tuple[Machine, ...]

    def get_accelerator(self, name: str) -> Accelerator:
        """Return an accelerator. Raises CatalogError with the closest name."""
        if name not in self.accelerators:
            raise CatalogError(_unknown_name("accelerator", name, self.accelerators))
        return self.accelerators[name]

    def find_device(self, driver_name: str) -> Accelerator | None:
        """Return the accelerator that its driver calls so, or None: a slice of one has its own."""
        brand = "NVIDIA "  # which older drivers leave out
        wanted = driver_name.removeprefix(brand)
        rows = (a for a in self.accelerators.values() if a.driver_name)
        return next((a for a in rows if a.driver_name.removeprefix(brand) == wanted), None)

    def get_machine(self, name: str, region: str = "") -> Machine:
        """Return a machine. Raises CatalogError with the closest name."""
        machine = self.find_machine(name, region)
        if machine is None:
            names = {each.name for each in self.machines}
            raise CatalogError(_unknown_name("machine", name, names))
        return machine

    def find_machine(self, name: str, region: str = "") -> Machine | None:
        """Return a machine, by default of its first region, or None."""
        rows = (m for m in self.machines if m.name == name and region in ("", m.region))
        return next(rows, None)

    def check_region(self, region: str) -> None:
        """Raise CatalogError with the closest name for a region without rows."""
        regions = {machine.region for machine in self.machines if machine.region}
        if region not in regions:
            raise CatalogError(_unknown_name("region", region, regions))


def load_catalog(own: Path | None = None) -> Catalog:
    """Load the tables and the rows of a user's file. Raises SettingsError or CatalogError."""
    rows = {row["accelerator"]: dict(row) for row in read_table("accelerators")}
    offers = {(row["instance"], row["region"]): dict(row) for row in read_table("instances")}
    mine = (
        UserCatalog() if own is None else validate_settings(UserCatalog, read_yaml(own), str(own))
    )
    for accelerator in _validate_rows(AcceleratorRow, mine.accelerators, f"{own}: accelerators"):
        _override_row(rows.setdefault(accelerator.accelerator, {}), accelerator)
    machines = _validate_rows(MachineRow, mine.machines, f"{own}: machines")
    for machine in machines:
        key = (machine.instance, machine.region or _find_region(machine, offers))
        _override_row(offers.setdefault(key, {"region": key[1]}), machine)
    owned = {machine.instance: machine for machine in machines}
    accelerators = {name: _parse_accelerator(row) for name, row in rows.items()}
    return Catalog(
        accelerators, tuple(_parse_machine(row, accelerators, owned) for row in offers.values())
    )


def read_table(name: str) -> tuple[Mapping[str, str], ...]:
    """Return the rows of a table of cluster/hardware/tables/."""
    return _read_csv(TABLES / f"{name}.csv")


@functools.cache
def _read_csv(path: Path) -> tuple[Mapping[str, str], ...]:
    with path.open(encoding="utf-8", newline="") as lines:
        return tuple(csv.DictReader(lines))


def _validate_rows(
    kind: type[AnyRow], rows: Iterable[Mapping[str, Any]], origin: str
) -> tuple[AnyRow, ...]:
    """Validate rows. Raises SettingsError with the row's number, from 1."""
    return tuple(
        validate_settings(kind, row, f"{origin}, row {n}") for n, row in enumerate(rows, 1)
    )


def _override_row(row: dict[str, str], own: AcceleratorRow | MachineRow) -> None:
    for name, value in own.model_dump(exclude_none=True, exclude={"owned"}).items():
        row[name] = str(value)


def _find_region(machine: MachineRow, offers: Iterable[tuple[str, str]]) -> str:
    """Return the region of a row that is overridden without naming one; "" for a new machine."""
    return next((region for name, region in offers if name == machine.instance), "")


def _parse_accelerator(row: Mapping[str, str]) -> Accelerator:
    kind = row.get("kind") or "cuda"
    if kind not in get_args(Kind):
        raise CatalogError(_unknown_name(f"kind of {row['accelerator']}:", kind, get_args(Kind)))
    peaks = {
        p: _parse_number(row, f"{p}_tops" if p == "int8" else f"{p}_tflops") for p in PRECISIONS
    }
    process = _parse_number(row, "process_nm")
    return Accelerator(
        name=row["accelerator"],
        kind=kind,  # type: ignore[arg-type]  # one of get_args(Kind), checked above
        process_nm=process,
        units=int(_parse_number(row, "units") or 0) or None,
        cores=int(_parse_number(row, "cores") or 1),
        peaks=tuple((name, rate * TERA) for name, rate in peaks.items() if rate),
        memory=_parse_number(row, "memory_gb", GIGA),
        memory_rate=_parse_number(row, "memory_gb_per_s", GIGA),
        link=row.get("link") or "pcie",
        link_rate=_parse_number(row, "link_gb_per_s", GIGA),
        watts=_parse_number(row, "tdp_w"),
        driver_name=row.get("driver_name") or "",
        trains=row.get("trains") or "yes",
        relative_energy=_energy_by_process().get(process) if process else None,
    )


def _parse_machine(
    row: Mapping[str, str], accelerators: Mapping[str, Accelerator], owned: Mapping[str, MachineRow]
) -> Machine:
    name = row["instance"]
    if row.get("accelerator", "") not in accelerators:
        reason = _unknown_name("accelerator", row.get("accelerator", ""), accelerators)
        raise CatalogError(f"machine {name}: {reason}")
    mine = owned.get(name)
    return Machine(
        name=name,
        accelerator=accelerators[row["accelerator"]],
        count=int(_parse_number(row, "count") or 1),
        network=_parse_number(row, "network_gbps", GIGA / 8),
        region=row.get("region", ""),
        interfaces=None if not row.get("efa_interfaces") else int(row["efa_interfaces"]),
        vcpus=int(_parse_number(row, "vcpu") or 0),
        on_demand=_parse_number(row, "on_demand_usd_h"),
        spot=_parse_number(row, "spot_usd_h"),
        available=mine.nodes if mine else None,
        ownership=mine.owned.to_value() if mine and mine.owned else None,
    )


@functools.cache
def _energy_by_process() -> Mapping[float, float]:
    """Return the energy of an operation by process, relative to TSMC's 7 nm, from foundries."""
    return {float(r["process_nm"]): float(r["relative_energy"]) for r in read_table("processes")}


def _parse_number(row: Mapping[str, str], name: str, unit: float = 1.0) -> float | None:
    return float(row[name]) * unit if row.get(name) else None


def _unknown_name(what: str, name: str, names: Iterable[str]) -> str:
    """Describe a name that is none of `names`, with the closest one."""
    known = sorted(names)
    lowered = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    suggestion = (
        f"; did you mean {lowered[close[0]]}?" if close else f"; there are {', '.join(known)}"
    )
    return f"no {what} {name!r}{suggestion}"
