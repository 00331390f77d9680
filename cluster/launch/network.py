"""The network of an EC2 cluster: VPC, zone, subnet, security group and placement group.

Everything is made once and found again by name, so a second `up` makes nothing twice.
"""

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
from cluster.launch.aws import AwsAccount, AwsError, translate_errors, zones_offering

SSH_RULE = "SSH of `bertha up`"
ADDRESS_SERVICE = "https://checkip.amazonaws.com"


@dataclass(frozen=True)
class NetworkRequest:
    """What a cluster needs of the network. security_group: its name.

    instance_types: that run at once. preferred_subnet: of an earlier `up`, reused if possible.
    """

    cluster: str
    security_group: str
    ssh_from: str
    instance_types: tuple[str, ...]
    needs_private_subnet: bool = False
    preferred_subnet: str | None = None


@dataclass(frozen=True)
class NetworkPlacement:
    """Where the nodes are, by ids. private_subnet: for nodes with several interfaces."""

    vpc: str
    zone: str
    subnet: str
    security_group: str
    private_subnet: str | None = None


def public_address() -> str:
    """Return the address at which AWS sees this machine. Raises AwsError if unknown."""
    emulator = emulator_url()
    if emulator:  # it is not on the internet: use our address towards it
        url = urllib.parse.urlparse(emulator)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((url.hostname, url.port or 80))
            return str(probe.getsockname()[0])
    try:
        with urllib.request.urlopen(ADDRESS_SERVICE, timeout=10) as answer:
            return str(ipaddress.ip_address(answer.read().decode().strip()))
    except (urllib.error.URLError, TimeoutError, ValueError):
        raise AwsError(
            f"metadata.ssh_from = 'auto': {ADDRESS_SERVICE} does not tell this machine's address; "
            "write it there, as 203.0.113.7/32"
        ) from None


def emulator_url() -> str | None:
    """Return the URL of an AWS emulator, if one is configured."""
    return os.environ.get("AWS_ENDPOINT_URL") or None


def ensure_network(account: AwsAccount, request: NetworkRequest) -> NetworkPlacement:
    """Find or make the cluster's network. Raises AwsError if no zone offers all its types."""
    vpc = _default_vpc(account)
    zone, subnet = _choose_zone(account, vpc, request)
    group = ensure_security_group(account, vpc, request.security_group, request.ssh_from)
    private = None
    if request.needs_private_subnet:
        private = nat.ensure_private_subnet(account, request.cluster, vpc, zone, subnet)
    return NetworkPlacement(vpc, zone, subnet, group, private)


def ensure_security_group(account: AwsAccount, vpc: str, name: str, ssh_from: str) -> str:
    """Return the id of a group open among its members, to the outside, and for SSH from a network.

    The SSH rule that an earlier `up` made for another address is revoked.
    """
    client = account.client("ec2")
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    with translate_errors(f"ec2:CreateSecurityGroup {name}"):
        groups = client.describe_security_groups(Filters=filters)["SecurityGroups"]
        if not groups:
            client.create_security_group(
                GroupName=name, VpcId=vpc, Description="Nodes of a cluster of Bertha's"
            )
            groups = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    group, group_id = groups[0], groups[0]["GroupId"]
    # EFA's OS-bypass traffic needs rules that name the group itself, in *and* out: the default rule
    # that lets everything out to 0.0.0.0/0 does not count.
    rules = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}]
    with translate_errors(f"ec2:AuthorizeSecurityGroupIngress and Egress {name}"):
        if not _allows_members(group["IpPermissions"], group_id):
            client.authorize_security_group_ingress(GroupId=group_id, IpPermissions=rules)
        if not _allows_members(group["IpPermissionsEgress"], group_id):
            client.authorize_security_group_egress(GroupId=group_id, IpPermissions=rules)
        _update_ssh_rules(client, group, ssh_from)
    return str(group_id)


def ensure_placement_group(account: AwsAccount, name: str) -> None:
    """Make a placement group that packs instances close together, for their collectives."""
    client = account.client("ec2")
    with translate_errors(f"ec2:CreatePlacementGroup {name}"):
        groups = client.describe_placement_groups()["PlacementGroups"]
        if name not in {each["GroupName"] for each in groups}:
            client.create_placement_group(GroupName=name, Strategy="cluster")


def _default_vpc(account: AwsAccount) -> str:
    filters = [{"Name": "is-default", "Values": ["true"]}]
    with translate_errors("ec2:DescribeVpcs"):
        vpcs = account.client("ec2").describe_vpcs(Filters=filters)["Vpcs"]
    if not vpcs:
        raise AwsError(
            f"{account.region} has no default VPC in your account; make one with "
            "`aws ec2 create-default-vpc`"
        )
    return str(vpcs[0]["VpcId"])


def _choose_zone(account: AwsAccount, vpc: str, request: NetworkRequest) -> tuple[str, str]:
    """Return the zone, and its public subnet, that offers all types: the cheapest for spot."""
    offered = zones_offering(account, *request.instance_types)
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    with translate_errors("ec2:DescribeSubnets"):
        rows = account.client("ec2").describe_subnets(Filters=filters)["Subnets"]
    public = {row["AvailabilityZone"]: row["SubnetId"] for row in rows if _is_public(row)}
    able = sorted(zone for zone in public if all(zone in zones for zones in offered.values()))
    if not able:
        offers = "; ".join(f"{name}: {', '.join(z) or 'nowhere'}" for name, z in offered.items())
        raise AwsError(
            f"no zone of {account.region} offers all that the file enables ({offers}); disable one "
            "type, or use another region: `bertha offers TYPE` lists them"
        )
    for zone in able:
        if public[zone] == request.preferred_subnet:
            return zone, public[zone]
    costs = prices.spot_prices(account, request.instance_types)
    cheapest = min(able, key=lambda zone: sum(c.get(zone, float("inf")) for c in costs.values()))
    return cheapest, public[cheapest]


def _is_public(subnet: Mapping[str, Any]) -> bool:
    """Whether instances get a public address there: it is not our subnet behind a NAT gateway."""
    ours = any(tag["Key"] == nat.TAG for tag in subnet.get("Tags", ()))
    return bool(subnet["MapPublicIpOnLaunch"]) and not ours


def _allows_members(rules: Sequence[Mapping[str, Any]], group: str) -> bool:
    open_rules = [rule for rule in rules if rule["IpProtocol"] == "-1"]
    pairs = [pair for rule in open_rules for pair in rule.get("UserIdGroupPairs", ())]
    return any(pair.get("GroupId") == group for pair in pairs)


def _update_ssh_rules(client: Any, group: Mapping[str, Any], ssh_from: str) -> None:
    """Allow SSH from one network; revoke our earlier rules, and Ray's that is open to everybody."""
    known = [
        entry
        for rule in group["IpPermissions"]
        if rule.get("FromPort") == 22
        for entry in rule.get("IpRanges", ())
    ]
    for entry in known:
        ours = entry.get("Description") == SSH_RULE or entry["CidrIp"] == "0.0.0.0/0"
        if ours and entry["CidrIp"] != ssh_from:
            rules = [_ssh_permission(entry["CidrIp"], entry.get("Description"))]
            client.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=rules)
    if ssh_from not in {entry["CidrIp"] for entry in known}:
        rules = [_ssh_permission(ssh_from, SSH_RULE)]
        client.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=rules)


def _ssh_permission(network: str, description: str | None) -> Mapping[str, Any]:
    described = {} if description is None else {"Description": description}
    ranges = [{"CidrIp": network, **described}]
    return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": ranges}
