"""One kind of rented machine in a cluster file: what the catalogue knows of it, what can be wrong.

A kind's `node_config` goes to EC2 as it is written. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.hardware.catalog import table
from cluster.validation.problem import Mistake, mapping, nearest

LEAST_DISK_GIB = 100
IMAGE = re.compile(r"ami-[0-9a-f]{8,17}|resolve:ssm:/[\w./-]+|name:.+")


def catalogued(instance: str) -> Mapping[str, str] | None:
    """The first row of the catalogue for an instance type."""
    return next((row for row in table("instances") if row["instance"] == instance), None)


def of_node(
    field: str, node: Mapping[str, Any], settings: Mapping[str, Any], is_head: bool
) -> Iterator[Mistake]:
    """Mistakes in what EC2 is asked for: one node_config."""
    yield from _of_instance(field, node)
    yield from _of_image(field, node)
    yield from _of_disk(field, node)
    yield from _of_interfaces(field, node)
    if mapping(node.get("MetadataOptions")).get("HttpTokens") != "required":
        yield Mistake(
            f"{field}.MetadataOptions.HttpTokens",
            "must be required (IMDSv2), or whatever fetches "
            "a URL for others gives the node's role away",
            mapping(node.get("MetadataOptions")).get("HttpTokens"),
        )
    if "ssh_private_key" in mapping(settings.get("auth")) and "KeyName" not in node:
        yield Mistake(
            f"{field}.KeyName",
            "missing, and auth.ssh_private_key is given: name its key pair, or "
            "take auth.ssh_private_key out, and Ray makes both",
        )
    market = mapping(node.get("InstanceMarketOptions")).get("MarketType")
    if is_head and market == "spot":
        yield Mistake(
            f"{field}.InstanceMarketOptions.MarketType",
            "on the head: when it is taken away, the cluster is gone; take it out",
            market,
        )
    if not is_head and "IamInstanceProfile" not in node:
        yield Mistake(
            f"{field}.IamInstanceProfile",
            "missing: Ray gives a role to the head only, and this "
            "node could not read S3; {Name: bertha-worker} is made by `up`",
        )


def _of_instance(field: str, node: Mapping[str, Any]) -> Iterator[Mistake]:
    """The type is known here, or of a family that the catalogue does not speak of."""
    name = node.get("InstanceType")
    if not name:
        yield Mistake(f"{field}.InstanceType", "missing; as g6e.12xlarge")
        return
    known = {row["instance"] for row in table("instances")}
    family = str(name).split(".")[0]
    if not re.fullmatch(r"[a-z][\w-]*\.[\w-]+", str(name)):
        told = f"is no type of instance{nearest(str(name), known)}"
        yield Mistake(f"{field}.InstanceType", told, name)
    elif name not in known and family in {each.split(".")[0] for each in known}:
        mine = [each for each in known if each.split(".")[0] == family]
        told = f"the catalogue has no such size{nearest(str(name), mine)}"
        yield Mistake(f"{field}.InstanceType", told, name)
    elif family in ("trn1", "trn1n"):
        yield Mistake(
            f"{field}.InstanceType",
            "Trainium 1 has only the older environment (Neuron 2.29, "
            "torch 2.9), in which this version of Bertha does not train; take trn2.48xlarge",
            name,
        )


def _of_image(field: str, node: Mapping[str, Any]) -> Iterator[Mistake]:
    image = node.get("ImageId")
    if not image or str(image).lower() == "latest_dlami":
        yield Mistake(
            f"{field}.ImageId",
            "missing: Ray would take Ubuntu 18.04 with CUDA 11.2; give ami-..., "
            "resolve:ssm:/PARAMETER, or name:PATTERN for the newest of Amazon's by that name",
        )
    elif not IMAGE.fullmatch(str(image)):
        told = "is no image: ami-..., resolve:ssm:/PARAMETER or name:PATTERN"
        yield Mistake(f"{field}.ImageId", told, image)


def _of_disk(field: str, node: Mapping[str, Any]) -> Iterator[Mistake]:
    disks = node.get("BlockDeviceMappings")
    if not isinstance(disks, list) or not disks:
        yield Mistake(
            f"{field}.BlockDeviceMappings",
            "missing: the image's own disk is too small for torch "
            "and data; {DeviceName: /dev/sda1, Ebs: {VolumeSize: 300, Encrypted: true}}",
        )
        return
    for disk in disks:
        ebs = mapping(mapping(disk).get("Ebs"))
        size = ebs.get("VolumeSize")
        if not isinstance(size, int) or size < LEAST_DISK_GIB:
            told = f"torch, its libraries, data and checkpoints want {LEAST_DISK_GIB} GiB or more"
            yield Mistake(f"{field}.BlockDeviceMappings.Ebs.VolumeSize", told, size)
        if ebs.get("Encrypted") is not True:
            told = "must be true; it costs nothing"
            yield Mistake(f"{field}.BlockDeviceMappings.Ebs.Encrypted", told, ebs.get("Encrypted"))


def _of_interfaces(field: str, node: Mapping[str, Any]) -> Iterator[Mistake]:
    """What Ray and EC2 ask of network interfaces that are spelled out."""
    interfaces = node.get("NetworkInterfaces")
    if not isinstance(interfaces, list):
        return
    for other in ("SubnetId", "SubnetIds", "SecurityGroupIds"):
        if other in node:
            told = "stands beside NetworkInterfaces, where each interface has its own; take it out"
            yield Mistake(f"{field}.{other}", told)
    for number, each in enumerate(interfaces):
        for needed in ("SubnetId", "Groups"):
            if not mapping(each).get(needed):
                told = "missing; take NetworkInterfaces out, and `python -m cluster up` adds them"
                yield Mistake(f"{field}.NetworkInterfaces.{number}.{needed}", told)
    row = catalogued(str(node.get("InstanceType")))
    most = int(row["efa_interfaces"] or 0) if row else None
    efa = sum(str(mapping(each).get("InterfaceType", "")).startswith("efa") for each in interfaces)
    if row and most is not None and efa > most:
        told = f"{row['instance']} has {most} EFA interface(s)"
        yield Mistake(f"{field}.NetworkInterfaces", told, f"{efa} of EFA")
