"""Command lines that take a recipe and `key=value` settings.

A flag that is a setting, by its own name or by that which other trainers give it, is answered with
the setting: `--epochs 3` with `stopping.epochs=3`.
"""

import argparse
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.settings import find_settings
from trainers.config import recipe as recipes
from trainers.config.trainer_names import OPTIONS

WIDTH = 80


def parse_with_settings(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> argparse.Namespace:
    """Parse options, a recipe and settings in any order; exit as argparse does on a mistake.

    parser: made with allow_abbrev=False, so that `--seed` is not taken for `--seeds`.
    """
    options, unknown = parser.parse_known_intermixed_args(arguments)
    flags = [word for word in unknown if word.startswith("-")]
    # `epochs 3`, a flag without its dashes; its value, and a file, are no names of settings.
    flags += [word for word in options.overrides if "=" not in word and _is_name(word)]
    answers = {flag: explain_flag(flag, arguments) for flag in flags}
    if any(answers.values()):
        lines = [answer or f"{flag}: no such option" for flag, answer in answers.items()]
        parser.exit(2, "\n  ".join([f"error: {lines[0]}", *lines[1:]]) + "\n")
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}; settings of the recipe are written "
            "key=value, as in stopping.epochs=3"
        )
    return options


def explain_flag(flag: str, arguments: Sequence[str]) -> str:
    """Return what to write instead of a flag that is a setting, or "" where it is none.

    flag: as "--lr" or "--lr=1e-4". arguments: the command line that it stands in.
    """
    word, separator, value = flag.partition("=")
    if not separator:
        value = _value_after(flag, arguments)
    name = word.lstrip("-").replace("-", "_").lower()
    if name in OPTIONS:
        return f"{word}: give {OPTIONS[name]}"
    keys = find_settings(recipes.Recipe, name.rpartition(".")[2])
    meant = [key if "=" in key else f"{key}={value or '...'}" for key in keys]
    if not meant:
        return ""
    chosen = [each for each in meant if each.startswith(f"{name}=")] or meant
    return f"{word}: settings are written key=value, without dashes; write {' or '.join(chosen)}"


def describe_recipes(command: str, example: str) -> str:
    """Return what to say where no recipe was named: the shipped ones, and an example.

    command: as "bertha train". example: what stands behind it.
    """
    return "\n".join(
        [
            f"usage: {command} RECIPE [key=value ...]",
            "",
            "RECIPE is a YAML file, or one of those shipped here:",
            *(f"  {line}" for line in recipe_lines()),
            "",
            f"as in   {command} {example}",
            f"More: `{command} --help`; every setting: docs/recipe.md",
        ]
    )


def recipe_lines() -> Iterator[str]:
    """Yield the name of each shipped recipe, with what it trains."""
    for path in sorted(recipes.SHIPPED.glob("*.yaml")):
        yield f"{path.stem:<20}{_summary(path)}"


def _summary(path: Path) -> str:
    """Return the beginning of the comment at the top of a recipe file."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), path.read_text().splitlines())
    return textwrap.shorten(" ".join(line[2:] for line in lines), WIDTH, placeholder=" ...")


def _is_name(word: str) -> bool:
    return word.replace("-", "_").isidentifier() and bool(find_settings(recipes.Recipe, word))


def _value_after(flag: str, arguments: Sequence[str]) -> str:
    """Return the word after a flag if it can be its value, else ""."""
    following = list(arguments)[list(arguments).index(flag) + 1 :]
    value = following[0] if following else ""
    return "" if value.startswith("-") or "=" in value else value
