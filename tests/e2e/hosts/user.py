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
    """Who sits at `laptop`."""

    laptop: Host

    @property
    def checkout(self) -> Path:
        """~/bertha, from outside."""
        return self.laptop.home / "bertha"

    def clones(self) -> None:
        """Take what a user has of Bertha."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in CODE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.checkout / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, self.checkout / name)

    def writes(self, name: str, settings: dict[str, Any]) -> None:
        """Save a cluster file."""
        (self.checkout / name).write_text(yaml.safe_dump(settings, sort_keys=False))

    def reads(self, name: str) -> dict[str, Any]:
        """A cluster file."""
        settings: dict[str, Any] = yaml.safe_load((self.checkout / name).read_text())
        return settings

    def types(self, command: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout, whatever it comes to."""
        return self.laptop.run("bash", "-c", PLACE + command, seconds=seconds)

    def succeeds(self, command: str, seconds: float = 600) -> str:
        """Run a command that must succeed; what it prints."""
        done = self.types(command, seconds)
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    @contextmanager
    def starts(self, command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs for as long as the block, or less; what it prints goes to `log`."""
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

    def alive(self) -> set[str]:
        """Addresses of nodes that Ray holds for alive, as the dashboard says."""
        token = "Authorization: Bearer $(cat ~/.ray/auth_token)"
        asked = self.types(f'curl -s -m 20 -H "{token}" "{DASHBOARD}/nodes?view=summary"')
        try:
            summary = json.loads(asked.stdout)["data"]["summary"]
        except (ValueError, KeyError):
            return set()
        raylets = [node["raylet"] for node in summary]
        return {each["nodeManagerAddress"] for each in raylets if each.get("state") == "ALIVE"}

    def sees(self, machines: set[str], file: str) -> None:
        """Wait until Ray holds all `machines` for alive, and no other."""
        give_up = time.monotonic() + 600
        while (there := self.alive()) != machines:
            assert time.monotonic() < give_up, f"{there} are alive\n{self.status(file)}"
            time.sleep(0.5)

    def is_refused_without_token(self) -> bool:
        """Whether who has no token gets nothing of the dashboard."""
        asked = f"curl -s -o /dev/null -w '%{{http_code}}' {DASHBOARD}/api/jobs/"
        return self.succeeds(asked) in ("401", "403")

    def status(self, file: str) -> str:
        """What Ray's own command says of the nodes."""
        return self.succeeds(f"ray exec {file} 'ray status'")

    def doctor(self, file: str) -> tuple[int, str]:
        """Its exit status, and what it says."""
        done = self.types(job(f"cluster doctor {file}"))
        return done.returncode, done.stdout + done.stderr


def job(words: str) -> str:
    """The command that runs a module on the cluster."""
    return f"ray job submit --working-dir . -- python -m {words}"


def wait(condition: Callable[[], bool], seconds: float, why: str) -> None:
    """Until it holds. A machine that is busy with other things is given time."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{why} within {seconds:g} s"
        time.sleep(0.5)
