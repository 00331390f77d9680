"""Whether a run may be resumed with a recipe, and what of it may have changed since it began."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainers.config.recipe import AUTO, Recipe

# May change between a run and its resumption: they change no result.
CHANGEABLE_KEYS = ("layout", "batch.token_budget", "parity", "baseline", "tracking")
# May grow: the run goes on from where it is, as one that was this long from the beginning. null is
# without end.
GROWING_KEYS = ("stopping.epochs", "stopping.max_steps", "stopping.patience")


@dataclass(frozen=True)
class RecipeChange:
    """How a recipe differs from that of the run, by dotted keys.

    changed: what may not. longer: what grows, with its values before and now. shorter: what would
    shrink, likewise.
    """

    changed: tuple[str, ...] = ()
    longer: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    shorter: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def to_line(self) -> str:
        """Say what grows, for a person; "" where nothing does."""
        if not self.longer:
            return ""
        each = ", ".join(
            f"{key} {format_value(old)} -> {format_value(new)}"
            for key, (old, new) in self.longer.items()
        )
        return (
            f"longer    {each}: training goes on from the last checkpoint, at the learning rate "
            "that the schedule of the longer run has there"
        )


def compare_recipes(before: Recipe, now: Recipe, begun: Mapping[str, Any]) -> RecipeChange:
    """Compare the recipe of a run with the one that it is to go on with.

    begun: the numbers that the run has for what `before` leaves `auto`, by key.
    """
    old, new = before.model_dump(), now.model_dump()
    changed, longer, shorter = [], {}, {}
    for key in differing_keys(old, new):
        if key.startswith(CHANGEABLE_KEYS):
            continue
        values = _value_at(old, key, begun), _value_at(new, key, begun)
        if key not in GROWING_KEYS or AUTO in values:
            changed.append(key)
        elif values[0] is None or (values[1] is not None and values[1] < values[0]):
            shorter[key] = values
        elif values[0] != values[1]:
            longer[key] = values
    return RecipeChange(tuple(changed), longer, shorter)


def format_value(value: Any) -> str:
    """Return a value as a recipe has it."""
    return "null" if value is None else str(value)


def differing_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys whose values differ."""
    keys = []
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            keys += differing_keys(before[key], value, f"{prefix}{key}.")
        elif before.get(key) != value:
            keys.append(prefix + key)
    return keys


def _value_at(settings: dict[str, Any], key: str, begun: Mapping[str, Any]) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return begun.get(key, AUTO) if value == AUTO else value
