"""The bundles of a registry: numbered once and for all, uploaded whole, fetched verified.

A version's number belongs to whoever created its claim; numbers are never used again.
"""

from pathlib import Path

from trainers.models.card import CARD_FILE, BundleError, ModelCard, parse_card, read_card
from trainers.storage.atomic import file_sha256, find_corruption
from trainers.storage.cache import build_once
from trainers.storage.store import LocalStore, Store


class ArtifactStore:
    """The bundles in a store, by name and version."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_bundle(self, bundle: Path, name: str, claim: bytes) -> str:
        """Copy a bundle into the store as the next version of `name` and return its number.

        claim: bytes that no other process would write.
        """
        names = [path.rpartition("/")[2] for path in self._store.list_files(f"{name}/claims")]
        number = max((int(each) for each in names if each.isdecimal()), default=0) + 1
        while not self._store.create_file(f"{name}/claims/{number}", claim):
            number += 1
        self._store.upload_directory(bundle, _version_folder(name, str(number)))
        return str(number)

    def fetch_bundle(self, name: str, version: str, digest: str, cache: Path) -> Path:
        """Return the directory of a bundle on this machine, downloaded into `cache` if need be.

        digest: of `bundle_digest` when it was registered. Raises BundleError where it differs.
        """
        folder = _version_folder(name, version)
        if isinstance(self._store, LocalStore):
            return self._store.root / folder

        def download(target: Path) -> None:
            self._store.download_directory(folder, target)
            if not _has_digest(target, digest):
                raise BundleError(
                    f"{self._store.address}/{folder}: not the bundle that was registered (its "
                    "SHA-256 differ); register it again"
                )

        def load(directory: Path) -> Path | None:
            return directory if _has_digest(directory, digest) else None

        return build_once(cache / digest[:16], download, load)

    def read_card(self, name: str, version: str) -> ModelCard:
        """Read the card of a bundle, its files not verified. Raises BundleError."""
        path = f"{_version_folder(name, version)}/{CARD_FILE}"
        return parse_card(self._store.read_bytes(path), f"{self._store.address}/{path}")

    def delete_bundle(self, name: str, version: str) -> None:
        """Delete a bundle; its number stays taken."""
        self._store.remove(_version_folder(name, version))


def bundle_digest(directory: Path) -> str:
    """Verify every file of a bundle, its engines' too, and return the SHA-256 of its card.

    Raises BundleError.
    """
    for engine in read_card(directory).engines:
        damage = find_corruption(directory, engine.files)
        if damage is not None:
            raise BundleError(f"{directory}: {engine.name}: {damage}; build it again")
    return file_sha256(directory / CARD_FILE)


def _has_digest(directory: Path, digest: str) -> bool:
    try:
        return bundle_digest(directory) == digest
    except BundleError:
        return False


def _version_folder(name: str, version: str) -> str:
    return f"{name}/versions/{version}"
