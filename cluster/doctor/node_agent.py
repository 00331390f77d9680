"""What the doctor does on a node: looks at it, and tries what training needs of the others.

Lives in a process of Ray's on every node. Knows no Ray and judges nothing.
"""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import fsspec

from cluster.doctor import node_facts
from cluster.hardware.types import Kind

CONNECT_SECONDS = 5.0
UNSEEN = "does not see the directory that another node made"
SEEN_SECONDS = 10.0  # a file may take to appear on other nodes: NFS keeps what it knows for a while


class Examiner:
    """On one node; every method answers at once or within its time limit."""

    def __init__(self) -> None:
        self._heard: socket.socket | None = None

    def vitals(self, kind: Kind, places: Mapping[str, str]) -> node_facts.Vitals:
        """As `vitals.vitals`."""
        return node_facts.vitals(kind, places)

    def now(self) -> float:
        """Seconds by this node's clock."""
        return time.time()

    def listen(self) -> int:
        """Be there for others, at the port that is returned."""
        if self._heard is None:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            self._heard = socket.create_server(
                ("", 0), family=family, backlog=512, dualstack_ipv6=both
            )
        return int(self._heard.getsockname()[1])

    def hush(self) -> None:
        """Listen no more."""
        if self._heard is not None:
            self._heard.close()
            self._heard = None

    def reach(self, others: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Connect to others, named with address and port; who was not reached, and why."""
        with ThreadPoolExecutor(32) as threads:
            answers = dict(zip(others, threads.map(_connected, others.values()), strict=True))
        return {name: why for name, why in answers.items() if why}

    def write(self, storage: str, name: str, text: str, make: bool) -> str:
        """Write a file into a directory or URL; why that failed, "" where it did not.

        make: the directory first; who does not waits until it is seen here.
        """
        give_up = time.monotonic() + SEEN_SECONDS
        files, place = fsspec.core.url_to_fs(storage)
        while True:
            try:
                if make:
                    files.makedirs(place, exist_ok=True)
                files.pipe_file(f"{place}/{name}", text.encode())
                return ""
            except FileNotFoundError:
                if make or time.monotonic() > give_up:
                    return UNSEEN
            except OSError as error:
                return error.strerror or str(error)
            time.sleep(0.5)

    def read(self, storage: str, expected: Mapping[str, str]) -> dict[str, str]:
        """Read files that others wrote; which are not as expected, and why."""
        give_up = time.monotonic() + SEEN_SECONDS
        wrong = {name: "" for name in expected}
        while wrong:
            wrong = {name: _unlike(storage, name, expected[name]) for name in wrong}
            wrong = {name: why for name, why in wrong.items() if why}
            if time.monotonic() > give_up:
                break
            time.sleep(0.5 if wrong else 0)
        return wrong

    def remove(self, storage: str) -> None:
        """Take the directory away again."""
        files, place = fsspec.core.url_to_fs(storage)
        if files.exists(place):
            files.rm(place, recursive=True)

    def knock(self, url: str) -> int:
        """The HTTP status of a page for who shows no token; 0 where nothing answers."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(url, timeout=CONNECT_SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def _connected(where: tuple[str, int]) -> str:
    """Why `where` could not be connected to; "" where it could."""
    try:
        socket.create_connection(where, timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _unlike(storage: str, name: str, expected: str) -> str:
    """Why a file does not hold what is expected; "" where it does."""
    files, place = fsspec.core.url_to_fs(storage)
    files.invalidate_cache()
    try:
        held = files.cat_file(f"{place}/{name}").decode(errors="replace")
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return error.strerror or str(error)
    return "" if held == expected else "holds something else"
