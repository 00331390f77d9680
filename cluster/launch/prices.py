"""Prices of this hour, of AWS: into the catalogue, and on what a cluster has cost so far.

Spot from EC2's price history (median over zones, as the table has it), on demand from the price
list. Knows no plans.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cluster.hardware.catalog import Catalogue
from cluster.hardware.types import Machine
from cluster.launch.aws import Account, Running, in_words, running

PRICE_LIST_REGION = "us-east-1"  # the price list is served from a few regions only
LINUX = "Linux/UNIX"
FROM = "AWS, when this was asked"


@dataclass(frozen=True)
class Spent:
    """What a cluster's machines have cost. dollars: None where a price is not known."""

    machine: Running
    hours: float
    per_hour: float | None

    @property
    def dollars(self) -> float | None:
        """Since it was started, disks and traffic left out."""
        return None if self.per_hour is None else self.hours * self.per_hour


def spot(account: Account, instances: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Dollars an hour by instance type and zone; a type without spot is absent."""
    rows = account.pages(
        "ec2", "describe_spot_price_history", "SpotPriceHistory",
        InstanceTypes=list(instances), ProductDescriptions=[LINUX], StartTime=datetime.now(UTC),
    )  # fmt: skip
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    for row in rows:
        key = (row["InstanceType"], row["AvailabilityZone"])
        if key not in newest or row["Timestamp"] > newest[key][0]:
            newest[key] = (row["Timestamp"], float(row["SpotPrice"]))
    found: dict[str, dict[str, float]] = {}
    for (instance, zone), (_, price) in newest.items():
        found.setdefault(instance, {})[zone] = price
    return found


def on_demand(account: Account, instance: str) -> float | None:
    """Dollars an hour of an instance type, Linux, shared hardware; None where none is listed."""
    wanted = {
        "instanceType": instance,
        "regionCode": account.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": v} for name, v in wanted.items()]
    client = account.client("pricing", PRICE_LIST_REGION)
    with in_words(f"pricing:GetProducts {instance}"):
        rows = client.get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    prices = [price for row in rows for price in _dollars(json.loads(row))]
    return min(prices) if prices else None


def live(catalogue: Catalogue, region: str | None) -> Catalogue:
    """The catalogue with the prices of this hour.

    region: of which machines are wanted, whether or not the tables have it; None: the tables' own.
    Owned machines stay as they are; a type that a region does not offer is left out there.
    """
    rented = [machine for machine in catalogue.machines if machine.region]
    regions = [region] if region else list(dict.fromkeys(each.region for each in rented))
    machines = [machine for machine in catalogue.machines if not machine.region]
    for each in regions:
        machines += _priced(Account(each), rented, region is not None)
    return Catalogue(catalogue.accelerators, tuple(machines))


def spent(account: Account, cluster: str, now: datetime) -> list[Spent]:
    """What the running machines of a cluster have cost until `now`, at the prices of now."""
    there = running(account, cluster)
    taken = sorted({each.instance_type for each in there if each.spot})
    spots = spot(account, taken) if taken else {}
    fixed = {
        each: on_demand(account, each)
        for each in sorted({each.instance_type for each in there if not each.spot})
    }
    return [
        Spent(
            each,
            (now - each.started).total_seconds() / 3600,
            spots.get(each.instance_type, {}).get(each.zone)
            if each.spot
            else fixed[each.instance_type],
        )
        for each in there
    ]


def _priced(account: Account, rented: Iterable[Machine], anywhere: bool) -> Iterator[Machine]:
    """Machines as the region of `account` offers them. anywhere: also those of other rows."""
    mine = {each.name: each for each in rented if anywhere or each.region == account.region}
    spots = spot(account, list(mine))
    for name, machine in mine.items():
        fixed, zones = on_demand(account, name), spots.get(name, {})
        if anywhere and fixed is None and not zones:
            continue
        here = machine.region == account.region  # where the tables' prices hold, if none is live
        yield replace(
            machine,
            region=account.region,
            on_demand=fixed or (machine.on_demand if here else None),
            spot=statistics.median(zones.values()) if zones else machine.spot if here else None,
            source=FROM,
        )


def _dollars(product: Mapping[str, object]) -> Iterator[float]:
    """The hourly on-demand prices of one product of the price list."""
    terms = product.get("terms")
    offers = terms.get("OnDemand", {}) if isinstance(terms, dict) else {}
    for offer in offers.values():
        for dimension in offer["priceDimensions"].values():
            price = float(dimension["pricePerUnit"].get("USD", 0))
            if dimension["unit"] == "Hrs" and price > 0:
                yield price
