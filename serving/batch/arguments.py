"""The words after `bertha predict BUNDLE`: texts, or the files that hold them."""

from collections.abc import Sequence
from pathlib import Path

from cluster.errors import BerthaError
from trainers.data import files, readers
from trainers.data.files import DataError, local_path
from trainers.data.tables import list_tables

AS_TEXT = "--as-text"
PATH_STARTS = ("/", "./", "../", "~/")


class ArgumentError(BerthaError):
    """Words that are neither texts nor files for certain; the message says the way out."""


def find_files(words: Sequence[str]) -> tuple[str, ...]:
    """Return the files and directories that the words name; () where they are texts.

    A word is a file where one is there, one that ends as a table does, or one of s3://. Raises
    ArgumentError for a name without a file, a file that is no table, and files among texts.
    """
    named = [word for word in words if _is_file(word, alone=len(words) == 1)]
    for word in named:
        if not word.startswith(("http://", "https://")) and not files.is_present(word):
            raise ArgumentError(
                f"{word}: no such file; name one that is there, or add {AS_TEXT} to ask what the "
                "model says of these very words"
            )
    try:
        list_tables([word for word in named if readers.table_format(word) is None])
    except DataError as error:
        raise ArgumentError(f"{error}; or add {AS_TEXT} where it is a text") from None
    if named and len(named) < len(words):
        text = next(word for word in words if word not in named)
        raise ArgumentError(
            f"{named[0]} is a file and {text[:60]!r} is a text; give files alone or texts alone, "
            f"or add {AS_TEXT} where all of them are texts"
        )
    return tuple(named)


def _is_file(word: str, alone: bool) -> bool:
    """Return whether a word can only mean a file."""
    if not word.strip():
        return False
    if word.startswith(("s3://", "s3a://", "file://")):
        return True
    is_table = readers.table_format(word) is not None
    if word.startswith(("http://", "https://")):
        return is_table and not any(map(str.isspace, word))
    path = local_path(word)
    try:
        is_present = path is not None and path.exists()
    except (OSError, ValueError):  # a text that is too long for a name, or holds a zero
        return False
    if is_present:
        # Words of a sentence may be names of directories; a sole argument is hardly one of those.
        return alone or is_table
    is_name = not any(map(str.isspace, word)) and Path(word).stem != ""
    return is_name and (is_table or (word.startswith(PATH_STARTS) and len(word) > 2))
