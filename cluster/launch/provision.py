"""Provision the AWS resources that a cluster file names, and write their ids into a resolved file.

The resolved file, CLUSTER.up.yaml in the working directory, is what all of Ray's commands take.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.launch import aws, iam, nat, network
from cluster.launch.aws import AwsAccount, AwsError
from cluster.launch.network import NetworkPlacement, NetworkRequest
from cluster.settings import SettingsError, read_cluster_yaml
from cluster.validation.instance import catalog_row
from cluster.validation.problem import as_mapping
from cluster.yaml_schema import dump_yaml

Log = Callable[[str], None]
# B300 instances support no EFA on the first card (their card 0 is ENA only).
NO_EFA_ON_FIRST_CARD = ("p6-b300",)


@dataclass(frozen=True)
class ProvisionedResources:
    """The AWS resources of a cluster. images: ids by the file's ImageId."""

    account_id: str
    network: NetworkPlacement
    images: Mapping[str, str]
    bucket: str | None


def provision_resources(
    settings: Mapping[str, Any],
    account: AwsAccount,
    log: Log,
    previous: Mapping[str, Any] | None = None,
) -> ProvisionedResources:
    """Make or find what the file names. Raises AwsError or SettingsError.

    previous: the resolved file of an earlier `up`, whose subnet is reused if possible.

    What is free comes first: a bucket, roles and groups cost nothing if `up` stops half-way. The
    NAT gateway, which costs by the hour, comes last and has the cluster's tag, so `down` deletes it
    also after an `up` that failed before it wrote the resolved file. Each step finds what exists
    already, by name or tag, so running `up` again continues where it stopped.
    """
    account_id, nodes = account.account_id(), _node_configs(settings)
    bucket = _ensure_bucket(settings, account, account_id, log)
    wanted = dict.fromkeys(node["ImageId"] for node in nodes.values())
    images = {name: aws.resolve_image(account, name) for name in wanted}
    for name, image in images.items():
        log(f"image     {image}{'' if name == image else f' = {name}'}")
    _ensure_profiles(settings, account, account_id, bucket)
    groups = [as_mapping(node.get("Placement")).get("GroupName") for node in nodes.values()]
    for group in sorted({group for group in groups if group is not None}):
        _ensure_placement_group(account, group, log)
    request = _network_request(settings, nodes, previous)
    placement = network.ensure_network(account, request)
    ids = f"{placement.zone}, {placement.subnet}, {placement.security_group}"
    log(f"network   {ids}; SSH from {request.ssh_from}")
    if placement.private_subnet:
        log(f"          NAT gateway for workers: ${nat.USD_PER_HOUR} an hour until `down`")
    return ProvisionedResources(account_id, placement, images, bucket)


def resolve_ids(settings: Mapping[str, Any], resources: ProvisionedResources) -> dict[str, Any]:
    """Return the settings with ids of images, subnets, security groups, and EFA interfaces."""
    resolved: dict[str, Any] = copy.deepcopy(dict(settings))
    placement = resources.network
    for kind, node_type in resolved["available_node_types"].items():
        node = node_type["node_config"]
        node["ImageId"] = resources.images[node["ImageId"]]
        if "NetworkInterfaces" in node or "SubnetIds" in node:
            continue  # the user's own
        instance, group = node["InstanceType"], placement.security_group
        count = 0 if kind == resolved["head_node_type"] else num_efa_interfaces(instance)
        if count:
            private = placement.private_subnet if count > 1 else None
            node["NetworkInterfaces"] = efa_interfaces(instance, private or placement.subnet, group)
        else:
            node |= {"SubnetIds": [placement.subnet], "SecurityGroupIds": [group]}
    metadata = resolved["metadata"]
    if resources.bucket is not None:
        metadata["bucket"] = resources.bucket
    if "storage" in metadata:
        region = resolved["provider"]["region"]
        metadata["storage"] = _fill_placeholders(metadata["storage"], resources.account_id, region)
    return resolved


def num_efa_interfaces(instance: str) -> int:
    """Return how many EFA interfaces a type has; 0 for none, or for an unknown type."""
    row = catalog_row(instance)
    return int(row["efa_interfaces"] or 0) if row else 0


def efa_interfaces(instance: str, subnet: str, group: str) -> list[dict[str, Any]]:
    """Return the EFA interfaces of an instance type, one per network card."""
    count = num_efa_interfaces(instance)
    interfaces: list[dict[str, Any]] = [
        {
            "NetworkCardIndex": card,
            "DeviceIndex": min(card, 1),
            "InterfaceType": "efa",
            "SubnetId": subnet,
            "Groups": [group],
            "DeleteOnTermination": True,
        }
        for card in range(count)
    ]
    if count == 1:  # EC2 gives a public address only to an instance with one interface
        interfaces[0]["AssociatePublicIpAddress"] = True
    if count and instance.startswith(NO_EFA_ON_FIRST_CARD):
        interfaces[0]["InterfaceType"] = "interface"
    return interfaces


def resolved_path(settings: Mapping[str, Any], directory: Path) -> Path:
    """Return the path of a cluster's resolved file."""
    return directory / f"{settings['cluster_name']}.up.yaml"


def write_resolved(settings: Mapping[str, Any], path: Path, source: Path) -> None:
    """Write a resolved file, keeping the image ids of an existing one.

    `latest` image names change their meaning; to Ray another image is another node type, and it
    would replace a running head.
    """
    if path.is_file():
        earlier = _node_configs(read_cluster_yaml(path))
        for kind, node in _node_configs(settings).items():
            old = earlier.get(kind, {})
            if old.get("InstanceType") == node["InstanceType"] and old.get("ImageId"):
                settings["available_node_types"][kind]["node_config"]["ImageId"] = old["ImageId"]
    header = f"# Made from {source.name} by `bertha up`: ids filled in."
    path.write_text(f"{header}\n{dump_yaml(settings)}", encoding="utf-8")


def revoke_roles(settings: Mapping[str, Any], account: AwsAccount) -> None:
    """Revoke what the roles were allowed for this cluster."""
    for name in {_profile_name(settings, True), _profile_name(settings, False)} - {None}:
        iam.revoke_policy(account, str(name), str(settings["cluster_name"]))


def _node_configs(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    kinds = as_mapping(settings.get("available_node_types"))
    return {kind: as_mapping(as_mapping(each).get("node_config")) for kind, each in kinds.items()}


def _ensure_bucket(
    settings: Mapping[str, Any], account: AwsAccount, account_id: str, log: Log
) -> str | None:
    template = (settings.get("metadata") or {}).get("bucket")
    if template is None:
        return None
    name = _fill_placeholders(template, account_id, account.region)
    created = " made" if aws.ensure_bucket(account, name) else ""
    log(f"bucket    {name}{created}, private, encrypted")
    return name


def _fill_placeholders(text: object, account_id: str, region: str) -> str:
    return str(text).replace("{account}", account_id).replace("{region}", region)


def _network_request(
    settings: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    previous: Mapping[str, Any] | None,
) -> NetworkRequest:
    name, head = str(settings["cluster_name"]), settings["head_node_type"]
    kinds = settings["available_node_types"]
    enabled = [kind for kind in kinds if kind == head or kinds[kind].get("max_workers", 1)]
    types = tuple(sorted({nodes[kind]["InstanceType"] for kind in enabled}))
    old_head = _node_configs(previous or {}).get(str((previous or {}).get("head_node_type")), {})
    subnet = (old_head.get("SubnetIds") or [None])[0]
    return NetworkRequest(
        name,
        (settings["provider"].get("security_group") or {}).get("GroupName", name),
        _ssh_network(settings.get("metadata") or {}),
        types,
        any(num_efa_interfaces(instance) > 1 for instance in types),
        subnet if isinstance(subnet, str) else None,
    )


def _ensure_placement_group(account: AwsAccount, group: str, log: Log) -> None:
    try:
        network.ensure_placement_group(account, group)
    except AwsError as error:
        if network.emulator_url() is None:
            raise
        log(f"placement {group} is left out, as the emulator has none: {error}")


def _ensure_profiles(
    settings: Mapping[str, Any], account: AwsAccount, account_id: str, bucket: str | None
) -> None:
    cluster = str(settings["cluster_name"])
    head, worker = _profile_name(settings, True), _profile_name(settings, False)
    if worker:
        iam.ensure_instance_profile(account, worker, cluster, iam.worker_policy(bucket))
    if head:
        policy = iam.head_policy(account_id, account.region, cluster, worker or "-", bucket)
        iam.ensure_instance_profile(account, head, cluster, policy)


def _profile_name(settings: Mapping[str, Any], of_head: bool) -> str | None:
    """Return the profile of the head, or of the first worker type that has one."""
    for kind, node in _node_configs(settings).items():
        name = (node.get("IamInstanceProfile") or {}).get("Name")
        if name and (kind == settings.get("head_node_type")) == of_head:
            return str(name)
    return None


def _ssh_network(metadata: Mapping[str, Any]) -> str:
    network_or_auto = str(metadata.get("ssh_from", "auto"))
    if network_or_auto != "auto":
        return network_or_auto
    address = network.public_address()
    if ":" in address:
        raise SettingsError(
            f"metadata.ssh_from = 'auto': this machine's public address is {address}, and the "
            "default VPC is IPv4; write an IPv4 network there, as 203.0.113.7/32"
        )
    return f"{address}/32"
