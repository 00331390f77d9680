"""Hosts made of namespaces on one machine: a network of their own, each with its own sshd.

A host has its own network, PID, mount, UTS and IPC namespace, a writable layer over this machine's
root, and its own /tmp, /root, /run and /dev/shm. Its power can be cut and its cable slowed. No
packet leaves their network, and this machine itself is not on it. Needs root and the commands of
NEEDED. `python tests/hosts/hosts.py` takes away what a run left that was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VENV = Path(sys.prefix)
STATE = Path("/var/tmp/bertha-hosts")
PREFIX = "bertha-"  # of network namespaces and cards, whose names have 15 letters at most
BRIDGE = f"{PREFIX}bridge"
NEEDED = ("ip", "tc", "unshare", "nsenter", "pivot_root", "setsid", "sshd", "ssh", "rsync", "curl")
BOOT_SECONDS = 60.0
# What a host needs of the kernel, tried once in namespaces that end at once.
TRIAL = """
ip link add trial0 type veth peer name trial1 && ip link add trial2 type bridge &&
mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work /mnt/root &&
mount -t overlay none -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
"""


def missing(*also: str) -> str:
    """What this machine lacks to make hosts, and of the commands `also`; "" if nothing."""
    if os.geteuid() != 0:
        return "hosts are made by root only"
    lacking = [name for name in (*NEEDED, *also) if shutil.which(name, path=_path()) is None]
    if lacking:
        return (
            f"no {', '.join(lacking)}: apt-get install iproute2 openssh-server rsync curl openssl"
        )
    namespaces = ("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork")
    done = subprocess.run([*namespaces, "sh", "-c", TRIAL], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no namespaces or overlays: {done.stderr.strip()}"


@dataclass(frozen=True)
class Host:
    """One host. address: on the hosts' network. also: further addresses that it answers at.

    login: the user who gets in by SSH; "" for nobody. key: who has its other half gets in; default:
    the laptop. shares: whether it mounts /mnt/shared. profile: more lines of everyone's profile.
    """

    name: str
    address: str
    login: str = "root"
    also: tuple[str, ...] = ()
    key: str = ""
    shares: bool = True
    profile: str = ""

    @property
    def link(self) -> str:
        """Its network namespace, and the near end of its cable."""
        return f"{PREFIX}{self.name}"

    @property
    def home(self) -> Path:
        """/root, from outside."""
        return STATE / self.name / "home"

    def power_on(self, others: str = "") -> None:
        """Boot; the disk is as it was left. others: lines of /etc/hosts. Raises RuntimeError."""
        own = STATE / self.name
        (own / "layer").mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(own / "layer"):
            _do("mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "none", str(own / "layer"))
        if self.link not in _namespaces():
            self._cable()
        _do("ip", "link", "set", self.link, "up")
        console = own / "console"
        apart = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
        boot = ("setsid", "--fork", "ip", "netns", "exec", self.link, *apart, "bash")
        with console.open("w") as screen:
            subprocess.run(
                [*boot, str(HERE / "boot.sh")],
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                env=self._told(others),
                check=True,
            )
        give_up = time.monotonic() + BOOT_SECONDS
        while "up" not in console.read_text().split():
            if time.monotonic() > give_up:
                raise RuntimeError(f"{self.name} does not boot: {console.read_text()}")
            time.sleep(0.05)

    def _told(self, others: str) -> dict[str, str]:
        """What boot.sh reads."""
        return {
            "NAME": self.name,
            "OWN": str(STATE / self.name),
            "SHARED": str(STATE / "shared") if self.shares else "",
            "HOSTS": others or f"{self.address} {self.name}\\n",
            "ROOT": str(ROOT),
            "VENV": str(VENV),
            "PYTHON": str(Path(sys.executable).resolve().parent.parent),
            "LOGIN": self.login,
            "KEY": self.key or (STATE / "key.pub").read_text(),
            "LAPTOP_KEY": str(STATE / "key"),
            "PROFILE": self.profile,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    @property
    def first_process(self) -> str:
        """The process that is number 1 in the host, by its number here."""
        for pid in _do("ip", "netns", "pids", self.link).split():
            with suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid"))
                if numbers.split()[-1] == "1":
                    return pid
        raise RuntimeError(f"{self.name} is not on")

    def _cable(self) -> None:
        """A namespace with one card, on the bridge, by which everything is reached or nothing."""
        _do("ip", "netns", "add", self.link)
        _do("ip", "link", "add", self.link, "type", "veth", "peer", "eth0", "netns", self.link)
        _do("ip", "link", "set", self.link, "master", BRIDGE, "addrgenmode", "none")
        for address in (self.address, *self.also):
            _do("ip", "-n", self.link, "addr", "add", f"{address}/32", "dev", "eth0")
        _do("ip", "-n", self.link, "link", "set", "lo", "up")
        _do("ip", "-n", self.link, "link", "set", "eth0", "up")
        # Ray finds its address by asking how it would reach the internet.
        way = ("default", "dev", "eth0", "src", self.address)
        _do("ip", "-n", self.link, "route", "add", *way)

    def cut_power(self) -> None:
        """The cable first, so that no farewell gets out; then every process at once."""
        _do("ip", "link", "set", self.link, "down")
        self._kill()

    def slow_down(self, rate: str) -> None:
        """Limit what reaches the host, as in 100mbit."""
        limit = ("rate", rate, "burst", "128kb", "latency", "100ms")
        _do("tc", "qdisc", "replace", "dev", self.link, "root", "tbf", *limit)

    def speed_up(self) -> None:
        """As it was before."""
        _do("tc", "qdisc", "del", "dev", self.link, "root")

    @contextmanager
    def slowed(self, pattern: str) -> Iterator[None]:
        """Processes that match now run a twentieth of the time, while the block or they last."""
        found = self.run("pgrep", "-f", pattern).stdout.split()
        assert found, f"no {pattern} on {self.name}"
        flag, them = "/run/slowed", " ".join(found)
        pulse = f"sleep 0.95; kill -CONT {them}; sleep 0.05"
        self.run("touch", flag)
        loop = f"while [ -e {flag} ] && kill -STOP {them}; do {pulse}; done 2> /dev/null"
        with subprocess.Popen(self.command("bash", "-c", loop)) as slowing:
            try:
                yield
            finally:
                self.run("rm", flag)
                slowing.wait()

    def command(self, *words: str) -> list[str]:
        """What runs `words` in the host, as root's login would."""
        enter = ["nsenter", "-t", self.first_process, "-m", "-u", "-i", "-n", "-p", "-r"]
        clean = ["env", "-i", "HOME=/root", "USER=root", "SHELL=/bin/bash", "TERM=dumb"]
        return [*enter, *clean, "bash", "-c", '. ~/.profile; cd; exec "$@"', "-", *words]

    def run(
        self, *words: str, seconds: float = 120, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever it comes to. given: what it reads."""
        return subprocess.run(
            self.command(*words), input=given, capture_output=True, text=True, timeout=seconds
        )

    def processes(self, pattern: str) -> list[str]:
        """Command lines that match."""
        return self.run("pgrep", "-a", "-f", pattern).stdout.splitlines()

    def destroy(self) -> None:
        """Power off, and throw the disk away."""
        self._kill()
        with suppress(subprocess.CalledProcessError):
            _do("ip", "netns", "del", self.link)
        with suppress(subprocess.CalledProcessError):
            _do("ip", "link", "del", self.link)
        if os.path.ismount(STATE / self.name / "layer"):
            _do("umount", "-l", str(STATE / self.name / "layer"))
        shutil.rmtree(STATE / self.name, ignore_errors=True)

    def _kill(self) -> None:
        """Every process that is in the host's network; the first takes its PID namespace along."""
        for _ in range(100):
            try:
                pids = _do("ip", "netns", "pids", self.link).split()
            except subprocess.CalledProcessError:
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if not pids:
                return
            time.sleep(0.05)


@contextmanager
def network(hosts: list[Host]) -> Iterator[None]:
    """A network, and `hosts` up on it; what an earlier run left is taken away first."""
    with (Path(tempfile.gettempdir()) / "bertha-hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        clear()
        try:
            (STATE / "shared").mkdir(parents=True)
            (STATE / "shared").chmod(0o777)
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(STATE / "key"))
            _do("ip", "link", "add", BRIDGE, "type", "bridge")
            _do("ip", "link", "set", BRIDGE, "addrgenmode", "none", "up")
            for host in hosts:
                host.power_on(names(hosts))
            yield
        finally:
            clear()


def names(hosts: list[Host]) -> str:
    """Lines of /etc/hosts."""
    return "".join(f"{host.address} {host.name}\\n" for host in hosts)


def leftovers() -> list[str]:
    """What is still there of a network: namespaces, cards, mounts, files."""
    cards = [line.split(":")[1].split("@")[0] for line in _do("ip", "-o", "link").splitlines()]
    found = [name.strip() for name in cards if name.strip().startswith(PREFIX)]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [line.split()[1] for line in mounts if str(STATE) in line]
    return [*_namespaces(), *found, *([str(STATE)] if STATE.exists() else [])]


def clear() -> None:
    """Take away every host and the network."""
    known = {name.removeprefix(PREFIX) for name in _namespaces()}
    if STATE.is_dir():
        known |= {each.name for each in STATE.iterdir() if (each / "layer").is_dir()}
    for name in known:
        Host(name, "").destroy()
    with suppress(subprocess.CalledProcessError):
        _do("ip", "link", "del", BRIDGE)
    shutil.rmtree(STATE, ignore_errors=True)


def _namespaces() -> list[str]:
    """Network namespaces of hosts."""
    found = [line.split()[0] for line in _do("ip", "netns", "list").splitlines()]
    return [name for name in found if name.startswith(PREFIX)]


def _do(*words: str) -> str:
    """Run a command of this machine; what it prints. Raises CalledProcessError."""
    told = {**os.environ, "PATH": _path()}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=told).stdout


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


if __name__ == "__main__" and STATE.exists():
    clear()
