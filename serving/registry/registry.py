"""The model registry: bundles by name, version and alias in a directory or `s3://`.

    ROOT/sentiment/versions/3/                 an immutable bundle
    ROOT/sentiment/claims/3                    who took that number
    ROOT/_states/sentiment/00000007.json       the name after its 7th change

Every change writes a complete new state under the next number, which only one writer gets; a loser
reads again and retries. So nothing is overwritten or lost, and the files are the history. A reader
finds the highest number of each name at the price of one listing.

    registry = Registry.open("registry")
    version = registry.register(Path("runs/reviews/bundle"), "sentiment", note="more epochs")
    registry.deploy("sentiment", version, share=0.1)
    snapshot = registry.read_snapshot(snapshot)            # the same object if nothing changed
    registry.fetch_bundle("sentiment", version, Path("cache"))
"""

import getpass
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from serving.registry import state as changes
from serving.registry.artifacts import ArtifactStore, bundle_digest
from serving.registry.canary_rule import CanaryRule
from serving.registry.log import StateLog
from serving.registry.model_ref import check_alias, check_model_name
from serving.registry.state import Canary, ModelState, ModelVersion, RegistrySnapshot
from trainers.models.card import ModelCard
from trainers.storage.filesystem import StoreError
from trainers.storage.store import Store, open_store

MOST_SKIPPED = 100  # damaged states of a name that a reader passes over, at every poll
TRIES = 1000  # of a change that others forestall; each time one of theirs was made


class RegistryError(BerthaError):
    """A change that this registry cannot make; the message says why, and the way out."""


class Registry:
    """The names of one store. Safe for several threads, processes and machines.

    who: the author in the history. clock: seconds since 1970. Every change returns the state after
    it, takes `why` for the history, and raises BerthaError if it is refused.
    """

    def __init__(
        self, store: Store, who: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._who = who
        self._clock = clock
        self._log = StateLog(store)
        self._artifacts = ArtifactStore(store)

    @classmethod
    def open(cls, address: str) -> "Registry":
        """Open the registry at a directory or a URL; an empty one if there is none yet."""
        return cls(open_store(address))

    @property
    def address(self) -> str:
        """What `open` takes to reach this registry from any directory."""
        return self._store.address

    def read_snapshot(self, since: RegistrySnapshot | None = None) -> RegistrySnapshot:
        """Read the newest state of every name; return `since` if nothing changed.

        Costs a listing, and a read for each name that changed or whose newest state is damaged.
        Raises StoreError where the store cannot be listed; what concerns one name is `damage` of
        the snapshot, and a warning.
        """
        since = since or RegistrySnapshot()
        numbers = self._log.list_numbers()
        newest = {name: of_name[-1] for name, of_name in numbers.items()}
        if since.newest == newest and not since.damage:
            return since
        states: dict[str, ModelState] = {}
        damage: dict[str, str] = {}
        for name, of_name in numbers.items():
            state = since.states.get(name)
            if since.newest.get(name) != of_name[-1] or name in since.damage:
                state, reason = self._read_name(name, of_name, state)
                damage |= {name: reason} if reason else {}
            if state is not None:
                states[name] = state
        latest = RegistrySnapshot(states, newest, damage)
        return since if latest == since else latest

    def read_state(self, name: str) -> ModelState:
        """Read the newest state of one name.

        Raises InvalidReference, ModelNotFound and ModelDamaged.
        """
        numbers = self._log.list_numbers(check_model_name(name)).get(name, [])
        state = self._log.read_newest(name, numbers)
        return state if state is not None else self.read_snapshot().state_of(name)

    def history(self, name: str) -> list[ModelState]:
        """Return the states of a name, oldest first. Raises ModelNotFound."""
        self.read_state(name)
        numbers = self._log.list_numbers(name)[name]
        states = (self._log.read_state(name, number) for number in numbers)
        return [state for state in states if state is not None]

    def register(self, bundle: Path, name: str, note: str = "") -> str:
        """Copy a bundle into the store as the next version of `name`; return the version.

        It answers once it is deployed. Raises BundleError if the bundle is damaged.
        """
        check_model_name(name)
        seal = bundle_digest(bundle)
        claim = f"{self._author()} {uuid.uuid4().hex}\n".encode()
        version = self._artifacts.add_bundle(bundle, name, claim)
        source = str(bundle.resolve())
        entry = ModelVersion(created=self._clock(), note=note, source=source, seal=seal)
        what = f"register {version}"
        self._apply_change(name, what, "", changes.register_version, version, entry, new=True)
        return version

    def set_alias(self, name: str, alias: str, version: str | None, why: str = "") -> ModelState:
        """Point an alias at a version, or drop it if that is None."""
        check_alias(alias)
        what = f"drop alias {alias}" if version is None else f"alias {alias} to {version}"
        return self._apply_change(name, what, why, changes.set_alias, alias, version)

    def deploy(
        self,
        name: str,
        version: str,
        share: float | None = None,
        shadow: bool = False,
        rule: CanaryRule | None = None,
        why: str = "",
    ) -> ModelState:
        """Make a version live, or try it as a canary (`share`) or a shadow.

        share: of the requests for the bare name; 1 for a shadow by default. rule: ends the trial.
        """
        what, canary = f"deploy {version}", None
        if share is not None or shadow:
            share = 1.0 if share is None else share
            if not 0 <= share <= 1:
                raise RegistryError(
                    f"share = {share}: no share of the requests; take 0 to 1, as 0.1"
                )
            canary = Canary(
                version=version,
                share=share,
                shadow=shadow,
                rule=rule or CanaryRule(),
                started=self._clock(),
            )
            what = f"{'shadow' if shadow else 'canary'} {version} on {share:.4g} of the requests"
        return self._apply_change(name, what, why, changes.deploy_version, version, canary)

    def promote(self, name: str, version: str | None = None, why: str = "") -> ModelState:
        """Make the canary live; with `version`, only if that is the canary."""
        return self._apply_change(name, "promote", why, changes.promote_canary, version)

    def rollback(self, name: str, version: str | None = None, why: str = "") -> ModelState:
        """End the canary; if none runs, go back to the previous live version.

        version: the canary that is meant; then nothing else is rolled back.
        """
        return self._apply_change(name, "roll back", why, changes.roll_back, version)

    def make_default(self, name: str, why: str = "") -> ModelState:
        """Let `name` answer requests that name no model."""
        now = self._clock()
        return self._apply_change(name, "make default", why, lambda s: s.copy_with(default=now))

    def remove_version(
        self, name: str, version: str, why: str = "", retire: bool = False
    ) -> ModelState:
        """Delete a version and its bundle; refused if it is live, aliased or a canary.

        retire: not if it is the only version of its name, whose aliases then go with it.
        """
        what = f"remove {version}"
        state = self._apply_change(name, what, why, changes.remove_version, version, retire)
        self._artifacts.delete_bundle(name, version)
        return state

    def fetch_bundle(self, name: str, version: str, cache: Path, seal: str | None = None) -> Path:
        """Return the directory of a bundle: in the store, or downloaded to `cache`.

        seal: of the version, from a state that was read before; without it, the newest is read.
        Processes that share a cache download once. Raises ModelNotFound, ModelDamaged, BundleError
        and StoreError.
        """
        if seal is None:
            state = self.read_state(name)
            seal = state.versions[state.check_version(version)].seal
        return self._artifacts.fetch_bundle(name, version, seal, cache)

    def read_card(self, name: str, version: str, seal: str | None = None) -> ModelCard:
        """Read the card of a version; downloads and verifies nothing else.

        seal: of the version; where it is given, the card must be the one that was registered.
        """
        return self._artifacts.read_card(name, version, seal)

    def read_width(self, name: str, version: str, card: ModelCard) -> int:
        """Return the numbers in a vector of an embedder, 0 for a model of another task."""
        if card.task != "embedding":
            return 0
        return int(self._artifacts.read_config(name, version, card).get("hidden_size", 0))

    def find_damage(self, state: ModelState, every_file: bool = False) -> dict[str, str]:
        """Return what is wrong with the versions of a name, by version.

        every_file: hash all files, which costs a download where the store is remote; else only the
        card is read.
        """
        check = self._artifacts.verify_bundle if every_file else self._artifacts.read_card
        damage = {}
        for version, entry in state.versions.items():
            try:
                check(state.name, version, entry.seal)
            except (BerthaError, OSError) as error:
                damage[version] = str(error)
        return damage

    def _read_name(
        self, name: str, numbers: Sequence[int], known: ModelState | None
    ) -> tuple[ModelState | None, str | None]:
        """Read the newest state of a name, and why it is not the one of the highest number."""
        try:
            state = self._log.read_newest(name, numbers[-MOST_SKIPPED:])
        except StoreError as error:
            # It may be readable in a moment, and an older one would undo what was deployed since.
            return known, str(error)
        return state, self._log.describe_damage(name, numbers[-1])

    def _apply_change(
        self,
        name: str,
        what: str,
        why: str,
        edit: Callable[..., ModelState],
        *arguments: Any,
        new: bool = False,
    ) -> ModelState:
        """Write `edit(newest state of name, *arguments)`, and retry if others write meanwhile.

        new: whether the name may be missing. An edit that changes nothing is not written.
        """
        check_model_name(name)
        for _ in range(TRIES):
            numbers = self._log.list_numbers(name).get(name, [])
            base = self._base_state(name, numbers, new)
            after = edit(base, *arguments)
            if after == base:
                return base
            state = after.copy_with(
                number=max(numbers, default=0) + 1,
                change=uuid.uuid4().hex,
                what=what,
                who=self._author(),
                when=self._clock(),
                why=why,
            )
            if self._log.append(state):
                return state
        raise RegistryError(f"{name}: others change it all the time; try again")

    def _base_state(self, name: str, numbers: list[int], new: bool) -> ModelState:
        """Return the state to change. Raises ModelNotFound and RegistryError."""
        state = self._log.read_newest(name, numbers)
        number = 0 if state is None else state.number
        if numbers and number < numbers[-1] and self._log.is_from_newer_version(name, numbers[-1]):
            raise RegistryError(
                f"{name}: its state {numbers[-1]} was written by a later version of Bertha; "
                "change it with that"
            )
        if state is not None:
            return state
        return ModelState(name=name) if new else self.read_snapshot().state_of(name)

    def _author(self) -> str:
        if self._who is not None:
            return self._who
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a user of a container without a name
            user = f"uid {os.getuid()}"
        return f"{user}@{socket.gethostname()}"
