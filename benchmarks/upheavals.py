"""Disturb an endpoint under load, and measure its requests meanwhile.

An upheaval is a function that disturbs the endpoint, waits until that has taken effect and
describes it. It observes the endpoint from outside: its processes, metrics and registry.
"""

import contextlib
import itertools
import json
import re
import signal
import statistics
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundles
import psutil
from contenders import CORES
from report import count_failed
from servers import Server, finish_load, memory_megabytes, post_body, start_load

from serving import client
from serving.registry.canary_rule import CanaryRule
from serving.registry.registry import Registry

NAME, PATH = "reviews", "/predict"
MAX_WAIT_SECONDS = 90.0  # for something to take effect
CONNECTIONS = 8
LARGE_TEXTS, BURST_REQUESTS = 2048, 200
REPLICA = "ServeReplica:bertha:replica"  # in its command line
LENIENT = CanaryRule(min_requests=20, max_error_rate=0.2, max_p95_ratio=None)

Record = dict[str, Any]


@dataclass(frozen=True)
class EndpointUnderTest:
    """An endpoint under test. capacity: requests a second, by which a load is chosen."""

    server: Server
    registry: Registry
    bundle: Path
    bodies: Path
    seconds: float
    capacity: float

    def find_processes(self, pattern: str) -> list[psutil.Process]:
        """Return its processes whose command line has a match of `pattern`."""
        found = []
        for each in self.server.processes():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if re.search(pattern, " ".join(each.cmdline())):
                    found.append(each)
        return found

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of its replicas."""
        return self.find_processes(REPLICA)


Upheaval = Callable[[EndpointUnderTest], str]


def run_under_load(endpoint: EndpointUnderTest, rate: float, upheaval: Upheaval) -> Record:
    """Send requests at `rate`, run `upheaval` after a quarter of the time; return the record."""
    load = start_load(
        endpoint.server.port,
        PATH,
        endpoint.bodies,
        rate=rate,
        seconds=endpoint.seconds,
        concurrency=CONNECTIONS,
        by_second=True,
    )
    memory = MemorySampler(endpoint)
    time.sleep(endpoint.seconds / 4)
    started = time.monotonic()
    happened = upheaval(endpoint)
    took_seconds = time.monotonic() - started
    results = finish_load(load)
    memory.stop()
    results |= {"rate": rate, "happened": happened, "took_seconds": round(took_seconds, 2)}
    return results | {"failed": count_failed(results), "megabytes": memory.samples}


class MemorySampler:
    """Samples the memory of an endpoint's processes every two seconds until `stop`."""

    def __init__(self, endpoint: EndpointUnderTest) -> None:
        self.samples: list[float] = []
        self._endpoint, self._ended = endpoint, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(2.0):
            self.samples.append(round(memory_megabytes(self._endpoint.server.processes()), 1))


def do_nothing(endpoint: EndpointUnderTest) -> str:
    """Leave the endpoint alone."""
    return "nothing"


def kill_replica(endpoint: EndpointUnderTest) -> str:
    """Kill a replica and wait until another replaces it."""
    victim = endpoint.replicas()[0]
    victim.send_signal(signal.SIGKILL)
    time.sleep(6)  # until the replica table has noticed
    replaced = wait_until(lambda: num_replicas(endpoint) == CORES)
    return f"replica {victim.pid} killed, {'replaced' if replaced else 'not replaced yet'}"


def deploy_version(endpoint: EndpointUnderTest) -> str:
    """Deploy a new version and wait until it is served."""
    version = endpoint.registry.register(endpoint.bundle, NAME)
    endpoint.registry.deploy(NAME, version)
    served = wait_until(lambda: version in served_versions(endpoint))
    return f"version {version} deployed, {'served' if served else 'not served yet'}"


def promote_canary(endpoint: EndpointUnderTest) -> str:
    """Deploy a good canary and wait until it is promoted."""
    version = endpoint.registry.register(endpoint.bundle, NAME)
    endpoint.registry.deploy(NAME, version, share=0.5, rule=LENIENT)
    done = wait_until(lambda: endpoint.registry.read_state(NAME).live == version)
    return (
        f"canary {version}, {'promoted' if done else 'not promoted yet'}: {last_reason(endpoint)}"
    )


def roll_back_canary(endpoint: EndpointUnderTest) -> str:
    """Deploy a broken canary and wait until it is rolled back."""
    with tempfile.TemporaryDirectory() as directory:
        broken = bundles.copy_with_nan_bias(endpoint.bundle, Path(directory) / "bundle")
        version = endpoint.registry.register(broken, NAME)
    endpoint.registry.deploy(NAME, version, share=0.5, rule=LENIENT)
    done = wait_until(lambda: endpoint.registry.read_state(NAME).canary is None)
    return f"canary {version}, {'rolled back' if done else 'not yet'}: {last_reason(endpoint)}"


def last_reason(endpoint: EndpointUnderTest) -> str:
    """Return the reason of the last change of the registry."""
    return endpoint.registry.read_state(NAME).why


def send_large_requests(endpoint: EndpointUnderTest) -> str:
    """Send requests of `LARGE_TEXTS` texts, one after another, until the time is over."""
    texts = [json.loads(body)["inputs"] for body in json.loads(endpoint.bodies.read_text())]
    many = itertools.islice(itertools.cycle(texts), LARGE_TEXTS)
    body = json.dumps({"inputs": list(many)})
    ends, took = time.monotonic() + 0.6 * endpoint.seconds, []
    statuses = Counter[int]()
    while time.monotonic() < ends:
        started = time.monotonic()
        statuses[post_body(endpoint.server.port, PATH, body, timeout=600)] += 1
        took.append(time.monotonic() - started)
    return f"{LARGE_TEXTS:,} texts a request, {_tell(statuses)}, {statistics.median(took):.1f} s"


def send_burst(endpoint: EndpointUnderTest) -> str:
    """Send `BURST_REQUESTS` requests at once, of one text each."""
    bodies = itertools.cycle(json.loads(endpoint.bodies.read_text()))
    started = time.monotonic()

    def post(body: str) -> int:
        return post_body(endpoint.server.port, PATH, body, timeout=60)

    with ThreadPoolExecutor(BURST_REQUESTS) as pool:
        statuses = Counter(pool.map(post, itertools.islice(bodies, BURST_REQUESTS)))
    took = time.monotonic() - started
    return f"{BURST_REQUESTS} requests at once, {_tell(statuses)}, in {took:.1f} s"


def _tell(statuses: Mapping[int, int]) -> str:
    return ", ".join(f"{count} answered {status}" for status, count in sorted(statuses.items()))


UPHEAVALS: dict[str, Upheaval] = {
    "calm": do_nothing,
    "killed": kill_replica,
    "deployed": deploy_version,
    "promoted": promote_canary,
    "rolled-back": roll_back_canary,
    "beside-large": send_large_requests,
    "burst": send_burst,
}


def run_scaling(endpoint: EndpointUnderTest) -> list[Record]:
    """Offer a low, a high and a low load to an endpoint that starts with one replica."""
    counts: list[int] = []

    def await_replicas(target: int) -> Upheaval:
        def upheaval(endpoint: EndpointUnderTest) -> str:
            wait_until(lambda: num_replicas(endpoint) == target)
            counts.append(num_replicas(endpoint))
            return f"{counts[-1]} replicas, wanted {target}"

        return upheaval

    # Share of the capacity of one replica, and the replicas that it should need.
    shares = ((0.2, 1), (1.0, 2), (0.2, 1))
    return [
        {"case": f"scaling to {target}"}
        | run_under_load(endpoint, share * endpoint.capacity, await_replicas(target))
        for share, target in shares
    ]


def wait_until(condition: Callable[[], bool]) -> bool:
    """Poll until `condition` holds; return False after `MAX_WAIT_SECONDS`."""
    give_up = time.monotonic() + MAX_WAIT_SECONDS
    while time.monotonic() < give_up:
        try:
            if condition():
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def fetch_text(endpoint: EndpointUnderTest, path: str) -> str:
    """Get the text at a path of the endpoint."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(
        f"{client.service_url('127.0.0.1', endpoint.server.port)}{path}", timeout=5
    ) as reply:
        return str(reply.read().decode())


def num_replicas(endpoint: EndpointUnderTest) -> int:
    """Return how many replicas the proxy serves from."""
    lines = fetch_text(endpoint, "/metrics").splitlines()
    return int(
        float(next(each for each in lines if each.startswith("bertha_replicas ")).split()[1])
    )


def served_versions(endpoint: EndpointUnderTest) -> list[str]:
    """Return the versions of the model that are served."""
    versions: list[str] = json.loads(fetch_text(endpoint, f"/v2/models/{NAME}"))["versions"]
    return versions
