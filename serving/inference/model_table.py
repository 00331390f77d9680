"""The models of a registry, and which state of each name is served.

A state that the registry shows is pending until it is adopted; the server decides when, so that a
new live version can be loaded first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from serving.inference.model_cache import ModelKey
from serving.interface import ModelInfo
from serving.registry.model_ref import ModelReference
from serving.registry.registry import Registry
from serving.registry.state import ModelState, RegistrySnapshot


class ModelTable:
    """Names and versions of a registry. Only `refresh` may run in another thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._latest = RegistrySnapshot()
        self._served = RegistrySnapshot()
        self._default: str | None = None
        self._infos: dict[ModelKey, ModelInfo] = {}

    def refresh(self) -> None:
        """Read the registry. Raises what that raises, and then nothing has changed."""
        latest = self._registry.read_snapshot(self._latest)
        if latest is self._latest:
            return
        for state in latest.states.values():
            for version in state.versions:
                if (state.name, version) not in self._infos:
                    self._infos[state.name, version] = self._describe_version(state, version)
        self._latest = latest

    def pending_states(self) -> list[ModelState]:
        """Return the states that the registry shows and nobody has adopted."""
        return [s for s in self._latest.states.values() if self.served_state(s.name) != s]

    def adopt_states(self, states: Iterable[ModelState]) -> None:
        """Serve by these states from now on."""
        adopted = {state.name: state for state in states}
        self._served = RegistrySnapshot({**self._served.states, **adopted})
        self._default = self._served.default_name
        for state in adopted.values():
            for version in state.versions:
                key = (state.name, version)
                self._infos[key] = replace(self._infos[key], aliases=state.aliases_of(version))

    def served_state(self, name: str) -> ModelState | None:
        """Return the state by which a name is served."""
        return self._served.states.get(name)

    def resolve_reference(self, model: str | None) -> tuple[ModelState, ModelReference]:
        """Resolve a model name. Raises InvalidReference and ModelNotFound."""
        return self._served.resolve_reference(model if model is not None else self._default)

    def default_key(self) -> ModelKey | None:
        """Return the version that answers if no model is named, if any is live."""
        state = None if self._default is None else self._served.states[self._default]
        return None if state is None or state.live is None else (state.name, state.live)

    def list_versions(self) -> Sequence[ModelKey]:
        """Return all versions: the default model first, of a name the live one first."""
        states = self._served.states
        return [
            (name, version)
            for name in sorted(states, key=lambda name: (name != self._default, name))
            for version in sorted(
                states[name].versions, key=lambda v: (v != states[name].live, -int(v))
            )
        ]

    def get_info(self, key: ModelKey, load_state: str) -> ModelInfo:
        """Describe a version; the same object until something changes."""
        info = self._infos[key]
        if info.state != load_state:
            info = self._infos[key] = replace(info, state=load_state)
        return info

    def _describe_version(self, state: ModelState, version: str) -> ModelInfo:
        card = self._registry.read_card(state.name, version)
        chosen = next((engine.name for engine in card.engines if engine.chosen), "torch fp32")
        return ModelInfo(
            name=state.name,
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
