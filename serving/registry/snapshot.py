"""What a registry held at one moment: every name's newest state, looked up by reference; pure.

Knows no store. `Registry.read` makes it.

    state, reference = snapshot.find("sentiment@best")
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.registry.model_ref import NoModel, Reference, suggestion
from serving.registry.state import State


@dataclass(frozen=True)
class Snapshot:
    """The names of a registry.

    newest: the highest number of a state that each has, be it readable or not; two snapshots with
    the same are the same.
    """

    states: Mapping[str, State] = field(default_factory=dict)
    newest: Mapping[str, int] = field(default_factory=dict)

    @property
    def default(self) -> str | None:
        """The name that answers where none is given: the one last made so, or else the first in
        the alphabet; of those with a live version."""
        live = [state for state in self.states.values() if state.live is not None]
        chosen = min(live, key=lambda state: (-(state.default or 0.0), state.name), default=None)
        return None if chosen is None else chosen.name

    def state(self, name: str) -> State:
        """The state of a name. Raises NoModel."""
        if name in self.states:
            return self.states[name]
        raise NoModel(f"{name}: no such model; {suggestion(name, self.states)}")

    def find(self, text: str | None) -> tuple[State, Reference]:
        """The state and the reference that `text` means, None being the default model.

        Raises BadReference and NoModel; the version is looked up when the request is routed.
        """
        if text is not None:
            reference = Reference.parse(text)
            return self.state(reference.name), reference
        if self.default is None:
            raise NoModel("no model is live; register a bundle and deploy it")
        return self.states[self.default], Reference(self.default)
