"""Bundles by name, version and alias over a directory or `s3://`: which of them is served.

    ROOT/sentiment/versions/3/                 an immutable bundle
    ROOT/sentiment/claims/3                    who took that number
    ROOT/_states/sentiment/00000007.json       the name after its 7th change

Every change writes one whole state beside the older ones, under the next number, which only one
writer gets; a loser reads again and tries again. So nothing is overwritten, nothing is lost, and
the files are the history. A reader sees the highest number of each name at the price of a listing.
Knows no Ray, no HTTP and no traffic.

    registry = Registry.open("registry")
    version = registry.register(Path("runs/reviews/bundle"), "sentiment", note="more epochs")
    registry.deploy("sentiment", version, share=0.1)
    snapshot = registry.read(snapshot)                   # the same object where nothing changed
    registry.fetch("sentiment", version, Path("cache"))  # where the bundle lies
"""

import getpass
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from cluster.errors import BerthaError
from serving.registry import state as changes
from serving.registry.artifacts import Shelf
from serving.registry.canary_rule import Rule
from serving.registry.log import History
from serving.registry.model_ref import checked_alias, checked_name
from serving.registry.snapshot import Snapshot
from serving.registry.state import Canary, State, Version
from serving.registry.store import Store, open_store
from trainers.models.card import Card

TRIES = 1000  # of a change that others forestall; each time one of theirs was made


class RegistryError(BerthaError):
    """A change that cannot be made in this registry; the text says why, and the way out."""


class Registry:
    """The names of one store. Safe to use from several threads, processes and machines.

    who: whom the history names. clock: seconds since 1970. Every change gives the state after it,
    takes `why` for the history, and raises BerthaError where it is refused.
    """

    def __init__(
        self, store: Store, who: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._who = who
        self._clock = clock
        self._history = History(store)
        self._shelf = Shelf(store)

    @classmethod
    def open(cls, address: str) -> "Registry":
        """The registry at a directory or a URL; an empty one where there is none yet."""
        return cls(open_store(address))

    @property
    def address(self) -> str:
        """What `open` takes to reach this registry, from any directory."""
        return self._store.address

    def read(self, since: Snapshot | None = None) -> Snapshot:
        """The newest state of every name; `since` itself where that is still it.

        Costs a listing, and a read for each name that changed. A file that cannot be understood
        is skipped with a warning.
        """
        since = since or Snapshot()
        numbers = self._history.numbers()
        newest = {name: found[-1] for name, found in numbers.items()}
        if since.newest == newest:
            return since
        states: dict[str, State] = {}
        for name, found in numbers.items():
            known = since.newest.get(name) == found[-1]
            state = since.states.get(name) if known else self._history.newest(name, found)
            if state is not None:
                states[name] = state
        return Snapshot(states, newest)

    def state(self, name: str) -> State:
        """The newest state of one name. Raises BadReference and NoModel."""
        numbers = self._history.numbers(checked_name(name)).get(name, [])
        state = self._history.newest(name, numbers)
        return state if state is not None else self.read().state(name)

    def history(self, name: str) -> list[State]:
        """The states of a name, the first first. Raises NoModel."""
        self.state(name)
        numbers = self._history.numbers(name)[name]
        states = (self._history.read(name, number) for number in numbers)
        return [state for state in states if state is not None]

    def register(self, bundle: Path, name: str, note: str = "") -> str:
        """Copy a bundle into the store as the next version of `name`; the version.

        It is served when it is deployed. Raises BundleError where it is not as it was written.
        """
        checked_name(name)
        seal = self._shelf.check(bundle)
        claim = f"{self._whoever()} {uuid.uuid4().hex}\n".encode()
        version = self._shelf.put(bundle, name, claim)
        source = str(bundle.resolve())
        entry = Version(created=self._clock(), note=note, source=source, seal=seal)
        self._change(
            name,
            f"register {version}",
            lambda state: changes.registered(state, version, entry),
            new=True,
        )
        return version

    def alias(self, name: str, alias: str, version: str | None, why: str = "") -> State:
        """Point an alias at a version, or drop it where that is None."""
        checked_alias(alias)
        what = f"drop alias {alias}" if version is None else f"alias {alias} to {version}"
        return self._change(name, what, lambda state: changes.aliased(state, alias, version), why)

    def deploy(
        self,
        name: str,
        version: str,
        share: float | None = None,
        shadow: bool = False,
        rule: Rule | None = None,
        why: str = "",
    ) -> State:
        """Make a version live, or with a share or as a shadow try it beside the live one.

        share: of the requests for the bare name, 1 for a shadow where it is not given. rule: when
        the trial ends, and how.
        """
        if share is None and not shadow:
            return self._change(
                name,
                f"deploy {version}",
                lambda state: changes.deployed(state, version, None),
                why,
            )
        part = 1.0 if share is None else share
        if not 0 <= part <= 1:
            raise RegistryError(f"share = {part}: no share of the requests; take 0 to 1, as 0.1")
        canary = Canary(
            version=version,
            share=part,
            shadow=shadow,
            rule=rule or Rule(),
            started=self._clock(),
        )
        what = f"{'shadow' if shadow else 'canary'} {version} on {part:.4g} of the requests"
        return self._change(name, what, lambda state: changes.deployed(state, version, canary), why)

    def promote(self, name: str, version: str | None = None, why: str = "") -> State:
        """Make the canary live; with `version`, only where that is the canary."""
        return self._change(name, "promote", lambda state: changes.promoted(state, version), why)

    def rollback(self, name: str, version: str | None = None, why: str = "") -> State:
        """End the canary; where none runs, go back to the live version before this one.

        version: of the canary that is meant; then nothing else is rolled back.
        """
        return self._change(
            name, "roll back", lambda state: changes.rolled_back(state, version), why
        )

    def make_default(self, name: str, why: str = "") -> State:
        """Let `name` answer requests that name no model."""
        now = self._clock()
        return self._change(name, "make default", lambda state: state.changed(default=now), why)

    def remove(self, name: str, version: str, why: str = "") -> State:
        """Forget a version and delete its bundle; refused while it is live, aliased or a canary."""
        state = self._change(
            name, f"remove {version}", lambda state: changes.removed(state, version), why
        )
        self._shelf.drop(name, version)
        return state

    def fetch(self, name: str, version: str, cache: Path) -> Path:
        """The directory of a bundle: in the store where that is one, else verified in `cache`.

        Processes that share a cache download once. Raises NoModel, BundleError and StoreError.
        """
        state = self.state(name)
        return self._shelf.get(name, state.known(version), state.versions[version].seal, cache)

    def card(self, name: str, version: str) -> Card:
        """The card of a version, for its facts: nothing is downloaded and no file verified."""
        return self._shelf.card(name, version)

    def _change(
        self,
        name: str,
        what: str,
        edit: Callable[[State], State],
        why: str = "",
        new: bool = False,
    ) -> State:
        """Write what `edit` makes of the newest state of a name, however many others write too.

        new: whether there may be no such name yet. A change that changes nothing is not written.
        """
        checked_name(name)
        for _ in range(TRIES):
            numbers = self._history.numbers(name).get(name, [])
            base = self._base(name, numbers, new)
            after = edit(base)
            if after == base:
                return base
            state = after.changed(
                number=max(numbers, default=0) + 1,
                change=uuid.uuid4().hex,
                what=what,
                who=self._whoever(),
                when=self._clock(),
                why=why,
            )
            if self._history.append(state):
                return state
        raise RegistryError(f"{name}: others change it all the time; try again")

    def _base(self, name: str, numbers: list[int], new: bool) -> State:
        """The state that a change starts from. Raises NoModel and RegistryError."""
        state = self._history.newest(name, numbers)
        number = 0 if state is None else state.number
        if numbers and number < numbers[-1] and self._history.is_newer(name, numbers[-1]):
            raise RegistryError(
                f"{name}: its state {numbers[-1]} was written by a later version of Bertha; "
                "change it with that"
            )
        if state is not None:
            return state
        return State(name=name) if new else self.read().state(name)

    def _whoever(self) -> str:
        return self._who or f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user of a container without a name
        return f"uid {os.getuid()}"
