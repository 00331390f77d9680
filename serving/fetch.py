"""Bundles by path or URL, on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.models.card import CARD_FILE, BundleError, read_card
from trainers.storage.directory import SyncedDirectory
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
        if not bundle.store.list_files(CARD_FILE):
            raise BundleError(f"{bundle.home}: no {CARD_FILE}; a training run leaves RUN/bundle")
        bundle.store.download_directory("", bundle.path)
        try:
            read_card(bundle.path)
        except BundleError as error:
            raise BundleError(str(error).replace(str(bundle.path), bundle.home)) from None
        yield bundle.path


def upload_engines(directory: Path, address: str) -> None:
    """Copy the engines that were built in `directory`, and its card, to the bundle at a URL."""
    if not is_url(address):
        return
    store, card = open_store(address.rstrip("/")), read_card(directory)
    for engine in card.engines:
        for file in engine.files:
            store.put_file(directory / file, file)
    store.put_file(directory / CARD_FILE, CARD_FILE)  # last: it names the other files
