"""What can be wrong in a cluster file of machines that one owns (`provider: local`).

Pure. Addresses may be names; what is written as numbers must be an address.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.validation.problem import Mistake

# RFC 5737: addresses that stand in documents and in the file that is shipped.
EXAMPLES = [
    ipaddress.ip_network(each) for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
]
FOR_THE_CLOUD = ("available_node_types", "head_node_type", "head_node", "worker_nodes")


def of_machines(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Mistakes in which machines there are."""
    provider = settings["provider"]
    for field in FOR_THE_CLOUD:
        if settings.get(field):
            yield Mistake(
                field,
                "is for machines that are rented; with provider.type local Ray stops at it: "
                "take it out, and list machines in provider.worker_ips",
            )
    if provider.get("coordinator_address"):
        return
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not head:
        yield Mistake("provider.head_ip", "missing; the address of the machine that leads")
    else:
        yield from _of_address("provider.head_ip", head)
    if not isinstance(workers, list):
        yield Mistake("provider.worker_ips", "missing; a list of the other machines, [] for none")
        return
    for address in workers:
        yield from _of_address("provider.worker_ips", address)
    yield from _of_set(str(head), [str(each) for each in workers])
    yield from _of_counts(settings, len(workers))


def _of_address(field: str, address: Any) -> Iterator[Mistake]:
    text = str(address)
    try:
        known = ipaddress.ip_address(text)
    except ValueError:
        if re.fullmatch(r"[\d.]+", text):
            yield Mistake(field, "is no address: four numbers up to 255, or a name", address)
        elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
            yield Mistake(field, "is neither an address nor the name of a host", address)
        return
    if any(known in network for network in EXAMPLES):
        yield Mistake(field, "stands for an address of yours; fill it in", address)


def _of_set(head: str, workers: list[str]) -> Iterator[Mistake]:
    field = "provider.worker_ips"
    if head in workers:
        yield Mistake(field, "holds the head too, which trains anyway; take it out", head)
    for address, times in Counter(workers).items():
        if times > 1:
            yield Mistake(field, f"is there {times} times; one Ray runs on a machine", address)
    loopback = {"127.0.0.1", "localhost", "::1"}
    if workers and head in loopback:
        yield Mistake(
            "provider.head_ip",
            "is this machine to itself, and workers would look for the head on "
            "theirs; give the address that they reach it by",
            head,
        )
    for address in sorted(loopback & set(workers)):
        yield Mistake(field, "is each machine to itself; give the one that others reach", address)


def _of_counts(settings: Mapping[str, Any], machines: int) -> Iterator[Mistake]:
    most = settings.get("max_workers")
    if isinstance(most, int) and most != machines:
        yield Mistake(
            "max_workers",
            f"{machines} machine(s) are listed in provider.worker_ips; take "
            "max_workers out, and all of them join",
            most,
        )
