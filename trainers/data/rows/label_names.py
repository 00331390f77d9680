"""Names of classes that look wrong: several in one, and spellings that may mean the same."""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection

_SEPARATORS = (",", ";", "/", "|")
_RARE = 5  # times as many rows has the name that a misspelt one was meant to be
_NEARLY = 0.85  # of difflib's ratio: neg and negg are
_MAX_FOLDED = 10_000  # names; of more, nobody reads the notes
_MAX_COMPARED = 200
_MAX_NOTES = 20
_SHOWN = 60  # characters
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+")


def find_separator(names: Collection[str]) -> tuple[str, str] | None:
    """Return a mark that evidently separates labels in `names`, and one of these; or None.

    That is where the parts of most that hold it recur, on their own or beside others.
    """
    for mark in _SEPARATORS:
        joined = [name for name in names if mark in name]
        parts = Counter(part.strip() for name in names for part in name.split(mark))
        recurring = [name for name in joined if all(parts[p.strip()] > 1 for p in name.split(mark))]
        if len(joined) >= 2 and len(recurring) > len(joined) / 2 and len(parts) <= len(names):
            return mark, min(recurring)
    return None


def explain_unknown(name: str, names: tuple[str, ...], several: bool) -> str:
    """Return what to do about a label that is not one of `names`.

    several: whether a row may have several labels.
    """
    for mark in _SEPARATORS:
        parts = [part.strip() for part in name.split(mark)]
        if len(parts) > 1 and all(part in names for part in parts):
            task = "" if several else "task=multi-label and "
            return f"its parts are: set {task}data.label_separator={mark!r}"
    same = next((each for each in names if _fold_name(each) == _fold_name(name)), None)
    if same is not None:
        return f"write it {same!r} as in data.labels, or name every class there"
    return (
        "The classes are data.labels, by default those of all rows: fix the row, or name every "
        "class in data.labels"
    )


def note_similar(rows: dict[str, int]) -> tuple[str, ...]:
    """Return notes on classes that may be one by mistake; rows: of each class."""
    if len(rows) > _MAX_FOLDED:
        return ()
    folded: dict[str, list[str]] = {}
    for name in rows:
        folded.setdefault(_fold_name(name), []).append(name)
    notes = [
        f"labels {', '.join(repr(name[:_SHOWN]) for name in sorted(each))} differ in case, blanks "
        "or hyphens only: one class?"
        for each in folded.values()
        if len(each) > 1
    ]
    if len(folded) <= _MAX_COMPARED:
        notes += _note_misspelt({name: sum(rows[n] for n in each) for name, each in folded.items()})
    more = len(notes) - _MAX_NOTES
    return tuple(notes[:_MAX_NOTES]) + ((f"and {more} pairs of labels more",) if more > 0 else ())


def _fold_name(name: str) -> str:
    """Return what names have in common that people do not mean to tell apart."""
    if _NUMBER.fullmatch(name):
        return name
    shown = "".join(
        letter
        for letter in unicodedata.normalize("NFKC", name).casefold()
        if unicodedata.category(letter) != "Cf"
    )
    return re.sub(r"[\s_-]+", " ", shown).strip() or name


def _note_misspelt(rows: dict[str, int]) -> list[str]:
    """Return a note on each rare name that is nearly a frequent one; digits never are."""
    found = []
    for name, count in rows.items():
        if len(name) < 3 or any(map(str.isdigit, name)):
            continue
        frequent = [
            other
            for other in rows
            if rows[other] >= _RARE * count
            and not any(map(str.isdigit, other))
            and not name.endswith(other)  # unhappy is no slip of happy
            and not other.endswith(name)
        ]
        close = difflib.get_close_matches(name, frequent, n=1, cutoff=_NEARLY)
        if close:
            plural = "" if count == 1 else "s"
            found.append(
                f"label {name[:_SHOWN]!r} ({count:,} row{plural}) is nearly "
                f"{close[0][:_SHOWN]!r}: one class?"
            )
    return found
