"""A cluster file of EC2 machines as `ray up` needs it: names become ids, EFA gets its interfaces.

`lay` makes in the account what the file names (launch/network.py, launch/roles.py, the bucket)
and `resolved` writes the ids into the settings; the rest of the file stays as it is. The outcome is
kept beside the user's work as CLUSTER.up.yaml, which every command of Ray takes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.launch import aws, iam, nat, network
from cluster.launch.aws import Account, AwsError
from cluster.launch.network import Site, Wanted
from cluster.settings import SettingsError, read_yaml
from cluster.spec import dump
from cluster.validation.instance import catalogued
from cluster.validation.problem import mapping

Say = Callable[[str], None]
# On B300 machines the first card takes no EFA (its card 0 is ENA only).
FIRST_CARD_PLAIN = ("p6-b300",)


@dataclass(frozen=True)
class Ground:
    """What stands in the account, whose number is `account`. images: ids by how a file asks."""

    account: str
    site: Site
    images: Mapping[str, str]
    bucket: str | None


def lay(
    settings: Mapping[str, Any],
    account: Account,
    say: Say,
    earlier: Mapping[str, Any] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Ground:
    """Make what the file names and find what it asks for. Raises AwsError or SettingsError.

    earlier: a resolved file of the same cluster, whose place is taken again if it can be.
    """
    number, nodes = account.number(), _nodes(settings)
    bucket = _bucket(settings, account, number, say)
    images = {wanted: aws.image(account, wanted) for wanted in _images(nodes)}
    for wanted, found in images.items():
        say(f"image     {found}{'' if wanted == found else f' = {wanted}'}")
    _profiles(settings, account, number, bucket, wait)
    for group in sorted({n["Placement"]["GroupName"] for n in nodes.values() if _placed(n)}):
        _together(account, group, say)
    wanted_site = _wanted(settings, nodes, earlier)
    place = network.site(account, wanted_site)
    say(f"network   {place.zone}, {place.subnet}, {place.group}; SSH from {wanted_site.ssh_from}")
    if place.behind:
        say(f"          NAT gateway for workers: ${nat.USD_PER_HOUR} an hour until `down`")
    return Ground(number, place, images, bucket)


def resolved(settings: Mapping[str, Any], ground: Ground) -> dict[str, Any]:
    """The settings with the ids of `ground`: images, subnets, security groups, EFA interfaces."""
    made: dict[str, Any] = copy.deepcopy(dict(settings))
    for kind, node_type in made["available_node_types"].items():
        node = node_type["node_config"]
        node["ImageId"] = ground.images[node["ImageId"]]
        if "NetworkInterfaces" in node or "SubnetIds" in node:
            continue  # the user's own
        count = 0 if kind == made["head_node_type"] else num_interfaces(node["InstanceType"])
        if count:
            subnet = ground.site.behind if count > 1 else None
            subnet = subnet or ground.site.subnet
            node["NetworkInterfaces"] = interfaces(node["InstanceType"], subnet, ground.site.group)
        else:
            node |= {"SubnetIds": [ground.site.subnet], "SecurityGroupIds": [ground.site.group]}
    if ground.bucket is not None:
        made["metadata"]["bucket"] = ground.bucket
    if "storage" in made["metadata"]:
        region, storage = made["provider"]["region"], made["metadata"]["storage"]
        made["metadata"]["storage"] = _filled(storage, ground.account, region)
    return made


def num_interfaces(instance: str) -> int:
    """How many EFA interfaces a type has; 0 where it has none, or is not known."""
    row = catalogued(instance)
    return int(row["efa_interfaces"] or 0) if row else 0


def interfaces(instance: str, subnet: str, group: str) -> list[dict[str, Any]]:
    """The EFA interfaces of an instance type, one a network card; none where it has no EFA.

    A machine with one keeps its public address; with more EC2 gives none.
    """
    count = num_interfaces(instance)
    cards: list[dict[str, Any]] = [
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
    if count == 1:
        cards[0]["AssociatePublicIpAddress"] = True
    if count and instance.startswith(FIRST_CARD_PLAIN):
        cards[0]["InterfaceType"] = "interface"
    return cards


def kept(settings: Mapping[str, Any], directory: Path) -> Path:
    """Where the resolved file of a cluster lies."""
    return directory / f"{settings['cluster_name']}.up.yaml"


def write(settings: Mapping[str, Any], path: Path, source: Path) -> None:
    """Write a resolved file. The images of an earlier one stay: another would end the head."""
    if path.is_file():
        _same_images(settings, read_yaml(path))
    head = f"# Made from {source.name} by `python -m cluster up`: ids filled in."
    path.write_text(f"{head}\n{dump(settings)}", encoding="utf-8")


def _same_images(settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Take over the images of a file made before, for kinds whose machine is the same."""
    before = earlier.get("available_node_types") or {}
    for kind, node_type in settings["available_node_types"].items():
        node = node_type["node_config"]
        old = (before.get(kind) or {}).get("node_config") or {}
        if old.get("InstanceType") == node["InstanceType"] and old.get("ImageId"):
            node["ImageId"] = old["ImageId"]


def _nodes(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Each kind's node_config."""
    kinds = mapping(settings.get("available_node_types"))
    return {kind: mapping(mapping(each).get("node_config")) for kind, each in kinds.items()}


def _images(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(node["ImageId"] for node in nodes.values()))


def _bucket(settings: Mapping[str, Any], account: Account, number: str, say: Say) -> str | None:
    """The cluster's bucket, made where it is not there; None where the file names none."""
    named = (settings.get("metadata") or {}).get("bucket")
    if named is None:
        return None
    name = _filled(named, number, account.region)
    made = " made" if aws.bucket(account, name) else ""
    say(f"bucket    {name}{made}, private, encrypted")
    return name


def _filled(text: object, number: str, region: str) -> str:
    """A name with what stands for the account and its region filled in."""
    return str(text).replace("{account}", number).replace("{region}", region)


def _wanted(
    settings: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    earlier: Mapping[str, Any] | None,
) -> Wanted:
    """Where the cluster is to stand."""
    name = str(settings["cluster_name"])
    on = tuple(sorted({nodes[kind]["InstanceType"] for kind in _on(settings)}))
    group = (settings["provider"].get("security_group") or {}).get("GroupName", name)
    several = any(num_interfaces(instance) > 1 for instance in on)
    ssh_from = _ssh_from(settings.get("metadata") or {})
    return Wanted(name, group, ssh_from, on, several, _place(earlier))


def _together(account: Account, group: str, say: Say) -> None:
    """A placement group; an emulation may know none, and does without."""
    try:
        network.placement_group(account, group)
    except AwsError as error:
        if network.emulation() is None:
            raise
        say(f"placement {group} is left out, as the emulation has none: {error}")


def _profiles(
    settings: Mapping[str, Any],
    account: Account,
    number: str,
    bucket: str | None,
    wait: Callable[[float], None],
) -> None:
    """The profiles that head and workers name."""
    name = str(settings["cluster_name"])
    head, worker = _profile(settings, True), _profile(settings, False)
    if worker:
        iam.profile(account, worker, name, iam.of_worker(bucket), wait)
    if head:
        policy = iam.of_head(number, account.region, name, worker or "-", bucket)
        iam.profile(account, head, name, policy, wait)


def withdraw(settings: Mapping[str, Any], account: Account) -> None:
    """Take from the roles what they were given for this cluster."""
    for name in {_profile(settings, True), _profile(settings, False)} - {None}:
        iam.withdraw(account, str(name), str(settings["cluster_name"]))


def _profile(settings: Mapping[str, Any], of_head: bool) -> str | None:
    """The name of the profile of the head, or of the first kind of worker that has one."""
    for kind, node in _nodes(settings).items():
        name = (node.get("IamInstanceProfile") or {}).get("Name")
        if name and (kind == settings.get("head_node_type")) == of_head:
            return str(name)
    return None


def _place(earlier: Mapping[str, Any] | None) -> str | None:
    """The subnet of the head of a resolved file."""
    kinds = (earlier or {}).get("available_node_types") or {}
    head = kinds.get((earlier or {}).get("head_node_type")) or {}
    subnets = (head.get("node_config") or {}).get("SubnetIds") or [None]
    return subnets[0] if isinstance(subnets[0], str) else None


def _on(settings: Mapping[str, Any]) -> list[str]:
    """The kinds that may run: the head, and workers whose max_workers is not 0."""
    kinds = settings["available_node_types"]
    return [k for k in kinds if k == settings["head_node_type"] or kinds[k].get("max_workers", 1)]


def _placed(node: Mapping[str, Any]) -> bool:
    return "GroupName" in (node.get("Placement") or {})


def _ssh_from(metadata: Mapping[str, Any]) -> str:
    wanted = str(metadata.get("ssh_from", "auto"))
    if wanted != "auto":
        return wanted
    address = network.own_address()
    if ":" in address:
        raise SettingsError(
            f"metadata.ssh_from = 'auto': this machine goes out as {address}, and the default VPC "
            "speaks IPv4; write an IPv4 network there, as 203.0.113.7/32"
        )
    return f"{address}/32"
