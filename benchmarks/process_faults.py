"""Kill, starve and stall the processes of an endpoint; each returns what came of it."""

import contextlib
import resource
import signal
import time
from collections.abc import Sequence

import psutil
from recovery import CONTROLLER, FRONT, GCS, HAPROXY, RAYLET, await_exit, await_recovery
from servers import post_body
from upheavals import PATH, REPLICA, EndpointUnderTest

STALL_SECONDS = 0.5  # until requests surely wait in a replica that is stopped
LARGE_BODY = '{"inputs": [%s]}' % ", ".join(f'"{"a film " * 120}"' for _ in range(32))  # noqa: UP031


def kill_haproxy(endpoint: EndpointUnderTest) -> str:
    """Kill HAProxy, by which every request comes."""
    return _kill_and_await(endpoint, HAPROXY)


def kill_busy_replica(endpoint: EndpointUnderTest) -> str:
    """Stop a replica until requests wait in it, and kill it with them."""
    endpoint.find_processes(REPLICA)[0].suspend()
    time.sleep(STALL_SECONDS)
    return _kill_and_await(endpoint, REPLICA, number=1)


def kill_replicas(endpoint: EndpointUnderTest) -> str:
    """Kill every replica at once."""
    return _kill_and_await(endpoint, REPLICA)


def kill_front(endpoint: EndpointUnderTest) -> str:
    """Kill the front, which HAProxy outlives."""
    return _kill_and_await(endpoint, FRONT)


def kill_controller(endpoint: EndpointUnderTest) -> str:
    """Kill the controller of Serve, and once it is back a replica, which it must replace."""
    first = _kill_and_await(endpoint, CONTROLLER)
    return f"{first}; then a replica: {_kill_and_await(endpoint, REPLICA, number=1)}"


def kill_gcs(endpoint: EndpointUnderTest) -> str:
    """Kill the GCS, without which this Ray cannot go on."""
    _kill(endpoint.find_processes(GCS))
    return await_exit(endpoint)


def kill_raylet(endpoint: EndpointUnderTest) -> str:
    """Kill the raylet, the parent of every replica."""
    _kill(endpoint.find_processes(RAYLET))
    return await_exit(endpoint)


def starve_replica(endpoint: EndpointUnderTest) -> str:
    """Let no allocation of a replica succeed any more, and send it large requests.

    What the kernel's killer does where a machine has no memory left is what `kill_busy_replica`
    does; this is where an allocation fails in the process, as under `ulimit -v`.
    """
    victim = endpoint.find_processes(REPLICA)[0]
    limit = victim.memory_info().vms
    resource.prlimit(victim.pid, resource.RLIMIT_AS, (limit, limit))
    statuses = [post_body(endpoint.server.port, PATH, LARGE_BODY, timeout=30) for _ in range(4)]
    what = f"32 long texts answered {', '.join(map(str, statuses))}"
    killed = await_recovery(endpoint)
    still = "it lives on" if victim.is_running() else "it was replaced"
    return f"{what}; {killed}, {still}"


def _kill_and_await(endpoint: EndpointUnderTest, kind: str, number: int | None = None) -> str:
    """Kill processes of a kind, by default all, and wait until as many others run."""
    before = endpoint.find_processes(kind)
    victims = before[:number]
    _kill(victims)

    def is_replaced() -> bool:
        now = [each for each in endpoint.find_processes(kind) if each not in victims]
        return len(now) == len(before)

    return await_recovery(endpoint, is_replaced)


def _kill(victims: Sequence[psutil.Process]) -> None:
    assert victims, "there is no such process"
    for each in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
