"""`python -m cluster check FILE`: every mistake in a cluster file, all at once, before it costs.

Shape (files/schema.py), machines (files/onprem.py, files/ec2.py), commands and access
(files/start_commands.py), our own keys (cluster/spec.py). Reads files; asks nobody.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import spec
from cluster.settings import SettingsError, read_yaml, validated
from cluster.validation import ec2, onprem, ray_schema, start_commands
from cluster.validation.problem import Mistake, mapping, nearest

OURS = ("local", "aws")
RAYS = (*OURS, "aliyun", "azure", "external", "gcp", "kuberay", "spark", "vsphere")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command `check`."""
    parser = commands.add_parser("check", help="every mistake in a cluster file, explained")
    parser.add_argument("file", help="a cluster file, or the name of a shipped one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Say what the file raises. Raises SettingsError that lists every mistake."""
    path = spec.find(options.file)
    cluster = checked(path)
    print(
        f"{path}: nothing wrong: {cluster.name} ({cluster.provider}), {cluster.num_nodes} training "
        f"node(s), {cluster.num_workers} worker(s) of kind {cluster.metadata.accelerator}"
    )
    return 0


def checked(path: Path) -> spec.ClusterSpec:
    """The cluster of a file. Raises SettingsError that lists every mistake."""
    settings = read_yaml(path)
    found = list(dict.fromkeys(str(mistake) for mistake in mistakes(settings)))
    if not found:
        return spec.read(path, settings)
    raise SettingsError("\n  ".join([f"{path}: {len(found)} mistake(s):", *found]))


def mistakes(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Every mistake in a file's settings, in the order of the file."""
    provider = mapping(settings.get("provider"))
    yield from ray_schema.of_schema(settings)
    yield from _of_metadata(settings)
    kind = provider.get("type")
    if kind is None:
        yield Mistake("provider.type", f"missing; one of {', '.join(OURS)}")
        return
    if kind not in RAYS:
        yield Mistake("provider.type", f"Ray has no such provider{nearest(str(kind), RAYS)}", kind)
        return
    if is_this_machine(settings):
        return
    if kind == "local":
        yield from onprem.of_machines(settings)
    elif kind == "aws":
        yield from ec2.of_cloud(settings)
    yield from start_commands.of_commands(settings)
    yield from start_commands.of_access(settings)
    if kind == "aws" and not settings.get("setup_commands"):
        told = "missing: Ray's own install a nightly build of Ray and no torch"
        yield Mistake("setup_commands", f"{told}; copy them from a shipped file")
    yield from _of_storage(settings)


def is_this_machine(settings: Mapping[str, Any]) -> bool:
    """Whether the file is of this machine alone, which is never raised."""
    provider = settings["provider"]
    alone = provider.get("type") == "local" and not provider.get("worker_ips")
    return alone and provider.get("head_ip", LOOPBACK[0]) in LOOPBACK


def _of_metadata(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Our keys, as cluster/spec.py would refuse them, and addresses among them."""
    metadata = settings.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        return  # the schema says so
    try:
        ours = validated(spec.Metadata, metadata, "metadata")
    except SettingsError as error:
        for line in str(error).splitlines()[1:]:
            field, _, told = line.strip().partition(": ")
            yield Mistake(f"metadata.{field}", told)
        return
    if ours.ssh_from == "auto":
        return
    try:
        network = ipaddress.ip_network(ours.ssh_from)
    except ValueError:
        told = "is no network; as 203.0.113.7/32, or auto for this machine's own address"
        yield Mistake("metadata.ssh_from", told, ours.ssh_from)
        return
    if network.prefixlen == 0:
        told = "lets everybody try to log in; give your own, or auto"
        yield Mistake("metadata.ssh_from", told, ours.ssh_from)


def _of_storage(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Runs go where every node sees them."""
    storage = mapping(settings.get("metadata")).get("storage", "runs")
    if not isinstance(storage, str):
        return
    scheme, is_url, _ = storage.partition("://")
    if is_url and scheme != "s3":
        told = "is neither a directory that all nodes see nor s3://BUCKET/PREFIX"
        yield Mistake("metadata.storage", told, storage)
    elif not is_url and not Path(storage).is_absolute():
        told = "is another directory on each machine; give one that all see, or s3://..."
        yield Mistake("metadata.storage", told, storage)
