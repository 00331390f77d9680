"""A way out for machines without a public address: a subnet of their own behind a NAT gateway.

Machines with several interfaces get no public address from EC2. The gateway costs by the hour while
it is there, so that `down` takes it away; all is found again by a tag.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.launch.aws import Account, AwsError, in_words

TAG = "bertha-cluster"
EVERY_SECONDS = 5.0
USD_PER_HOUR = 0.045  # us-east-1 and most regions; traffic beside it


def subnet_behind(account: Account, cluster: str, vpc: str, zone: str, public: str) -> str:
    """A subnet of the zone whose way out is a NAT gateway, both made where they are not there."""
    client = account.client("ec2")
    mine = [{"Name": f"tag:{TAG}", "Values": [cluster]}]
    with in_words("ec2:CreateSubnet, CreateNatGateway, CreateRoute"):
        here = {"Name": "availability-zone", "Values": [zone]}
        subnets = client.describe_subnets(Filters=[*mine, here])["Subnets"]
        subnet = subnets[0]["SubnetId"] if subnets else _new_subnet(client, cluster, vpc, zone)
        gateways = _gateways(client, cluster)
        if not gateways:
            address = client.allocate_address(
                Domain="vpc", TagSpecifications=_tagged("elastic-ip", cluster)
            )
            gateway = client.create_nat_gateway(
                SubnetId=public, AllocationId=address["AllocationId"],
                TagSpecifications=_tagged("natgateway", cluster),
            )["NatGateway"]["NatGatewayId"]  # fmt: skip
            client.get_waiter("nat_gateway_available").wait(NatGatewayIds=[gateway])
            gateways = [gateway]
        _route(client, cluster, vpc, str(subnet), gateways[0])
    return str(subnet)


def take_down(account: Account, cluster: str, wait: Callable[[float], None] = time.sleep) -> bool:
    """Delete the NAT gateway and its address, which cost while they are there; False for none."""
    client = account.client("ec2")
    mine = [{"Name": f"tag:{TAG}", "Values": [cluster]}]
    with in_words("ec2:DeleteNatGateway, ReleaseAddress"):
        names = _gateways(client, cluster)
        for name in names:
            client.delete_nat_gateway(NatGatewayId=name)
        # An address is let go when its gateway is gone: a minute or so.
        while names and _gateways(client, cluster, "deleting"):
            wait(EVERY_SECONDS)
        for address in client.describe_addresses(Filters=mine)["Addresses"]:
            client.release_address(AllocationId=address["AllocationId"])
    return bool(names)


def _gateways(client: Any, cluster: str, *states: str) -> list[str]:
    """The cluster's gateways that are there, or are in one of `states`."""
    there = [{"Name": "state", "Values": ["pending", "available", *states]}]
    tag = {"Key": TAG, "Value": cluster}
    rows = client.describe_nat_gateways(Filter=there)["NatGateways"]
    return [row["NatGatewayId"] for row in rows if tag in row.get("Tags", ())]


def _new_subnet(client: Any, cluster: str, vpc: str, zone: str) -> str:
    """The first free block of the VPC, as large as those that AWS makes (/20), or smaller."""
    whole = ipaddress.ip_network(client.describe_vpcs(VpcIds=[vpc])["Vpcs"][0]["CidrBlock"])
    rows = client.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    taken = [ipaddress.ip_network(row["CidrBlock"]) for row in rows]
    for prefix in range(max(20, whole.prefixlen), 27):
        for block in whole.subnets(new_prefix=prefix):
            if not any(block.overlaps(other) for other in taken):
                name = client.create_subnet(
                    VpcId=vpc, AvailabilityZone=zone, CidrBlock=str(block),
                    TagSpecifications=_tagged("subnet", cluster),
                )["Subnet"]["SubnetId"]  # fmt: skip
                # Ray takes no subnet without it. Who has several interfaces gets none all the same.
                client.modify_subnet_attribute(SubnetId=name, MapPublicIpOnLaunch={"Value": True})
                return str(name)
    raise AwsError(f"VPC {vpc} has no free block of addresses for a subnet; give it another one")


def _route(client: Any, cluster: str, vpc: str, subnet: str, gateway: str) -> None:
    """All that leaves `subnet` goes through `gateway`, also where an older one is gone."""
    filters = [{"Name": f"tag:{TAG}", "Values": [cluster]}]
    tables = client.describe_route_tables(Filters=filters)["RouteTables"]
    out = {"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": gateway}
    if not tables:
        table = client.create_route_table(
            VpcId=vpc, TagSpecifications=_tagged("route-table", cluster)
        )["RouteTable"]
        client.create_route(RouteTableId=table["RouteTableId"], **out)
    else:
        table = tables[0]
        client.replace_route(RouteTableId=table["RouteTableId"], **out)
    if subnet not in {each.get("SubnetId") for each in table.get("Associations", ())}:
        client.associate_route_table(RouteTableId=table["RouteTableId"], SubnetId=subnet)


def _tagged(kind: str, cluster: str) -> list[Mapping[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": TAG, "Value": cluster}]}]
