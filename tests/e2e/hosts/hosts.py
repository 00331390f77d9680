"""Hosts made of namespaces on one machine: a network of their own, each with its own sshd.

A host has its own network, PID, mount, UTS and IPC namespace, a writable layer over this machine's
root, and its own /tmp, /root, /run and /dev/shm. Its power can be cut and its cable slowed. No
packet leaves their network (lan.py), and this machine itself is not on it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

HERE = Path(__file__).parent
VENV = Path(sys.prefix)
STATE = Path("/var/tmp/bertha-hosts")
PREFIX = "bertha-"  # of network namespaces and cards, whose names have 15 letters at most
BRIDGE = f"{PREFIX}bridge"
BOOT_SECONDS = 60.0


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
            run_command(
                "mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "none", str(own / "layer")
            )
        if self.link not in list_namespaces():
            self._connect_network()
        run_command("ip", "link", "set", self.link, "up")
        console = own / "console"
        apart = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
        boot = ("setsid", "--fork", "ip", "netns", "exec", self.link, *apart, "bash")
        with console.open("w") as screen:
            subprocess.run(
                [*boot, str(HERE / "boot.sh")],
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                env=self._boot_environment(others),
                check=True,
            )
        give_up = time.monotonic() + BOOT_SECONDS
        while "up" not in console.read_text().split():
            if time.monotonic() > give_up:
                raise RuntimeError(f"{self.name} does not boot: {console.read_text()}")
            time.sleep(0.05)

    def _boot_environment(self, others: str) -> dict[str, str]:
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
        for pid in run_command("ip", "netns", "pids", self.link).split():
            with suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid"))
                if numbers.split()[-1] == "1":
                    return pid
        raise RuntimeError(f"{self.name} is not on")

    def _connect_network(self) -> None:
        """A namespace with one card, on the bridge, by which everything is reached or nothing."""
        run_command("ip", "netns", "add", self.link)
        run_command(
            "ip", "link", "add", self.link, "type", "veth", "peer", "eth0", "netns", self.link
        )
        run_command("ip", "link", "set", self.link, "master", BRIDGE, "addrgenmode", "none")
        for address in (self.address, *self.also):
            run_command("ip", "-n", self.link, "addr", "add", f"{address}/32", "dev", "eth0")
        run_command("ip", "-n", self.link, "link", "set", "lo", "up")
        run_command("ip", "-n", self.link, "link", "set", "eth0", "up")
        # Ray finds its address by asking how it would reach the internet.
        way = ("default", "dev", "eth0", "src", self.address)
        run_command("ip", "-n", self.link, "route", "add", *way)

    def cut_power(self) -> None:
        """The cable first, so that no farewell gets out; then every process at once."""
        run_command("ip", "link", "set", self.link, "down")
        self._kill()

    def slow_down(self, rate: str) -> None:
        """Limit what reaches the host, as in 100mbit."""
        limit = ("rate", rate, "burst", "128kb", "latency", "100ms")
        run_command("tc", "qdisc", "replace", "dev", self.link, "root", "tbf", *limit)

    def speed_up(self) -> None:
        """As it was before."""
        run_command("tc", "qdisc", "del", "dev", self.link, "root")

    @contextmanager
    def throttled(self, pattern: str) -> Iterator[None]:
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

    def matching_processes(self, pattern: str) -> list[str]:
        """Command lines that match, of processes that live: a zombie waits for its parent only."""
        living = ("--runstates", "R,S,D,T,I")
        return self.run("pgrep", "-a", *living, "-f", pattern).stdout.splitlines()

    def destroy(self) -> None:
        """Power off, and throw the disk away."""
        self._kill()
        with suppress(subprocess.CalledProcessError):
            run_command("ip", "netns", "del", self.link)
        with suppress(subprocess.CalledProcessError):
            run_command("ip", "link", "del", self.link)
        if os.path.ismount(STATE / self.name / "layer"):
            run_command("umount", "-l", str(STATE / self.name / "layer"))
        shutil.rmtree(STATE / self.name, ignore_errors=True)

    def _kill(self) -> None:
        """Every process that is in the host's network; the first takes its PID namespace along."""
        for _ in range(100):
            try:
                pids = run_command("ip", "netns", "pids", self.link).split()
            except subprocess.CalledProcessError:
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if not pids:
                return
            time.sleep(0.05)


def list_namespaces() -> list[str]:
    """Network namespaces of hosts."""
    found = [line.split()[0] for line in run_command("ip", "netns", "list").splitlines()]
    return [name for name in found if name.startswith(PREFIX)]


def run_command(*words: str) -> str:
    """Run a command of this machine; what it prints. Raises CalledProcessError."""
    told = {**os.environ, "PATH": command_path()}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=told).stdout


def command_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
