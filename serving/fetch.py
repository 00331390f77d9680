"""Bundles wherever they lie, at hand on this machine.

A directory is used as it is. One of a run in S3 is fetched for as long as it is used, and every
file of it verified; engines that are made from it are put back beside it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.models.card import CARD, BundleError, read
from trainers.storage.object_store import reach


def is_far(address: str) -> bool:
    """Whether a bundle is named by a URL."""
    return "://" in address


@contextmanager
def at_hand(address: str) -> Iterator[Path]:
    """The directory of the bundle that a path or a URL names.

    Raises BundleError, for a URL where a file is missing or altered, and StoreError.
    """
    if not is_far(address):
        yield Path(address)
        return
    address = address.rstrip("/")
    with tempfile.TemporaryDirectory(prefix="bertha-") as place:
        directory = Path(place, *Path(address).parts[-2:])  # a bundle is called after its run
        directory.mkdir(parents=True)
        store = reach(address)
        if not store.files(CARD):
            raise BundleError(f"{address}: no {CARD}; a training run leaves RUN/bundle")
        store.download("", directory)
        try:
            read(directory)
        except BundleError as error:
            raise BundleError(str(error).replace(str(directory), address)) from None
        yield directory


def put_back(directory: Path, address: str) -> None:
    """Bring the bundle at a URL up to what was made of it in `directory`: its engines, its card."""
    if not is_far(address):
        return
    store, card = reach(address.rstrip("/")), read(directory)
    for engine in card.engines:
        for file in engine.files:
            store.put(directory / file, file)
    store.put(directory / CARD, CARD)  # at last: it names them
