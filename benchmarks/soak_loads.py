"""The loads of a soak: training runs and searches one after the other, and a stream of requests.

A job that ends before its result is there is started again, with --resume, as a supervisor would.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak_record import Record

from tests.e2e.hosts.hosts import Host
from tests.e2e.hosts.training import TOLERANCE, step_losses
from tests.e2e.hosts.user import User, submit_job

LOAD = Path(__file__).parent / "load.py"
RETRY_SECONDS = 3.0
TIMEOUT_SECONDS = 10.0  # of a request
DAY = 86400


@dataclass(frozen=True)
class Work:
    """What a job does, again and again, each time in a directory of its own.

    start, resume: return the words of the command for a run's address. compare: returns what
    differs from the undisturbed run, given the directory of one that has ended.
    """

    name: str
    start: Callable[[str], str]
    resume: Callable[[str], str]
    begun_file: str
    compare: Callable[[Path], Record]


class RepeatedJob:
    """Submits the runs of a `Work` from a laptop, one after the other, in a thread.

    runs: where they are, here. on_record: called after each with its record.
    """

    def __init__(
        self, work: Work, user: User, runs: Path, logs: Path, on_record: Callable[[Record], None]
    ) -> None:
        self._work, self._user, self._runs, self._logs = work, user, runs, logs
        self._on_record = on_record
        self._last, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=work.name)
        self._thread.start()

    def start_no_more(self) -> None:
        """Let the run under way be the last."""
        self._last.set()

    def wait(self, seconds: float) -> None:
        """Wait for the last run, `seconds` at most."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """End now."""
        self._last.set()
        self._ended.set()
        self._thread.join()

    def _repeat(self) -> None:
        number = 0
        while not self._last.is_set():
            name = f"{self._work.name}-{number}"
            began, number = time.monotonic(), number + 1
            submissions = self._run_to_end(name)
            record = {"run": name, "restarts": submissions - 1}
            record["seconds"] = round(time.monotonic() - began, 1)
            if self._ended.is_set():
                self._on_record(record | {"ended": False})
                return
            self._on_record(record | {"ended": True} | self._work.compare(self._runs / name))

    def _run_to_end(self, name: str) -> int:
        """Submit a run until its result is there; return how often that was."""
        directory, submissions = self._runs / name, 0
        while not self._ended.is_set() and not (directory / "result.json").exists():
            begun = (directory / self._work.begun_file).exists()
            words = (self._work.resume if begun else self._work.start)(f"/mnt/shared/runs/{name}")
            submissions += 1
            log = self._logs / f"{name}.{submissions}.log"
            with self._user.start_command(submit_job(words), log) as running:
                while running.poll() is None and not self._ended.wait(0.5):
                    pass
            self._ended.wait(RETRY_SECONDS)
        return submissions


def compare_losses(expected: Sequence[float], run: Path) -> Record:
    """Compare a run's losses, step by step, to those of an undisturbed one."""
    losses = step_losses((run / "metrics.jsonl").read_text())
    apart = [abs(a - b) for a, b in zip(expected, losses, strict=False)]
    missing = abs(len(expected) - len(losses))
    return {
        "steps": len(losses),
        "steps_changed": missing + sum(each > TOLERANCE for each in apart),
        "largest_difference": max(apart, default=0.0),
    }


def list_trials(run: Path) -> list[list[Any]]:
    """Return of each trial of a search what does not depend on the clock."""
    trials = json.loads((run / "result.json").read_text())["trials"]
    kept = ("number", "settings", "seed", "state", "repeats", "curve")
    return [[each[name] for name in kept] for each in trials]


def compare_trials(expected: Sequence[list[Any]], run: Path) -> Record:
    """Compare a search's trials to those of an undisturbed one."""
    trials = list_trials(run)
    same = sum(a == b for a, b in zip(expected, trials, strict=False))
    changed = max(len(expected), len(trials)) - same
    return {"trials": len(trials), "trials_changed": changed}


class RequestStream:
    """An even stream of requests from `client`, a host, each outcome logged as it comes."""

    def __init__(self, client: Host, server: Host, port: int, rate: float, place: Path) -> None:
        self._outcomes = place / "outcomes"
        bodies = place / "bodies.json"
        bodies.write_text(json.dumps([json.dumps({"inputs": "A warm and funny film."})]))
        command = ["ip", "netns", "exec", client.link, sys.executable, str(LOAD)]
        command += ["--host", server.address, "--port", str(port), "--bodies", str(bodies)]
        command += ["--rate", str(rate), "--even", "--timeout", str(TIMEOUT_SECONDS)]
        command += ["--seconds", str(DAY), "--concurrency", "4", "--outcomes", str(self._outcomes)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def read_outcomes(self) -> list[list[Any]]:
        """Return the outcomes so far, in the order in which the requests were due."""
        if not self._outcomes.exists():
            return []
        lines = self._outcomes.read_text().split("\n")[:-1]
        return sorted(json.loads(line) for line in lines)

    def stop(self) -> None:
        """Send no more, and wait for what is under way."""
        self._process.terminate()
        self._process.wait()
