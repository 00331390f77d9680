"""The catalogue: tables of accelerators, machines, models and data sets, and the user's own file.

Every row carries its source; an empty cell is unknown and stays so. A file of the user's adds rows
or overrides them by name, and describes machines that are owned (docs/planning.md):

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
from cluster.settings import Settings, read_yaml, validated

TABLES = Path(__file__).parent / "tables"
PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "int8", "fp8")


class CatalogueError(BerthaError):
    """A name that no table has, or a user's row that cannot be read; the text says the way out."""


class Owned(Settings):
    """What an owned machine costs."""

    purchase_usd: float = Field(ge=0, description="price of one machine")
    lifetime_years: float = Field(4.0, gt=0, description="years until it is written off")
    idle_share: float = Field(0.3, ge=0, lt=1, description="of its life it stands idle")
    usd_per_kwh: float = Field(0.15, ge=0, description="price of electricity")
    pue: float = Field(1.4, ge=1, description="the building's power over the machines'")


class OwnAccelerator(Settings):
    """A row of accelerators.csv; what is left out stays as the table has it."""

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
    trains: str | None = None
    source: str | None = None


class OwnMachine(Settings):
    """A row of instances.csv, and for a machine that is owned how many there are at what cost."""

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
    owned: Owned | None = None
    source: str | None = None


AnyRow = TypeVar("AnyRow", OwnAccelerator, OwnMachine)


class OwnFile(Settings):
    """A user's own file: rows that add to the tables or override them, each checked as its kind."""

    accelerators: tuple[dict[str, Any], ...] = ()
    machines: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """Accelerators by name, and machines, those of the user's own file last."""

    accelerators: Mapping[str, Accelerator]
    machines: tuple[Machine, ...]

    def accelerator(self, name: str) -> Accelerator:
        """One accelerator. Raises CatalogueError with the nearest name."""
        if name not in self.accelerators:
            raise CatalogueError(_unknown("accelerator", name, self.accelerators))
        return self.accelerators[name]

    def machine(self, name: str, region: str = "") -> Machine:
        """One machine. Raises CatalogueError with the nearest name."""
        found = self.find(name, region)
        if found is None:
            names = {each.name for each in self.machines}
            raise CatalogueError(_unknown("machine", name, names))
        return found

    def find(self, name: str, region: str = "") -> Machine | None:
        """One machine, the first row of its name where no region is given; None for no such."""
        found = (m for m in self.machines if m.name == name and region in ("", m.region))
        return next(found, None)

    def check_region(self, region: str) -> None:
        """Raises CatalogueError with the nearest name for a region that no row stands in."""
        if region not in self.regions:
            raise CatalogueError(_unknown("region", region, self.regions))

    @property
    def regions(self) -> tuple[str, ...]:
        """Regions with a price or an offer in the tables."""
        return tuple(dict.fromkeys(m.region for m in self.machines if m.region))


def load(own: Path | None = None) -> Catalogue:
    """The tables, with the rows of a user's own file. Raises SettingsError or CatalogueError."""
    rows = {row["accelerator"]: dict(row) for row in table("accelerators")}
    offers = {(row["instance"], row["region"]): dict(row) for row in table("instances")}
    mine = OwnFile() if own is None else validated(OwnFile, read_yaml(own), str(own))
    for accelerator in _checked(OwnAccelerator, mine.accelerators, f"{own}: accelerators"):
        _lay_over(rows.setdefault(accelerator.accelerator, {}), accelerator)
    machines = _checked(OwnMachine, mine.machines, f"{own}: machines")
    for machine in machines:
        key = (machine.instance, machine.region or _region_of(machine, offers))
        _lay_over(offers.setdefault(key, {"region": key[1]}), machine)
    owned = {machine.instance: machine for machine in machines}
    accelerators = {name: _accelerator(row) for name, row in rows.items()}
    known = tuple(_machine(row, accelerators, owned) for row in offers.values())
    return Catalogue(accelerators, known)


def table(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a table of cluster/hardware/tables/."""
    return _read(TABLES / f"{name}.csv")


@functools.cache
def _read(path: Path) -> tuple[Mapping[str, str], ...]:
    with path.open(encoding="utf-8", newline="") as lines:
        return tuple(csv.DictReader(lines))


def _checked(
    kind: type[AnyRow], rows: Iterable[Mapping[str, Any]], origin: str
) -> tuple[AnyRow, ...]:
    """The rows as values. Raises SettingsError that counts from 1."""
    return tuple(validated(kind, row, f"{origin}, row {n}") for n, row in enumerate(rows, 1))


def _lay_over(row: dict[str, str], own: OwnAccelerator | OwnMachine) -> None:
    for name, value in own.model_dump(exclude_none=True, exclude={"owned"}).items():
        row[name] = str(value)


def _region_of(machine: OwnMachine, offers: Iterable[tuple[str, str]]) -> str:
    """The region of a row that a user overrides without naming one; none for a new machine."""
    return next((region for name, region in offers if name == machine.instance), "")


def _accelerator(row: Mapping[str, str]) -> Accelerator:
    kind = row.get("kind") or "cuda"
    if kind not in get_args(Kind):
        raise CatalogueError(_unknown(f"kind of {row['accelerator']}:", kind, get_args(Kind)))
    peaks = {p: _number(row, f"{p}_tops" if p == "int8" else f"{p}_tflops") for p in PRECISIONS}
    process = _number(row, "process_nm")
    return Accelerator(
        name=row["accelerator"],
        kind=kind,  # type: ignore[arg-type]  # one of get_args(Kind), checked above
        process_nm=process,
        units=int(_number(row, "units") or 0) or None,
        cores=int(_number(row, "cores") or 1),
        peaks=tuple((name, rate * TERA) for name, rate in peaks.items() if rate),
        measured_bf16=_scaled(row, "measured_bf16_tflops", TERA),
        memory=_scaled(row, "memory_gb", GIGA),
        memory_rate=_scaled(row, "memory_gb_per_s", GIGA),
        link=row.get("link") or "pcie",
        link_rate=_scaled(row, "link_gb_per_s", GIGA),
        watts=_number(row, "tdp_w"),
        trains=row.get("trains") or "yes",
        relative_energy=_energies().get(process) if process else None,
        source=row.get("source", ""),
    )


def _machine(
    row: Mapping[str, str], accelerators: Mapping[str, Accelerator], owned: Mapping[str, OwnMachine]
) -> Machine:
    name = row["instance"]
    if row.get("accelerator", "") not in accelerators:
        told = _unknown("accelerator", row.get("accelerator", ""), accelerators)
        raise CatalogueError(f"machine {name}: {told}")
    mine = owned.get(name)
    gbps = _number(row, "network_gbps")
    return Machine(
        name=name,
        accelerator=accelerators[row["accelerator"]],
        count=int(_number(row, "count") or 1),
        network=None if gbps is None else gbps * GIGA / 8,
        region=row.get("region", ""),
        interfaces=None if not row.get("efa_interfaces") else int(row["efa_interfaces"]),
        vcpus=int(_number(row, "vcpu") or 0),
        host_gib=_number(row, "host_gib") or 0.0,
        on_demand=_number(row, "on_demand_usd_h"),
        spot=_number(row, "spot_usd_h"),
        available=mine.nodes if mine else None,
        ownership=_ownership(mine.owned) if mine and mine.owned else None,
        source=row.get("source", ""),
    )


def _ownership(owned: Owned) -> Ownership:
    return Ownership(
        owned.purchase_usd, owned.lifetime_years, owned.idle_share, owned.usd_per_kwh, owned.pue
    )


@functools.cache
def _energies() -> Mapping[float, float]:
    """Energy of an operation by process, against TSMC's 7 nm: what foundries say of theirs."""
    return {float(r["process_nm"]): float(r["relative_energy"]) for r in table("processes")}


def _number(row: Mapping[str, str], name: str) -> float | None:
    return float(row[name]) if row.get(name) else None


def _scaled(row: Mapping[str, str], name: str, unit: float) -> float | None:
    value = _number(row, name)
    return None if value is None else value * unit


def _unknown(what: str, name: str, names: Iterable[str]) -> str:
    """One sentence for a name that is none of `names`."""
    known = sorted(names)
    lowered = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    meant = f"; did you mean {lowered[close[0]]}?" if close else f"; there are {', '.join(known)}"
    return f"no {what} {name!r}{meant}"
