"""The doctor's actor on each node: collects facts and tries connections, storage and HTTP."""

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import fsspec

from cluster.doctor import identity, node_facts
from cluster.hardware.types import Kind

CONNECT_SECONDS = 5.0
NOT_SHARED = "does not see the directory that another node made"
VISIBLE_SECONDS = 10.0  # a file may take to appear on other nodes: NFS caches directory listings


class NodeAgent:
    """Runs on one node; every method returns within its time limit."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def collect_facts(self, kind: Kind, directories: Mapping[str, str]) -> node_facts.NodeFacts:
        """Collect this node's facts; see `collect_node_facts`."""
        return node_facts.collect_node_facts(kind, directories)

    def read_cluster_name(self, gcs_address: str) -> str | None:
        """Return the name in the file that this Ray was brought up with; see there."""
        return identity.read_cluster_name(gcs_address)

    def read_clock(self) -> float:
        """Return seconds since the epoch by this node's clock."""
        return time.time()

    def open_port(self) -> int:
        """Listen on a free port, and return it."""
        if self._listener is None:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            self._listener = socket.create_server(
                ("", 0), family=family, backlog=512, dualstack_ipv6=both
            )
        return int(self._listener.getsockname()[1])

    def close_port(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def try_connections(self, others: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Connect to others, name -> (address, port); return the reason of each failure."""
        with ThreadPoolExecutor(32) as threads:
            errors = threads.map(_connection_error, others.values())
            return {name: error for name, error in zip(others, errors, strict=True) if error}

    def write_file(self, storage: str, name: str, text: str, make_directory: bool) -> str:
        """Write a file into a directory or URL; return why that failed, or "".

        A node that does not make the directory waits until it sees the one that another made.
        """
        give_up = time.monotonic() + VISIBLE_SECONDS
        files, path = fsspec.core.url_to_fs(storage)
        while True:
            try:
                if make_directory:
                    files.makedirs(path, exist_ok=True)
                files.pipe_file(f"{path}/{name}", text.encode())
                return ""
            except FileNotFoundError:
                if make_directory or time.monotonic() > give_up:
                    return NOT_SHARED
            except OSError as error:
                return error.strerror or str(error)
            time.sleep(0.5)

    def compare_files(self, storage: str, expected: Mapping[str, str]) -> dict[str, str]:
        """Read files that other nodes wrote; return the reason for each that is not as expected."""
        give_up = time.monotonic() + VISIBLE_SECONDS
        wrong = dict.fromkeys(expected, "")
        while wrong:
            errors = {name: _content_error(storage, name, expected[name]) for name in wrong}
            wrong = {name: error for name, error in errors.items() if error}
            if time.monotonic() > give_up:
                break
            time.sleep(0.5 if wrong else 0)
        return wrong

    def remove_directory(self, storage: str) -> None:
        """Remove the directory with all test files."""
        files, path = fsspec.core.url_to_fs(storage)
        if files.exists(path):
            files.rm(path, recursive=True)

    def probe_http(self, url: str) -> int:
        """Return the HTTP status of a request without a token; 0 where nothing answers."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(url, timeout=CONNECT_SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def _connection_error(address: tuple[str, int]) -> str:
    """Return why `address` could not be connected to, or ""."""
    try:
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _content_error(storage: str, name: str, expected: str) -> str:
    """Return why a file does not contain what is expected, or ""."""
    files, path = fsspec.core.url_to_fs(storage)
    files.invalidate_cache()
    try:
        text = files.cat_file(f"{path}/{name}").decode(errors="replace")
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return error.strerror or str(error)
    return "" if text == expected else "has other contents"
