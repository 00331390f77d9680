"""The log of a registry: one file for each change of a name, never overwritten.

Only one writer gets its state in under a number.
"""

import json
import logging
from collections.abc import Sequence

from pydantic import ValidationError

from serving.registry.model_ref import is_model_name
from serving.registry.state import FORMAT, ModelState
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import Store

STATES_FOLDER = "_states"  # no name of a model begins so

logger = logging.getLogger(__name__)


class StateLog:
    """The states in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._damage: dict[str, str] = {}  # by path: why that state was not readable

    def list_numbers(self, name: str | None = None) -> dict[str, list[int]]:
        """List the numbers of the states of every name, or of one, rising."""
        numbers: dict[str, list[int]] = {}
        for path in self._store.list_files(
            STATES_FOLDER if name is None else f"{STATES_FOLDER}/{name}"
        ):
            owner, _, file = path.removeprefix(f"{STATES_FOLDER}/").partition("/")
            if is_model_name(owner) and file.removesuffix(".json").isdecimal():
                numbers.setdefault(owner, []).append(int(file.removesuffix(".json")))
        return {owner: sorted(of_owner) for owner, of_owner in numbers.items()}

    def read_state(self, name: str, number: int) -> ModelState | None:
        """Read one state; None, and a warning the first time, if it is damaged.

        Raises StoreError, also with a warning the first time, if the store does not give it.
        """
        path = _state_path(name, number)
        try:
            state = ModelState.model_validate_json(self._store.read_bytes(path))
        except ValidationError as error:
            self._note_damage(path, f"it is no state: {error.errors(include_url=False)[0]['msg']}")
            return None
        except NotFound:
            self._note_damage(path, "it was listed and is gone")
            return None
        except StoreError as error:
            self._note_damage(path, str(error))
            raise
        if (state.name, state.number) != (name, number):
            self._note_damage(path, f"it is state {state.number} of {state.name}")
            return None
        self._damage.pop(path, None)
        return state

    def describe_damage(self, name: str, number: int) -> str | None:
        """Return why a state was not readable when it was last read; None if it was."""
        path = _state_path(name, number)
        reason = self._damage.get(path)
        return None if reason is None else f"{self._store.address}/{path} is damaged: {reason}"

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

    def _note_damage(self, path: str, reason: str) -> None:
        """Warn of a damaged state, once for each reason: it is read again and again."""
        if self._damage.get(path) != reason:
            logger.warning("%s/%s is skipped: %s", self._store.address, path, reason)
            self._damage[path] = reason

    def append(self, state: ModelState) -> bool:
        """Write a state under its number; False if another writer has it."""
        data = state.model_dump_json(indent=1).encode() + b"\n"
        return self._store.create_file(_state_path(state.name, state.number), data)


def _state_path(name: str, number: int) -> str:
    return f"{STATES_FOLDER}/{name}/{number:08d}.json"
