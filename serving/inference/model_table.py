"""The models of a registry, and which state of each name is served.

A state that the registry shows is pending until it is adopted; the server decides when, so that a
new live version can be loaded first. A version whose card is damaged is not described, and a name
that the registry shows no longer is served as before: names are never removed, so the directory was
not mounted or was deleted.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cluster.errors import BerthaError
from serving.engine.choice import choose_engine
from serving.engine.devices import CPU
from serving.inference.model_cache import ModelKey
from serving.interface import ModelInfo
from serving.registry.model_ref import ModelDamaged, ModelReference
from serving.registry.registry import Registry
from serving.registry.state import ModelState, ModelVersion, RegistrySnapshot

log = logging.getLogger(__name__)


class ModelTable:
    """Names and versions of a registry. Only `refresh` may run in another thread.

    device: the kind that models compute on. device_name: of the card.
    """

    def __init__(self, registry: Registry, device: str = CPU, device_name: str = "") -> None:
        self._registry = registry
        self._device, self._device_name = device, device_name
        self._latest = RegistrySnapshot()
        self._served = RegistrySnapshot()
        self._default: str | None = None
        self._infos: dict[ModelKey, ModelInfo] = {}
        self._seals: dict[ModelKey, str] = {}  # of what `_infos` describes
        self._missing: frozenset[str] = frozenset()
        self.damage: dict[ModelKey, str] = {}  # why a version has no description

    @property
    def address(self) -> str:
        """The address of the registry."""
        return self._registry.address

    def refresh(self) -> None:
        """Read the registry. Raises what that raises, and then nothing has changed."""
        latest = self._registry.read_snapshot(self._latest)
        self._warn_of_missing(latest)
        if latest is self._latest and not self.damage:
            return
        damage: dict[ModelKey, str] = {}
        for state in {**self._served.states, **latest.states}.values():
            for version, entry in state.versions.items():
                key = (state.name, version)
                if self._seals.get(key) == entry.seal:
                    continue
                try:
                    self._infos[key] = self._describe_version(state, version)
                    self._seals[key] = entry.seal
                except (BerthaError, OSError) as error:
                    damage[key] = str(error)
        for key in damage.keys() - self.damage.keys():
            log.warning("%s:%s is skipped: %s", *key, damage[key])
        self.damage, self._latest = damage, latest

    def pending_states(self) -> list[ModelState]:
        """Return the states that the registry shows and nobody has adopted."""
        return [s for s in self._latest.states.values() if self.served_state(s.name) != s]

    def adopt_states(self, states: Iterable[ModelState]) -> None:
        """Serve by these states from now on."""
        adopted = {state.name: state for state in states}
        self._served = RegistrySnapshot(
            {**self._served.states, **adopted}, damage=self._latest.damage
        )
        self._default = self._served.default_name
        for state in adopted.values():
            for version in state.versions:
                key = (state.name, version)
                if key in self._infos:
                    self._infos[key] = replace(self._infos[key], aliases=state.aliases_of(version))

    def served_state(self, name: str) -> ModelState | None:
        """Return the state by which a name is served."""
        return self._served.states.get(name)

    def resolve_reference(self, model: str | None) -> tuple[ModelState, ModelReference]:
        """Resolve a model name. Raises InvalidReference, ModelNotFound and ModelDamaged."""
        return self._served.resolve_reference(model if model is not None else self._default)

    def default_key(self) -> ModelKey | None:
        """Return the version that answers if no model is named, if any is live."""
        state = None if self._default is None else self._served.states[self._default]
        return None if state is None or state.live is None else (state.name, state.live)

    def live_keys(self) -> Sequence[ModelKey]:
        """Return the live versions, that of the default model first."""
        states = self._served.states
        return [
            (name, live)
            for name in sorted(states, key=lambda name: (name != self._default, name))
            if (live := states[name].live) is not None
        ]

    def find_version(self, key: ModelKey) -> ModelVersion | None:
        """Return the newest entry of a version, adopted or not; None if there is none."""
        for snapshot in (self._latest, self._served):
            state = snapshot.states.get(key[0])
            if state is not None and key[1] in state.versions:
                return state.versions[key[1]]
        return None

    def list_versions(self) -> Sequence[ModelKey]:
        """Return all versions that are not damaged.

        The default model first, of a name the live version first.
        """
        states = self._served.states
        return [
            (name, version)
            for name in sorted(states, key=lambda name: (name != self._default, name))
            for version in sorted(
                states[name].versions, key=lambda v: (v != states[name].live, -int(v))
            )
            if (name, version) in self._infos
        ]

    def get_info(self, key: ModelKey, load_state: str) -> ModelInfo:
        """Describe a version; the same object until something changes. Raises ModelDamaged."""
        if key not in self._infos:
            reason = self.damage.get(key, "its card was not read yet")
            raise ModelDamaged(f"{key[0]}:{key[1]} is damaged: {reason}")
        info = self._infos[key]
        if info.state != load_state:
            info = self._infos[key] = replace(info, state=load_state)
        return info

    def _warn_of_missing(self, latest: RegistrySnapshot) -> None:
        missing = frozenset(self._served.states.keys() - latest.newest.keys())
        if missing - self._missing:
            log.warning(
                "%s shows no %s any more; serving what was last read; is it mounted?",
                self.address,
                ", ".join(sorted(missing)),
            )
        self._missing = missing

    def _describe_version(self, state: ModelState, version: str) -> ModelInfo:
        card = self._registry.read_card(state.name, version, state.versions[version].seal)
        model, served = card.recipe.get("model"), self.served_state(state.name)
        chosen = choose_engine(card, self._device, self._device_name)
        return ModelInfo(
            name=state.name,
            version=version,
            task=card.task,
            labels=card.labels,
            max_length=card.max_tokens,
            engine=chosen.name,
            base_model=str(model.get("name", "")) if isinstance(model, dict) else "",
            metrics=dict(card.metrics),
            revision=card.revision,
            weights_sha256=card.files.get("model.safetensors"),
            created=state.versions[version].created,
            aliases=served.aliases_of(version) if served is not None else (),
            pooling=card.pooling or "",
            width=self._registry.read_width(state.name, version, card),
            batch_tokens=chosen.batch_tokens,
            thresholds=dict(card.thresholds),
            verdict=dict(card.verdict),
            target=dict(card.target),
            examples=card.examples,
            profile=card.profile,
            prompts=dict(card.prompts),
        )
