"""Cells of a label column as lists: JSON, Python's or NumPy's, and vectors of 0 and 1."""

import ast
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from trainers.data.files import DataError

MAX_LITERAL = 100_000  # characters of a list that are parsed
_NUMPY_NUMBERS = re.compile(r"\[\s*[01]\.?0?(?:\s+[01]\.?0?)+\s*\]")
_NUMPY_TEXTS = re.compile(r"""['"]\s+['"]""")
_TRUTHS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
_INVISIBLE = "\0\u200b\u200c\u200d\u2060\ufeff"  # at the ends of a name, nobody sees them


def clean_name(value: object) -> str:
    """Return a label's name: composed (Unicode NFC), without blanks at its ends."""
    name = unicodedata.normalize("NFC", str(value))
    while (stripped := name.strip().strip(_INVISIBLE)) != name:
        name = stripped
    return name


def parse_list(text: str) -> list[Any] | None:
    """Parse a list in a text: JSON, a Python literal as pandas writes it, or NumPy's `[1 0 1]`.

    None where it is no list, and where items are not separated.
    """
    text = text.strip()
    if len(text) > MAX_LITERAL:
        return None
    if _NUMPY_NUMBERS.fullmatch(text):
        return [float(item) for item in text[1:-1].split()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _NUMPY_TEXTS.search(text):  # Python would read ['a' 'b'] as the one word ab
            return None
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
    return list(value) if isinstance(value, (list, tuple, set)) else None


def read_truth(value: object) -> int | None:
    """Return 0 or 1 for a cell that means it, as "true" or 1.0; None for any other."""
    return _TRUTHS.get(str(value).strip().lower())


def find_vectors(
    cells: Sequence[Any], numbers: Sequence[int], column: str, given: tuple[str, ...] | None
) -> tuple[dict[int, list[int]], int]:
    """Find the cells of a column that are vectors of 0 and 1, by place, and their length.

    It is a column of vectors where every list in it holds 0 and 1 alone and all are as long. Then
    all cells that are lists are vectors; in any other column none is. numbers: the row of each
    cell. given: the class names. Raises DataError where a list can be neither a vector nor a list
    of labels, because it holds 0 or 1 twice and others are longer or hold other values.
    """
    lists = {place: each for place, cell in enumerate(cells) if (each := as_list(cell))}
    vectors = {
        place: [int(item) for item in each] for place, each in lists.items() if _is_hot(each)
    }
    lengths = {len(vector) for vector in vectors.values()}
    if len(vectors) == len(lists) and len(lengths) == 1 and lengths != {1}:
        (length,) = lengths
        if given is not None and length != len(given):
            place = next(iter(vectors))
            raise DataError(
                f"row {numbers[place]}: column {column!r} holds vectors of {length} numbers, as "
                f"{vectors[place]}, but data.labels names {len(given)} classes; name {length}"
            )
        return vectors, length
    for place, vector in vectors.items():
        if len(set(vector)) == len(vector):
            continue  # a list of labels holds none twice, and this may be one
        other = next(
            place
            for place, each in lists.items()
            if place not in vectors or len(each) != len(vector)
        )
        raise DataError(
            f"row {numbers[place]}: column {column!r} holds {vector}, a vector of 0 and 1, but row "
            f"{numbers[other]} holds {lists[other]!r:.60}; give vectors of one length, or lists of "
            "names"
        )
    return {}, 0


def _is_hot(items: list[Any]) -> bool:
    return all(item in (0, 1) or item in ("0", "1") for item in items)


def as_list(cell: Any) -> list[Any] | None:
    """Return a cell that is a list, or the text of one, as a list; else None."""
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "(", "{"):
        return parse_list(cell)
    return None
