"""`python -m cluster offers TYPE` and `spent FILE`: what EC2 has now, what a cluster has cost.

Asks AWS (launch/aws.py, launch/prices.py) and prints; a region a line, as the answers come.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from cluster import spec
from cluster.launch import aws, prices
from cluster.launch.aws import Account, AwsError
from cluster.launch.prices import Spent
from cluster.settings import SettingsError, read_yaml

HOME = "us-east-1"  # asked which regions there are


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands `offers` and `spent`."""
    offers = commands.add_parser("offers", help="where EC2 offers a type, quota and prices of now")
    offers.add_argument("type", help="an instance type, as p5.48xlarge")
    offers.add_argument("--region", help="only this one; default: all that your account may use")
    offers.set_defaults(run=run_offers)
    spent = commands.add_parser("spent", help="what the running machines of a cluster have cost")
    spent.add_argument("file", help="the cluster file that was raised")
    spent.set_defaults(run=run_spent)


def run_offers(options: argparse.Namespace) -> int:
    """Print a line a region that offers the type. Status 1 where none does."""
    asked = [options.region] if options.region else aws.regions(Account(HOME))
    found = 0
    print(f"{'REGION':<16}{'ON DEMAND $/h':>14}{'SPOT $/h':>10}  {'QUOTA vCPU':<24}ZONES")
    for region in asked:
        line = offer(Account(region), options.type)
        if line is not None:
            print(line, flush=True)
            found += 1
    if not found:
        print(f"{options.type}: none of {len(asked)} region(s) offers it")
    return 0 if found else 1


def offer(account: Account, instance: str) -> str | None:
    """A region's line; None where it does not offer the type."""
    zones = aws.zones_of(account, instance)[instance]
    if not zones:
        return None
    spot = prices.spot(account, [instance]).get(instance, {})
    return (
        f"{account.region:<16}{_dollars(prices.on_demand(account, instance)):>14}"
        f"{_dollars(min(spot.values(), default=None)):>10}  {_quota(account, instance):<24}"
        f"{' '.join(zone.removeprefix(account.region) for zone in zones)}"
    )


def run_spent(options: argparse.Namespace) -> int:
    """Print each running machine and the sum."""
    settings = read_yaml(spec.find(options.file))
    provider = settings.get("provider") or {}
    if provider.get("type") != "aws" or "region" not in provider:
        raise SettingsError(f"{options.file}: provider.type is not aws, and nothing is rented")
    name = str(settings.get("cluster_name"))
    there = prices.spent(Account(str(provider["region"])), name, datetime.now(UTC))
    for line in lines(name, there):
        print(line)
    return 0


def lines(cluster: str, there: Sequence[Spent]) -> Iterator[str]:
    """A line a machine, and what all of them cost until now and in an hour."""
    for each in there:
        how = "spot" if each.machine.spot else "on demand"
        yield (
            f"{each.machine.name:<21}{each.machine.kind:<20}{each.machine.instance_type:<16}"
            f"{how:<10}{each.hours:>7.2f} h at {_dollars(each.per_hour)} $/h: "
            f"{_dollars(each.dollars)} $"
        )
    known = [each for each in there if each.dollars is not None]
    total = sum(each.dollars or 0.0 for each in known)
    hourly = sum(each.per_hour or 0.0 for each in known)
    others = len(there) - len(known)
    rest = f", {others} at a price that is not known" if others else ""
    yield (
        f"{cluster}: {len(there)} machine(s) run{rest}: ${total:,.2f} so far, ${hourly:,.2f} an "
        "hour; machines that ended, disks and traffic are not counted"
    )


def _quota(account: Account, instance: str) -> str:
    """Both quotas; a role that may not ask is no reason to show nothing."""
    try:
        found: Mapping[str, float] = aws.quotas(account, instance)
    except AwsError:
        return "not told"
    return ", ".join(f"{value:g} {name}" for name, value in found.items()) or "?"


def _dollars(value: float | None) -> str:
    return "?" if value is None else f"{value:,.4f}" if value < 1 else f"{value:,.2f}"
