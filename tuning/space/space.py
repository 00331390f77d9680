"""The search space of a recipe: its `tune:` section, a range or a choice for each setting.

    tune:
      optimizer.learning_rate: log 1e-6..1e-3     # uniform in the logarithm
      stopping.epochs: 1..4                       # uniform; integers, because both ends are
      batch.global_size: [16, 32, 64]             # a choice
      model.layers: [null, [0, 2, 4]]             # a list may be a choice

All bounds are validated against the recipe before anything starts. A recipe without `tune:` gets
a default space of learning rates and batch sizes for the size of its model.
"""

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.settings import SettingsError
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe

Value = float | int | str | bool | None
Point = dict[str, Value]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(?:(log)\s+)?({NUMBER})\s*\.\.\s*({NUMBER})")
MAX_CORNERS = 256  # combinations of bounds to validate; beyond, each bound is validated alone

# Searching these would change what is measured, or nothing at all.
NOT_SEARCHED = {
    "task": "the metrics of two tasks cannot be compared",
    "data": "two data sets cannot be compared",
    "evaluation": "the search decides itself when and by what it judges",
    "checkpoints": "they change no result",
    "layout": "it changes no result; ask `bertha train --dry-run` for the fastest",
    "batch.token_budget": "it changes no result",
    "parity": "it changes no result",
    "precision": "it is chosen by the device",
    "seed": "a winner must not be a lucky seed; --seeds repeats the best ones with others",
}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, uniform in themselves or in their logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def bounds(self) -> tuple[Value, ...]:
        """The lowest and the highest value."""
        return (self.low, self.high)

    def contains(self, value: Value) -> bool:
        """Return whether `value` is in the range."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def value_at(self, share: float) -> Value:
        """Return the value at `share` (0 to 1) of the way from low to high."""
        low, high = self.low, self.high
        if self.whole:  # so that the lowest and the highest integer are as likely as the others
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
    def bounds(self) -> tuple[Value, ...]:
        """All values."""
        return self.values

    @property
    def is_ordered(self) -> bool:
        """Whether the values are numbers that rise or fall, so that neighbours are alike."""
        numbers = [v for v in self.values if isinstance(v, (int, float)) and v is not True]
        all_numbers = len(numbers) == len(self.values)
        return all_numbers and numbers in (sorted(numbers), sorted(numbers, reverse=True))

    def contains(self, value: Value) -> bool:
        """Return whether `value` is one of the choices."""
        return value in self.values

    def value_at(self, share: float) -> Value:
        """Return the value at `share` (0 to 1) of the way through the choices."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Dimension = Range | Choices
Space = Mapping[str, Dimension]


def parse_space(
    settings: Mapping[str, Any], recipe: Recipe, num_parameters: int, origin: str
) -> Space:
    """Return the space that `settings` names, or the default one for `num_parameters`.

    settings: of the whole recipe file, with overrides; recipe: the same, validated. Raises
    SettingsError for a range that cannot be parsed, a setting that does not exist or cannot be
    searched, and a bound that the recipe rejects.
    """
    if settings.get(recipes.SEARCH_KEY) is None:
        return default_space(recipe, num_parameters)
    named = settings[recipes.SEARCH_KEY]
    if not isinstance(named, Mapping):
        raise SettingsError(
            f"{origin}: tune = {named!r}: give a range to each key, as in "
            "`optimizer.learning_rate: log 1e-6..1e-3`"
        )
    given = dict(_flatten(named))  # overrides of the command line come last, and win
    space = {
        key: _parse_dimension(key, text, origin) for key, text in given.items() if text is not None
    }
    if not space:
        raise SettingsError(f"{origin}: tune names no range; name one, or remove `tune:`")
    check_space(space, recipe, origin)
    return {key: _as_recipe_holds(key, each, recipe, origin) for key, each in space.items()}


def default_space(recipe: Recipe, num_parameters: int) -> Space:
    """Return a space of learning rates and batch sizes for a model of `num_parameters`.

    BERT-base (110 M) is fine-tuned at 2e-5 to 5e-5 (Devlin et al. 2019, appendix A.3) and smaller
    models need more, so the middle for Adam and its kin is 3e-5 times the square root of how much
    smaller the model is; ten times that for a `random` model, which starts from scratch. The range
    spans a factor of ten either way, and more where the recipe's rate is within a factor of three
    of a bound. SGD has no customary rate: a factor of thirty around the recipe's. Batch sizes are
    half to four times the recipe's.
    """
    rate = recipe.learning_rate
    if recipe.optimizer.name == "sgd":
        low, high = rate / 30, rate * 30
    else:
        middle = 3e-5 * math.sqrt(110e6 / max(num_parameters, 1e6))
        middle *= 10 if recipe.model.name == "random" else 1
        low, high = min(middle / 10, rate / 3), max(middle * 10, rate * 3)
    low, high = (float(f"{bound:.1e}") for bound in (low, high))
    size = recipe.global_batch_size
    sizes = tuple(dict.fromkeys(max(1, size * by // 2) for by in (1, 2, 4, 8)))
    return {
        "optimizer.learning_rate": Range(low, high, log=True),
        "batch.global_size": Choices(sizes),
    }


def check_space(space: Space, recipe: Recipe, origin: str) -> None:
    """Raise SettingsError if the recipe rejects a setting, a bound or a combination of bounds."""
    for key in space:
        reason = next((r for k, r in NOT_SEARCHED.items() if f"{key}.".startswith(f"{k}.")), None)
        if reason is not None:
            raise SettingsError(f"{origin}: tune.{key}: not searched: {reason}")
    base = recipe.model_dump(mode="json")
    for key, dimension in space.items():
        for bound in dimension.bounds:
            apply_point(base, {key: bound}, f"{origin}: tune")
    if math.prod(len(dimension.bounds) for dimension in space.values()) <= MAX_CORNERS:
        for corner in itertools.product(*(dimension.bounds for dimension in space.values())):
            apply_point(base, dict(zip(space, corner, strict=True)), f"{origin}: tune")


def apply_point(base: Mapping[str, Any], point: Mapping[str, Any], origin: str = "tune") -> Recipe:
    """Return the recipe of the plain settings `base`, updated by `point`. Raises SettingsError."""
    settings: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in point.items():
        *groups, last = key.split(".")
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{origin}.{key}: {group} is no group of settings")
        inner[last] = decode_choice(value)
    return recipes.parse_recipe(settings, origin)


def get_value(recipe: Recipe, key: str) -> Value:
    """Return the recipe's value of a dotted key."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return encode_choice(value)  # type: ignore[no-any-return]


def extract_point(recipe: Recipe, space: Space) -> Point:
    """Return the recipe's own values of the searched settings."""
    return {key: get_value(recipe, key) for key in space}


def format_point(point: Point) -> str:
    """Format the settings of a point for a person: short names, three digits."""
    return "  ".join(
        f"{key.rpartition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in point.items()
    )


def encode_choice(value: Any) -> Any:
    """Encode a list as its JSON text: samplers want scalars. Anything else is returned as it is."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


def decode_choice(value: Any) -> Any:
    """Invert `encode_choice`."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _as_recipe_holds(key: str, dimension: Dimension, recipe: Recipe, origin: str) -> Dimension:
    """Return choices as a recipe holds them, so that "1e-4" and 0.0001 are one and ordered."""
    if isinstance(dimension, Range):
        return dimension
    base, where = recipe.model_dump(mode="json"), f"{origin}: tune"
    values = tuple(
        get_value(apply_point(base, {key: each}, where), key) for each in dimension.values
    )
    if len(set(map(repr, values))) != len(values):
        raise SettingsError(f"{where}.{key} = {list(dimension.values)}: names a choice twice")
    return Choices(values)


def _flatten(named: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in named.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_dimension(key: str, given: Any, origin: str) -> Dimension:
    where = f"{origin}: tune.{key} = {given!r}"
    if isinstance(given, list):
        if not given:
            raise SettingsError(f"{where}: names no choice")
        if len(set(map(repr, given))) != len(given):
            raise SettingsError(f"{where}: names a choice twice")
        scalars = [
            s for choice in given for s in (choice if isinstance(choice, list) else [choice])
        ]
        if any(isinstance(scalar, (list, dict)) for scalar in scalars):
            raise SettingsError(
                f"{where}: a choice is a number, a word, true, false, null, or a list of such"
            )
        return Choices(tuple(map(encode_choice, given)))
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
