"""The state of a name: versions, aliases and canary, and the changes from one state to the next.

deploy_version(state, "4", Canary(version="4", share=0.1, started=now))     # 10% of the requests
promote_canary(roll_back(state))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from cluster.errors import BerthaError
from cluster.settings import Settings
from serving.registry.canary_rule import CanaryRule
from serving.registry.model_ref import (
    LIVE,
    ModelDamaged,
    ModelNotFound,
    ModelReference,
    is_model_name,
    is_version,
    suggest_names,
)

FORMAT: Final = 1
MOST_BEFORE = 50  # live versions that are remembered for rolling back

Timestamp = Annotated[float, Field(ge=0, lt=253_402_300_800)]  # seconds since 1970, to year 9999


class ChangeRefused(BerthaError):
    """A change that the state does not allow; the message says why, and the way out."""


class ModelVersion(Settings):
    """One immutable bundle."""

    created: Timestamp
    note: str = ""
    source: str = Field("", description="the directory it was registered from")
    seal: str = Field(
        pattern="^[0-9a-f]{64}$", description="SHA-256 of its card, which has those of its files"
    )


class Canary(Settings):
    """A version on trial beside the live one.

    share: of the requests for the bare name. shadow: the live version answers those, and the canary
    gets a copy that nobody waits for.
    """

    version: str
    share: float = Field(ge=0, le=1)
    shadow: bool = False
    rule: CanaryRule = CanaryRule()
    started: Timestamp


class ModelState(Settings):
    """A name after a number of changes."""

    format: Literal[1] = FORMAT
    name: str
    number: int = Field(0, description="changes so far")
    change: str = Field("", description="of the last one: what only it is called")
    what: str = Field("", description="of the last one: in words")
    who: str = ""
    when: Timestamp = 0.0
    why: str = ""
    versions: dict[str, ModelVersion] = Field({}, description="by number, oldest first")
    aliases: dict[str, str] = Field({}, description="version by alias, `live` among them")
    before: tuple[str, ...] = Field((), description="versions live before, the latest last")
    canary: Canary | None = None
    default: float | None = Field(None, description="when it was made the default model, if ever")

    @model_validator(mode="after")
    def _check_versions(self) -> "ModelState":
        """Refuse what no change leads to: a file that was edited by hand, or is of a program."""
        if not is_model_name(self.name):
            raise ValueError(f"{self.name[:80]!r} is no name of a model")
        canary = () if self.canary is None else (self.canary.version,)
        for version in (*self.versions, *self.aliases.values(), *self.before, *canary):
            if not is_version(version) or version not in self.versions:
                raise ValueError(f"it has no version {version[:20]!r}")
        return self

    @property
    def live(self) -> str | None:
        """The version that answers under the bare name."""
        return self.aliases.get(LIVE)

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """Return the aliases of a version, sorted."""
        return tuple(sorted(alias for alias, of in self.aliases.items() if of == version))

    def resolve_version(self, reference: ModelReference) -> str:
        """Return the version of a reference, canaries aside. Raises ModelNotFound."""
        if reference.version is not None:
            return self.check_version(reference.version)
        alias = reference.alias or LIVE
        if alias in self.aliases:
            return self.aliases[alias]
        if alias != LIVE:
            raise ModelNotFound(f"{reference}: no such alias; {suggest_names(alias, self.aliases)}")
        versions = ", ".join(f"{self.name}:{version}" for version in self.versions)
        raise ModelNotFound(
            f"{self.name}: no version is live; deploy one of {versions or 'its versions'}"
        )

    def check_version(self, version: str) -> str:
        """Return `version` if the name has it. Raises ModelNotFound."""
        if version in self.versions:
            return version
        raise ModelNotFound(
            f"{self.name}:{version}: no such version; {suggest_names(version, self.versions)}"
        )

    def copy_with(self, **parts: object) -> "ModelState":
        """Return a copy with other values."""
        return self.model_copy(update=parts)


def register_version(state: ModelState, version: str, entry: ModelVersion) -> ModelState:
    """Add a version; it does not answer yet."""
    return state.copy_with(versions=state.versions | {version: entry})


def set_alias(state: ModelState, alias: str, version: str | None) -> ModelState:
    """Move an alias to a version, or drop it if that is None."""
    others = {name: of for name, of in state.aliases.items() if name != alias}
    if version is None:
        if alias not in state.aliases:
            raise ModelNotFound(
                f"{state.name}@{alias}: no such alias; {suggest_names(alias, others)}"
            )
        return state.copy_with(aliases=others)
    return state.copy_with(aliases=others | {alias: state.check_version(version)})


def deploy_version(state: ModelState, version: str, canary: Canary | None) -> ModelState:
    """Make a version live, or try it as `canary`; either ends a running trial."""
    state.check_version(version)
    if canary is None:
        return _make_live(state, version)
    if state.live is None:
        raise ChangeRefused(
            f"{state.name}: no version is live to hold a canary against; deploy "
            f"{state.name}:{version} without a share"
        )
    if state.live == version:
        raise ChangeRefused(
            f"{state.name}:{version} is live already; a canary is another version than that"
        )
    if canary.rule.min_agreement is not None and not canary.shadow:
        raise ChangeRefused(
            f"min_agreement = {canary.rule.min_agreement}: only texts that both versions answer "
            "show agreement; make the canary a shadow, or leave min_agreement out"
        )
    running = state.canary
    if running is not None and (running.version, running.shadow) == (version, canary.shadow):
        canary = canary.model_copy(update={"started": running.started})  # the same trial, wider
    return state.copy_with(canary=canary)


def promote_canary(state: ModelState, version: str | None = None) -> ModelState:
    """Make the canary live. version: the canary that is meant, if that matters."""
    return _make_live(state, _running_canary(state, version).version)


def roll_back(state: ModelState, version: str | None = None) -> ModelState:
    """End the canary; if none runs, go back to the previous live version.

    version: the canary that is meant; then nothing else is rolled back.
    """
    if state.canary is not None or version is not None:
        _running_canary(state, version)
        return state.copy_with(canary=None)
    if not state.before:
        raise ChangeRefused(
            f"{state.name}: nothing to roll back to: no canary runs, and no version was live "
            f"before {state.live or 'now'}; deploy the version you want"
        )
    *before, last = state.before
    return state.copy_with(aliases=state.aliases | {LIVE: last}, before=tuple(before))


def remove_version(state: ModelState, version: str, retire: bool = False) -> ModelState:
    """Remove a version; refused while the name or an alias may resolve to it.

    retire: of a name's only version the aliases go too, and the name answers nobody.
    """
    state.check_version(version)
    if retire and len(state.versions) == 1:
        return state.copy_with(versions={}, aliases={}, before=(), canary=None)
    aliases = state.aliases_of(version)
    if aliases:
        raise ChangeRefused(
            f"{state.name}:{version} is {' and '.join(aliases)}; move "
            f"{'that' if len(aliases) == 1 else 'those'} to another version first"
        )
    if state.canary is not None and state.canary.version == version:
        raise ChangeRefused(f"{state.name}:{version} is a canary; promote it or roll it back first")
    return state.copy_with(
        versions={name: entry for name, entry in state.versions.items() if name != version},
        before=tuple(each for each in state.before if each != version),
    )


def _make_live(state: ModelState, version: str) -> ModelState:
    """Make a version live and end the canary; a rollback leads to what was live."""
    before = state.before
    if state.live is not None and state.live != version:
        before = (*before, state.live)[-MOST_BEFORE:]
    return state.copy_with(aliases=state.aliases | {LIVE: version}, before=before, canary=None)


def _running_canary(state: ModelState, version: str | None) -> Canary:
    """Return the canary if it is the one that is meant. Raises ChangeRefused."""
    if state.canary is None:
        raise ChangeRefused(f"{state.name}: no canary runs; deploy a version with a share first")
    if version not in (None, state.canary.version):
        raise ChangeRefused(
            f"{state.name}:{version} is not the canary; {state.name}:{state.canary.version} is"
        )
    return state.canary


@dataclass(frozen=True)
class RegistrySnapshot:
    """The newest state of every name at one moment.

    newest: the highest number of each name, readable or not. damage: why the newest state of a name
    cannot be read; an older one stands for it, if any can. Equal ones of both mean equal snapshots.
    """

    states: Mapping[str, ModelState] = field(default_factory=dict)
    newest: Mapping[str, int] = field(default_factory=dict)
    damage: Mapping[str, str] = field(default_factory=dict)

    @property
    def default_name(self) -> str | None:
        """The live name last made the default, or else the first in the alphabet.

        None if there is none, or if it may be one whose state cannot be read.
        """
        live = [state for state in self.states.values() if state.live is not None]
        chosen = min(live, key=lambda state: (-(state.default or 0.0), state.name), default=None)
        if chosen is None:
            return None
        if chosen.default is None and any(name < chosen.name for name in self.unreadable):
            return None
        return chosen.name

    @property
    def unreadable(self) -> list[str]:
        """The names none of whose states can be read, sorted."""
        return sorted(self.damage.keys() - self.states.keys())

    def state_of(self, name: str) -> ModelState:
        """Return the state of a name. Raises ModelNotFound and ModelDamaged."""
        if name in self.states:
            return self.states[name]
        if name in self.damage:
            raise ModelDamaged(f"{name}: {self.damage[name]}")
        raise ModelNotFound(f"{name}: no such model; {suggest_names(name, self.states)}")

    def resolve_reference(self, text: str | None) -> tuple[ModelState, ModelReference]:
        """Return the state and the reference of `text`; None means the default model.

        The version is resolved when the request is routed. Raises InvalidReference, ModelNotFound
        and ModelDamaged.
        """
        if text is not None:
            reference = ModelReference.parse(text)
            return self.state_of(reference.name), reference
        if self.default_name is None:
            if self.unreadable:
                name = self.unreadable[0]
                raise ModelDamaged(
                    f"the default model may be {name}, and {self.damage[name]}; name a model, or "
                    "make one the default with `bertha serve NAME`"
                )
            raise ModelNotFound("no model is live; register a bundle and deploy it")
        return self.states[self.default_name], ModelReference(self.default_name)
