"""Ray's own schema of a cluster file, and what breaks it in words.

Reads the schema that the installed Ray has; imports no Ray. jsonschema comes with it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.settings import SettingsError
from cluster.validation.problem import Mistake, nearest

KINDS = {"integer": "a whole number", "string": "text", "array": "a list", "object": "a mapping"}


def of_schema(settings: Mapping[str, Any]) -> Iterator[Mistake]:
    """Every place where Ray would refuse the file's shape. Raises SettingsError without Ray."""
    for error in _validator().iter_errors(settings):
        yield from _mistakes(error)


@functools.cache
def _validator() -> Any:
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        raise SettingsError('Ray is not installed here; pip install "ray[default]"')
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())
    return importlib.import_module("jsonschema").Draft7Validator(schema)


def _mistakes(error: Any) -> Iterator[Mistake]:
    """One of jsonschema's errors; a group with several unknown keys gives one mistake each."""
    place = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in sorted(set(error.instance) - set(known), key=str):
            yield Mistake(_joined(place, name), f"Ray has no such setting{nearest(name, known)}")
    elif error.validator == "required":
        # One error a missing name; a schema that wants several is asked for each.
        name = error.message.split("'")[1]
        yield Mistake(_joined(place, name), "missing; Ray cannot do without it")
    elif error.validator == "type":
        wanted = KINDS.get(str(error.validator_value), str(error.validator_value))
        yield Mistake(place or "the file", f"must be {wanted}", error.instance)
    else:
        yield Mistake(place or "the file", error.message.split("\n")[0], error.instance)


def _joined(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)
