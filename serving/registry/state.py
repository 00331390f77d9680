"""What is served under one name: its versions, aliases and canary, and how those change; pure.

A change is a function from a state to the next. Knows no store, no clock and no traffic.

    deployed(state, "4", Canary(version="4", share=0.1, started=now))     # 10% of the requests
    promoted(rolled_back(state))
"""

from typing import Final, Literal

from pydantic import Field

from cluster.errors import BerthaError
from cluster.settings import Settings
from serving.registry.canary_rule import Rule
from serving.registry.model_ref import LIVE, NoModel, Reference, suggestion

FORMAT: Final = 1
MOST_BEFORE = 50  # live versions that are remembered for rolling back


class ChangeRefused(BerthaError):
    """A change that the state of the name does not allow; the text says why, and the way out."""


class Version(Settings):
    """One immutable bundle."""

    created: float = Field(description="seconds since 1970")
    note: str = ""
    source: str = Field("", description="the directory it was registered from")
    seal: str = Field(description="SHA-256 of its card, which has those of its files")


class Canary(Settings):
    """A version on trial beside the live one.

    share: of the requests for the bare name. shadow: whether the live version answers those, and
    the canary gets a copy that nobody waits for.
    """

    version: str
    share: float = Field(ge=0, le=1)
    shadow: bool = False
    rule: Rule = Rule()
    started: float = Field(description="seconds since 1970")


class State(Settings):
    """All that is known of a name after a number of changes."""

    format: Literal[1] = FORMAT
    name: str
    number: int = Field(0, description="changes so far")
    change: str = Field("", description="of the last one: what only it is called")
    what: str = Field("", description="of the last one: in words")
    who: str = ""
    when: float = Field(0.0, description="seconds since 1970")
    why: str = ""
    versions: dict[str, Version] = Field({}, description="by number, oldest first")
    aliases: dict[str, str] = Field({}, description="version by alias, `live` among them")
    before: tuple[str, ...] = Field((), description="versions live before, the latest last")
    canary: Canary | None = None
    default: float | None = Field(None, description="when it was made the default model, if ever")

    @property
    def live(self) -> str | None:
        """The version that answers under the bare name."""
        return self.aliases.get(LIVE)

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """The aliases of a version, sorted."""
        return tuple(sorted(alias for alias, of in self.aliases.items() if of == version))

    def version_of(self, reference: Reference) -> str:
        """The version that a reference means while no canary runs. Raises NoModel."""
        if reference.version is not None:
            return self.known(reference.version)
        alias = reference.alias or LIVE
        if alias in self.aliases:
            return self.aliases[alias]
        if alias != LIVE:
            raise NoModel(f"{reference}: no such alias; {suggestion(alias, self.aliases)}")
        versions = ", ".join(f"{self.name}:{version}" for version in self.versions)
        raise NoModel(
            f"{self.name}: no version is live; deploy one of {versions or 'its versions'}"
        )

    def known(self, version: str) -> str:
        """`version`, where the name has it. Raises NoModel."""
        if version in self.versions:
            return version
        raise NoModel(
            f"{self.name}:{version}: no such version; {suggestion(version, self.versions)}"
        )

    def changed(self, **parts: object) -> "State":
        """A copy with other parts."""
        return self.model_copy(update=parts)


def registered(state: State, version: str, entry: Version) -> State:
    """A version more; nothing is served by it yet."""
    return state.changed(versions=state.versions | {version: entry})


def aliased(state: State, alias: str, version: str | None) -> State:
    """An alias moved to a version, or dropped where that is None."""
    others = {name: of for name, of in state.aliases.items() if name != alias}
    if version is None:
        if alias not in state.aliases:
            raise NoModel(f"{state.name}@{alias}: no such alias; {suggestion(alias, others)}")
        return state.changed(aliases=others)
    return state.changed(aliases=others | {alias: state.known(version)})


def deployed(state: State, version: str, canary: Canary | None) -> State:
    """A version live at once, or on trial as `canary`; either ends the trial that there was."""
    state.known(version)
    if canary is None:
        return _made_live(state, version)
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
    return state.changed(canary=canary)


def promoted(state: State, version: str | None = None) -> State:
    """The canary made live. version: of the canary that is meant, where that matters."""
    return _made_live(state, _canary(state, version).version)


def rolled_back(state: State, version: str | None = None) -> State:
    """The canary ended; where none runs, the version made live that was before this one.

    version: of the canary that is meant; then nothing else is rolled back.
    """
    if state.canary is not None or version is not None:
        _canary(state, version)
        return state.changed(canary=None)
    if not state.before:
        raise ChangeRefused(
            f"{state.name}: nothing to roll back to: no canary runs, and no version was live "
            f"before {state.live or 'now'}; deploy the version you want"
        )
    *before, last = state.before
    return state.changed(aliases=state.aliases | {LIVE: last}, before=tuple(before))


def removed(state: State, version: str) -> State:
    """A version less. Refused while a request for the name or an alias may want it."""
    state.known(version)
    aliases = state.aliases_of(version)
    if aliases:
        raise ChangeRefused(
            f"{state.name}:{version} is {' and '.join(aliases)}; move "
            f"{'that' if len(aliases) == 1 else 'those'} to another version first"
        )
    if state.canary is not None and state.canary.version == version:
        raise ChangeRefused(f"{state.name}:{version} is a canary; promote it or roll it back first")
    return state.changed(
        versions={name: entry for name, entry in state.versions.items() if name != version},
        before=tuple(each for each in state.before if each != version),
    )


def _made_live(state: State, version: str) -> State:
    """A version live and no canary; what was live is where a rollback leads."""
    before = state.before
    if state.live is not None and state.live != version:
        before = (*before, state.live)[-MOST_BEFORE:]
    return state.changed(aliases=state.aliases | {LIVE: version}, before=before, canary=None)


def _canary(state: State, version: str | None) -> Canary:
    """The canary, where it is the one that is meant. Raises ChangeRefused."""
    if state.canary is None:
        raise ChangeRefused(f"{state.name}: no canary runs; deploy a version with a share first")
    if version not in (None, state.canary.version):
        raise ChangeRefused(
            f"{state.name}:{version} is not the canary; {state.name}:{state.canary.version} is"
        )
    return state.canary
