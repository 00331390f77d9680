"""Break the registry, the disk, S3 and the clock under an endpoint; each returns what came of it.

A fault lasts `FAULT_SECONDS`. After it a new version is deployed, which must be served: the
endpoint follows its registry again.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from places import Place
from recovery import await_recovery
from upheavals import (
    LENIENT,
    NAME,
    EndpointUnderTest,
    deploy_version,
    served_versions,
    wait_until,
)

from cluster.errors import BerthaError
from serving.registry.canary_rule import CanaryRule

FAULT_SECONDS = 10.0  # ten polls of the registry
HOUR = 3600


def move_registry_away(endpoint: EndpointUnderTest, place: Place) -> str:
    """Remove the directory of the registry, and put it back."""
    registry = Path(place.registry)
    away = registry.with_name("away")
    registry.rename(away)
    time.sleep(FAULT_SECONDS)
    meanwhile = served_versions(endpoint)
    if registry.exists():  # somebody created an empty one
        return f"removed; {sorted(each.name for each in registry.iterdir())} appeared in its place"
    away.rename(registry)
    return f"removed, {_count(meanwhile)} meanwhile; put back, {_go_on(endpoint)}"


def corrupt_newest_state(endpoint: EndpointUnderTest, place: Place) -> str:
    """Deploy a version, and overwrite the state that says so with bytes that are no state."""
    deploy_version(endpoint)
    before = wait_for_live(endpoint)
    newest = max(Path(place.registry, "_states", NAME).glob("*.json"))
    newest.write_bytes(b"\0garbage" * 100)
    time.sleep(FAULT_SECONDS)
    after = served_versions(endpoint)[0]
    what = f"{newest.name} is garbage: version {before} live before, {after} after"
    return f"{what}; {_go_on(endpoint)}"


def wait_for_live(endpoint: EndpointUnderTest) -> str:
    """Wait until the version that is live in the registry answers; return it."""
    live = endpoint.registry.read_state(NAME).live
    wait_until(lambda: served_versions(endpoint)[0] == live)  # the live one is listed first
    return str(live)


def fill_disk(endpoint: EndpointUnderTest, place: Place) -> str:
    """Fill the disk of registry and cache to the last byte, and free it."""
    balloon = place.root / "balloon"
    with balloon.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    refused = _try_change(endpoint)
    time.sleep(FAULT_SECONDS)
    balloon.unlink()
    return f"full: a change {refused}; freed, {_go_on(endpoint)}"


def forbid_writing(endpoint: EndpointUnderTest, place: Place) -> str:
    """Make the disk of registry and cache read-only, and writable again."""
    with _read_only(place.root):
        refused = _try_change(endpoint)
        time.sleep(FAULT_SECONDS)
    return f"read-only: a change {refused}; writable again, {_go_on(endpoint)}"


def break_s3_503(endpoint: EndpointUnderTest, place: Place) -> str:
    """Let S3 answer 503 to everything."""
    return _break_s3(endpoint, place, "503")


def break_s3_429(endpoint: EndpointUnderTest, place: Place) -> str:
    """Let S3 answer 429 to everything."""
    return _break_s3(endpoint, place, "429")


def slow_s3_down(endpoint: EndpointUnderTest, place: Place) -> str:
    """Let S3 take five seconds for each answer."""
    return _break_s3(endpoint, place, "slow")


def silence_s3(endpoint: EndpointUnderTest, place: Place) -> str:
    """Let S3 take requests and answer none."""
    return _break_s3(endpoint, place, "silent")


def move_clock_forward(endpoint: EndpointUnderTest, place: Place) -> str:
    """Move the clock an hour forward, while a canary runs that has half an hour."""
    rule = CanaryRule(min_requests=1_000_000, max_p95_ratio=None, max_seconds=HOUR / 2)
    version = endpoint.registry.register(endpoint.bundle, NAME)
    endpoint.registry.deploy(NAME, version, share=0.5, rule=rule)
    wait_until(lambda: version in served_versions(endpoint))
    place.move_clock(HOUR)
    ended = wait_until(lambda: endpoint.registry.read_state(NAME).canary is None)
    canary = endpoint.registry.read_state(NAME).why if ended else "it runs on"
    return f"an hour on; the canary: {canary}; {_go_on(endpoint)}"


def move_clock_back(endpoint: EndpointUnderTest, place: Place) -> str:
    """Move the clock an hour back, while a canary runs that is good."""
    version = endpoint.registry.register(endpoint.bundle, NAME)
    endpoint.registry.deploy(NAME, version, share=0.5, rule=LENIENT)
    place.move_clock(-HOUR)
    ended = wait_until(lambda: endpoint.registry.read_state(NAME).canary is None)
    state = endpoint.registry.read_state(NAME)
    canary = f"{'live' if state.live == version else 'ended'}: {state.why}" if ended else "runs on"
    return f"an hour back; the canary: {canary}; {_go_on(endpoint)}"


def _break_s3(endpoint: EndpointUnderTest, place: Place, breakage: str) -> str:
    assert place.s3 is not None
    before = place.s3.num_broken
    place.s3.breakage = breakage
    time.sleep(FAULT_SECONDS)
    place.s3.breakage = ""
    number = place.s3.num_broken - before
    return f"{breakage}: {number} requests of replicas and front; {_go_on(endpoint)}"


def _go_on(endpoint: EndpointUnderTest) -> str:
    """Wait until the endpoint is sound, and deploy another version to it."""
    sound = await_recovery(endpoint)
    return f"{sound}, {deploy_version(endpoint)}"


def _try_change(endpoint: EndpointUnderTest) -> str:
    """Try a change of the registry, and say how it was refused."""
    try:
        endpoint.registry.set_alias(NAME, "tried", "1")
    except BerthaError as error:
        return f'was refused ("{error}")'
    return "was made all the same"


def _count(versions: list[str]) -> str:
    return f"{len(versions)} version{'s' if len(versions) != 1 else ''} served"


@contextmanager
def _read_only(root: Path) -> Iterator[None]:
    """Cover a disk by itself, read-only: what is open for writing would keep it from a remount."""
    subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
