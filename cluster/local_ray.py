"""Start a Ray that this machine and this user alone reach.

Left to itself, Ray 2.60 listens at every address of the machine with most of its servers, exports
metrics to whoever asks, and keeps its sockets in a directory that every user may write to. Here it
takes loopback for its node's address, which its servers, its workers and their collectives then
listen at; exports nothing; and lives in a private directory, which ends with it.

What stays open to other users of the same machine: the ports on loopback themselves, which ask for
the token, and the connections of gloo and NCCL between workers, which ask for nothing.
"""

import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import BerthaError
from cluster.private_files import UnsafePathError, private_directory
from cluster.ray_token import ensure_token

# Read by Ray's monitor and dashboard when they start. No port is -1, so their exporters do not
# start; Ray logs that, and offers no other way.
NO_EXPORTERS = {"AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1"}
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # of an AF_UNIX address
LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"
PREFIX = "bertha-"
WATCH_SECONDS = 0.5
REMOVAL_ATTEMPTS = 3  # processes that are ending may still write


class LocalRayError(BerthaError):
    """A Ray that cannot be started here, or has ended; the message says the way out."""


def is_submitted() -> bool:
    """Return whether this process was submitted to a Ray that runs already."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


class LocalRay:
    """A Ray of this process, in the private `directory`; it ends with the process at the latest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process = os.getpid()
        self._has_ended = self._has_died = False
        # Called before Ray's own, which was registered first.
        atexit.register(self._end_at_exit)

    def find_dead_server(self) -> str | None:
        """Return the name of one of its servers that has ended by itself, as "raylet".

        Asking is also what lets the others see it: until it is waited for, it keeps its number.
        """
        import ray

        node = ray._private.worker._global_node
        dead = [] if self._has_ended or node is None else node.dead_processes()
        return str(dead[0][0]) if dead else None

    def watch(self) -> None:
        """Wait as long as all its servers run. Raises LocalRayError once one has ended."""
        while (dead := self.find_dead_server()) is None:
            time.sleep(WATCH_SECONDS)
        raise LocalRayError(f"Ray's {dead} has ended, and all that ran on it; start it again")

    def end(self, keep_logs: bool = False) -> None:
        """End it, once, and remove its directory, or say where its logs are."""
        import ray

        if self._has_ended or os.getpid() != self._process:
            return
        self._has_died = self.find_dead_server() is not None
        self._has_ended = True
        if self._has_died:  # what would be asked to end no longer answers
            node = ray._private.worker._global_node
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            sys.excepthook = sys.__excepthook__  # Ray's reports to the dead
        else:
            ray.shutdown()
        if keep_logs:
            logs = self.directory / "ray" / "session_latest" / "logs"
            print(f"Ray's logs are kept in {logs}", file=sys.stderr, flush=True)
            return
        for _ in range(REMOVAL_ATTEMPTS):
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end_at_exit(self) -> None:
        uncaught = getattr(sys, "last_value", None)
        self.end(keep_logs=isinstance(uncaught, Exception))  # which Ctrl-C is not
        if self._has_died and os.getpid() == self._process:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # before Ray's own end, which waits for the dead


def start_local_ray(dashboard: bool = False, object_store_bytes: int | None = None) -> LocalRay:
    """Start a Ray of this process, and join it.

    dashboard: Ray's own, on loopback too. object_store_bytes: default: what Ray takes. Raises
    UnsafePathError and LocalRayError.
    """
    import ray

    ensure_token()
    local_ray = LocalRay(make_ray_directory())
    with _loopback_node(), temporary_env(NO_EXPORTERS):
        ray.init(
            address="local",
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=object_store_bytes,
            _temp_dir=str(local_ray.directory / "ray"),
            _system_config={"enable_metrics_collection": False},
        )
    return local_ray


@contextmanager
def run_local_ray(object_store_bytes: int | None = None) -> Iterator[LocalRay]:
    """Start a Ray for the block. Its logs are kept where the block fails."""
    local_ray, has_failed = start_local_ray(object_store_bytes=object_store_bytes), False
    try:
        yield local_ray
    except Exception:
        has_failed = True
        raise
    finally:
        local_ray.end(keep_logs=has_failed)


def make_ray_directory() -> Path:
    """Make a private directory for the sockets and logs of one Ray.

    In RAY_TMPDIR, else TMPDIR; in /tmp where sockets would have too long a name there. Raises
    UnsafePathError and LocalRayError.
    """
    wanted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    place = wanted if _is_short(wanted) else Path("/tmp")
    try:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    except OSError as error:
        raise LocalRayError(
            f"{place}: Ray's directory cannot be made there: {error.strerror}; name another of at "
            f"most {_longest_place()} bytes in RAY_TMPDIR"
        ) from None
    try:
        return private_directory(directory)
    except UnsafePathError:
        directory.rmdir()
        raise


def _is_short(place: Path) -> bool:
    return len(os.fsencode(place)) <= _longest_place()


def _longest_place() -> int:
    """Return how many bytes the name of a directory that holds those of Ray may have."""
    return SOCKET_PATH_BYTES - len(f"/{PREFIX}xxxxxxxx/{LONGEST_SOCKET}")


@contextmanager
def _loopback_node() -> Iterator[None]:
    """Let Ray take loopback for its node's address, as it does by itself on macOS and Windows.

    `ray.init(_node_ip_address="127.0.0.1")` would be replaced by an address of the network.
    """
    from ray._private import ray_constants
    from ray.util import get_node_ip_address

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
        assert get_node_ip_address() in ("127.0.0.1", "::1")
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def temporary_env(values: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables that the user has not set; remove them at the end."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
