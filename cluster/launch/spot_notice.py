"""The notice that EC2 gives before it takes a spot machine away.

EC2 tells the machine itself, through its metadata service, two minutes before; nobody tells Ray.
Here Ray is told: the node drains, nothing new is placed on it, and Ray Train warns the workers of
the run. Workers that train on AWS watch by themselves (`beside`); on machines that do something
else `python -m cluster watch` does. Knows no AWS account and needs no credentials.
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

from cluster.errors import BerthaError

METADATA = "http://169.254.169.254"
VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # by which AWS's own libraries take another
TOKEN_SECONDS = 21600  # the longest that IMDSv2 gives
POLL_SECONDS = 5.0  # as EC2's documentation advises
TIMEOUT_SECONDS = 2.0


class WatchError(BerthaError):
    """The metadata service, or Ray, did not take what was asked; the text says the way out."""


@dataclass(frozen=True)
class Notice:
    """What EC2 announced. action: terminate, stop or hibernate. at: when."""

    action: str
    at: datetime

    def seconds_left(self, now: datetime) -> int:
        """Until then; 0 where it is past."""
        return max(0, round((self.at - now).total_seconds()))


class Metadata:
    """The metadata service of a machine, spoken to as IMDSv2 wants: with a token."""

    def __init__(self, address: str | None = None) -> None:
        self._address = urlsplit(address or os.environ.get(VARIABLE, METADATA))
        self._token = ""

    def notice(self) -> Notice | None:
        """The notice, if there is one. Raises WatchError where the service does not answer."""
        status, body = self._get("/latest/meta-data/spot/instance-action")
        if status == 401:  # the token is old, or was never fetched
            self._token = self._fetch_token()
            status, body = self._get("/latest/meta-data/spot/instance-action")
        if status == 404:
            return None
        if status != 200:
            raise WatchError(f"the metadata service answered {status} to spot/instance-action")
        return read(body)

    def _get(self, path: str) -> tuple[int, str]:
        return self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})

    def _fetch_token(self) -> str:
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, body = self._ask("PUT", "/latest/api/token", wanted)
        if status != 200:
            raise WatchError(
                f"the metadata service answered {status} to a token; enable IMDSv2 on the instance"
            )
        return body

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
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


def read(body: str) -> Notice:
    """A notice as EC2 writes it. Raises WatchError."""
    try:
        told = json.loads(body)
        at = datetime.fromisoformat(told["time"])
        return Notice(str(told["action"]), at if at.tzinfo else at.replace(tzinfo=UTC))
    except (ValueError, KeyError, TypeError):
        raise WatchError(f"a spot notice that cannot be read: {body[:200]!r}") from None


def watch(
    metadata: Metadata,
    drain: Callable[[str, int], None],
    every: float = POLL_SECONDS,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Notice:
    """Wait for a notice and pass it on: `drain(message, seconds left)`, tried until it succeeds.

    A metadata service that fails is asked again; one that never answered raises WatchError.
    """
    answered = False
    while True:
        try:
            notice = metadata.notice()
            answered = True
            if notice is not None:
                left = notice.seconds_left(now())
                drain(f"EC2 will {notice.action} this spot machine at {notice.at:%H:%M:%S}", left)
                return notice
        except WatchError as error:
            if not answered:
                raise
            print(f"warning: {error}", file=sys.stderr, flush=True)
        sleep(every)


def beside() -> threading.Thread:
    """Watch in a thread of this process, one that Ray started; where no service answers, not."""

    def keep_watch() -> None:
        with suppress(WatchError):
            watch(Metadata(), drain_this_node)

    thread = threading.Thread(target=keep_watch, name="spot", daemon=True)
    thread.start()
    return thread


def drain_this_node(message: str, seconds_left: int) -> None:
    """Tell the Ray of this machine that its node will leave. Raises WatchError."""
    import ray  # a second, and only when it matters

    known = ray.is_initialized()
    if not known:
        ray.init(address="auto", log_to_driver=False, logging_level="error")
    context = ray.get_runtime_context()
    node, gcs = context.get_node_id(), context.gcs_address
    if not known:
        ray.shutdown()
    drain(gcs, node, message, seconds_left)


def drain(gcs: str, node: str, message: str, seconds_left: int) -> None:
    """Tell the Ray at `gcs`, host:port, that a node, by its id, will leave. Raises WatchError."""
    command = [
        "drain-node", "--address", gcs, "--node-id", node,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message,
        "--deadline-remaining-seconds", str(seconds_left),
    ]  # fmt: skip
    run = [sys.executable, "-m", "ray.scripts.scripts", *command]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WatchError(f"ray did not drain node {node}: {last}")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`watch`, for a spot machine that does not train."""
    parser = commands.add_parser(
        "watch", help="on a spot machine: tell Ray before EC2 takes the machine away"
    )
    parser.add_argument("--metadata", help=f"address of the metadata service; default: {METADATA}")
    parser.add_argument("--every", type=float, default=POLL_SECONDS, help="seconds between looks")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    notice = watch(Metadata(options.metadata), drain_this_node, options.every)
    print(f"{notice.action} at {notice.at:%Y-%m-%d %H:%M:%S} UTC: Ray was told", flush=True)
    return 0
