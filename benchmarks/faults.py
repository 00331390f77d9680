"""The table of faults, and one of them tried on an endpoint under a steady stream of requests.

What counts is what requests see: how many failed and how, from the first failure to the last, and
the longest time without an answer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import process_faults as processes
import storage_faults as storage
from places import Place
from recovery import BODY
from servers import finish_load, post_body, start_load
from upheavals import CONNECTIONS, MAX_WAIT_SECONDS, PATH, EndpointUnderTest, Record

TIMEOUT_SECONDS = 10.0  # of a request, after which its client has given up
MAX_LOAD_SECONDS = 20 * MAX_WAIT_SECONDS  # ended earlier, when the fault is over

Disturb = Callable[[EndpointUnderTest, Place], str]


@dataclass(frozen=True)
class Fault:
    """A fault. place: of PLACES. is_fatal: to the Ray of the endpoint, which then gets its own."""

    name: str
    disturb: Disturb
    place: str = "directory"
    is_fatal: bool = False


def _of_processes(
    name: str, disturb: Callable[[EndpointUnderTest], str], is_fatal: bool = False
) -> Fault:
    """Return a fault that does not depend on the place."""
    return Fault(name, lambda endpoint, _: disturb(endpoint), is_fatal=is_fatal)


FAULTS = (
    _of_processes("haproxy-killed", processes.kill_haproxy),
    _of_processes("busy-replica-killed", processes.kill_busy_replica),
    _of_processes("all-replicas-killed", processes.kill_replicas),
    _of_processes("front-killed", processes.kill_front),
    _of_processes("controller-killed", processes.kill_controller),
    _of_processes("out-of-memory", processes.starve_replica),
    Fault("registry-removed", storage.move_registry_away),
    Fault("registry-corrupted", storage.corrupt_newest_state),
    _of_processes("gcs-killed", processes.kill_gcs, is_fatal=True),
    _of_processes("raylet-killed", processes.kill_raylet, is_fatal=True),
    Fault("disk-full", storage.fill_disk, "disk"),
    Fault("disk-read-only", storage.forbid_writing, "disk"),
    Fault("s3-503", storage.break_s3_503, "s3"),
    Fault("s3-429", storage.break_s3_429, "s3"),
    Fault("s3-slow", storage.slow_s3_down, "s3"),
    Fault("s3-silent", storage.silence_s3, "s3"),
    Fault("clock-forward", storage.move_clock_forward, "clock", is_fatal=True),
    Fault("clock-back", storage.move_clock_back, "clock", is_fatal=True),
)


def group_faults(faults: list[Fault]) -> list[list[Fault]]:
    """Group faults by the endpoint that they are tried on: those of a place share one.

    A fatal fault has one of its own.
    """
    shared: dict[str, list[Fault]] = {}
    own = []
    for each in faults:
        if each.is_fatal:
            own.append([each])
        else:
            shared.setdefault(each.place, []).append(each)
    return [*shared.values(), *own]


def try_fault(endpoint: EndpointUnderTest, place: Place, fault: Fault, rate: float) -> Record:
    """Send requests at an even `rate`, let the fault happen, wait until it is over; the record.

    A quarter of the endpoint's seconds passes before the fault, and another after its end.
    """
    load = start_load(
        endpoint.server.port,
        PATH,
        endpoint.bodies,
        rate=rate,
        even=True,
        timeout=TIMEOUT_SECONDS,
        seconds=MAX_LOAD_SECONDS,
        concurrency=CONNECTIONS,
    )
    try:
        time.sleep(endpoint.seconds / 4)
        started = time.monotonic()
        happened = fault.disturb(endpoint, place)
        took_seconds = time.monotonic() - started
        time.sleep(endpoint.seconds / 4)
        came_back = post_body(endpoint.server.port, PATH, BODY) == 200
    finally:
        load.terminate()
        results = finish_load(load)
    record = summarize_fault(fault.name, rate, results)
    facts = {"happened": happened, "took_seconds": round(took_seconds, 1), "came_back": came_back}
    return record | facts


def summarize_fault(name: str, rate: float, results: Record) -> Record:
    """Return what requests saw of a fault. results: of the load."""
    statuses, failures = results["statuses"], results["failures"]
    failed = {each: number for each, number in statuses.items() if each != "200"} | failures
    answered = statuses.get("200", 0)
    return {
        "case": name,
        "rate": rate,
        "seconds": round(results["seconds"], 1),
        "sent": answered + sum(failed.values()),
        "answered": answered,
        "failed": failed,
        **results["outage"],
        "milliseconds": results["milliseconds"],
    }


def format_faults(records: list[Record]) -> str:
    """Format a Markdown table, a line a fault."""
    lines = [
        "| fault | sent | failed | how | seconds out | longest gap, s | p50 ms | p99 ms "
        "| what happened |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in records:
        if "skipped" in each:
            lines.append(f"| {each['case']} | | | | | | | | not tried: {each['skipped']} |")
            continue
        failed, latencies = each["failed"], each["milliseconds"]
        cells = [
            each["case"],
            str(each["sent"]),
            str(sum(failed.values())),
            ", ".join(f"{number} x {how}" for how, number in failed.items()),
            f"{each['seconds_out']:.1f}" if each["came_back"] else "did not come back",
            f"{each['longest_gap_seconds']:.1f}",
            *(f"{latencies.get(name, 0.0):.0f}" for name in ("p50", "p99")),
            each["happened"].replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
