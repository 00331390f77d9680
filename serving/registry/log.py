"""The states of names in a store, one file a change: read, and added to, never changed.

Under a number only one writer gets its state in. Knows no bundles and no rules of change.
"""

import json
import logging
from collections.abc import Sequence

from pydantic import ValidationError

from serving.registry.state import FORMAT, State
from serving.registry.store import Store
from trainers.storage.object_store import Absent

STATES = "_states"  # no name of a model begins so

logger = logging.getLogger(__name__)


class History:
    """The states in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._warned: set[str] = set()

    def numbers(self, name: str | None = None) -> dict[str, list[int]]:
        """The numbers of the states of every name, or of one, rising; for one listing."""
        numbers: dict[str, list[int]] = {}
        for path in self._store.files(STATES if name is None else f"{STATES}/{name}"):
            owner, _, file = path.removeprefix(f"{STATES}/").partition("/")
            if file.removesuffix(".json").isdecimal():
                numbers.setdefault(owner, []).append(int(file.removesuffix(".json")))
        return {owner: sorted(found) for owner, found in numbers.items()}

    def read(self, name: str, number: int) -> State | None:
        """One state; None, and a warning the first time, where its file is not one."""
        path = _path(name, number)
        try:
            return State.model_validate_json(self._store.read(path))
        except ValidationError as error:
            reason = f"it is no state: {error.errors(include_url=False)[0]['msg']}"
        except Absent:
            reason = "it was listed and is gone"
        if path not in self._warned:
            logger.warning("%s/%s is skipped: %s", self._store.address, path, reason)
            self._warned.add(path)
        return None

    def newest(self, name: str, numbers: Sequence[int]) -> State | None:
        """The state of the highest number that can be understood."""
        states = (self.read(name, number) for number in reversed(numbers))
        return next((state for state in states if state is not None), None)

    def is_newer(self, name: str, number: int) -> bool:
        """Whether a state that cannot be understood was written by a later version of Bertha."""
        try:
            document = json.loads(self._store.read(_path(name, number)))
        except (Absent, ValueError):
            return False
        written = document.get("format") if isinstance(document, dict) else None
        return isinstance(written, int) and written > FORMAT

    def append(self, state: State) -> bool:
        """Write a state under its number; False where another has it."""
        data = state.model_dump_json(indent=1).encode() + b"\n"
        return self._store.create(_path(state.name, state.number), data)


def _path(name: str, number: int) -> str:
    return f"{STATES}/{name}/{number:08d}.json"
