"""The names that a server answers to, against DNS rebinding.

A page from elsewhere can have its own name resolve to this machine. The browser then takes this
server for a part of that page's site, and lets the page read what it answers. Its requests still
say that name in their Host header, by which they are refused.

    HostNames(["box.lan"]).check_headers([(b"host", b"localhost:8000")])
"""

import functools
import ipaddress
import re
from collections.abc import Iterable

from serving.http.messages import HTTPError

# A name or an address, without the final dot of a name, and perhaps a port; no user, no path.
_HOST = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])\.?(?::[0-9]*)?")


class HostNames:
    """The names that requests may be addressed to: those of loopback, and those given."""

    def __init__(self, names: Iterable[str]) -> None:
        # Without "", which is what `parse_host` makes of what names nothing.
        self._names = frozenset({"localhost", *names} - {""})
        self._is_own = functools.lru_cache(maxsize=32)(self._find_name)  # clients repeat theirs

    def check_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise HTTPError unless every Host header names this server.

        A request without one passes: every browser sends it, and HAProxy's own check does not.
        """
        for key, value in headers:
            if key == b"host" and not self._is_own(value):
                name = parse_host(value.decode("latin-1"))[:100]
                raise HTTPError(
                    "misdirected",
                    f"this server does not answer to the name {name!r}; ask for localhost, or "
                    f"serve with --allow-host {name or 'NAME'}",
                )

    def _find_name(self, host: bytes) -> bool:
        name = parse_host(host.decode("latin-1"))
        return name in self._names or is_loopback(name)


def parse_host(host: str) -> str:
    """Return the name in a Host header in lower case, without its port; "" for what is none."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else ""


def is_loopback(name: str) -> bool:
    """Return whether a name, as `parse_host` returns it, is of this machine alone."""
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
