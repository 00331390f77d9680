"""Bundles by path or URL, on this machine."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.models.card import CARD_FILE, BundleError, parse_card, read_card
from trainers.storage.directory import SyncedDirectory
from trainers.storage.filesystem import NotFound
from trainers.storage.store import is_url, open_store


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """Yield the directory of the bundle at a path, or a verified temporary copy of that at a URL.

    Raises BundleError, for a URL where a file is missing or altered, and StoreError.
    """
    if not is_url(address):
        yield Path(address)
        return
    with SyncedDirectory.open_temporary(address) as bundle:
        store = bundle.store
        try:
            data = store.read_bytes(CARD_FILE)
        except NotFound:
            raise BundleError(
                f"{bundle.home}: no {CARD_FILE}; a training run leaves RUN/bundle"
            ) from None
        card = parse_card(data, f"{bundle.home}/{CARD_FILE}")
        try:
            # Only what the card lists: whatever else lies there may be of any name and size.
            (bundle.path / CARD_FILE).write_bytes(data)
            for name in [*card.files, *(name for each in card.engines for name in each.files)]:
                with contextlib.suppress(NotFound):  # `read_card` tells which one is missing
                    store.get_file(name, bundle.path / name)
            read_card(bundle.path)
        except BundleError as error:
            raise BundleError(str(error).replace(str(bundle.path), bundle.home)) from None
        yield bundle.path


def upload_engines(directory: Path, address: str) -> None:
    """Copy the engines that were built in `directory`, and its card, to the bundle at a URL."""
    if not is_url(address):
        return
    store, card = open_store(address), read_card(directory)
    for engine in card.engines:
        for file in engine.files:
            store.put_file(directory / file, file)
    store.put_file(directory / CARD_FILE, CARD_FILE)  # last: it names the other files
