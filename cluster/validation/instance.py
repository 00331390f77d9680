"""Checks of one EC2 node type: its `node_config`, which Ray passes to EC2 as it is written."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.hardware.catalog import read_table
from cluster.validation.problem import ConfigProblem, as_mapping, suggest_name

MIN_DISK_GIB = 100
IMAGE = re.compile(r"ami-[0-9a-f]{8,17}|resolve:ssm:/[\w./-]+|name:.+")


def catalog_row(instance: str) -> Mapping[str, str] | None:
    """Return the first row of the catalog for an instance type, if any."""
    return next((row for row in read_table("instances") if row["instance"] == instance), None)


def check_instance(
    field: str, node: Mapping[str, Any], settings: Mapping[str, Any], is_head: bool
) -> Iterator[ConfigProblem]:
    """Yield problems in one node_config. field: its dotted path in the file."""
    yield from _check_type(f"{field}.InstanceType", node.get("InstanceType"))
    yield from _check_image(f"{field}.ImageId", node.get("ImageId"))
    yield from _check_disks(f"{field}.BlockDeviceMappings", node.get("BlockDeviceMappings"))
    yield from _check_interfaces(field, node)
    tokens = as_mapping(node.get("MetadataOptions")).get("HttpTokens")
    if tokens != "required":
        message = "must be required (IMDSv2); else a server-side request forgery leaks the role"
        yield ConfigProblem(f"{field}.MetadataOptions.HttpTokens", message, tokens)
    if "ssh_private_key" in as_mapping(settings.get("auth")) and "KeyName" not in node:
        message = "missing, and auth.ssh_private_key is given: name its key pair, or remove"
        yield ConfigProblem(f"{field}.KeyName", f"{message} the key, and Ray makes both")
    market = as_mapping(node.get("InstanceMarketOptions")).get("MarketType")
    if is_head and market == "spot":
        message = "on the head: the cluster is lost when EC2 reclaims it; remove it"
        yield ConfigProblem(f"{field}.InstanceMarketOptions.MarketType", message, market)
    if not is_head and "IamInstanceProfile" not in node:
        message = "missing: Ray gives a role to the head only, so this node could not read S3"
        yield ConfigProblem(
            f"{field}.IamInstanceProfile", f"{message}; {{Name: bertha-worker}} is made by `up`"
        )


def _check_type(field: str, name: Any) -> Iterator[ConfigProblem]:
    """Accept a type in the catalog, or one of a family that the catalog does not cover."""
    if not name:
        yield ConfigProblem(field, "missing; as g6e.12xlarge")
        return
    known = {row["instance"] for row in read_table("instances")}
    family = str(name).split(".")[0]
    siblings = [each for each in known if each.split(".")[0] == family]
    if not re.fullmatch(r"[a-z][\w-]*\.[\w-]+", str(name)):
        message = f"is not an instance type{suggest_name(str(name), known)}"
        yield ConfigProblem(field, message, name)
    elif name not in known and siblings:
        message = f"the catalog has no such size{suggest_name(str(name), siblings)}"
        yield ConfigProblem(field, message, name)
    elif family in ("trn1", "trn1n"):
        message = "Trainium 1 has only the older environment (Neuron 2.29, torch 2.9), in which"
        yield ConfigProblem(field, f"{message} Bertha does not train; use trn2.48xlarge", name)


def _check_image(field: str, image: Any) -> Iterator[ConfigProblem]:
    if not image or str(image).lower() == "latest_dlami":
        message = "missing: Ray would use Ubuntu 18.04 with CUDA 11.2; give ami-..., "
        message += "resolve:ssm:/PARAMETER, or name:PATTERN for Amazon's newest by that name"
        yield ConfigProblem(field, message)
    elif not IMAGE.fullmatch(str(image)):
        message = "is not an image: ami-..., resolve:ssm:/PARAMETER or name:PATTERN"
        yield ConfigProblem(field, message, image)


def _check_disks(field: str, disks: Any) -> Iterator[ConfigProblem]:
    if not isinstance(disks, list) or not disks:
        message = "missing: the image's own disk is too small for torch and data; "
        example = "{DeviceName: /dev/sda1, Ebs: {VolumeSize: 300, Encrypted: true}}"
        yield ConfigProblem(field, message + example)
        return
    for disk in disks:
        ebs = as_mapping(as_mapping(disk).get("Ebs"))
        size, encrypted = ebs.get("VolumeSize"), ebs.get("Encrypted")
        if not isinstance(size, int) or size < MIN_DISK_GIB:
            message = f"torch, its libraries, data and checkpoints need at least {MIN_DISK_GIB} GiB"
            yield ConfigProblem(f"{field}.Ebs.VolumeSize", message, size)
        if encrypted is not True:
            yield ConfigProblem(f"{field}.Ebs.Encrypted", "must be true; it is free", encrypted)


def _check_interfaces(field: str, node: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Check network interfaces that the file lists itself, against Ray's and EC2's rules."""
    interfaces = node.get("NetworkInterfaces")
    if not isinstance(interfaces, list):
        return
    for other in filter(node.__contains__, ("SubnetId", "SubnetIds", "SecurityGroupIds")):
        message = "conflicts with NetworkInterfaces, where each interface has its own; remove it"
        yield ConfigProblem(f"{field}.{other}", message)
    for number, each in enumerate(interfaces):
        for key in ("SubnetId", "Groups"):
            if not as_mapping(each).get(key):
                message = "missing; remove NetworkInterfaces, and `bertha up` adds them"
                yield ConfigProblem(f"{field}.NetworkInterfaces.{number}.{key}", message)
    row = catalog_row(str(node.get("InstanceType")))
    limit = int(row["efa_interfaces"] or 0) if row else None
    kinds = [str(as_mapping(each).get("InterfaceType", "")) for each in interfaces]
    efa = sum(kind.startswith("efa") for kind in kinds)
    if row and limit is not None and efa > limit:
        message = f"{row['instance']} has {limit} EFA interface(s)"
        yield ConfigProblem(f"{field}.NetworkInterfaces", message, f"{efa} of EFA")
