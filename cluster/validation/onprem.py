"""Checks of a cluster file of owned machines (`provider: local`)."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.validation.problem import ConfigProblem

# RFC 5737: addresses reserved for documentation, which the shipped file uses as placeholders.
EXAMPLE_NETWORKS = [
    ipaddress.ip_network(each) for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
]
CLOUD_ONLY_FIELDS = ("available_node_types", "head_node_type", "head_node", "worker_nodes")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HEAD, WORKERS = "provider.head_ip", "provider.worker_ips"


def check_onprem(settings: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield problems in the list of machines."""
    provider = settings["provider"]
    message = "is for rented machines, and Ray rejects it with provider.type local: remove it, and"
    for field in filter(settings.get, CLOUD_ONLY_FIELDS):
        yield ConfigProblem(field, f"{message} list machines in {WORKERS}")
    if provider.get("coordinator_address"):
        return
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not head:
        yield ConfigProblem(HEAD, "missing; the address of the head node")
    else:
        yield from _check_address(HEAD, head)
    if not isinstance(workers, list):
        yield ConfigProblem(WORKERS, "missing; a list of the other machines, [] for none")
        return
    for address in workers:
        yield from _check_address(WORKERS, address)
    yield from _check_addresses(str(head), [str(each) for each in workers])
    max_workers = settings.get("max_workers")
    if isinstance(max_workers, int) and max_workers != len(workers):
        message = f"{len(workers)} machine(s) are listed in {WORKERS}; remove max_workers, and all"
        yield ConfigProblem("max_workers", f"{message} of them join", max_workers)


def _check_address(field: str, address: Any) -> Iterator[ConfigProblem]:
    text = str(address)
    try:
        known = ipaddress.ip_address(text)
    except ValueError:
        if re.fullmatch(r"[\d.]+", text):
            yield ConfigProblem(field, "is not an address: four numbers up to 255", address)
        elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
            yield ConfigProblem(field, "is neither an address nor a host name", address)
        return
    if any(known in network for network in EXAMPLE_NETWORKS):
        yield ConfigProblem(field, "is a placeholder; fill in your machine's address", address)


def _check_addresses(head: str, workers: list[str]) -> Iterator[ConfigProblem]:
    if head in workers:
        yield ConfigProblem(WORKERS, "contains the head, which trains anyway; remove it", head)
    for address, times in Counter(workers).items():
        if times > 1:
            message = f"is listed {times} times; a machine runs one Ray node"
            yield ConfigProblem(WORKERS, message, address)
    if workers and head in LOOPBACK:
        message = "is a loopback address, which on a worker means the worker; give an address"
        yield ConfigProblem(HEAD, f"{message} that workers reach the head at", head)
    for address in sorted(LOOPBACK & set(workers)):
        yield ConfigProblem(WORKERS, "is a loopback address; give one that others reach", address)
