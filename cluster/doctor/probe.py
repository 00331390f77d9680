"""Probe a live cluster through Ray: every node by itself, and every two of them together."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.doctor.allreduce import Link, schedule_rounds
from cluster.doctor.identity import ClusterNotFoundError, check_identity
from cluster.doctor.node_agent import CONNECT_SECONDS, VISIBLE_SECONDS, NodeAgent
from cluster.doctor.node_facts import QUERY_SECONDS
from cluster.doctor.observations import ClockReading, Node, Observations, device_kind
from cluster.doctor.ranks import RankActors, gather_replies, start_actor
from cluster.ray_token import close_token_file
from cluster.spec import ClusterSpec

REPLY_SECONDS = 60.0  # an answer may take, including the start of its process
ROUND_TRIPS = 5  # the quickest reads the clock best

Agents = Mapping[str, Any]
PairReasons = dict[tuple[str, str], str]
Log = Callable[[str], None]
FindSuspects = Callable[[Observations], Sequence[Link]]


def observe_cluster(
    cluster: ClusterSpec, find_suspects: FindSuspects, log: Log, addresses: Sequence[str] = ()
) -> Observations:
    """Probe the live cluster of this process, or of the node that it runs on.

    find_suspects: the links that may be slow only from other pairs' traffic; they are timed again
    alone. addresses: of the nodes, where the cluster's file lists them. Raises
    ClusterNotFoundError, also where the Ray that is here is another cluster's.
    """
    with _join_ray(cluster) as (address, gcs_address):
        nodes, dead = _list_nodes()
        log(f"{len(nodes)} nodes: {', '.join(node.name for node in nodes)}")
        agents = {node.name: start_actor(NodeAgent, node) for node in nodes}
        heads = {node.name: agents[node.name] for node in nodes if node.is_head}
        names, _ = gather_replies(_call_all(heads, "read_cluster_name", gcs_address), REPLY_SECONDS)
        check_identity(cluster, addresses, [*nodes, *dead], names)
        directories, kind = watched_directories(cluster), device_kind(cluster, nodes)
        futures = _call_all(agents, "collect_facts", kind, directories)
        facts, unresponsive = gather_replies(futures, REPLY_SECONDS + 2 * QUERY_SECONDS)
        responsive = [node for node in nodes if node.name in facts]
        agents = {node.name: agents[node.name] for node in responsive}
        log("clocks, ports, storage")
        clocks, unreachable = _read_clocks(agents), _test_ports(agents, responsive)
        write_errors, read_errors = _test_storage(agents, cluster)
        dashboard = _test_dashboard(agents, responsive, address)
        seen = Observations(
            nodes, dead, unresponsive, facts, clocks,
            unreachable, write_errors, read_errors, dashboard,
        )  # fmt: skip
        links, busy = _time_links(cluster, responsive, seen, find_suspects, log)
        return replace(seen, links=links, busy_nodes=busy)


def watched_directories(cluster: ClusterSpec) -> dict[str, str]:
    """Return the directories of a node that must not run full, by their use."""
    directories = {
        "Ray's sessions": "/tmp/ray", "shared memory": "/dev/shm", "cache": str(cluster.cache_dir),
    }  # fmt: skip
    storage = cluster.metadata.storage
    return directories if "://" in storage else {**directories, "storage": storage}


@contextmanager
def _join_ray(cluster: ClusterSpec) -> Iterator[tuple[str, str]]:
    """Connect to the cluster for the block; yield the addresses of its dashboard and its GCS."""
    import ray

    ours = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"at RAY_ADDRESS = {address}" if address else "on this machine"
    not_found = ClusterNotFoundError(
        f"no live Ray {where} that could be joined; the doctor runs on a node of "
        f"{cluster.name}: `ray dashboard FILE` in another terminal, then RAY_AUTH_MODE=token "
        "RAY_ADDRESS=http://127.0.0.1:8265 ray job submit --working-dir . -- python -m bertha "
        "doctor FILE"
    )
    if ours and not _is_reachable(address):
        raise not_found
    close_token_file()
    try:
        context = ray.init(
            address="auto", ignore_reinit_error=True, log_to_driver=False, logging_level="error"
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise not_found from error
    try:
        yield str(context.dashboard_url or ""), str(context.address_info["gcs_address"])
    finally:
        if ours:
            ray.shutdown()


def _is_reachable(address: str) -> bool:
    """Whether anything listens, since ray.init would wait minutes; True where Ray must search."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address:  # a dashboard's address cannot be joined
        return not host
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _list_nodes() -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Return the nodes that are alive, the head first, and the dead ones that have not rejoined."""
    import ray

    rows = ray.nodes()
    names = [row["NodeManagerHostname"] for row in rows if row["Alive"]]
    alive: list[Node] = []
    dead: list[Node] = []
    for row in rows:
        name, address = row["NodeManagerHostname"], row["NodeManagerAddress"]
        if row["Alive"] and names.count(name) > 1:
            name = f"{name} ({address}, {row['NodeID'][:6]})"
        resources = row.get("Resources", {})
        is_head = "node:__internal_head__" in resources
        node = Node(row["NodeID"], name, address, is_head, resources)
        (alive if row["Alive"] else dead).append(node)
    alive.sort(key=lambda node: (not node.is_head, node.name))
    rejoined = {node.address for node in alive}
    return tuple(alive), tuple(node for node in dead if node.address not in rejoined)


def _call_all(agents: Agents, method: str, *arguments: Any) -> dict[str, Any]:
    """Call the same method on every node's agent; return the futures by node."""
    return {name: getattr(agent, method).remote(*arguments) for name, agent in agents.items()}


def _read_clocks(agents: Agents) -> dict[str, ClockReading]:
    """Estimate clock offsets by Cristian's method (1989): a clock is read in mid round trip."""
    readings = {name: _clock_readings(agent) for name, agent in agents.items()}
    return {name: min(each, key=lambda r: r.within) for name, each in readings.items() if each}


def _clock_readings(agent: Any) -> list[ClockReading]:
    readings = []
    for _ in range(ROUND_TRIPS):
        before = time.time()
        replies, _failed = gather_replies({"now": agent.read_clock.remote()}, REPLY_SECONDS)
        after = time.time()
        if not replies:
            break
        offset = replies["now"] - (before + after) / 2
        readings.append(ClockReading(offset, (after - before) / 2))
    return readings


def _test_ports(agents: Agents, nodes: Sequence[Node]) -> PairReasons:
    """Connect every node to every other at an arbitrary port; return the reasons of failures."""
    ports, _ = gather_replies(_call_all(agents, "open_port"), REPLY_SECONDS)
    where = {node.name: (node.address, ports[node.name]) for node in nodes if node.name in ports}
    futures = {
        name: agent.try_connections.remote(
            {other: where[other] for other in where if other != name}
        )
        for name, agent in agents.items()
    }
    replies, _ = gather_replies(futures, REPLY_SECONDS + len(nodes))
    gather_replies(_call_all(agents, "close_port"), REPLY_SECONDS)
    return {(one, to): why for one, missed in replies.items() for to, why in missed.items()}


def _test_storage(agents: Agents, cluster: ClusterSpec) -> tuple[dict[str, str], PairReasons]:
    """Write a file from every node into the storage, and read it from every other."""
    storage = cluster.metadata.storage
    if not agents:
        return {}, {}
    if "://" not in storage and not Path(storage).is_absolute() and len(agents) > 1:
        return {}, {}  # a relative path is another directory on each node: diagnosis says so
    directory = f"{storage.rstrip('/')}/.doctor-{secrets.token_hex(8)}"
    texts = {name: f"{number} {secrets.token_hex()}" for number, name in enumerate(agents)}
    files = {name: f"node-{number}" for number, name in enumerate(agents)}
    write_errors: dict[str, str] = {}
    # One node makes the directory and the others must see it: if each made its own, a directory
    # that is not mounted everywhere would look as if it were shared.
    first, *others = agents
    for names, make_directory in (([first], True), (others, False)):
        futures = {
            name: agents[name].write_file.remote(
                directory, files[name], texts[name], make_directory
            )
            for name in names
        }
        replies, failed = gather_replies(futures, REPLY_SECONDS)
        write_errors |= failed | {name: why for name, why in replies.items() if why}
    writers = {name: agent for name, agent in agents.items() if name not in write_errors}
    expected = {files[name]: texts[name] for name in writers}
    futures = _call_all(writers, "compare_files", directory, expected)
    replies, failed = gather_replies(futures, REPLY_SECONDS + VISIBLE_SECONDS)
    for name, agent in writers.items():  # one after another: two would trip over each other
        gather_replies({name: agent.remove_directory.remote(directory)}, REPLY_SECONDS)
    node_of = {file: name for name, file in files.items()}
    read_errors = {
        (reader, node_of[file]): why for reader, bad in replies.items() for file, why in bad.items()
    }
    return write_errors | failed, read_errors


def _test_dashboard(agents: Agents, nodes: Sequence[Node], address: str) -> str | None:
    """Return the dashboard's address if it serves requests without a token."""
    head = next((node.name for node in nodes if node.is_head), None)
    if head is None or not address:
        return None
    future = agents[head].probe_http.remote(f"http://{address}/api/jobs/")
    replies, _ = gather_replies({head: future}, REPLY_SECONDS)
    return address if replies.get(head) == 200 else None


def _time_links(
    cluster: ClusterSpec,
    nodes: Sequence[Node],
    seen: Observations,
    find_suspects: FindSuspects,
    log: Log,
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """Time all-reduces inside every training node and between every two that can connect.

    Returns the links, and the nodes whose devices are busy.
    """
    kind = device_kind(cluster, nodes)
    with RankActors([node for node in nodes if node.count_devices(kind)], kind) as actors:
        links = {link.ends: link for link in actors.time_groups(actors.multi_rank_nodes)}
        rounds = list(schedule_rounds(actors.ready_nodes))
        for number, pairs in enumerate(rounds, 1):
            log(f"all-reduces between pairs of nodes, round {number} of {len(rounds)}")
            # Pairs that cannot connect would only wait for their time limit.
            able = [pair for pair in pairs if not {pair, pair[::-1]} & seen.unreachable.keys()]
            links |= {link.ends: link for link in actors.time_groups(able)}
        # The pairs of a round share switches, so a healthy link may have been slowed down by the
        # others. Only one that is slow alone as well is reported.
        for link in find_suspects(replace(seen, links=tuple(links.values()))):
            log(f"again, alone: {link.name}")
            timings = [link, *actors.time_groups([link.ends])]
            links[link.ends] = max(timings, key=lambda each: each.bus_bandwidth)
        return tuple(links.values()), actors.busy_nodes
