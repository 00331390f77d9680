"""What happens to an endpoint under load, and what its requests notice of it.

An upheaval is a function that does it, waits until it has taken effect and says so in words. Knows
how to look into an endpoint from outside: its processes, its metrics, its registry.
"""

import json
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundles
from contenders import CORES
from report import failed
from servers import Server, begin_load, finish_load, megabytes

from serving import client
from serving.registry.canary_rule import Rule
from serving.registry.registry import Registry

NAME, PATH = "reviews", "/predict"
MOST_WAIT_SECONDS = 90.0  # for something to take effect
CONNECTIONS = 8
LENIENT = Rule(min_requests=20, max_error_rate=0.2, max_p95_ratio=None)

Record = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """An endpoint under test. capacity: requests a second in a closed loop."""

    server: Server
    registry: Registry
    bundle: Path
    bodies: Path
    seconds: float
    capacity: float

    def replicas(self) -> list[Any]:
        """The processes of its replicas."""
        mark = "ServeReplica:bertha:replica"
        return [each for each in self.server.processes() if mark in " ".join(each.cmdline())]


Upheaval = Callable[[Subject], str]


def under_load(subject: Subject, rate: float, upheaval: Upheaval) -> Record:
    """What came of requests at `rate` while `upheaval` happened a quarter of the way."""
    load = begin_load(
        subject.server.port,
        PATH,
        subject.bodies,
        rate=rate,
        seconds=subject.seconds,
        concurrency=CONNECTIONS,
        by_second=True,
    )
    memory = Memory(subject)
    time.sleep(subject.seconds / 4)
    started = time.monotonic()
    happened = upheaval(subject)
    effect = time.monotonic() - started
    found = finish_load(load)
    memory.end()
    found |= {"rate": rate, "happened": happened, "took_seconds": round(effect, 2)}
    return found | {"failed": failed(found), "megabytes": memory.samples}


class Memory:
    """The memory of an endpoint's processes, every two seconds, until told to end."""

    def __init__(self, subject: Subject) -> None:
        self.samples: list[float] = []
        self._subject, self._ended = subject, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Take no more samples."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(2.0):
            self.samples.append(round(megabytes(self._subject.server.processes()), 1))


def calm(subject: Subject) -> str:
    """Nothing happens."""
    return "nothing"


def killed(subject: Subject) -> str:
    """A replica is killed; another takes its place."""
    victim = subject.replicas()[0]
    victim.send_signal(signal.SIGKILL)
    time.sleep(6)  # until the front has noticed
    replaced = until(lambda: num_replicas(subject) == CORES)
    return f"replica {victim.pid} killed, {'replaced' if replaced else 'not replaced yet'}"


def deployed(subject: Subject) -> str:
    """A new version is made live."""
    version = subject.registry.register(subject.bundle, NAME)
    subject.registry.deploy(NAME, version)
    served = until(lambda: version in versions(subject))
    return f"version {version} deployed, {'served' if served else 'not served yet'}"


def promoted(subject: Subject) -> str:
    """A canary shows itself and becomes live."""
    version = subject.registry.register(subject.bundle, NAME)
    subject.registry.deploy(NAME, version, share=0.5, rule=LENIENT)
    done = until(lambda: subject.registry.state(NAME).live == version)
    return f"canary {version}, {'promoted' if done else 'not promoted yet'}: {why(subject)}"


def rolled_back(subject: Subject) -> str:
    """A canary that answers nothing is ended."""
    with tempfile.TemporaryDirectory() as directory:
        broken = bundles.broken(subject.bundle, Path(directory) / "bundle")
        version = subject.registry.register(broken, NAME)
    subject.registry.deploy(NAME, version, share=0.5, rule=LENIENT)
    done = until(lambda: subject.registry.state(NAME).canary is None)
    return f"canary {version}, {'rolled back' if done else 'not yet'}: {why(subject)}"


def why(subject: Subject) -> str:
    """The reason of the last change."""
    return subject.registry.state(NAME).why


UPHEAVALS: dict[str, Upheaval] = {
    "calm": calm,
    "killed": killed,
    "deployed": deployed,
    "promoted": promoted,
    "rolled-back": rolled_back,
}


def scaled(subject: Subject) -> list[Record]:
    """Little, much and little again, for an endpoint that begins with one replica."""
    seen: list[int] = []

    def watch(wanted: int) -> Upheaval:
        def upheaval(subject: Subject) -> str:
            until(lambda: num_replicas(subject) == wanted)
            seen.append(num_replicas(subject))
            return f"{seen[-1]} replicas, wanted {wanted}"

        return upheaval

    shares = ((0.2, 1), (1.0, 2), (0.2, 1))  # of what one replica reaches
    return [
        {"case": f"scaling to {wanted}"}
        | under_load(subject, share * subject.capacity, watch(wanted))
        for share, wanted in shares
    ]


def until(true: Callable[[], bool]) -> bool:
    """Wait for something; whether it came."""
    give_up = time.monotonic() + MOST_WAIT_SECONDS
    while time.monotonic() < give_up:
        try:
            if true():
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def get(subject: Subject, path: str) -> str:
    """The text at a path of the endpoint."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{client.url('127.0.0.1', subject.server.port)}{path}", timeout=5) as reply:
        return str(reply.read().decode())


def num_replicas(subject: Subject) -> int:
    """Replicas that the front knows."""
    lines = get(subject, "/metrics").splitlines()
    return int(
        float(next(each for each in lines if each.startswith("bertha_replicas ")).split()[1])
    )


def versions(subject: Subject) -> list[str]:
    """Versions of the model that are served."""
    found: list[str] = json.loads(get(subject, f"/v2/models/{NAME}"))["versions"]
    return found
