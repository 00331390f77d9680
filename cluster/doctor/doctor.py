"""`bertha doctor FILE`: find what keeps a live cluster from training, and its fix.

    ray job submit --working-dir . -- python -m bertha doctor FILE     # see docs/doctor.md
    bertha doctor FILE --json                               # on a node of the cluster

Takes a minute or two; the devices should be idle. Exit status: 0 nothing found, 1 something is
wrong, 2 the cluster could not be probed.
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
from cluster.doctor.diagnosis import CHECKS, GIB, ExpectedCluster, Finding
from cluster.doctor.observations import Node, Observations, device_kind
from cluster.hardware import catalog
from cluster.settings import read_cluster_yaml

LOOPBACK = "127.0.0.1"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `doctor`."""
    parser = commands.add_parser("doctor", help="is a live cluster fit to train?")
    parser.add_argument("file", help="the YAML that the cluster was brought up with")
    parser.add_argument("--json", action="store_true", help="print everything for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Probe, diagnose and print; return 0 or 1. Raises ClusterNotFoundError and SettingsError."""
    from cluster.doctor.probe import observe_cluster  # imports fsspec

    expected = load_expected(options.file)
    find_suspects = functools.partial(bandwidth.find_suspects, machine=expected.machine)
    seen = observe_cluster(
        expected.cluster,
        find_suspects,
        lambda line: print(line, file=sys.stderr),
        expected.addresses,
    )
    findings = diagnosis.run_checks(expected, seen)
    if options.json:
        print(json.dumps(report_to_dict(expected, seen, findings), indent=2))
    else:
        print("\n".join(format_report(expected, seen, findings)))
    return 1 if findings else 0


def load_expected(file: str) -> ExpectedCluster:
    """Read what the cluster should be from its file. Raises SettingsError."""
    cluster = spec.load_cluster_spec(file)
    provider = read_cluster_yaml(spec.find_cluster_file(file))["provider"]
    listed = [provider.get("head_ip"), *(provider.get("worker_ips") or [])]
    # This machine's loopback is no address by which Ray knows it.
    addresses = tuple(str(each) for each in listed if each and each != LOOPBACK)
    types = cluster.instance_types
    machine = catalog.load_catalog().find_machine(types[0]) if len(types) == 1 else None
    return ExpectedCluster(file, cluster, addresses, machine)


def format_report(
    expected: ExpectedCluster, seen: Observations, findings: Sequence[Finding]
) -> Iterator[str]:
    """Yield the lines to print: observations, passed checks, findings with fixes."""
    kind = device_kind(expected.cluster, seen.nodes)
    yield f"{expected.cluster.name}: {len(seen.nodes)} nodes"
    yield from (_format_node(node, kind, seen) for node in seen.nodes)
    for link in seen.links:
        cards = " and ".join(dict.fromkeys(card for card in link.cards if card))
        rate = bandwidth.format_rate(link.bus_bandwidth) if link.bus_bandwidth else "failed"
        yield f"  {link.name}: {rate}{f' over {cards}' if cards else ''} ({link.backend})"
    wrong = {finding.check for finding in findings}
    yield f"fine: {', '.join(name for name in CHECKS if name not in wrong) or 'nothing'}"
    for finding in findings:
        yield f"{finding.check}: {finding.subject}: {finding.found}"
        yield f"  fix: {finding.fix}"
    yield f"{len(findings)} found" if findings else "fit to train"


def _format_node(node: Node, kind: str, seen: Observations) -> str:
    facts = seen.facts.get(node.name)
    line = f"  {node.name}  {node.address}{'  head' if node.is_head else ''}"
    if facts is None:
        return f"{line}  no answer"
    devices = facts.torch.names[0] if facts.torch and facts.torch.names else kind
    clock = seen.clocks.get(node.name)
    ahead = f"  clock {clock.ahead:+.3f} s" if clock else ""
    free = min(space.free for use, space in facts.space.items() if use != "shared memory") / GIB
    return (
        f"{line}  {node.count_devices(kind)} x {devices}  torch {facts.versions['torch']}"
        f"  ray {facts.versions['ray']}{ahead}  {free:.0f} GiB free"
    )


def report_to_dict(
    expected: ExpectedCluster, seen: Observations, findings: Sequence[Finding]
) -> dict[str, Any]:
    """Return the report for programs; rates in bytes/s."""
    return {
        "cluster": expected.cluster.name,
        "nodes": [
            {
                "name": node.name,
                "address": node.address,
                "head": node.is_head,
                "resources": dict(node.resources),
                **(asdict(seen.facts[node.name]) if node.name in seen.facts else {}),
                **({"clock": asdict(seen.clocks[node.name])} if node.name in seen.clocks else {}),
            }
            for node in seen.nodes
        ],
        "links": [{**asdict(link), "rate": link.bus_bandwidth} for link in seen.links],
        "checked": list(CHECKS),
        "findings": [asdict(finding) for finding in findings],
    }
