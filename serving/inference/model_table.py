"""What the registry holds and what of it is served: states adopted name by name, and their facts.

A state that the registry shows is waiting until it is adopted; whoever serves decides when, so that
a new live version can be loaded first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from serving.inference.model_cache import Key
from serving.interface import ModelInfo
from serving.registry.model_ref import Reference
from serving.registry.registry import Registry
from serving.registry.snapshot import Snapshot
from serving.registry.state import State
from trainers.models.card import Card


class Catalogue:
    """Names and versions of a registry. `refresh` may run in a thread; the rest in one place."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen = Snapshot()
        self._served = Snapshot()
        self._default: str | None = None
        self._facts: dict[Key, ModelInfo] = {}

    def refresh(self) -> None:
        """Read the registry. Raises what that raises, and then nothing has changed."""
        seen = self._registry.read(self._seen)
        if seen is self._seen:
            return
        for name, state in seen.states.items():
            for version in state.versions:
                if (name, version) not in self._facts:
                    card = self._registry.card(name, version)
                    self._facts[name, version] = _facts(name, version, state, card)
        self._seen = seen

    def waiting(self) -> list[State]:
        """States that the registry shows and nobody has adopted."""
        return [s for s in self._seen.states.values() if self.adopted(s.name) != s]

    def adopt(self, states: Iterable[State]) -> None:
        """Serve by these states from now on."""
        held = dict(self._served.states) | {state.name: state for state in states}
        self._served = Snapshot(held)
        self._default = self._served.default

    def adopted(self, name: str) -> State | None:
        """The state by which a name is served."""
        return self._served.states.get(name)

    def find(self, model: str | None) -> tuple[State, Reference]:
        """As `Snapshot.find`, of what is adopted. Raises BadReference and NoModel."""
        return self._served.find(model if model is not None else self._default)

    def default(self) -> State | None:
        """The state of the default model, where one is live."""
        return None if self._default is None else self._served.states[self._default]

    def versions(self) -> Sequence[Key]:
        """Every version, the default model's first, of each name the live one first."""
        states = self._served.states
        return [
            (name, version)
            for name in sorted(states, key=lambda name: (name != self._default, name))
            for version in sorted(
                states[name].versions, key=lambda v: (v != states[name].live, -int(v))
            )
        ]

    def info(self, key: Key, state: str, engine: str) -> ModelInfo:
        """What is known of a version. state, engine: of the one in memory, "" where none is."""
        facts = self._facts[key]
        aliases = self._served.states[key[0]].aliases_of(key[1])
        return replace(facts, aliases=aliases, state=state, engine=engine or facts.engine)


def _facts(name: str, version: str, state: State, card: Card) -> ModelInfo:
    chosen = next((engine.name for engine in card.engines if engine.chosen), "torch fp32")
    return ModelInfo(
        name=name,
        version=version,
        task=card.task,
        labels=card.labels,
        max_length=card.max_length,
        engine=chosen,
        base_model=str(card.recipe.get("model", {}).get("name", "")),
        metrics=dict(card.metrics),
        revision=card.revision,
        weights_sha256=card.files.get("model.safetensors"),
        created=state.versions[version].created,
        pooling=card.pooling or "",
        batch_tokens=card.batch_tokens(chosen),
    )
