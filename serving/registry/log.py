"""The log of a registry: one file for each change of a name, never overwritten.

Only one writer gets its state in under a number.
"""

import json
import logging
from collections.abc import Sequence

from pydantic import ValidationError

from serving.registry.state import FORMAT, ModelState
from trainers.storage.filesystem import NotFound
from trainers.storage.store import Store

STATES_FOLDER = "_states"  # no name of a model begins so

logger = logging.getLogger(__name__)


class StateLog:
    """The states in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._warned: set[str] = set()

    def list_numbers(self, name: str | None = None) -> dict[str, list[int]]:
        """List the numbers of the states of every name, or of one, rising."""
        numbers: dict[str, list[int]] = {}
        for path in self._store.list_files(
            STATES_FOLDER if name is None else f"{STATES_FOLDER}/{name}"
        ):
            owner, _, file = path.removeprefix(f"{STATES_FOLDER}/").partition("/")
            if file.removesuffix(".json").isdecimal():
                numbers.setdefault(owner, []).append(int(file.removesuffix(".json")))
        return {owner: sorted(of_owner) for owner, of_owner in numbers.items()}

    def read_state(self, name: str, number: int) -> ModelState | None:
        """Read one state; None, and a warning the first time, if it is not readable."""
        path = _state_path(name, number)
        try:
            return ModelState.model_validate_json(self._store.read_bytes(path))
        except ValidationError as error:
            reason = f"it is no state: {error.errors(include_url=False)[0]['msg']}"
        except NotFound:
            reason = "it was listed and is gone"
        if path not in self._warned:
            logger.warning("%s/%s is skipped: %s", self._store.address, path, reason)
            self._warned.add(path)
        return None

    def read_newest(self, name: str, numbers: Sequence[int]) -> ModelState | None:
        """Read the readable state of the highest number."""
        states = (self.read_state(name, number) for number in reversed(numbers))
        return next((state for state in states if state is not None), None)

    def is_from_newer_version(self, name: str, number: int) -> bool:
        """Return whether a later version of Bertha wrote an unreadable state."""
        try:
            document = json.loads(self._store.read_bytes(_state_path(name, number)))
        except (NotFound, ValueError):
            return False
        written = document.get("format") if isinstance(document, dict) else None
        return isinstance(written, int) and written > FORMAT

    def append(self, state: ModelState) -> bool:
        """Write a state under its number; False if another writer has it."""
        data = state.model_dump_json(indent=1).encode() + b"\n"
        return self._store.create_file(_state_path(state.name, state.number), data)


def _state_path(name: str, number: int) -> str:
    return f"{STATES_FOLDER}/{name}/{number:08d}.json"
