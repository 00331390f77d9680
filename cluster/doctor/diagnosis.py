"""What is wrong with a cluster, by what was seen of it, and how each thing is mended.

Pure: an expectation and what was observed in, findings out. Of links: doctor/slowness.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cluster.doctor import bandwidth
from cluster.doctor.node_facts import Devices
from cluster.doctor.observations import RESOURCES, Node, Observed
from cluster.hardware.types import Machine
from cluster.spec import ClusterSpec

MOST_SKEW = 1.0  # seconds: beyond, logs and records of different nodes are out of order
LEAST_FREE, LEAST_FREE_SHARE = 2 << 30, 0.05  # Ray stops spilling at 95% (local_fs_capacity)
LEAST_SHARED_MEMORY = 512 << 20  # NCCL and Ray's objects live there; Docker gives 64 MiB
GIB = 1 << 30
LOG = "/tmp/ray/session_latest/logs/raylet.out"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. check: which of CHECKS. subject: a node, a pair, the cluster."""

    check: str
    subject: str
    found: str
    fix: str


@dataclass(frozen=True)
class Expected:
    """What the cluster's file says it is.

    file: its name, for commands. addresses: of all nodes, where it lists them. machine: that the
    training nodes are rented as, where the catalogue has it.
    """

    file: str
    cluster: ClusterSpec
    addresses: tuple[str, ...] = ()
    machine: Machine | None = None


Said = tuple[str, str, str]  # subject, found, fix
Check = Callable[[Expected, Observed], Iterator[Said]]


def findings(expected: Expected, seen: Observed) -> list[Finding]:
    """Everything that is wrong, in the order of CHECKS."""
    return [
        Finding(name, *said) for name, check in CHECKS.items() for said in check(expected, seen)
    ]


def training(expected: Expected, seen: Observed) -> list[Node]:
    """Nodes that should train: all that are listed; of a rented cluster all but its head."""
    if expected.cluster.provider == "local":
        return list(seen.nodes)
    kind = expected.cluster.metadata.accelerator
    return [node for node in seen.nodes if not node.is_head or node.devices(kind)]


def _nodes(expected: Expected, seen: Observed) -> Iterator[Said]:
    there = {node.address for node in seen.nodes}
    gone = {node.address for node in seen.gone}
    again = f"python -m cluster up {expected.file} starts it again; {LOG} there says why it ended"
    for address in expected.addresses:
        if address not in there:
            why = "Ray has given it up" if address in gone else "it never joined"
            yield address, f"named in {expected.file}, not in the cluster: {why}", again
    present, wanted = len(training(expected, seen)), expected.cluster.num_nodes
    if not expected.addresses and present < wanted:
        yield (
            expected.cluster.name,
            f"{present} of {wanted} training nodes are there",
            "ray status says what the autoscaler waits for: quota, capacity, or a broken set-up",
        )
    for name, why in seen.silent.items():
        unknown = "ModuleNotFoundError" in why or "No module" in why
        carried = "give `ray job submit` --working-dir with Bertha's code in it"
        yield name, f"does not answer: {why}", carried if unknown else again


def _versions(expected: Expected, seen: Observed) -> Iterator[Said]:
    usual: dict[str, str] = {}
    for told in seen.vitals.values():
        for what in told.versions:
            held_by_all = [other.versions.get(what, "none") for other in seen.vitals.values()]
            usual[what] = Counter(held_by_all).most_common(1)[0][
                0
            ]  # the first node's where two tie
    for name, told in seen.vitals.items():
        odd = {what: told.versions.get(what, "none") for what in usual}
        odd = {what: held for what, held in odd.items() if held != usual[what]}
        if odd:
            each = [f"{what} {held} (not {usual[what]})" for what, held in odd.items()]
            fix = f"python -m cluster up {expected.file} runs setup_commands on every node again"
            yield name, f"other versions than elsewhere: {', '.join(each)}", fix


def _devices(expected: Expected, seen: Observed) -> Iterator[Said]:
    metadata = expected.cluster.metadata
    kind, wanted = metadata.accelerator, metadata.devices_per_node
    if kind == "cpu":
        if seen.nodes and not any(node.devices("cpu") for node in seen.nodes):
            fix = "start Ray on them without --num-cpus=0, or with more"
            yield expected.cluster.name, "Ray counts no CPU on any node", fix
        return
    for node in training(expected, seen):
        told = seen.vitals.get(node.name)
        if told is None:
            continue
        counts = {"its driver": told.driver, "torch": told.torch}
        known = {who: _count(devices) for who, devices in counts.items() if devices is not None}
        numbers = {**{who: number for who, (number, _) in known.items()}, "Ray": node.devices(kind)}
        if set(numbers.values()) != {wanted}:
            each = [f"{who} {n}{known.get(who, (0, ''))[1]}" for who, n in numbers.items()]
            found = f"{wanted} {RESOURCES[kind]} in the file; seen by {', by '.join(each)}"
            yield node.name, found, _device_fix(kind, numbers, wanted)
    yield from _mixed(seen)


def _count(devices: Devices) -> tuple[int, str]:
    return len(devices.names), f" ({devices.trouble})" if devices.trouble else ""


def _device_fix(kind: str, numbers: Mapping[str, int], wanted: int) -> str:
    """The first of the chain that is wrong is the one to mend."""
    if len(set(numbers.values())) == 1:
        return f"set metadata.devices_per_node to {numbers['Ray']}, or add the devices"
    if numbers.get("its driver", wanted) != wanted:
        return "mend the driver first: its own tool must list all devices (dmesg, a reboot)"
    if numbers["torch"] != wanted:
        return f"install a torch that is built for {kind} and for this driver's version"
    return f"start Ray again there, with {RESOURCES[kind]}: {wanted} among its resources"


def _mixed(seen: Observed) -> Iterator[Said]:
    held = {n: v.driver.names for n, v in seen.vitals.items() if v.driver and v.driver.names}
    usual = Counter(name for names in held.values() for name in names).most_common(1)
    for node, names in held.items():
        odd = [name for name in names if name != usual[0][0] and not name.startswith("core of")]
        if odd:
            fix = "train on equal devices: a step waits for the slowest"
            yield node, f"{', '.join(odd)}, where most are {usual[0][0]}", fix


def _ports(expected: Expected, seen: Observed) -> Iterator[Said]:
    fix = "open all TCP ports between the nodes (firewall, security group): training takes any"
    missed = Counter(to for _, to in seen.unreached)
    shut = {name for name, count in missed.items() if count > 1 and count >= len(seen.vitals) - 1}
    for name in sorted(shut):
        why = next(why for (_, to), why in seen.unreached.items() if to == name)
        yield name, f"no other node reaches it: {why}", fix
    for (one, to), why in seen.unreached.items():
        if to not in shut:
            yield f"{one} - {to}", f"{one} cannot connect to {to}: {why}", fix


def _cards(expected: Expected, seen: Observed) -> Iterator[Said]:
    for node in seen.nodes:
        told = seen.vitals.get(node.name)
        if told is None:
            continue
        held = {card.name for card in told.cards}
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            named = told.variables.get(variable, "")
            if named and named[0] not in "^=" and not any(c.startswith(named) for c in held):
                fix = f"set it to one of {', '.join(sorted(held))}, or leave it out"
                yield node.name, f"{variable} = {named!r}: no such card is up", fix
    yield from bandwidth.wrong_cards(seen)


def _links(expected: Expected, seen: Observed) -> Iterator[Said]:
    for name in seen.waiting:
        fix = "let the runs that hold them end, and ask again"
        yield name, "its devices are held by others, so its links were not timed", fix
    yield from bandwidth.found(seen, expected.machine)


def _clock(expected: Expected, seen: Observed) -> Iterator[Said]:
    if not seen.clocks:
        return
    middle = median(clock.ahead for clock in seen.clocks.values())
    for name, clock in seen.clocks.items():
        off = clock.ahead - middle
        if abs(off) - clock.within > MOST_SKEW:
            way = "ahead of" if off > 0 else "behind"
            fix = "run chrony or systemd-timesyncd there; S3 refuses requests that are far off"
            yield name, f"its clock is {abs(off):.1f} s {way} the others'", fix


def _disk(expected: Expected, seen: Observed) -> Iterator[Said]:
    for name, told in seen.vitals.items():
        for use, space in told.space.items():
            if use == "shared memory":
                if space.total < LEAST_SHARED_MEMORY:
                    fix = "mount -o remount,size=8g /dev/shm; of a container: --shm-size=8g"
                    yield name, f"/dev/shm holds {space.total / 2**20:.0f} MiB", fix
            elif space.free < max(LEAST_FREE, LEAST_FREE_SHARE * space.total):
                found = f"{use}: {space.free / GIB:.1f} of {space.total / GIB:.1f} GiB are free"
                yield name, found, "make room, or name another disk in the cluster's file"


def _storage(expected: Expected, seen: Observed) -> Iterator[Said]:
    storage = expected.cluster.metadata.storage
    if "://" not in storage and not Path(storage).is_absolute() and len(seen.nodes) > 1:
        found = f"metadata.storage = {storage!r}: each node has a directory of its own there"
        fix = "name a directory that all nodes mount, from / on, or s3://BUCKET/PREFIX"
        yield expected.cluster.name, found, fix
    fix = f"mount the same file system at {storage} on all nodes, writable, or use s3://"
    if "://" in storage:
        fix = f"let every node list, read, write and delete in {storage}: on AWS by its role"
    for name, why in seen.unwritten.items():
        yield name, f"cannot write to {storage}: {why}", fix
    for reader in dict.fromkeys(reader for reader, _ in seen.unread):
        bad = [f"{of} ({why})" for (one, of), why in seen.unread.items() if one == reader]
        yield reader, f"does not read from {storage} what others wrote: {', '.join(bad)}", fix


def _token(expected: Expected, seen: Observed) -> Iterator[Said]:
    several = len(seen.nodes) > 1
    fix = "ray get-auth-token --generate, RAY_AUTH_MODE=token on every node, start Ray again"
    open_nodes = [n for n, v in seen.vitals.items() if v.variables.get("RAY_AUTH_MODE") != "token"]
    if several and open_nodes:
        found = "no token is asked for: whoever reaches a port of Ray's runs code there"
        yield ", ".join(open_nodes), found, fix
    elif seen.door is not None and (several or not seen.door.startswith(("127.", "localhost"))):
        yield expected.cluster.name, f"the dashboard at {seen.door} answers without a token", fix


CHECKS: Mapping[str, Check] = {
    "nodes": _nodes,
    "versions": _versions,
    "devices": _devices,
    "ports": _ports,
    "cards": _cards,
    "links": _links,
    "clock": _clock,
    "disk": _disk,
    "storage": _storage,
    "token": _token,
}
