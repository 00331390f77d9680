"""Models of a stranger: a true one, changed so that it would cost too much, and sealed again."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from trainers.models.card import CARD_FILE
from trainers.storage.atomic import file_sha256

SECONDS, GROWTH = 2.0, 64 * 2**20  # far more than a refusal takes, far less than what is promised


def copy_bundle(bundle: Path, target: Path) -> Path:
    """Copy a bundle, to be changed; return where it is."""
    return shutil.copytree(bundle, target)


def seal_bundle(bundle: Path, digests: bool = True, **changes: Any) -> Path:
    """Write the card anew, as its author could, for the files that it lists.

    digests: whether they are computed, which takes as long as the files are large. changes: of
    fields of the card.
    """
    card = json.loads((bundle / CARD_FILE).read_text()) | changes
    if digests:
        card["files"] = {name: file_sha256(bundle / name) for name in card["files"]}
    (bundle / CARD_FILE).write_text(json.dumps(card))
    return bundle


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of the JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_tensors(path: Path, header: dict[str, Any], size: int = 0) -> None:
    """Write a safetensors file with that header, and `size` bytes behind it that take no disk."""
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


@contextmanager
def refused_cheaply() -> Iterator[None]:
    """Assert that the block takes neither long nor much memory."""
    memory, started = psutil.Process().memory_info().rss, time.process_time()
    yield
    assert time.process_time() - started < SECONDS
    assert psutil.Process().memory_info().rss - memory < GROWTH
