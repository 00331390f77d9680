"""Bundles by path or URL, of themselves or of their run, on this machine."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.models.card import (
    CARD_FILE,
    IN_RUN,
    BundleError,
    find_bundle,
    parse_card,
    read_card,
)
from trainers.storage.directory import SyncedDirectory
from trainers.storage.filesystem import NotFound
from trainers.storage.store import is_url, open_store


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """Yield the directory of the bundle at a path, or a verified temporary copy of that at a URL.

    address: of a bundle, or of a run, whose bundle is meant. Raises BundleError, for a URL where a
    file is missing or altered, and StoreError.
    """
    if not is_url(address):
        yield find_bundle(Path(address))
        return
    with SyncedDirectory.open_temporary(resolve_bundle(address)) as bundle:
        store = bundle.store
        try:
            data = store.read_bytes(CARD_FILE)
        except NotFound:
            raise BundleError(
                f"{bundle.home}: no {CARD_FILE}; a training run leaves RUN/{IN_RUN}"
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


def resolve_bundle(address: str) -> str:
    """Return the address of the bundle that is meant by that of a bundle or of a run.

    Raises BundleError for a run that has left none yet, and StoreError.
    """
    if not is_url(address):
        return str(find_bundle(Path(address)))
    home = address.rstrip("/")
    store = open_store(home)
    try:
        store.read_bytes(CARD_FILE)
    except NotFound:
        with contextlib.suppress(NotFound):
            store.read_bytes(f"{IN_RUN}/{CARD_FILE}")
            return f"{home}/{IN_RUN}"
    return home


def upload_engines(directory: Path, address: str) -> None:
    """Copy the engines that were built in `directory`, and its card, to the bundle at a URL."""
    if not is_url(address):
        return
    store, card = open_store(resolve_bundle(address)), read_card(directory)
    for engine in card.engines:
        for file in engine.files:
            store.put_file(directory / file, file)
    store.put_file(directory / CARD_FILE, CARD_FILE)  # last: it names the other files
