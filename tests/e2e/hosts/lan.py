"""The network that hosts are on, and all that is there of them: made, found again, taken away.

Needs root and the commands of NEEDED. `python -m tests.e2e.hosts.lan` takes away what a run left
that was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.hosts.hosts import (
    BRIDGE,
    PREFIX,
    STATE,
    Host,
    command_path,
    list_namespaces,
    run_command,
)

NEEDED = ("ip", "tc", "unshare", "nsenter", "pivot_root", "setsid", "sshd", "ssh", "rsync", "curl")
# What a host needs of the kernel, tried once in namespaces that end at once.
TRIAL = """
ip link add trial0 type veth peer name trial1 && ip link add trial2 type bridge &&
mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work /mnt/root &&
mount -t overlay none -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
"""


def missing_requirements(*also: str) -> str:
    """What this machine lacks to make hosts, and of the commands `also`; "" if nothing."""
    if os.geteuid() != 0:
        return "hosts are made by root only"
    lacking = [name for name in (*NEEDED, *also) if shutil.which(name, path=command_path()) is None]
    if lacking:
        return (
            f"no {', '.join(lacking)}: apt-get install iproute2 openssh-server rsync curl openssl"
        )
    apart = ("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork")
    done = subprocess.run([*apart, "sh", "-c", TRIAL], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no namespaces or overlays: {done.stderr.strip()}"


@contextmanager
def host_network(hosts: list[Host]) -> Iterator[None]:
    """A network, and `hosts` up on it; what an earlier run left is taken away first."""
    with (Path(tempfile.gettempdir()) / "bertha-hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_all()
        try:
            (STATE / "shared").mkdir(parents=True)
            run_command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(STATE / "key"))
            run_command("ip", "link", "add", BRIDGE, "type", "bridge")
            run_command("ip", "link", "set", BRIDGE, "addrgenmode", "none", "up")
            for host in hosts:
                host.power_on(etc_hosts(hosts))
            yield
        finally:
            remove_all()


def etc_hosts(hosts: list[Host]) -> str:
    """Lines of /etc/hosts."""
    return "".join(f"{host.address} {host.name}\\n" for host in hosts)


def leftovers() -> list[str]:
    """What is still there of a network: namespaces, cards, mounts, files."""
    cards = [
        line.split(":")[1].split("@")[0] for line in run_command("ip", "-o", "link").splitlines()
    ]
    found = [name.strip() for name in cards if name.strip().startswith(PREFIX)]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [line.split()[1] for line in mounts if str(STATE) in line]
    return [*list_namespaces(), *found, *([str(STATE)] if STATE.exists() else [])]


def remove_all() -> None:
    """Take away every host and the network."""
    known = {name.removeprefix(PREFIX) for name in list_namespaces()}
    if STATE.is_dir():
        known |= {each.name for each in STATE.iterdir() if (each / "layer").is_dir()}
    for name in known:
        Host(name, "").destroy()
    with suppress(subprocess.CalledProcessError):
        run_command("ip", "link", "del", BRIDGE)
    shutil.rmtree(STATE, ignore_errors=True)


if __name__ == "__main__" and STATE.exists():
    remove_all()
