"""Checks of a cluster file of EC2 machines (`provider: aws`) that need no AWS account."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.hardware import catalog
from cluster.spec import worker_instance_types
from cluster.validation.instance import check_instance
from cluster.validation.problem import ConfigProblem, as_list, as_mapping, suggest_name

# Trainium and Inferentia families whose neuron_cores Ray detects by itself.
RAY_KNOWS_CORES = ("trn1", "trn1n", "inf2")
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
BUCKET = re.compile(r"[a-z0-9{][a-z0-9.{}-]{1,61}[a-z0-9}]")
TYPES = "available_node_types"


def check_ec2(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield problems in which machines are rented and how they are networked."""
    yield from _check_provider(settings["provider"])
    types = settings.get(TYPES)
    if not isinstance(types, Mapping) or not types:
        yield ConfigProblem(TYPES, "missing; the node types, head and workers")
        return
    head = settings.get("head_node_type")
    if not isinstance(head, str) or head not in types:
        message = f"is not in {TYPES}{suggest_name(str(head), types)}"
        yield ConfigProblem("head_node_type", message, head)
    for name, kind in types.items():
        node = kind.get("node_config") if isinstance(kind, Mapping) else None
        if isinstance(node, Mapping):
            yield from check_instance(f"{TYPES}.{name}.node_config", node, settings, name == head)
            if name != head:
                yield from _check_devices(f"{TYPES}.{name}.resources", kind, node)
    yield from _check_counts(settings, types, head)
    yield from _check_metadata(settings)


def _check_provider(provider: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    region, zones = provider.get("region"), provider.get("availability_zone")
    if not region:
        yield ConfigProblem("provider.region", "missing; as us-east-1")
    elif not REGION.fullmatch(str(region)):
        yield ConfigProblem("provider.region", "is not a region, as us-east-1", region)
    for zone in str(zones).split(",") if zones else ():
        if region and not zone.strip().startswith(str(region)):
            message = f"is not in provider.region {region}; remove it, and Ray tries all zones"
            yield ConfigProblem("provider.availability_zone", message, zone.strip())
    if "aws_credentials" in provider:
        message = "would be copied to every node; remove it: boto3 finds yours here, and the nodes"
        yield ConfigProblem("provider.aws_credentials", f"{message} have their IAM roles")
    for rule in as_list(as_mapping(provider.get("security_group")).get("IpPermissions")):
        ranges = as_list(as_mapping(rule).get("IpRanges"))
        if "0.0.0.0/0" in [as_mapping(each).get("CidrIp") for each in ranges]:
            message = f"opens port {rule.get('FromPort')} to everybody; give your own address"
            field = "provider.security_group.IpPermissions"
            yield ConfigProblem(field, f"{message}, as 203.0.113.7/32", "0.0.0.0/0")


def _check_devices(
    field: str, kind: Mapping[str, Any], node: Mapping[str, Any]
) -> Iterator[ConfigProblem]:
    """Check worker resources that Ray cannot detect, or that contradict the machine."""
    resources = kind.get("resources")
    machine = catalog.load_catalog().find_machine(str(node.get("InstanceType")))
    if machine is None or not isinstance(resources, Mapping):
        return
    name = "neuron_cores" if machine.accelerator.kind == "neuron" else "GPU"
    given, actual = resources.get(name), machine.num_devices
    family = machine.name.split(".")[0]
    if given is None and name == "neuron_cores" and family not in RAY_KNOWS_CORES:
        message = f"missing, and Ray does not know {family}, so nothing would be scheduled there"
        yield ConfigProblem(f"{field}.{name}", f"{message}; write neuron_cores: {actual}")
    elif given is not None and given != actual:
        yield ConfigProblem(f"{field}.{name}", f"{machine.name} has {actual}", given)


def _check_counts(
    settings: Mapping[str, Any], types: Mapping[str, Any], head: object
) -> Iterator[ConfigProblem]:
    workers = {n: k for n, k in types.items() if isinstance(k, Mapping) and n != head}
    least = {name: kind.get("min_workers") for name, kind in workers.items()}
    min_workers = {name: n if isinstance(n, int) else 0 for name, n in least.items()}
    total, max_workers = sum(min_workers.values()), settings.get("max_workers", 2)  # Ray's default
    if isinstance(max_workers, int) and total > max_workers:
        message = f"min_workers of all node types sum to {total}, which Ray rejects"
        yield ConfigProblem("max_workers", f"{message}: raise max_workers", max_workers)
    for name, kind in workers.items():
        limit = kind.get("max_workers")
        if isinstance(limit, int) and min_workers[name] > limit:
            message = f"is less than min_workers {min_workers[name]}"
            yield ConfigProblem(f"{TYPES}.{name}.max_workers", message, limit)
    if workers and not total:
        message = "no node type has min_workers, so there is no worker when a run starts"
        yield ConfigProblem(TYPES, f"{message}; give one its number of nodes")


def _check_metadata(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Check our keys against all enabled machines, since one may replace another."""
    metadata, known = as_mapping(settings.get("metadata")), catalog.load_catalog()
    devices, kind = metadata.get("devices_per_node"), metadata.get("accelerator", "auto")
    named = metadata.get("accelerator_name")
    for machine in filter(None, map(known.find_machine, worker_instance_types(settings))):
        accelerator = machine.accelerator
        if kind != accelerator.kind:
            message = f"workers are {machine.name}: {accelerator.kind}"
            yield ConfigProblem("metadata.accelerator", message, kind)
        elif devices != machine.num_devices:
            message = f"{machine.name} has {machine.num_devices}"
            yield ConfigProblem("metadata.devices_per_node", message, devices)
        if named not in (None, accelerator.name):
            message = f"{machine.name} has {accelerator.name}; remove it: the machine implies it"
            yield ConfigProblem("metadata.accelerator_name", message, named)
    bucket = metadata.get("bucket")
    if isinstance(bucket, str) and not BUCKET.fullmatch(bucket):
        message = "is not a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens"
        yield ConfigProblem("metadata.bucket", message, bucket)
    storage = str(metadata.get("storage"))
    storage_bucket = storage.removeprefix("s3://").partition("/")[0]
    if storage.startswith("s3://") and storage_bucket != bucket:
        message = f"is in bucket {storage_bucket}, but nodes may use metadata.bucket only"
        yield ConfigProblem("metadata.storage", f"{message}; name the same bucket", storage)
