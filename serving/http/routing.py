"""Which route a path means: exact paths first, then paths with `{variables}`. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serving.http.messages import Protocol, Refusal, Route

_VARIABLE = re.compile(r"\\\{(\w+)\\\}")


class Match(NamedTuple):
    """A route, whose it is, and what its variables stand for."""

    protocol: Protocol
    route: Route
    names: Mapping[str, str]


class _Place(NamedTuple):
    """The routes at one path, by method."""

    pattern: re.Pattern[str]
    routes: dict[str, tuple[Protocol, Route]]


class Routes:
    """The routes of all protocols. Where two claim one method and path, the first wins."""

    def __init__(self, protocols: Sequence[Protocol]) -> None:
        self._default = protocols[0]
        places: dict[str, _Place] = {}
        for protocol in protocols:
            for route in protocol.routes:
                place = places.setdefault(route.path, _Place(_compile(route.path), {}))
                place.routes.setdefault(route.method, (protocol, route))
        self._exact = {path: place for path, place in places.items() if "{" not in path}
        self._patterns: dict[str, list[_Place]] = {}
        for path, place in places.items():
            if path not in self._exact:
                self._patterns.setdefault(_first(path), []).append(place)
        self._speakers = {
            _first(route.path): protocol
            for protocol in reversed(protocols)
            for route in protocol.routes
        }

    def match(self, method: str, path: str) -> Match:
        """The route of a request. Raises Refusal: no-route or no-method."""
        place = self._exact.get(path)
        if place is not None:
            return self._choose(place, method, path, {})
        methods: set[str] = set()
        for place in self._patterns.get(_first(path), ()):
            matched = place.pattern.fullmatch(path)
            if matched is None:
                continue
            if method in place.routes:
                return self._choose(place, method, path, matched.groupdict())
            methods |= place.routes.keys()
        if methods:
            raise _wrong_method(method, path, methods)
        raise Refusal("no-route", f"there is no {path}; see /docs")

    def speaker(self, path: str) -> Protocol:
        """The protocol that words refusals where no route was found."""
        return self._speakers.get(_first(path), self._default)

    def _choose(self, place: _Place, method: str, path: str, names: Mapping[str, str]) -> Match:
        found = place.routes.get(method)
        if found is None:
            raise _wrong_method(method, path, set(place.routes))
        return Match(*found, names)


def _wrong_method(method: str, path: str, methods: set[str]) -> Refusal:
    return Refusal(
        "no-method", f"{path} does not answer {method}; use {', '.join(sorted(methods))}"
    )


def _first(path: str) -> str:
    """The first segment of a path."""
    return path[1:].partition("/")[0]


def _compile(path: str) -> re.Pattern[str]:
    """A pattern in which each variable is what stands in its segment, before its literal end."""
    return re.compile(_VARIABLE.sub(r"(?P<\1>[^/]+?)", re.escape(path)))
