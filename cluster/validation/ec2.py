"""What can be wrong in a cluster file of EC2 machines (`provider: aws`), as far as the file tells.

Pure: what only the account knows (quotas, ids, prices) is asked for by launch/aws.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.hardware import catalog
from cluster.spec import rented
from cluster.validation.instance import of_node
from cluster.validation.problem import Mistake, items, mapping, nearest

RAY_KNOWS_CORES = ("trn1", "trn1n", "inf2")
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
BUCKET = re.compile(r"[a-z0-9{][a-z0-9.{}-]{1,61}[a-z0-9}]")


def of_cloud(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Mistakes in which machines are rented, and how they stand in the network."""
    yield from _of_provider(settings["provider"])
    types = settings.get("available_node_types")
    if not isinstance(types, Mapping) or not types:
        yield Mistake("available_node_types", "missing; the kinds of machines, head and workers")
        return
    head = settings.get("head_node_type")
    if not isinstance(head, str) or head not in types:
        told = f"is not in available_node_types{nearest(str(head), types)}"
        yield Mistake("head_node_type", told, head)
    for name, kind in types.items():
        node = kind.get("node_config") if isinstance(kind, Mapping) else None
        if isinstance(node, Mapping):
            field = f"available_node_types.{name}"
            yield from of_node(f"{field}.node_config", node, settings, name == head)
            yield from _of_devices(field, kind, node, name == head)
    yield from _of_numbers(settings, types, head)
    yield from _of_metadata(settings)


def _of_provider(provider: Mapping[str, Any]) -> Iterator[Mistake]:
    region, zones = provider.get("region"), provider.get("availability_zone")
    if not region:
        yield Mistake("provider.region", "missing; as us-east-1")
    elif not REGION.fullmatch(str(region)):
        yield Mistake("provider.region", "is no region, as us-east-1", region)
    for zone in str(zones).split(",") if zones else ():
        if region and not zone.strip().startswith(str(region)):
            told = f"does not lie in provider.region {region}; take it out, and Ray tries them all"
            yield Mistake("provider.availability_zone", told, zone.strip())
    if "aws_credentials" in provider:
        yield Mistake(
            "provider.aws_credentials",
            "would be copied to every node; take it out: boto3 finds "
            "yours here, and the nodes have their roles",
        )
    for rule in items(mapping(provider.get("security_group")).get("IpPermissions")):
        ranges = [mapping(each).get("CidrIp") for each in items(mapping(rule).get("IpRanges"))]
        if "0.0.0.0/0" in ranges:
            yield Mistake(
                "provider.security_group.IpPermissions",
                f"opens port {rule.get('FromPort')} to "
                "everybody; name your address, as 203.0.113.7/32",
                "0.0.0.0/0",
            )


def _of_devices(
    field: str, kind: Mapping[str, Any], node: Mapping[str, Any], is_head: bool
) -> Iterator[Mistake]:
    """Resources that Ray cannot find out, or that contradict the machine."""
    resources = kind.get("resources")
    machine = catalog.load().find(str(node.get("InstanceType")))
    if machine is None or not isinstance(resources, Mapping) or is_head:
        return
    name = "neuron_cores" if machine.accelerator.kind == "neuron" else "GPU"
    told, has = resources.get(name), machine.num_devices
    family = machine.name.split(".")[0]
    if told is None and name == "neuron_cores" and family not in RAY_KNOWS_CORES:
        yield Mistake(
            f"{field}.resources.neuron_cores",
            f"missing, and Ray does not know {family}: nothing "
            f"would be placed there; write neuron_cores: {has}",
        )
    elif told is not None and told != has:
        yield Mistake(f"{field}.resources.{name}", f"{machine.name} has {has}", told)


def _of_numbers(
    settings: Mapping[str, Any], types: Mapping[str, Any], head: object
) -> Iterator[Mistake]:
    """Numbers of machines that do not go together."""
    kinds = {n: k for n, k in types.items() if isinstance(k, Mapping) and n != head}
    wanted = sum(least_of(kind) for kind in kinds.values())
    most = settings.get("max_workers", 2)  # Ray's own
    if isinstance(most, int) and wanted > most:
        told = (
            f"min_workers of all kinds are {wanted} together; Ray refuses that: raise max_workers"
        )
        yield Mistake("max_workers", told, most)
    for name, kind in kinds.items():
        least, limit = least_of(kind), kind.get("max_workers")
        if isinstance(limit, int) and least > limit:
            told = f"is less than min_workers {least}"
            yield Mistake(f"available_node_types.{name}.max_workers", told, limit)
    if kinds and not wanted:
        yield Mistake(
            "available_node_types",
            "no kind has min_workers, so that no worker is there when a run "
            "starts; give one its number of nodes",
        )


def least_of(kind: Mapping[str, Any]) -> int:
    """The machines of a kind that are always there."""
    least = kind.get("min_workers")
    return least if isinstance(least, int) else 0


def _of_metadata(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Our keys against the machines that are on: all of them, as one may stand in for another."""
    metadata, known = mapping(settings.get("metadata")), catalog.load()
    told, kind = metadata.get("devices_per_node"), metadata.get("accelerator", "cpu")
    named = metadata.get("accelerator_name")
    for machine in filter(None, map(known.find, rented(settings))):
        accelerator = machine.accelerator
        if kind != accelerator.kind:
            reason = f"workers are {machine.name}: {accelerator.kind}"
            yield Mistake("metadata.accelerator", reason, kind)
        elif told != machine.num_devices:
            reason = f"{machine.name} has {machine.num_devices}"
            yield Mistake("metadata.devices_per_node", reason, told)
        if named not in (None, accelerator.name):
            reason = f"{machine.name} has {accelerator.name}; take it out: the machine tells"
            yield Mistake("metadata.accelerator_name", reason, named)
    bucket = metadata.get("bucket")
    if isinstance(bucket, str) and not BUCKET.fullmatch(bucket):
        reason = "is no name of a bucket: 3 to 63 small letters, digits, dots and hyphens"
        yield Mistake("metadata.bucket", reason, bucket)
    storage = str(metadata.get("storage"))
    kept = storage.removeprefix("s3://").partition("/")[0]
    if storage.startswith("s3://") and kept != bucket:
        reason = f"is in bucket {kept}, and nodes may use metadata.bucket alone; name the same"
        yield Mistake("metadata.storage", reason, storage)
