"""YAML as it is read and written here: the core schema of YAML 1.2 (specification, 10.3.2).

1e-5 is a number, 0o14 an octal one, and `no`, `off`, 1:30 and 2024-05-01 are words. Ray reads
cluster files with PyYAML alone, by YAML 1.1, to which those are false, seconds and a date, and 1e-5
a word: `load_as_ray` reads so, and what `dump_yaml` writes means the same to both.
"""

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
# Kinds of plain scalars, each with its pattern and the characters that one may begin with.
CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _UniqueKeys(yaml.SafeLoader):
    """A YAML 1.1 loader that rejects duplicate keys; PyYAML silently keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is written twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


class _CoreLoader(_UniqueKeys):
    """The same by the core schema of YAML 1.2, with merge keys (`<<`)."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        try:
            return int(text if base == 10 else text[2:], base)
        except ValueError:
            raise _no_number(node) from None

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = self.construct_scalar(node).lower()
        try:
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _no_number(node) from None


class _Dumper(yaml.SafeDumper):
    """Quotes each word that is none to YAML 1.1 or to 1.2; writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_CoreLoader.yaml_implicit_resolvers = {}  # its own: those of YAML 1.1 stay with PyYAML
for _kind, _pattern, _first in CORE_SCHEMA:
    for _side in (_CoreLoader, _Dumper):
        _side.add_implicit_resolver(f"{TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
_CoreLoader.add_implicit_resolver(f"{TAG}merge", re.compile(r"<<\Z"), ["<"])
_CoreLoader.add_constructor(f"{TAG}int", _CoreLoader.construct_yaml_int)
_CoreLoader.add_constructor(f"{TAG}float", _CoreLoader.construct_yaml_float)


def load_yaml(text: str) -> Any:
    """Load `text` by YAML 1.2's core schema. Raises yaml.YAMLError."""
    return _load(text, _CoreLoader)


def load_as_ray(text: str) -> Any:
    """Load `text` by YAML 1.1, as Ray does. Raises yaml.YAMLError."""
    return _load(text, _UniqueKeys)


def dump_yaml(value: Any) -> str:
    """Format `value` as YAML that 1.1 and 1.2 read the same, in its order and without anchors."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _load(text: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # by YAML 1.1 a date such as 2024-13-45, and PyYAML's own parsing
        raise yaml.YAMLError(str(error)) from None


def _no_number(node: yaml.ScalarNode) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(
        None, None, f"{str(node.value)[:40]!r} is no number that can be read", node.start_mark
    )
