"""`python -m cluster doctor`: is this live cluster fit to train, and if not, how is that mended?

    ray job submit --working-dir . -- python -m cluster doctor FILE     # as docs/doctor.md tells
    python -m cluster doctor FILE --json                               # on a node of the cluster

Looks at every node and at every two of them together: versions, devices, ports, network cards,
all-reduces, clocks, disks, the shared storage, the token. A minute or two, the links a second or
two a round; the devices should be idle. Exit status: 0 nothing found, 1 something is, 2 the
cluster could not be looked at.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from cluster import spec
from cluster.doctor import bandwidth, diagnosis
from cluster.doctor.diagnosis import CHECKS, Expected, Finding
from cluster.doctor.observations import Node, Observed
from cluster.hardware import catalog
from cluster.hardware.types import Machine
from cluster.settings import read_yaml
from cluster.spec import ClusterSpec

GIB = 1 << 30


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command `doctor`."""
    parser = commands.add_parser("doctor", help="is a live cluster fit to train?")
    parser.add_argument("file", help="the YAML that the cluster was brought up with")
    parser.add_argument("--json", action="store_true", help="print everything for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, tell, and return 0 or 1. Raises NoCluster, and SettingsError for the file."""
    from cluster.doctor.probe import examine  # its fsspec, and Ray

    expected = expectation(options.file)
    doubtful = functools.partial(bandwidth.doubtful, machine=expected.machine)
    seen = examine(expected.cluster, doubtful, lambda line: print(line, file=sys.stderr))
    found = diagnosis.findings(expected, seen)
    if options.json:
        print(json.dumps(as_json(expected, seen, found), indent=2))
    else:
        for line in lines(expected, seen, found):
            print(line)
    return 1 if found else 0


def expectation(file: str) -> Expected:
    """What a cluster's file says of it. Raises SettingsError."""
    cluster = spec.load(file)
    settings = read_yaml(spec.find(file))
    provider = settings["provider"]
    listed = [provider.get("head_ip"), *(provider.get("worker_ips") or [])]
    addresses = [str(address) for address in listed if address]
    return Expected(file, cluster, tuple(addresses), _machine(cluster))


def _machine(cluster: ClusterSpec) -> Machine | None:
    """What the workers are rented as, where all are of one kind that the catalogue has."""
    alone = len(cluster.instances) == 1
    return catalog.load().find(cluster.instances[0]) if alone else None


def lines(expected: Expected, seen: Observed, found: Sequence[Finding]) -> Iterator[str]:
    """All that is printed: what was seen, then a line a check, then findings with their fixes."""
    kind = expected.cluster.metadata.accelerator
    yield f"{expected.cluster.name}: {len(seen.nodes)} nodes"
    yield from (_node_line(node, kind, seen) for node in seen.nodes)
    for link in seen.links:
        over = " and ".join(dict.fromkeys(card for card in link.cards if card))
        told = bandwidth.rate_of(link.rate) if link.rate else "failed"
        yield f"  {link.name}: {told}{f' over {over}' if over else ''} ({link.backend})"
    wrong = {finding.check for finding in found}
    yield f"fine: {', '.join(name for name in CHECKS if name not in wrong) or 'nothing'}"
    for finding in found:
        yield f"{finding.check}: {finding.subject}: {finding.found}"
        yield f"  fix: {finding.fix}"
    yield f"{len(found)} found" if found else "fit to train"


def _node_line(node: Node, kind: str, seen: Observed) -> str:
    told = seen.vitals.get(node.name)
    line = f"  {node.name}  {node.address}{'  head' if node.is_head else ''}"
    if told is None:
        return f"{line}  no answer"
    devices = told.torch.names[0] if told.torch and told.torch.names else kind
    clock = seen.clocks.get(node.name)
    ahead = f"  clock {clock.ahead:+.3f} s" if clock else ""
    free = min(held.free for use, held in told.space.items() if use != "shared memory") / GIB
    return (
        f"{line}  {node.devices(kind)} x {devices}  torch {told.versions['torch']}"
        f"  ray {told.versions['ray']}{ahead}  {free:.0f} GiB free"
    )


def as_json(expected: Expected, seen: Observed, found: Sequence[Finding]) -> dict[str, Any]:
    """The same for programs; rates in bytes/s."""
    return {
        "cluster": expected.cluster.name,
        "nodes": [
            {
                "name": node.name,
                "address": node.address,
                "head": node.is_head,
                "resources": dict(node.resources),
                **(asdict(seen.vitals[node.name]) if node.name in seen.vitals else {}),
                **({"clock": asdict(seen.clocks[node.name])} if node.name in seen.clocks else {}),
            }
            for node in seen.nodes
        ],
        "links": [{**asdict(link), "rate": link.rate} for link in seen.links],
        "checked": list(CHECKS),
        "findings": [asdict(finding) for finding in found],
    }
