"""What is searched: a range for each of some settings of a recipe.

    tune:
      optimizer.learning_rate: log 1e-6..1e-3     # even in its logarithm
      stopping.epochs: 1..4                       # even; whole numbers, for both ends are
      batch.global_size: [16, 32, 64]             # a choice

Every end of every range is checked against the recipe before anything starts. Where a recipe names
no ranges, learning rate and batch size are searched around what suits a model of its size. Knows no
torch and no Ray.
"""

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.settings import SettingsError
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from tuning.space import listed

Value = float | int | str | bool | None
Point = dict[str, Value]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(?:(log)\s+)?({NUMBER})\s*\.\.\s*({NUMBER})")
CORNERS = 256  # combinations of ends that are checked; beyond, each end by itself

# Searching these would change what is measured, or nothing at all.
NOT_SEARCHED = {
    "task": "the metrics of two tasks cannot be compared",
    "data": "two data sets cannot be compared",
    "evaluation": "the search decides itself when and by what it judges",
    "checkpoints": "they change no result",
    "layout": "it changes no result; ask `python -m trainers --dry-run` for the fastest",
    "batch.token_budget": "it changes no result",
    "parity": "it changes no result",
    "precision": "it is chosen by the device",
    "seed": "a winner must not be a lucky seed; --seeds repeats the best ones with others",
}


@dataclass(frozen=True)
class Range:
    """The numbers from low to high, even in their logarithm or in themselves."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Value, ...]:
        """The lowest and the highest."""
        return (self.low, self.high)

    def holds(self, value: Value) -> bool:
        """Whether `value` is in the range."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def at(self, share: float) -> Value:
        """The value at `share`, 0 to 1, of the way."""
        low, high = self.low, self.high
        if self.whole:
            low, high = low - 0.5, high + 0.5
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, self.low), self.high)
        return min(max(round(value), int(self.low)), int(self.high)) if self.whole else value

    def __str__(self) -> str:
        return f"{'log ' if self.log else ''}{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """One of several values, in the order given."""

    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them."""
        return self.values

    @property
    def are_ordered(self) -> bool:
        """Whether neighbours are alike: numbers, rising or falling."""
        numbers = [v for v in self.values if isinstance(v, (int, float)) and v is not True]
        rising = len(numbers) == len(self.values)
        return rising and numbers in (sorted(numbers), sorted(numbers, reverse=True))

    def holds(self, value: Value) -> bool:
        """Whether `value` is one of them."""
        return value in self.values

    def at(self, share: float) -> Value:
        """The value at `share`, 0 to 1, of the way."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Dimension = Range | Choices
Space = Mapping[str, Dimension]


def of(settings: Mapping[str, Any], recipe: Recipe, num_parameters: int, origin: str) -> Space:
    """The space that `settings` names, or the default one of a model of `num_parameters`.

    settings: of the whole recipe file, overrides applied; recipe: the same, checked. Raises
    SettingsError for a range that cannot be read, a setting that does not exist or cannot be
    searched, and an end that the recipe refuses.
    """
    if settings.get(recipes.RANGES) is None:
        return default(recipe, num_parameters)
    named = settings[recipes.RANGES]
    if not isinstance(named, Mapping):
        raise SettingsError(
            f"{origin}: tune = {named!r}: give a range to each key, as in "
            "`optimizer.learning_rate: log 1e-6..1e-3`"
        )
    given = dict(_flat(named))  # what the command line says comes last, and wins
    space = {key: _parsed(key, text, origin) for key, text in given.items() if text is not None}
    if not space:
        raise SettingsError(f"{origin}: tune names no range; name one, or remove `tune:`")
    check(space, recipe, origin)
    return space


def default(recipe: Recipe, num_parameters: int) -> Space:
    """Learning rate and batch size around what suits a model of `num_parameters`.

    BERT-base (110 M) is fine-tuned at 2e-5 to 5e-5 (Devlin et al. 2019, appendix A.3) and smaller
    models want more, so the middle for Adam's kin is 3e-5 times the square root of how much smaller
    the model is; a `random` model starts from nothing and wants ten times as much. The range is ten
    times less to ten times more, and wider where the recipe's own rate would be within a factor of
    three of an end. SGD has no customary rate: a factor of thirty around the recipe's. Batch sizes
    are a half to four times the recipe's.
    """
    rate = recipe.optimizer.learning_rate
    if recipe.optimizer.name == "sgd":
        low, high = rate / 30, rate * 30
    else:
        middle = 3e-5 * math.sqrt(110e6 / max(num_parameters, 1e6))
        middle *= 10 if recipe.model.name == "random" else 1
        low, high = min(middle / 10, rate / 3), max(middle * 10, rate * 3)
    size = recipe.batch.global_size
    sizes = tuple(dict.fromkeys(max(1, size * by // 2) for by in (1, 2, 4, 8)))
    return {
        "optimizer.learning_rate": Range(_round(low), _round(high), log=True),
        "batch.global_size": Choices(sizes),
    }


def check(space: Space, recipe: Recipe, origin: str) -> None:
    """Raise SettingsError where the recipe refuses a setting, an end, or a combination of ends."""
    for key in space:
        reason = next((r for k, r in NOT_SEARCHED.items() if f"{key}.".startswith(f"{k}.")), None)
        if reason is not None:
            raise SettingsError(f"{origin}: tune.{key}: not searched: {reason}")
    base = recipe.model_dump(mode="json")
    for key, dimension in space.items():
        for end in dimension.ends:
            with_point(base, {key: end}, f"{origin}: tune")
    corners = math.prod(len(dimension.ends) for dimension in space.values())
    if corners <= CORNERS:
        for ends in itertools.product(*(dimension.ends for dimension in space.values())):
            with_point(base, dict(zip(space, ends, strict=True)), f"{origin}: tune")


def with_point(base: Mapping[str, Any], point: Mapping[str, Any], origin: str = "tune") -> Recipe:
    """The recipe of plain settings `base` with those of `point`. Raises SettingsError."""
    settings: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in point.items():
        *groups, last = key.split(".")
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{origin}.{key}: {group} is no group of settings")
        inner[last] = listed.meant(value)
    return recipes.parse(settings, origin)


def value_of(recipe: Recipe, key: str) -> Value:
    """What `recipe` says of a dotted key."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return listed.word(value)  # type: ignore[no-any-return]


def point_of(recipe: Recipe, space: Space) -> Point:
    """The recipe's own values of what is searched."""
    return {key: value_of(recipe, key) for key in space}


def words(point: Point) -> str:
    """The settings of a point for a person: short names, three digits."""
    return "  ".join(
        f"{key.rpartition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in point.items()
    )


def _flat(named: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in named.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parsed(key: str, given: Any, origin: str) -> Dimension:
    where = f"{origin}: tune.{key} = {given!r}"
    if isinstance(given, list):
        if not given:
            raise SettingsError(f"{where}: names no choice")
        if len(set(map(repr, given))) != len(given):
            raise SettingsError(f"{where}: names a choice twice")
        if not all(listed.is_choice(choice) for choice in given):
            raise SettingsError(
                f"{where}: a choice is a number, a word, true, false, null, or a list of such"
            )
        return Choices(tuple(map(listed.word, given)))
    match = RANGE.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None:
        raise SettingsError(
            f"{where}: not a range; write `log 1e-6..1e-3`, `1..5`, or a list of choices"
        )
    log, low, high = match[1] is not None, float(match[2]), float(match[3])
    if low >= high:
        raise SettingsError(f"{where}: upside down; write {match[3]}..{match[2]}")
    if log and low <= 0:
        raise SettingsError(f"{where}: a logarithm needs ends above 0; raise {match[2]}")
    whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (match[2], match[3]))
    return Range(int(low) if whole else low, int(high) if whole else high, log, whole)


def _round(value: float) -> float:
    return float(f"{value:.1e}")
