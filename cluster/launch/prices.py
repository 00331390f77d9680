"""AWS prices of this hour: of the catalog's machines, and of a cluster's running instances.

Spot from EC2's price history, on demand from the price list.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cluster.hardware.catalog import Catalog
from cluster.hardware.types import Machine
from cluster.launch.aws import AwsAccount, RunningInstance, running_instances, translate_errors

PRICE_LIST_REGION = "us-east-1"  # the price list is served from a few regions only
LINUX = "Linux/UNIX"


@dataclass(frozen=True)
class InstanceCost:
    """What a running instance has cost. usd_per_hour, usd: None where no price is known."""

    instance: RunningInstance
    hours: float
    usd_per_hour: float | None

    @property
    def usd(self) -> float | None:
        """Cost since its launch, without disks and traffic."""
        return None if self.usd_per_hour is None else self.hours * self.usd_per_hour


def spot_prices(account: AwsAccount, instances: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Return dollars per hour by instance type and zone; a type without spot is absent."""
    rows = account.paginate(
        "ec2", "describe_spot_price_history", "SpotPriceHistory",
        InstanceTypes=list(instances), ProductDescriptions=[LINUX], StartTime=datetime.now(UTC),
    )  # fmt: skip
    prices: dict[str, dict[str, float]] = {}
    for row in sorted(rows, key=lambda row: row["Timestamp"]):  # the newest price wins
        zones = prices.setdefault(row["InstanceType"], {})
        zones[row["AvailabilityZone"]] = float(row["SpotPrice"])
    return prices


def on_demand_price(account: AwsAccount, instance: str) -> float | None:
    """Return dollars per hour for Linux on shared hardware; None where no price is listed."""
    fields = {
        "instanceType": instance,
        "regionCode": account.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": v} for name, v in fields.items()]
    client = account.client("pricing", PRICE_LIST_REGION)
    with translate_errors(f"pricing:GetProducts {instance}"):
        rows = client.get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    return min((price for row in rows for price in _hourly_prices(json.loads(row))), default=None)


def with_live_prices(catalog: Catalog, region: str | None) -> Catalog:
    """Return the catalog with the prices of this hour.

    region: price all rented machines there, whether or not the tables list them; None: in the
    tables' own regions. Owned machines stay as they are; a type that a region does not offer is
    left out.
    """
    rented = [machine for machine in catalog.machines if machine.region]
    regions = [region] if region else list(dict.fromkeys(each.region for each in rented))
    machines = [machine for machine in catalog.machines if not machine.region]
    for each in regions:
        machines += _reprice_machines(AwsAccount(each), rented, region is not None)
    return Catalog(catalog.accelerators, tuple(machines))


def instance_costs(account: AwsAccount, cluster: str, now: datetime) -> list[InstanceCost]:
    """Return the cost of a cluster's running instances until `now`, at current prices."""
    instances = running_instances(account, cluster)
    spot_types = sorted({each.instance_type for each in instances if each.is_spot})
    spots = spot_prices(account, spot_types) if spot_types else {}
    fixed = {
        name: on_demand_price(account, name)
        for name in sorted({each.instance_type for each in instances if not each.is_spot})
    }
    costs = []
    for each in instances:
        hours = (now - each.launch_time).total_seconds() / 3600
        spot = spots.get(each.instance_type, {}).get(each.zone)
        costs.append(InstanceCost(each, hours, spot if each.is_spot else fixed[each.instance_type]))
    return costs


def _reprice_machines(
    account: AwsAccount, rented: Iterable[Machine], anywhere: bool
) -> Iterator[Machine]:
    """Yield machines at the prices of the account's region. anywhere: include other regions'."""
    by_name = {each.name: each for each in rented if anywhere or each.region == account.region}
    spots = spot_prices(account, list(by_name))
    for name, machine in by_name.items():
        fixed, zones = on_demand_price(account, name), spots.get(name, {})
        if anywhere and fixed is None and not zones:
            continue
        same_region = machine.region == account.region  # then the table's price is a fallback
        spot = statistics.median(zones.values()) if zones else None
        yield replace(
            machine,
            region=account.region,
            on_demand=fixed or (machine.on_demand if same_region else None),
            spot=spot if zones else machine.spot if same_region else None,
        )


def _hourly_prices(product: Mapping[str, object]) -> Iterator[float]:
    """Yield the hourly on-demand prices of one product of the price list."""
    terms = product.get("terms")
    offers = terms.get("OnDemand", {}) if isinstance(terms, dict) else {}
    for offer in offers.values():
        for dimension in offer["priceDimensions"].values():
            price = float(dimension["pricePerUnit"].get("USD", 0))
            if dimension["unit"] == "Hrs" and price > 0:
                yield price
