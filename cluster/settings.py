"""Settings read from YAML: frozen, checked, and wrong in words that show the way out.

The recipe and the cluster file are both read through here. Knows nothing of what they mean.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cluster.errors import BerthaError


class SettingsError(BerthaError):
    """Settings that cannot be used; the text says which key, which value, and the way out."""


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnySettings = TypeVar("AnySettings", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SettingsError where there is none to be had."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(settings, dict):
        raise SettingsError(f"{path}: holds no `key: value` settings")
    return settings


def override(settings: dict[str, Any], assignment: str) -> None:
    """Apply one `dotted.key=value` to `settings` in place; the value is read as YAML.

    A group that was left to us, as in `layout: auto`, becomes a mapping when a key of it is set.
    """
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise SettingsError(
            f"{assignment!r} is not an override; write key=value, as in batch.global_size=64"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *groups, last = key.split(".")
    for group in groups:
        inner = settings.setdefault(group, {})
        if inner in ("auto", None):
            inner = settings[group] = {}
        if not isinstance(inner, dict):
            raise SettingsError(f"{assignment}: {group} is a value, not a group of settings")
        settings = inner
    settings[last] = value


def validated(kind: type[AnySettings], settings: Mapping[str, Any], origin: str) -> AnySettings:
    """`settings` as a checked `kind`. Raises one SettingsError that lists every mistake."""
    mistakes = [f"{key}: this setting is never true or false" for key in _booleans(kind, settings)]
    try:
        value = kind.model_validate(settings)
    except ValidationError as error:
        mistakes += [_explain(kind, detail) for detail in error.errors(include_url=False)]
    if mistakes:
        raise SettingsError("\n  ".join([f"{origin}:", *dict.fromkeys(mistakes)]))
    return value


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key written twice instead of keeping the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _booleans(kind: type[Settings], settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of numbers that hold true or false, which pydantic would read as 1 or 0."""
    for name, value in settings.items():
        info = kind.model_fields.get(name)
        inner = _group_in(info and info.annotation)
        if isinstance(value, bool) and info is not None and bool not in _leaves(info.annotation):
            yield f"{prefix}{name} = {str(value).lower()}"
        elif isinstance(value, Mapping) and inner is not None:
            yield from _booleans(inner, value, f"{prefix}{name}.")


def _explain(kind: type[Settings], detail: ErrorDetails) -> str:
    """One sentence for one pydantic error: key, value, what is wrong, way out."""
    path, description, siblings = _locate(kind, [str(part) for part in detail["loc"]])
    key = ".".join(path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.5)
        if close:
            return f"{key}: no such setting; did you mean {'.'.join([*path[:-1], *close])}?"
        return f"{key}: no such setting; {'.'.join(path[:-1]) or 'there'} has {', '.join(siblings)}"
    if detail["type"] == "missing":
        return f"{key}: missing{description and f'; {description}'}"
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    choices = str(detail.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
    close = difflib.get_close_matches(str(detail["input"]), [c.strip("'") for c in choices], n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    hint = f" ({description})" if description else ""
    return f"{key} = {detail['input']!r}: {message[0].lower()}{message[1:]}{meant}{hint}"


def _locate(kind: type[Settings], location: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """The dotted path, description and siblings of a setting.

    Pydantic puts the name of a union's branch after the key, or at the end; it is no key and is
    dropped.
    """
    group, path, description = kind, [], ""
    parts = iter(location)
    for part in parts:
        path.append(part)
        info = group.model_fields.get(part)
        if info is None:
            break
        description = info.description or ""
        inner = _group_in(info.annotation)
        if inner is None:
            break
        if len(set(_leaves(info.annotation)) - {type(None)}) > 1:
            next(parts, None)
        group = inner
    return path, description, list(group.model_fields)


def _group_in(annotation: Any) -> type[Settings] | None:
    """The group of settings that a field may hold."""
    groups = (leaf for leaf in _leaves(annotation) if isinstance(leaf, type))
    return next((leaf for leaf in groups if issubclass(leaf, Settings)), None)


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types and values that an annotation is made of."""
    inner = () if get_origin(annotation) in (dict, tuple, list) else get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _leaves(each)
