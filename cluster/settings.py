"""Frozen settings read from YAML and validated, with errors that say how to fix each setting.

Recipes and cluster files are both read through here.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cluster.errors import BerthaError
from cluster.yaml_schema import load_as_ray, load_yaml

SIGNS = frozenset(" \t|-#>&*!%@`:;?,/\\")  # alone they separate columns and labels; YAML reads more


class SettingsError(BerthaError):
    """Settings that cannot be used; names the key, the value and the way out."""


class Settings(BaseModel):
    """Base class of a frozen group of settings; an unknown key is an error.

    other_names: what other programs call a setting, and its dotted key here, for error messages.
    """

    other_names: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid")


Group = TypeVar("Group", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file by YAML 1.2's core schema.

    Raises SettingsError for a missing or malformed file.
    """
    return _read_mapping(path, load_yaml)


def read_cluster_yaml(path: Path) -> dict[str, Any]:
    """Read a cluster file as Ray does, by YAML 1.1; but `metadata`, which is ours, as `read_yaml`.

    Raises SettingsError for a missing or malformed file.
    """
    settings, ours = _read_mapping(path, load_as_ray), _read_mapping(path, load_yaml)
    return settings | {key: ours[key] for key in ("metadata",) if key in ours}


def apply_override(settings: dict[str, Any], assignment: str) -> None:
    """Apply one `dotted.key=value` to `settings` in place; the value is parsed as YAML.

    A group given as `auto` or null becomes a mapping once one of its keys is set.
    """
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise SettingsError(
            f"{assignment!r} is not an override; write key=value, as in {_example_of(assignment)}"
        )
    value = _parse_value(text)
    *groups, last = key.split(".")
    for group in groups:
        inner = settings.setdefault(group, {})
        if inner in ("auto", None):
            inner = settings[group] = {}
        if not isinstance(inner, dict):
            raise SettingsError(f"{assignment}: {group} is a value, not a group of settings")
        settings = inner
    settings[last] = value


def validate_settings(kind: type[Group], settings: Mapping[str, Any], origin: str) -> Group:
    """Validate `settings` as a `kind`. Raises one SettingsError that lists every mistake."""
    booleans = _find_booleans(kind, settings)
    mistakes = [f"{key}: this setting is never true or false" for key in booleans]
    try:
        value = kind.model_validate(settings)
    except ValidationError as error:
        mistakes += _explain_errors(kind, error.errors(include_url=False))
    if mistakes:
        raise SettingsError("\n  ".join([f"{origin}:", *dict.fromkeys(mistakes)]))
    return value


def find_settings(kind: type[Settings], name: str) -> list[str]:
    """Return the dotted keys of the settings called `name` in `kind` and its groups.

    Where there is none, the setting that another program calls so, or those of the nearest name;
    [] where no name is near.
    """
    keys: dict[str, list[str]] = {}
    for key in _list_keys(kind):
        keys.setdefault(key.rpartition(".")[2], []).append(key)
    names = {**{other: [key] for other, key in kind.other_names.items()}, **keys}
    if name in names:
        return names[name]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return names[close[0]] if close else []


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?` for the closest of `names`, or "" where none is close."""
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_mapping(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    try:
        settings = load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(settings, dict):
        raise SettingsError(f"{path}: holds no `key: value` settings")
    return settings


def _parse_value(text: str) -> Any:
    """Parse the value of an override; what is no YAML, or a bare sign such as `|`, is itself."""
    if text and not set(text) - SIGNS:
        return text
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _find_booleans(
    kind: type[Settings], settings: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Yield number settings given as true or false, which pydantic would accept as 1 or 0."""
    for name, value in settings.items():
        info = kind.model_fields.get(name)
        inner = _nested_group(info and info.annotation)
        if isinstance(value, bool) and info and bool not in _leaf_types(info.annotation):
            yield f"{prefix}{name} = {str(value).lower()}"
        elif isinstance(value, Mapping) and inner is not None:
            yield from _find_booleans(inner, value, f"{prefix}{name}.")


def _explain_errors(kind: type[Settings], details: Sequence[ErrorDetails]) -> list[str]:
    """Describe each setting at fault in a sentence; one that may be of several kinds in one."""
    by_key: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for number, detail in enumerate(details):
        key, *_ = _locate_setting(kind, [str(part) for part in detail["loc"]])
        is_choice = "input should be" in detail["msg"].lower()
        alone = (repr(detail["input"]),) if is_choice else (str(number),)
        by_key.setdefault((*key, *alone), []).append(detail)
    return [_explain_error(kind, each) for each in by_key.values()]


def _explain_error(kind: type[Settings], details: Sequence[ErrorDetails]) -> str:
    """Describe the errors of one setting: its key, its value, what is wrong, how to fix it."""
    detail = details[-1]
    path, description, siblings = _locate_setting(kind, [str(part) for part in detail["loc"]])
    key = ".".join(path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        group = ".".join(path[:-1])
        is_group = isinstance(detail["input"], Mapping)
        keys = _meant_settings(kind, path, siblings, is_group)
        if keys:
            return f"{key}: no such setting; did you mean {' or '.join(keys)}?"
        return f"{key}: no such setting; {group or 'there'} has {', '.join(siblings)}"
    if detail["type"] == "model_type":
        inside = [each for each in _list_keys(kind) if each.startswith(f"{key}.")]
        likely = kind.other_names.get(key) or next(iter(inside), key)
        return f"{key} = {detail['input']!r}: a group of settings; did you mean {likely}?"
    if detail["type"] == "missing":
        return f"{key}: missing{description and f'; {description}'}"
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    expected = " or ".join(str(each.get("ctx", {}).get("expected", "")) for each in details)
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    meant = did_you_mean(str(detail["input"]), filter(None, choices))
    hint = f" ({description})" if description else ""
    others = [each["msg"].removeprefix("Input should be ") for each in details[:-1]]
    wrong = " or ".join(dict.fromkeys([f"{message[0].lower()}{message[1:]}", *others]))
    return f"{key} = {detail['input']!r}: {wrong}{meant}{hint}"


def _meant_settings(
    kind: type[Settings], path: list[str], siblings: list[str], is_group: bool
) -> list[str]:
    """Return the dotted keys that an unknown one may stand for, those of its own group first."""
    group = "".join(f"{part}." for part in path[:-1])
    found = [] if is_group else find_settings(kind, path[-1])
    here = [key for key in found if key.rpartition(".")[0] == group.rstrip(".")]
    if found:
        return here or found
    close = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.5)
    return [f"{group}{name}" for name in close]


def _list_keys(kind: type[Settings], prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every setting that is no group."""
    for name, info in kind.model_fields.items():
        inner = _nested_group(info.annotation)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from _list_keys(inner, f"{prefix}{name}.")


def _example_of(word: str) -> str:
    """Return an assignment that may have been meant by a word without `=`."""
    is_table = any(end in Path(word).suffixes for end in (".csv", ".tsv", ".jsonl", ".parquet"))
    return f"data.source={word}" if is_table else "batch.global_size=64"


def _locate_setting(
    kind: type[Settings], location: Sequence[str]
) -> tuple[list[str], str, list[str]]:
    """Return the dotted path, description and siblings of a setting."""
    group, path, description = kind, [], ""
    parts = iter(location)
    for part in parts:
        path.append(part)
        info = group.model_fields.get(part)
        if info is None:
            break
        description = info.description or ""
        inner = _nested_group(info.annotation)
        if inner is None:
            break
        if len(set(_leaf_types(info.annotation)) - {type(None)}) > 1:
            next(parts, None)  # pydantic inserts the name of the union's branch, which is no key
        group = inner
    return path, description, list(group.model_fields)


def _nested_group(annotation: Any) -> type[Settings] | None:
    """Return the group of settings that a field may hold, if any."""
    groups = (leaf for leaf in _leaf_types(annotation) if isinstance(leaf, type))
    return next((leaf for leaf in groups if issubclass(leaf, Settings)), None)


def _leaf_types(annotation: Any) -> Iterator[Any]:
    """Yield the types and literal values that an annotation is made of."""
    inner = () if get_origin(annotation) in (dict, tuple, list) else get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _leaf_types(each)
