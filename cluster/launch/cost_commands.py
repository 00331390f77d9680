"""`bertha offers TYPE` and `spent FILE`: EC2's prices, and a cluster's cost so far."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from cluster import spec
from cluster.launch import aws, prices
from cluster.launch.aws import AwsAccount, AwsError
from cluster.launch.prices import InstanceCost
from cluster.settings import SettingsError, read_cluster_yaml

HOME_REGION = "us-east-1"  # the region that is asked for the list of regions


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `offers` and `spent`."""
    offers = commands.add_parser("offers", help="where EC2 offers a type, quota and prices of now")
    offers.add_argument("type", help="an instance type, as p5.48xlarge")
    offers.add_argument("--region", help="only this one; default: all that your account may use")
    offers.set_defaults(run=run_offers)
    spent = commands.add_parser("spent", help="what the running machines of a cluster have cost")
    spent.add_argument("file", help="the cluster file that was launched")
    spent.set_defaults(run=run_spent)


def run_offers(options: argparse.Namespace) -> int:
    """Print a line per region that offers the type; return 1 if none does."""
    region = options.region
    regions = [region] if region else aws.list_regions(AwsAccount(HOME_REGION))
    offering = 0
    print(f"{'REGION':<16}{'ON DEMAND $/h':>14}{'SPOT $/h':>10}  {'QUOTA vCPU':<24}ZONES")
    for region in regions:
        line = format_offer(AwsAccount(region), options.type)
        if line is not None:
            print(line, flush=True)
            offering += 1
    if not offering:
        print(f"{options.type}: none of {len(regions)} region(s) offers it")
    return 0 if offering else 1


def format_offer(account: AwsAccount, instance: str) -> str | None:
    """Format a region's offer; None where it does not offer the type."""
    zones = aws.zones_offering(account, instance)[instance]
    if not zones:
        return None
    spot = prices.spot_prices(account, [instance]).get(instance, {})
    try:
        quotas = [f"{value:g} {name}" for name, value in aws.vcpu_quotas(account, instance).items()]
    except AwsError:  # a role without this permission still sees the prices
        quotas = ["unknown"]
    return (
        f"{account.region:<16}{_format_usd(prices.on_demand_price(account, instance)):>14}"
        f"{_format_usd(min(spot.values(), default=None)):>10}  {', '.join(quotas) or '?':<24}"
        f"{' '.join(zone.removeprefix(account.region) for zone in zones)}"
    )


def run_spent(options: argparse.Namespace) -> int:
    """Print each running machine and the sum."""
    settings = read_cluster_yaml(spec.find_cluster_file(options.file))
    provider = settings.get("provider") or {}
    if provider.get("type") != "aws" or "region" not in provider:
        raise SettingsError(f"{options.file}: provider.type is not aws, and nothing is rented")
    name = str(settings.get("cluster_name"))
    costs = prices.instance_costs(AwsAccount(str(provider["region"])), name, datetime.now(UTC))
    print("\n".join(format_costs(name, costs)))
    return 0


def format_costs(cluster: str, costs: Sequence[InstanceCost]) -> Iterator[str]:
    """Yield a line per machine, and the total until now and per hour."""
    for each in costs:
        instance = each.instance
        market = "spot" if instance.is_spot else "on demand"
        yield (
            f"{instance.instance_id:<21}{instance.node_type:<20}{instance.instance_type:<16}"
            f"{market:<10}{each.hours:>7.2f} h at {_format_usd(each.usd_per_hour)} $/h: "
            f"{_format_usd(each.usd)} $"
        )
    total = sum(each.usd or 0.0 for each in costs)
    hourly = sum(each.usd_per_hour or 0.0 for each in costs)
    unknown = sum(each.usd is None for each in costs)
    rest = f", {unknown} at a price that is not known" if unknown else ""
    yield (
        f"{cluster}: {len(costs)} machine(s) run{rest}: ${total:,.2f} so far, ${hourly:,.2f} an "
        "hour; machines that ended, disks and traffic are not counted"
    )


def _format_usd(value: float | None) -> str:
    return "?" if value is None else f"{value:,.4f}" if value < 1 else f"{value:,.2f}"
