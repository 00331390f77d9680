"""Find the route of a path: exact paths first, then paths with `{variables}`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from serving.http.messages import HTTPError, Route, WireProtocol

_VARIABLE = re.compile(r"\\\{(\w+)\\\}")


class RouteMatch(NamedTuple):
    """A route, its protocol, and the values of its path variables."""

    protocol: WireProtocol
    route: Route
    path_params: Mapping[str, str]


_Routes = dict[str, tuple[WireProtocol, Route]]  # by method


class _PathRoutes(NamedTuple):
    """The routes at one path, by method."""

    pattern: re.Pattern[str]
    routes: _Routes


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
        methods: set[str] = set()
        for routes, path_params in self._find_paths(path):
            if method in routes:
                return RouteMatch(*routes[method], path_params)
            methods |= routes.keys()
        if methods:
            allowed = ", ".join(sorted(methods))
            raise HTTPError("no-method", f"{path} does not answer {method}; use {allowed}")
        raise HTTPError("no-route", f"there is no {path}; see /docs")

    def list_routes(self, path: str) -> list[Route]:
        """Return the routes of all methods at a path."""
        return [route for routes, _ in self._find_paths(path) for _, route in routes.values()]

    def _find_paths(self, path: str) -> Iterator[tuple[_Routes, Mapping[str, str]]]:
        """Yield the routes by method of each path that is `path`, and its variables."""
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        exact = self._exact.get(path)
        entries = self._patterns.get(_first_segment(path), ()) if exact is None else (exact,)
        for entry in entries:
            matched = entry.pattern.fullmatch(path)
            if matched is not None:
                yield entry.routes, matched.groupdict()

    def protocol_of_path(self, path: str) -> WireProtocol:
        """Return the protocol that writes the error when no route matches."""
        return self._protocols.get(_first_segment(path), self._default)


def _first_segment(path: str) -> str:
    return path[1:].partition("/")[0]
