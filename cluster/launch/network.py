"""What a cluster of EC2 machines stands on in the network: subnet, security group, placement.

Everything is made once and found again by name, so that raising twice makes nothing twice. EFA
wants a security group that lets its members in *and out* to each other by name.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.launch import nat, prices
from cluster.launch.aws import Account, AwsError, in_words, zones_of

SSH = "SSH of `python -m cluster up`"
WHO_AM_I = "https://checkip.amazonaws.com"


@dataclass(frozen=True)
class Site:
    """Where the nodes stand: public for those with one interface, behind NAT for the others."""

    vpc: str
    zone: str
    subnet: str
    group: str
    behind: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A cluster that is to stand somewhere. group: the name of its security group.

    on: types of instances that run at once. behind: whether some have several interfaces. near: the
    subnet of an earlier time, which is taken again if it can be.
    """

    cluster: str
    group: str
    ssh_from: str
    on: tuple[str, ...]
    behind: bool = False
    near: str | None = None


def own_address() -> str:
    """The address that AWS sees this machine at. Raises AwsError where it cannot be found out."""
    instead = emulation()
    if instead:  # no outside there: the address towards it
        host = urllib.parse.urlparse(instead)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host.hostname, host.port or 80))
            return str(probe.getsockname()[0])
    try:
        with urllib.request.urlopen(WHO_AM_I, timeout=10) as answer:
            return str(ipaddress.ip_address(answer.read().decode().strip()))
    except (urllib.error.URLError, TimeoutError, ValueError):
        raise AwsError(
            f"metadata.ssh_from = 'auto': {WHO_AM_I} does not tell this machine's address; write "
            "it there, as 203.0.113.7/32"
        ) from None


def site(account: Account, wanted: Wanted) -> Site:
    """Find or make where a cluster can stand. Raises AwsError where no zone offers all of it."""
    vpc = _default_vpc(account)
    zone, subnet = _zone(account, vpc, wanted)
    made = security_group(account, vpc, wanted.group, wanted.ssh_from)
    apart = None
    if wanted.behind:
        apart = nat.subnet_behind(account, wanted.cluster, vpc, zone, subnet)
    return Site(vpc, zone, subnet, made, apart)


def security_group(account: Account, vpc: str, name: str, ssh_from: str) -> str:
    """The id of a group: its members among themselves, everything; SSH from one network; out, all.

    Rules of ours for another address of ours are taken back.
    """
    client = account.client("ec2")
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    with in_words(f"ec2:CreateSecurityGroup {name}"):
        found = client.describe_security_groups(Filters=filters)["SecurityGroups"]
        if not found:
            client.create_security_group(
                GroupName=name, VpcId=vpc, Description="Nodes of a cluster of Bertha's"
            )
            found = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    group = found[0]
    member = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group["GroupId"]}]}
    with in_words(f"ec2:AuthorizeSecurityGroupIngress and Egress {name}"):
        if not _lets(group["IpPermissions"], group["GroupId"]):
            client.authorize_security_group_ingress(
                GroupId=group["GroupId"], IpPermissions=[member]
            )
        if not _lets(group["IpPermissionsEgress"], group["GroupId"]):
            client.authorize_security_group_egress(GroupId=group["GroupId"], IpPermissions=[member])
        _let_in(client, group, ssh_from)
    return str(group["GroupId"])


def placement_group(account: Account, name: str) -> None:
    """Machines close together, for their collectives; made where it is not there."""
    client = account.client("ec2")
    with in_words(f"ec2:CreatePlacementGroup {name}"):
        found = client.describe_placement_groups()["PlacementGroups"]
        if name not in {each["GroupName"] for each in found}:
            client.create_placement_group(GroupName=name, Strategy="cluster")


def emulation() -> str | None:
    """The address of what stands for AWS, where something does."""
    return os.environ.get("AWS_ENDPOINT_URL") or None


def _default_vpc(account: Account) -> str:
    with in_words("ec2:DescribeVpcs"):
        found = account.client("ec2").describe_vpcs(
            Filters=[{"Name": "is-default", "Values": ["true"]}]
        )["Vpcs"]
    if not found:
        raise AwsError(
            f"{account.region} has no default VPC in your account; make one with "
            "`aws ec2 create-default-vpc`"
        )
    return str(found[0]["VpcId"])


def _zone(account: Account, vpc: str, wanted: Wanted) -> tuple[str, str]:
    """The zone, and its public subnet, that offers all that is on: the cheapest for spot."""
    offered = zones_of(account, *wanted.on)
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    with in_words("ec2:DescribeSubnets"):
        rows = account.client("ec2").describe_subnets(Filters=filters)["Subnets"]
    public = {row["AvailabilityZone"]: row["SubnetId"] for row in rows if _is_public(row)}
    able = sorted(zone for zone in public if all(zone in zones for zones in offered.values()))
    if not able:
        told = "; ".join(f"{name}: {', '.join(z) or 'nowhere'}" for name, z in offered.items())
        raise AwsError(
            f"no zone of {account.region} offers all that the file turns on ({told}); turn one "
            "off, or take another region: `python -m cluster offers TYPE` tells which"
        )
    for zone in able:
        if public[zone] == wanted.near:
            return zone, public[zone]
    costs = prices.spot(account, wanted.on)
    cheapest = min(able, key=lambda zone: sum(c.get(zone, float("inf")) for c in costs.values()))
    return cheapest, public[cheapest]


def _is_public(subnet: Mapping[str, Any]) -> bool:
    """Whether machines get a public address there: not behind a NAT gateway of ours."""
    ours = any(tag["Key"] == nat.TAG for tag in subnet.get("Tags", ()))
    return bool(subnet["MapPublicIpOnLaunch"]) and not ours


def _lets(rules: Sequence[Mapping[str, Any]], group: str) -> bool:
    """Whether everything passes between members."""
    return any(
        rule["IpProtocol"] == "-1"
        and any(pair.get("GroupId") == group for pair in rule.get("UserIdGroupPairs", ()))
        for rule in rules
    )


def _let_in(client: Any, group: Mapping[str, Any], ssh_from: str) -> None:
    """SSH from one network; no longer from what an earlier `up` let in, nor from everywhere.

    Everywhere is what Ray lets in when it makes the group itself.
    """
    known = [
        entry
        for rule in group["IpPermissions"]
        if rule.get("FromPort") == 22
        for entry in rule.get("IpRanges", ())
    ]
    for entry in known:
        ours = entry.get("Description") == SSH or entry["CidrIp"] == "0.0.0.0/0"
        if ours and entry["CidrIp"] != ssh_from:
            client.revoke_security_group_ingress(
                GroupId=group["GroupId"],
                IpPermissions=[_ssh(entry["CidrIp"], entry.get("Description"))],
            )
    if ssh_from not in {entry["CidrIp"] for entry in known}:
        client.authorize_security_group_ingress(
            GroupId=group["GroupId"], IpPermissions=[_ssh(ssh_from, SSH)]
        )


def _ssh(network: str, told: str | None) -> Mapping[str, Any]:
    described = {} if told is None else {"Description": told}
    ranges = [{"CidrIp": network, **described}]
    return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": ranges}
