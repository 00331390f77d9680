"""Find out what an endpoint does after a fault: recovers, exits, or neither.

Where its process exits, this restarts it, as systemd or `docker run --restart` would.
"""

import re
import time
from collections import Counter
from collections.abc import Callable

import psutil
from contenders import CORES
from servers import ServerStartError, post_body
from upheavals import MAX_WAIT_SECONDS, PATH, REPLICA, EndpointUnderTest, num_replicas

BODY = '{"inputs": "a film"}'
LEAVE_SECONDS = 3.0  # for processes to follow the one that exited
# Patterns of the command line of each kind of process.
GCS, RAYLET, HAPROXY = "gcs_server", "raylet/raylet", "^[^ ]*haproxy "
CONTROLLER, FRONT = "ServeController", "ServeReplica:bertha:front"
KINDS = {
    GCS: "the GCS",
    RAYLET: "the raylet",
    HAPROXY: "HAProxy",
    CONTROLLER: "the controller",
    FRONT: "the front",
    REPLICA: "a replica",
}


def is_sound(endpoint: EndpointUnderTest) -> bool:
    """Return whether the endpoint answers, from all of its replicas."""
    answers = post_body(endpoint.server.port, PATH, BODY, timeout=5) == 200
    return answers and len(endpoint.replicas()) == CORES and num_replicas(endpoint) == CORES


def await_recovery(
    endpoint: EndpointUnderTest, is_replaced: Callable[[], bool] = lambda: True
) -> str:
    """Wait until the endpoint is sound and `is_replaced`, and say how that came about.

    If its own process exits, it is restarted. Gives up after `MAX_WAIT_SECONDS`.
    """
    started = time.monotonic()
    while (took := time.monotonic() - started) < MAX_WAIT_SECONDS:
        if endpoint.server.exit_status() is not None:
            return restart_exited(endpoint, took)
        try:
            if is_replaced() and is_sound(endpoint):
                return f"sound again after {took:.1f} s" if took > 1 else "sound"
        except OSError:
            pass
        time.sleep(0.2)
    return f"after {took:.0f} s: {describe_state(endpoint)}"


def await_exit(endpoint: EndpointUnderTest) -> str:
    """Wait until the process exits of a fault that it cannot survive, and restart it.

    One that still runs after `MAX_WAIT_SECONDS` is described and left.
    """
    started = time.monotonic()
    while (took := time.monotonic() - started) < MAX_WAIT_SECONDS:
        if endpoint.server.exit_status() is not None:
            return restart_exited(endpoint, took)
        time.sleep(0.2)
    return f"did not exit within {took:.0f} s: {describe_state(endpoint)}"


def restart_exited(endpoint: EndpointUnderTest, after: float) -> str:
    """Restart an endpoint whose process has exited, and say what it left behind."""
    server = endpoint.server
    status, message = server.exit_status(), server.last_lines(2)
    time.sleep(LEAVE_SECONDS)
    left = describe_processes(endpoint) or "nothing"
    server.restart()
    restarted = time.monotonic()
    told = f'exited with status {status} after {after:.1f} s ("{message[-300:]}"), left {left}'
    try:
        server.wait_until_ready(PATH, BODY)
    except ServerStartError as error:
        return f"{told}; restarted, {error}"
    return f"{told}; restarted, answered {time.monotonic() - restarted:.1f} s later"


def describe_state(endpoint: EndpointUnderTest) -> str:
    """Say what the processes of an endpoint that has not recovered are, and how it answers."""
    status = post_body(endpoint.server.port, PATH, BODY, timeout=5)
    answer = f"answers {status}" if status else "does not answer"
    return f"the process runs on with {describe_processes(endpoint)}, {answer}"


def describe_processes(endpoint: EndpointUnderTest) -> str:
    """Name and count the processes of an endpoint, its own aside."""
    counts: Counter[str] = Counter()
    for each in endpoint.server.processes():
        if each.pid == endpoint.server.pid:
            continue
        try:
            line = " ".join(each.cmdline())
        except psutil.Error:
            continue
        counts[
            next((kind for pattern, kind in KINDS.items() if re.search(pattern, line)), "others")
        ] += 1
    return ", ".join(f"{kind} x {n}" if n > 1 else kind for kind, n in sorted(counts.items()))
