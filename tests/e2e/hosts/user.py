"""A person at a laptop on the hosts' network: a checkout, cluster files, commands typed there."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.hosts.hosts import Host
from tests.support.paths import ROOT

CODE = ("cluster", "trainers", "tuning", "serving", "pyproject.toml", "README.md")
DASHBOARD = "http://127.0.0.1:8265"
PLACE = f"cd ~/bertha && export RAY_AUTH_MODE=token RAY_ADDRESS={DASHBOARD} && "


@dataclass(frozen=True)
class User:
    """The user of `laptop`."""

    laptop: Host

    @property
    def checkout(self) -> Path:
        """~/bertha, from outside."""
        return self.laptop.home / "bertha"

    def clone_checkout(self) -> None:
        """Copy the repository to the laptop."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in CODE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.checkout / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, self.checkout / name)

    def write_cluster_file(self, name: str, settings: dict[str, Any]) -> None:
        """Write a cluster file into the checkout."""
        (self.checkout / name).write_text(yaml.safe_dump(settings, sort_keys=False))

    def read_cluster_file(self, name: str) -> dict[str, Any]:
        """Read a cluster file of the checkout."""
        settings: dict[str, Any] = yaml.safe_load((self.checkout / name).read_text())
        return settings

    def run_command(self, command: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout; it may fail."""
        return self.laptop.run("bash", "-c", PLACE + command, seconds=seconds)

    def check_command(self, command: str, seconds: float = 600) -> str:
        """Run a command that must succeed; return its output."""
        done = self.run_command(command, seconds)
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    @contextmanager
    def start_command(self, command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command for the block at most, with its output in `log`."""
        with log.open("w") as screen:
            running = subprocess.Popen(
                self.laptop.command("bash", "-c", PLACE + command),
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )
            try:
                yield running
            finally:
                running.kill()
                running.wait()

    def alive_addresses(self) -> set[str]:
        """Return the addresses of nodes that are alive according to the dashboard."""
        token = "Authorization: Bearer $(cat ~/.ray/auth_token)"
        asked = self.run_command(f'curl -s -m 20 -H "{token}" "{DASHBOARD}/nodes?view=summary"')
        try:
            summary = json.loads(asked.stdout)["data"]["summary"]
        except (ValueError, KeyError):
            return set()
        raylets = [node["raylet"] for node in summary]
        return {each["nodeManagerAddress"] for each in raylets if each.get("state") == "ALIVE"}

    def wait_for_nodes(self, machines: set[str], file: str) -> None:
        """Wait until exactly `machines` are alive."""
        give_up = time.monotonic() + 600
        while (there := self.alive_addresses()) != machines:
            assert time.monotonic() < give_up, f"{there} are alive\n{self.ray_status(file)}"
            time.sleep(0.5)

    def is_refused_without_token(self) -> bool:
        """Whether the dashboard rejects a request without a token."""
        asked = f"curl -s -o /dev/null -w '%{{http_code}}' {DASHBOARD}/api/jobs/"
        return self.check_command(asked) in ("401", "403")

    def ray_status(self, file: str) -> str:
        """Return the output of `ray status`."""
        return self.check_command(f"ray exec {file} 'ray status'")

    def run_doctor(self, file: str) -> tuple[int, str]:
        """Run the doctor; return its exit status and output."""
        done = self.run_command(submit_job(f"cluster doctor {file}"))
        return done.returncode, done.stdout + done.stderr


def submit_job(words: str) -> str:
    """Return the command that runs a module on the cluster."""
    return f"ray job submit --working-dir . -- python -m {words}"


def wait_until(condition: Callable[[], bool], seconds: float, why: str) -> None:
    """Wait until `condition` holds; fail with `why` after the time limit."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{why} within {seconds:g} s"
        time.sleep(0.5)
