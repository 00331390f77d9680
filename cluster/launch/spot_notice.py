"""Pass EC2's spot interruption notice on to Ray, so that a run saves before the machine is gone.

EC2 tells only the machine itself, through its metadata service, two minutes before; nobody tells
Ray. The order from there on:

1. The watcher drains the node in Ray's GCS, with the seconds left as the deadline. It cannot save
   itself: a checkpoint is collective, and only the training loop knows where a step ends.
2. Ray schedules nothing new on the node, and already asks the autoscaler for another one.
3. Ray Train tells the workers. The training loop looks for that between steps, on all ranks
   together, and saves each time it looks: the later the checkpoint, the fewer steps are lost.
4. When the machine is gone, Ray Train starts again from there with the workers that are left.

Training workers on AWS call `start_watcher`; for other machines there is `python -m cluster watch`.
Source: EC2 User Guide, "Spot Instance interruption notices" and "Use IMDSv2".
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cluster.command_line import POSITIVE
from cluster.errors import BerthaError
from cluster.ray_token import close_token_file

METADATA = "http://169.254.169.254"
VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # that AWS's own libraries read, too
TOKEN_SECONDS = 21600  # the longest that IMDSv2 gives
POLL_SECONDS = 5.0  # as EC2's documentation advises
TIMEOUT_SECONDS = 2.0
NOTICE_PATH = "/latest/meta-data/spot/instance-action"


class WatchError(BerthaError):
    """The metadata service or Ray refused a request; the message says the way out."""


@dataclass(frozen=True)
class SpotNotice:
    """An announced interruption. action: terminate, stop or hibernate."""

    action: str
    deadline: datetime

    def seconds_left(self, now: datetime) -> int:
        """Return the seconds until the deadline; 0 once it has passed."""
        return max(0, round((self.deadline - now).total_seconds()))


class InstanceMetadata:
    """Client of EC2's instance metadata service, version 2: with a session token."""

    def __init__(self, address: str | None = None) -> None:
        self._address = urlsplit(address or os.environ.get(VARIABLE, METADATA))
        self._token = ""

    def fetch_notice(self) -> SpotNotice | None:
        """Return the notice, if there is one. Raises WatchError if the service does not answer."""
        status, body = self._get_notice()
        if status == 401:  # the token has expired, or was never fetched
            self._token = self._fetch_token()
            status, body = self._get_notice()
        if status == 404:
            return None
        if status != 200:
            raise WatchError(f"the metadata service answered {status} to spot/instance-action")
        return parse_notice(body)

    def _get_notice(self) -> tuple[int, str]:
        return self._send_request("GET", NOTICE_PATH, {"X-aws-ec2-metadata-token": self._token})

    def _fetch_token(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, body = self._send_request("PUT", "/latest/api/token", lifetime)
        if status != 200:
            raise WatchError(
                f"the metadata service answered {status} to a token; enable IMDSv2 on the instance"
            )
        return body

    def _send_request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(
            self._address.hostname or "", self._address.port, timeout=TIMEOUT_SECONDS
        )
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        except OSError as error:
            raise WatchError(
                f"no metadata service at {self._address.netloc}: {error}; is this an EC2 machine?"
            ) from None
        finally:
            connection.close()


def parse_notice(body: str) -> SpotNotice:
    """Parse a notice as EC2 writes it. Raises WatchError."""
    try:
        notice = json.loads(body)
        deadline = datetime.fromisoformat(notice["time"])
        deadline = deadline if deadline.tzinfo else deadline.replace(tzinfo=UTC)
        return SpotNotice(str(notice["action"]), deadline)
    except (ValueError, KeyError, TypeError):
        raise WatchError(f"a spot notice that cannot be read: {body[:200]!r}") from None


def watch_for_notice(
    metadata: InstanceMetadata,
    drain: Callable[[str, int], None],
    every: float = POLL_SECONDS,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> SpotNotice:
    """Wait for a notice and call `drain(message, seconds left)` until that succeeds.

    A metadata service that fails is asked again; one that never answered raises WatchError.
    """
    answered = False
    while True:
        try:
            notice = metadata.fetch_notice()
            answered = True
            if notice is not None:
                when = f"{notice.deadline:%H:%M:%S}"
                message = f"EC2 will {notice.action} this spot machine at {when}"
                drain(message, notice.seconds_left(now()))
                return notice
        except WatchError as error:
            if not answered:
                raise
            print(f"warning: {error}", file=sys.stderr, flush=True)
        sleep(every)


def start_watcher() -> threading.Thread:
    """Watch in a daemon thread of this Ray process; it ends at once where no service answers."""

    def watch() -> None:
        with suppress(WatchError):
            watch_for_notice(InstanceMetadata(), drain_this_node)

    thread = threading.Thread(target=watch, name="spot", daemon=True)
    thread.start()
    return thread


def drain_this_node(message: str, seconds_left: int) -> None:
    """Tell the Ray of this machine that its node will leave. Raises WatchError."""
    import ray  # takes a second, and only when it matters

    initialized = ray.is_initialized()
    if not initialized:
        close_token_file()
        ray.init(address="auto", log_to_driver=False, logging_level="error")
    context = ray.get_runtime_context()
    node, gcs = context.get_node_id(), context.gcs_address
    if not initialized:
        ray.shutdown()
    drain_node(gcs, node, message, seconds_left)


def drain_node(gcs: str, node: str, message: str, seconds_left: int) -> None:
    """Tell the Ray at `gcs`, host:port, that a node, by its id, will leave. Raises WatchError."""
    command = [
        sys.executable, "-m", "ray.scripts.scripts",
        "drain-node", "--address", gcs, "--node-id", node,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message,
        "--deadline-remaining-seconds", str(seconds_left),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WatchError(f"ray did not drain node {node}: {last}")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `watch`, for a spot machine that does not train."""
    parser = commands.add_parser(
        "watch", help="on a spot machine: tell Ray before EC2 takes the machine away"
    )
    parser.add_argument("--metadata", help=f"address of the metadata service; default: {METADATA}")
    parser.add_argument(
        "--every", type=POSITIVE, default=POLL_SECONDS, help="seconds between looks"
    )
    parser.set_defaults(run=_run_watch)


def _run_watch(options: argparse.Namespace) -> int:
    notice = watch_for_notice(InstanceMetadata(options.metadata), drain_this_node, options.every)
    print(f"{notice.action} at {notice.deadline:%Y-%m-%d %H:%M:%S} UTC: Ray was told", flush=True)
    return 0
