"""Lists in a text: JSON, a Python literal as pandas writes it, and what NumPy and torch print."""

import ast
import json
import re
import warnings
from typing import Any

MAX_LITERAL = 100_000  # characters of a list that are parsed
_LIST = re.compile(r"[\[({]|(?:np\.|numpy\.|torch\.)?(?:array|tensor)\(")
_ARRAY = re.compile(r"[\w.]+\((\[.*\])(?:,\s*\w+=[\w.':]+)*\)", re.DOTALL)
_SCALAR = re.compile(r"np\.(?:(True|False)_|\w+\(([^()]*)\))")  # how NumPy 2 writes one in a list
_NUMBER = r"(?:-?[0-9]+(?:\.[0-9]*)?|True|False)"
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_NUMPY = re.compile(
    rf"\[\s*(?:{_NUMBER}(?:\s+{_NUMBER})+|{_QUOTED}(?:\s+{_QUOTED})+)\s*\]", re.DOTALL
)
_NUMPY_ITEM = re.compile(rf"({_NUMBER}|{_QUOTED})\s+(?=[^\s\]])", re.DOTALL)
_GLUED = re.compile(r"""['"]\s+['"]""")  # Python would read 'a' 'b' as the one word ab


def as_list(cell: Any) -> list[Any] | None:
    """Return a cell that is a list, or the text of one, as a list; else None."""
    if isinstance(cell, list):
        return cell
    return parse_list(cell) if isinstance(cell, str) else None


def parse_list(text: str) -> list[Any] | None:
    """Parse a list in a text; None where it is none, and where items are not separated."""
    text = text.strip()
    if len(text) > MAX_LITERAL or not _LIST.match(text):
        return None
    if array := _ARRAY.fullmatch(text):
        text = array[1]
    if _NUMPY.fullmatch(text):
        text = _NUMPY_ITEM.sub(r"\1, ", text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None if _GLUED.search(text) else _parse_literal(_SCALAR.sub(r"\1\2", text))
    if isinstance(value, set):
        return sorted(value, key=repr)  # a set has another order in each process
    return list(value) if isinstance(value, (list, tuple)) else None


def _parse_literal(text: str) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of escapes such as \d in a name
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
