"""Which version answers a request, and which gets a copy of it; pure.

A canary gets its share of the requests for the bare name by `draw`, a number in [0, 1): from
`Turns`, whose draws are spread so evenly that shares are kept to a few requests at any moment, or
from `sticky`, so that one client always meets one version. A larger share only adds clients to
those that met the canary before. Knows no clock, no store and no HTTP.

    route(state, Reference.parse("sentiment"), turns.next("sentiment"))
    route(state, Reference.parse("sentiment"), sticky(api_key, state))
"""

import hashlib
import itertools
from typing import NamedTuple

from serving.registry.model_ref import Reference
from serving.registry.state import State

# Multiples of the golden ratio, modulo 1, keep every share of them better than any other ratio's;
# here in 64 bits (Knuth, The Art of Computer Programming, volume 3, section 6.4).
GOLDEN = 0x9E3779B97F4A7C15


class Choice(NamedTuple):
    """The version that answers, and the one that gets a copy which nobody waits for, if any."""

    version: str
    shadow: str | None = None


def route(state: State, reference: Reference, draw: float) -> Choice:
    """What to do with a request for `reference`, a name of `state`. Raises NoModel.

    A version or an alias, `@live` among them, means that version whatever canary runs.
    """
    version = state.version_of(reference)
    canary = state.canary
    if canary is None or reference.version is not None or reference.alias is not None:
        return Choice(version)
    if draw >= canary.share:
        return Choice(version)
    return Choice(version, canary.version) if canary.shadow else Choice(canary.version)


class Turns:
    """Draws for requests in the order in which they come, apart for each name.

    Of any n draws in a row, the share below s is s to within a few draws, which luck would miss by
    many. May be called from several threads.
    """

    def __init__(self) -> None:
        self._counters: dict[str, itertools.count[int]] = {}

    def next(self, name: str) -> float:
        """The next draw in [0, 1)."""
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters.setdefault(name, itertools.count(1))
        return _fraction(next(counter) * GOLDEN % 2**64)


def sticky(client: str, state: State) -> float:
    """The draw in [0, 1) of a client while one canary runs; another canary meets other clients."""
    trial = "" if state.canary is None else f"{state.canary.version} {state.canary.started!r}"
    digest = hashlib.sha256(f"{state.name} {trial} {client}".encode("utf-8", "replace")).digest()
    return _fraction(int.from_bytes(digest[:8], "big"))


def _fraction(bits: int) -> float:
    """64 bits as a number in [0, 1), which a float of all of them would round up to."""
    return (bits >> 11) / 2**53
