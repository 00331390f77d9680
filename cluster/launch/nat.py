"""Internet access for instances without a public address: a private subnet behind a NAT gateway.

EC2 gives no public address to an instance with several interfaces. Everything is found by a tag, so
nothing is made twice. The gateway and its elastic IP cost by the hour until `down` deletes them.
"""

import ipaddress
import time
from collections.abc import Mapping
from typing import Any

from cluster.launch.aws import AwsAccount, AwsError, translate_errors

TAG = "bertha-cluster"
POLL_SECONDS = 5.0
USD_PER_HOUR = 0.045  # us-east-1 and most regions; traffic costs extra


def ensure_private_subnet(
    account: AwsAccount, cluster: str, vpc: str, zone: str, public_subnet: str
) -> str:
    """Return a subnet of the zone that reaches the internet by a NAT gateway; make what is missing.

    Each step finds what an earlier `up` made before it stopped. Only an address whose gateway was
    not made yet is not used again; it has the tag, though, and `down` releases it.
    """
    client = account.client("ec2")
    with translate_errors("ec2:CreateSubnet, CreateNatGateway, CreateRoute"):
        in_zone = {"Name": "availability-zone", "Values": [zone]}
        subnets = client.describe_subnets(Filters=[*_tag_filter(cluster), in_zone])["Subnets"]
        subnet = subnets[0]["SubnetId"] if subnets else _create_subnet(client, cluster, vpc, zone)
        gateways = _list_gateways(client, cluster)
        if not gateways:
            tags = _tag_specification("elastic-ip", cluster)
            address = client.allocate_address(Domain="vpc", TagSpecifications=tags)
            gateway = client.create_nat_gateway(
                SubnetId=public_subnet, AllocationId=address["AllocationId"],
                TagSpecifications=_tag_specification("natgateway", cluster),
            )["NatGateway"]["NatGatewayId"]  # fmt: skip
            client.get_waiter("nat_gateway_available").wait(NatGatewayIds=[gateway])
            gateways = [gateway]
        _route_through(client, cluster, vpc, str(subnet), gateways[0])
    return str(subnet)


def delete_gateway(account: AwsAccount, cluster: str) -> bool:
    """Delete the NAT gateway and its address, which cost money; return whether there was one."""
    client = account.client("ec2")
    with translate_errors("ec2:DeleteNatGateway, ReleaseAddress"):
        gateways = _list_gateways(client, cluster)
        for gateway in gateways:
            client.delete_nat_gateway(NatGatewayId=gateway)
        # EC2 releases an address only when its gateway is gone, which takes a minute or so.
        while gateways and _list_gateways(client, cluster, "deleting"):
            time.sleep(POLL_SECONDS)
        for address in client.describe_addresses(Filters=_tag_filter(cluster))["Addresses"]:
            client.release_address(AllocationId=address["AllocationId"])
    return bool(gateways)


def _list_gateways(client: Any, cluster: str, *more_states: str) -> list[str]:
    states = [{"Name": "state", "Values": ["pending", "available", *more_states]}]
    tag = {"Key": TAG, "Value": cluster}
    rows = client.describe_nat_gateways(Filter=states)["NatGateways"]
    return [row["NatGatewayId"] for row in rows if tag in row.get("Tags", ())]


def _create_subnet(client: Any, cluster: str, vpc: str, zone: str) -> str:
    """Use the first free block of the VPC, as large as those that AWS makes (/20), or smaller."""
    whole = ipaddress.ip_network(client.describe_vpcs(VpcIds=[vpc])["Vpcs"][0]["CidrBlock"])
    rows = client.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    taken = [ipaddress.ip_network(row["CidrBlock"]) for row in rows]
    for prefix in range(max(20, whole.prefixlen), 27):
        for block in whole.subnets(new_prefix=prefix):
            if not any(block.overlaps(other) for other in taken):
                subnet = client.create_subnet(
                    VpcId=vpc, AvailabilityZone=zone, CidrBlock=str(block),
                    TagSpecifications=_tag_specification("subnet", cluster),
                )["Subnet"]["SubnetId"]  # fmt: skip
                # Ray rejects a subnet without this; several interfaces get no address all the same.
                client.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
                return str(subnet)
    raise AwsError(f"VPC {vpc} has no free block of addresses for a subnet; give it another one")


def _route_through(client: Any, cluster: str, vpc: str, subnet: str, gateway: str) -> None:
    """Route the subnet's outgoing traffic to `gateway`, also where an older gateway is gone."""
    tables = client.describe_route_tables(Filters=_tag_filter(cluster))["RouteTables"]
    route = {"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": gateway}
    if tables:
        table = tables[0]
        client.replace_route(RouteTableId=table["RouteTableId"], **route)
    else:
        tags = _tag_specification("route-table", cluster)
        table = client.create_route_table(VpcId=vpc, TagSpecifications=tags)["RouteTable"]
        client.create_route(RouteTableId=table["RouteTableId"], **route)
    if subnet not in {each.get("SubnetId") for each in table.get("Associations", ())}:
        client.associate_route_table(RouteTableId=table["RouteTableId"], SubnetId=subnet)


def _tag_filter(cluster: str) -> list[Mapping[str, Any]]:
    return [{"Name": f"tag:{TAG}", "Values": [cluster]}]


def _tag_specification(kind: str, cluster: str) -> list[Mapping[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": TAG, "Value": cluster}]}]
