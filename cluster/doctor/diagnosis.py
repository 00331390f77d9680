"""Diagnose a cluster: compare what was observed with what its file says; findings and fixes out."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cluster.doctor import bandwidth
from cluster.doctor.node_facts import DeviceList
from cluster.doctor.observations import RESOURCES, Node, Observations, device_kind
from cluster.hardware.types import Machine
from cluster.spec import ClusterSpec

MAX_CLOCK_SKEW_SECONDS = 1.0  # beyond, logs and records of different nodes are out of order
MIN_FREE_BYTES, MIN_FREE_SHARE = 2 << 30, 0.05  # Ray stops spilling at 95% (local_fs_capacity)
MIN_SHARED_MEMORY = 512 << 20  # NCCL and Ray's objects live there; Docker gives 64 MiB
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
class ExpectedCluster:
    """What the cluster's file says.

    file: its name, for commands. addresses: of all nodes, where the file lists them. machine: the
    training nodes' instance type, if the catalog has it.
    """

    file: str
    cluster: ClusterSpec
    addresses: tuple[str, ...] = ()
    machine: Machine | None = None


RawFinding = tuple[str, str, str]  # subject, found, fix
Check = Callable[[ExpectedCluster, Observations], Iterator[RawFinding]]


def run_checks(expected: ExpectedCluster, seen: Observations) -> list[Finding]:
    """Return everything that is wrong, in the order of CHECKS."""
    return [
        Finding(name, *finding)
        for name, check in CHECKS.items()
        for finding in check(expected, seen)
    ]


def training_nodes(expected: ExpectedCluster, seen: Observations) -> list[Node]:
    """Return the nodes that should train: all listed ones; of a rented cluster all but the head."""
    if expected.cluster.provider == "local":
        return list(seen.nodes)
    kind = expected.cluster.device_kind
    return [node for node in seen.nodes if not node.is_head or node.count_devices(kind)]


def _check_nodes(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    alive = {node.address for node in seen.nodes}
    dead = {node.address for node in seen.dead_nodes}
    restart = f"bertha up {expected.file} starts it again; {LOG} there says why it ended"
    for address in expected.addresses:
        if address not in alive:
            why = "Ray has declared it dead" if address in dead else "it never joined"
            yield address, f"listed in {expected.file}, not in the cluster: {why}", restart
    present, wanted = len(training_nodes(expected, seen)), expected.cluster.num_nodes
    if not expected.addresses and present < wanted:
        yield (
            expected.cluster.name,
            f"{present} of {wanted} training nodes are there",
            "ray status says what the autoscaler waits for: quota, capacity, or a failed set-up",
        )
    for name, why in seen.unresponsive.items():
        lacks_code = "ModuleNotFoundError" in why or "No module" in why
        submit = "give `ray job submit` --working-dir with Bertha's code in it"
        yield name, f"does not answer: {why}", submit if lacks_code else restart


def _check_versions(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    fix = f"bertha up {expected.file} runs setup_commands on every node again"
    installed = [facts.versions for facts in seen.facts.values()]
    packages = dict.fromkeys(package for versions in installed for package in versions)
    usual = {  # on a tie, the first node's
        package: Counter(each.get(package, "none") for each in installed).most_common(1)[0][0]
        for package in packages
    }
    for name, facts in seen.facts.items():
        versions = {package: facts.versions.get(package, "none") for package in packages}
        odd = [
            f"{package} {version} (not {usual[package]})"
            for package, version in versions.items()
            if version != usual[package]
        ]
        if odd:
            yield name, f"other versions than elsewhere: {', '.join(odd)}", fix


def _check_devices(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    metadata = expected.cluster.metadata
    kind, wanted = device_kind(expected.cluster, seen.nodes), metadata.devices_per_node
    if kind == "cpu":
        if seen.nodes and not any(node.count_devices("cpu") for node in seen.nodes):
            fix = "start Ray on them without --num-cpus=0, or with more"
            yield expected.cluster.name, "Ray counts no CPU on any node", fix
        return
    for node in training_nodes(expected, seen):
        facts = seen.facts.get(node.name)
        if facts is None:
            continue
        sources = {"its driver": facts.driver, "torch": facts.torch}
        known = {who: devices for who, devices in sources.items() if devices is not None}
        counts = {who: len(devices.names) for who, devices in known.items()}
        counts["Ray"] = node.count_devices(kind)
        where = "in the file"
        if metadata.accelerator == "auto" and expected.cluster.is_this_machine:
            wanted, where = max(counts.values()), "here"  # a run takes all that it finds
        if set(counts.values()) != {wanted}:
            each = [f"{who} {n}{_trouble(known.get(who))}" for who, n in counts.items()]
            found = f"{wanted} {RESOURCES[kind]} {where}; seen by {', by '.join(each)}"
            yield node.name, found, _device_fix(kind, counts, wanted)
    yield from _check_device_models(seen)


def _trouble(devices: DeviceList | None) -> str:
    return f" ({devices.trouble})" if devices and devices.trouble else ""


def _device_fix(kind: str, counts: Mapping[str, int], wanted: int) -> str:
    """Return the fix of the first wrong link in the chain driver -> torch -> Ray."""
    if len(set(counts.values())) == 1:
        return f"set metadata.devices_per_node to {counts['Ray']}, or add the devices"
    if counts.get("its driver", wanted) != wanted:
        return "fix the driver first: its own tool must list all devices (dmesg, a reboot)"
    if counts["torch"] != wanted:
        return f"install a torch that is built for {kind} and for this driver's version"
    return f"restart Ray there, with {RESOURCES[kind]}: {wanted} among its resources"


def _check_device_models(seen: Observations) -> Iterator[RawFinding]:
    models = {n: f.driver.names for n, f in seen.facts.items() if f.driver and f.driver.names}
    usual = Counter(name for names in models.values() for name in names).most_common(1)
    for node, names in models.items():
        odd = [name for name in names if name != usual[0][0] and not name.startswith("core of")]
        if odd:
            fix = "train on equal devices: a step waits for the slowest"
            yield node, f"{', '.join(odd)}, where most are {usual[0][0]}", fix


def _check_ports(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    fix = "open all TCP ports between the nodes (firewall, security group): training takes any"
    missed = Counter(to for _, to in seen.unreachable)
    shut = {name for name, count in missed.items() if count > 1 and count >= len(seen.facts) - 1}
    for name in sorted(shut):
        why = next(why for (_, to), why in seen.unreachable.items() if to == name)
        yield name, f"no other node reaches it: {why}", fix
    for (one, to), why in seen.unreachable.items():
        if to not in shut:
            yield f"{one} - {to}", f"{one} cannot connect to {to}: {why}", fix


def _check_interfaces(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    for node in seen.nodes:
        facts = seen.facts.get(node.name)
        if facts is None:
            continue
        cards = {card.name for card in facts.cards}
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            named = facts.variables.get(variable, "")
            if named and named[0] not in "^=" and not any(c.startswith(named) for c in cards):
                fix = f"set it to one of {', '.join(sorted(cards))}, or leave it out"
                yield node.name, f"{variable} = {named!r}: no such card is up", fix
    yield from bandwidth.find_wrong_interfaces(seen)


def _check_links(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    for name in seen.busy_nodes:
        fix = "wait until the runs that hold them end, and run the doctor again"
        yield name, "its devices are held by others, so its links were not timed", fix
    yield from bandwidth.find_bad_links(seen, expected.machine)


def _check_clocks(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    if not seen.clocks:
        return
    middle = median(clock.ahead for clock in seen.clocks.values())
    for name, clock in seen.clocks.items():
        offset = clock.ahead - middle
        if abs(offset) - clock.within > MAX_CLOCK_SKEW_SECONDS:
            way = "ahead of" if offset > 0 else "behind"
            fix = "run chrony or systemd-timesyncd there; S3 rejects requests that are far off"
            yield name, f"its clock is {abs(offset):.1f} s {way} the others'", fix


def _check_disks(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    for name, facts in seen.facts.items():
        for use, space in facts.space.items():
            if use == "shared memory":
                if space.total < MIN_SHARED_MEMORY:
                    fix = "mount -o remount,size=8g /dev/shm; of a container: --shm-size=8g"
                    yield name, f"/dev/shm has {space.total / 2**20:.0f} MiB", fix
            elif space.free < max(MIN_FREE_BYTES, MIN_FREE_SHARE * space.total):
                found = f"{use}: {space.free / GIB:.1f} of {space.total / GIB:.1f} GiB are free"
                yield name, found, "make room, or name another disk in the cluster's file"


def _check_storage(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    storage = expected.cluster.metadata.storage
    if "://" not in storage and not Path(storage).is_absolute() and len(seen.nodes) > 1:
        found = f"metadata.storage = {storage!r}: each node has a directory of its own there"
        fix = "name a directory that all nodes mount, from / on, or s3://BUCKET/PREFIX"
        yield expected.cluster.name, found, fix
    fix = f"mount the same file system at {storage} on all nodes, writable, or use s3://"
    if "://" in storage:
        fix = f"let every node list, read, write and delete in {storage}: on AWS by its role"
    for name, why in seen.write_errors.items():
        yield name, f"cannot write to {storage}: {why}", fix
    for reader in dict.fromkeys(reader for reader, _ in seen.read_errors):
        bad = [f"{of} ({why})" for (one, of), why in seen.read_errors.items() if one == reader]
        yield reader, f"does not read from {storage} what others wrote: {', '.join(bad)}", fix


def _check_token(expected: ExpectedCluster, seen: Observations) -> Iterator[RawFinding]:
    several = len(seen.nodes) > 1
    fix = "ray get-auth-token --generate, RAY_AUTH_MODE=token on every node, restart Ray"
    without = [n for n, f in seen.facts.items() if f.variables.get("RAY_AUTH_MODE") != "token"]
    dashboard = seen.open_dashboard
    if several and without:
        found = "no token is required: anyone who reaches a port of Ray runs code there"
        yield ", ".join(without), found, fix
    elif dashboard is not None and (several or not dashboard.startswith(("127.", "localhost"))):
        yield expected.cluster.name, f"the dashboard at {dashboard} answers without a token", fix


CHECKS: Mapping[str, Check] = {
    "nodes": _check_nodes,
    "versions": _check_versions,
    "devices": _check_devices,
    "ports": _check_ports,
    "cards": _check_interfaces,
    "links": _check_links,
    "clock": _check_clocks,
    "disk": _check_disks,
    "storage": _check_storage,
    "token": _check_token,
}
