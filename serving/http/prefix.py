"""The path below which clients reach the server, where a proxy before it has put it.

A proxy that passes paths on as they are is told with `--root-path`; one that takes its prefix off
says so in X-Forwarded-Prefix (Traefik, Spring, ingress controllers).

    find_prefix({"x-forwarded-prefix": "/bertha"}, root_path="")    # "/bertha"
    strip_prefix("/bertha/predict", "/bertha")                      # "/predict"
"""

import re
from collections.abc import Mapping

FORWARDED_PREFIX = "x-forwarded-prefix"
MAX_PREFIX = 200  # characters

# Segments of unreserved characters (RFC 3986, 2.3) with a letter or digit in each, so that none is
# `.` or `..`, and none needs an escape in HTML, JSON or a header.
_PREFIX = re.compile(r"(?:/[._~-]*[A-Za-z0-9][A-Za-z0-9._~-]*)+")


def parse_prefix(text: str) -> str:
    """Return a prefix without its last slash; "" for the root. Raises ValueError for any other."""
    prefix = text.removesuffix("/")
    if prefix and (len(prefix) > MAX_PREFIX or not _PREFIX.fullmatch(prefix)):
        raise ValueError(
            f"{text[:60]!r} is no path to put a server below; give one of letters, digits, '.', "
            "'_', '~' and '-', as in /bertha"
        )
    return prefix


def find_prefix(headers: Mapping[str, str], root_path: str) -> str:
    """Return the prefix of a request: what the proxy says, else `root_path`.

    What is no prefix is ignored: anybody may send that header.
    """
    given = headers.get(FORWARDED_PREFIX)
    if given is None:
        return root_path
    try:
        return parse_prefix(given)
    except ValueError:
        return root_path


def strip_prefix(path: str, prefix: str) -> str | None:
    """Return what stands behind the prefix of a path, from its slash on; None without one."""
    if not prefix or not path.startswith(prefix):
        return None
    rest = path[len(prefix) :]
    return rest if rest.startswith("/") else "/" if not rest else None
