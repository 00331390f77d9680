"""Looks at a live cluster through Ray: every node by itself, and every two of them together.

Says what it is doing, since it may take minutes on a large cluster; what it found is judged by
doctor/diagnosis.py. Ray is imported when an examination begins.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.doctor.allreduce import Link, rounds
from cluster.doctor.gather import gathered
from cluster.doctor.node_agent import CONNECT_SECONDS, SEEN_SECONDS, Examiner
from cluster.doctor.node_facts import PATIENCE
from cluster.doctor.observations import Clock, Node, Observed
from cluster.doctor.ranks import Crew
from cluster.errors import BerthaError
from cluster.spec import ClusterSpec

REPLY_SECONDS = 60.0  # an answer may take, the start of the process that gives it included
ROUND_TRIPS = 5  # the quickest tells the clock best

Say = Callable[[str], None]
Doubt = Callable[[Observed], Sequence[Link]]


class NoCluster(BerthaError):
    """There is no live cluster to look at; the text says how to reach one."""


def examine(cluster: ClusterSpec, doubtful: Doubt, say: Say) -> Observed:
    """Look at the live cluster that this process belongs to, or stands on a node of.

    doubtful: of links that were timed beside others, which are timed again alone. Raises NoCluster.
    """
    with _joined(cluster) as dashboard:
        nodes, gone = _nodes()
        say(f"{len(nodes)} nodes: {', '.join(node.name for node in nodes)}")
        examiners = {node.name: _examiner(node) for node in nodes}
        asked = _each(examiners, "vitals", cluster.metadata.accelerator, places(cluster))
        vitals, silent = gathered(asked, REPLY_SECONDS + 2 * PATIENCE)
        able = [node for node in nodes if node.name in vitals]
        examiners = {node.name: examiners[node.name] for node in able}
        say("clocks, ports, storage")
        clocks = _clocks(examiners)
        unreached = _unreached(examiners, able)
        unwritten, unread = _storage(examiners, cluster)
        door = _door(examiners, able, dashboard)
        seen = Observed(nodes, gone, silent, vitals, clocks, unreached, unwritten, unread, door)
        links, waiting = _links(cluster, able, seen, doubtful, say)
        return replace(seen, links=links, waiting=waiting)


def places(cluster: ClusterSpec) -> dict[str, str]:
    """Directories of a node that must not run full, by their use."""
    held = {"Ray's sessions": "/tmp/ray", "shared memory": "/dev/shm", "cache": str(cluster.cache)}
    storage = cluster.metadata.storage
    return held if "://" in storage else {**held, "storage": storage}


@contextmanager
def _joined(cluster: ClusterSpec) -> Iterator[str]:
    """Part of the cluster for a while; the address of its dashboard."""
    import ray

    ours = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"at RAY_ADDRESS = {address}" if address else "on this machine"
    nobody = NoCluster(
        f"no live Ray {where} that could be joined; the doctor stands on a node of "
        f"{cluster.name}: `ray dashboard FILE` in another terminal, then RAY_AUTH_MODE=token "
        "RAY_ADDRESS=http://127.0.0.1:8265 ray job submit --working-dir . -- python -m cluster "
        "doctor FILE"
    )
    if ours and not _answers(address):
        raise nobody
    try:
        context = ray.init(
            address="auto", ignore_reinit_error=True, log_to_driver=False, logging_level="error"
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise nobody from error
    try:
        yield str(context.dashboard_url or "")
    finally:
        if ours:
            ray.shutdown()


def _answers(address: str) -> bool:
    """Whether anybody is there: Ray itself would wait for minutes. True where it must search."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address:  # a dashboard's address is joined by nobody
        return not host
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _nodes() -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Nodes that are alive, the head first, and nodes that Ray has given up."""
    import ray

    told = ray.nodes()
    names = [node["NodeManagerHostname"] for node in told if node["Alive"]]
    found: dict[bool, list[Node]] = {True: [], False: []}
    for node in told:
        name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
        if node["Alive"] and names.count(name) > 1:
            name = f"{name} ({address}, {node['NodeID'][:6]})"
        resources = node.get("Resources", {})
        head = "node:__internal_head__" in resources
        found[node["Alive"]].append(Node(node["NodeID"], name, address, head, resources))
    alive = sorted(found[True], key=lambda node: (not node.is_head, node.name))
    back = {node.address for node in alive}
    return tuple(alive), tuple(node for node in found[False] if node.address not in back)


def _examiner(node: Node) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(Examiner).options(num_cpus=0, scheduling_strategy=there).remote()


def _each(examiners: Mapping[str, Any], method: str, *words: Any) -> dict[str, Any]:
    """The same asked of every node."""
    return {name: getattr(each, method).remote(*words) for name, each in examiners.items()}


def _clocks(examiners: Mapping[str, Any]) -> dict[str, Clock]:
    """Cristian's method: the clock was read in the middle of the round trip (Cristian 1989)."""
    readings = {name: _readings(each) for name, each in examiners.items()}
    return {name: min(each, key=lambda c: c.within) for name, each in readings.items() if each}


def _readings(examiner: Any) -> list[Clock]:
    found = []
    for _ in range(ROUND_TRIPS):
        before = time.time()
        answers, _silent = gathered({"now": examiner.now.remote()}, REPLY_SECONDS)
        after = time.time()
        if not answers:
            break
        found.append(Clock(answers["now"] - (before + after) / 2, (after - before) / 2))
    return found


def _unreached(examiners: Mapping[str, Any], nodes: Sequence[Node]) -> dict[tuple[str, str], str]:
    """Who cannot open a connection to whom, at a port that nobody chose."""
    ports, _ = gathered(_each(examiners, "listen"), REPLY_SECONDS)
    where = {node.name: (node.address, ports[node.name]) for node in nodes if node.name in ports}
    asked = {
        name: each.reach.remote({other: to for other, to in where.items() if other != name})
        for name, each in examiners.items()
    }
    answers, _ = gathered(asked, REPLY_SECONDS + len(nodes))
    gathered(_each(examiners, "hush"), REPLY_SECONDS)
    return {(one, to): why for one, missed in answers.items() for to, why in missed.items()}


def _storage(
    examiners: Mapping[str, Any], cluster: ClusterSpec
) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Write a file from every node into the storage, and read it from every other."""
    storage = cluster.metadata.storage
    if not examiners:
        return {}, {}
    if "://" not in storage and not Path(storage).is_absolute() and len(examiners) > 1:
        return {}, {}  # every node has its own: nothing to try
    place = f"{storage.rstrip('/')}/.doctor-{secrets.token_hex(8)}"
    texts = {name: f"{number} {secrets.token_hex()}" for number, name in enumerate(examiners)}
    files = {name: f"node-{number}" for number, name in enumerate(examiners)}
    unwritten: dict[str, str] = {}
    first, *others = examiners
    for some, make in (([first], True), (others, False)):
        asked = {
            name: examiners[name].write.remote(place, files[name], texts[name], make)
            for name in some
        }
        answers, silent = gathered(asked, REPLY_SECONDS)
        unwritten |= silent | {name: why for name, why in answers.items() if why}
    expected = {files[name]: texts[name] for name in examiners if name not in unwritten}
    able = {name: each for name, each in examiners.items() if name not in unwritten}
    answers, silent = gathered(_each(able, "read", place, expected), REPLY_SECONDS + SEEN_SECONDS)
    for name, each in able.items():  # one after another: two would trip over each other
        gathered({name: each.remove.remote(place)}, REPLY_SECONDS)
    named = {file: name for name, file in files.items()}
    unread = {(one, named[file]): why for one, bad in answers.items() for file, why in bad.items()}
    return unwritten | silent, unread


def _door(examiners: Mapping[str, Any], nodes: Sequence[Node], dashboard: str) -> str | None:
    """The dashboard's address, where it answers who shows no token."""
    head = next((node.name for node in nodes if node.is_head), None)
    if head is None or not dashboard:
        return None
    asked = {head: examiners[head].knock.remote(f"http://{dashboard}/api/jobs/")}
    answers, _ = gathered(asked, REPLY_SECONDS)
    return dashboard if answers.get(head) == 200 else None


def _links(
    cluster: ClusterSpec, nodes: Sequence[Node], seen: Observed, doubtful: Doubt, say: Say
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """All-reduces inside every node that trains and between every two that can connect."""
    kind = cluster.metadata.accelerator
    with Crew([node for node in nodes if node.devices(kind)], kind) as crew:
        found = {link.ends: link for link in crew.time(crew.inside)}
        turns = list(rounds(crew.names))
        for number, pairs in enumerate(turns, 1):
            say(f"all-reduces between pairs of nodes, round {number} of {len(turns)}")
            able = [pair for pair in pairs if not {pair, pair[::-1]} & seen.unreached.keys()]
            found |= {link.ends: link for link in crew.time(able)}
        for link in doubtful(replace(seen, links=tuple(found.values()))):
            say(f"again, alone: {link.name}")
            again = [link, *crew.time([link.ends])]
            found[link.ends] = max(again, key=lambda each: each.rate)
        return tuple(found.values()), crew.waiting
