"""Find the route of a path: exact paths first, then paths with `{variables}`."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serving.http.messages import HTTPError, Route, WireProtocol

_VARIABLE = re.compile(r"\\\{(\w+)\\\}")


class RouteMatch(NamedTuple):
    """A route, its protocol, and the values of its path variables."""

    protocol: WireProtocol
    route: Route
    path_params: Mapping[str, str]


class _PathRoutes(NamedTuple):
    """The routes at one path, by method."""

    pattern: re.Pattern[str]
    routes: dict[str, tuple[WireProtocol, Route]]


class Router:
    """The routes of all protocols; if two claim one method and path, the first wins."""

    def __init__(self, protocols: Sequence[WireProtocol]) -> None:
        self._default = protocols[0]
        by_path: dict[str, _PathRoutes] = {}
        for protocol in protocols:
            for route in protocol.routes:
                # A variable matches within its segment, up to the literal suffix after it.
                pattern = re.compile(_VARIABLE.sub(r"(?P<\1>[^/]+?)", re.escape(route.path)))
                entry = by_path.setdefault(route.path, _PathRoutes(pattern, {}))
                entry.routes.setdefault(route.method, (protocol, route))
        self._exact = {path: entry for path, entry in by_path.items() if "{" not in path}
        self._patterns: dict[str, list[_PathRoutes]] = {}
        for path, entry in by_path.items():
            if path not in self._exact:
                self._patterns.setdefault(_first_segment(path), []).append(entry)
        self._protocols = {
            _first_segment(route.path): protocol
            for protocol in reversed(protocols)
            for route in protocol.routes
        }

    def match(self, method: str, path: str) -> RouteMatch:
        """Return the route of a request, whose path may end in a slash.

        Raises HTTPError: no-route or no-method.
        """
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        exact = self._exact.get(path)
        entries = self._patterns.get(_first_segment(path), ()) if exact is None else (exact,)
        methods: set[str] = set()
        for entry in entries:
            matched = entry.pattern.fullmatch(path)
            if matched is None:
                continue
            if method in entry.routes:
                return RouteMatch(*entry.routes[method], matched.groupdict())
            methods |= entry.routes.keys()
        if methods:
            allowed = ", ".join(sorted(methods))
            raise HTTPError("no-method", f"{path} does not answer {method}; use {allowed}")
        raise HTTPError("no-route", f"there is no {path}; see /docs")

    def protocol_of_path(self, path: str) -> WireProtocol:
        """Return the protocol that writes the error when no route matches."""
        return self._protocols.get(_first_segment(path), self._default)


def _first_segment(path: str) -> str:
    return path[1:].partition("/")[0]
