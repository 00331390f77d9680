"""The bundles of a registry: numbered once and for all, uploaded whole, fetched verified.

A version's number belongs to whoever created its claim; numbers are never used again.
"""

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from trainers.models.card import CARD_FILE, BundleError, ModelCard, parse_card, read_card
from trainers.storage.atomic import file_sha256, find_corruption
from trainers.storage.cache import build_once
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import LocalStore, Store
from trainers.untrusted.bounded_json import parse_json
from trainers.untrusted.model_files import CONFIG_FILE, MAX_CONFIG_BYTES


class ArtifactStore:
    """The bundles in a store, by name and version.

    digest: of `bundle_digest` when the version was registered. Every method that is given one
    raises BundleError where the bundle is another now, or damaged, and StoreError.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_bundle(self, bundle: Path, name: str, claim: bytes) -> str:
        """Copy a bundle into the store as the next version of `name` and return its number.

        claim: bytes that no other process would write. What a failed copy leaves is removed, as far
        as the store allows; its number stays taken. Raises StoreError.
        """
        names = [path.rpartition("/")[2] for path in self._store.list_files(f"{name}/claims")]
        number = max((int(each) for each in names if each.isdecimal()), default=0) + 1
        while not self._store.create_file(f"{name}/claims/{number}", claim):
            number += 1
        folder = _version_folder(name, str(number))
        try:
            self._store.upload_directory(bundle, folder)
        except BaseException:  # an interrupt too: half a bundle takes space and is never read
            with contextlib.suppress(StoreError, OSError):
                self._store.remove(folder)
            raise
        return str(number)

    def fetch_bundle(self, name: str, version: str, digest: str, cache: Path) -> Path:
        """Return the directory of a bundle on this machine, downloaded into `cache` if need be.

        Of a directory in the store only the card is compared here, because whoever loads the bundle
        verifies its files by that.
        """
        if isinstance(self._store, LocalStore):
            self.read_card(name, version, digest)
            return self._store.root / _version_folder(name, version)

        def download(target: Path) -> None:
            self._download_bundle(name, version, digest, target)

        def load(directory: Path) -> Path | None:
            return directory if _has_digest(directory, digest) else None

        return build_once(cache / digest[:16], download, load)

    def read_card(self, name: str, version: str, digest: str | None = None) -> ModelCard:
        """Read the card of a bundle, its files not verified. Raises BundleError and StoreError."""
        path = f"{_version_folder(name, version)}/{CARD_FILE}"
        try:
            data = self._store.read_bytes(path)
        except NotFound:
            raise self._damaged(name, version, f"{CARD_FILE} is missing") from None
        # Before it is parsed: what was registered could be parsed, and this may be anything.
        if digest not in (None, hashlib.sha256(data).hexdigest()):
            raise self._damaged(name, version, f"{CARD_FILE} has another SHA-256")
        return parse_card(data, f"{self._store.address}/{path}")

    def read_config(self, name: str, version: str, card: ModelCard) -> dict[str, Any]:
        """Read the `config.json` that the card of a bundle lists."""
        path = f"{_version_folder(name, version)}/{CONFIG_FILE}"
        try:
            data = self._store.read_bytes(path)
        except NotFound:
            raise self._damaged(name, version, f"{CONFIG_FILE} is missing") from None
        if card.files.get(CONFIG_FILE) != hashlib.sha256(data).hexdigest():
            raise self._damaged(name, version, f"{CONFIG_FILE} has another SHA-256")
        return parse_json(data, MAX_CONFIG_BYTES, f"{self._store.address}/{path}")

    def verify_bundle(self, name: str, version: str, digest: str) -> None:
        """Hash every file of a bundle, downloaded for that if need be."""
        self.read_card(name, version, digest)  # which says more of a bundle that is gone
        if isinstance(self._store, LocalStore):
            directory = self._store.root / _version_folder(name, version)
            self._check_bundle(name, version, digest, directory)
            return
        with tempfile.TemporaryDirectory(prefix="bertha-") as place:
            self._download_bundle(name, version, digest, Path(place))

    def delete_bundle(self, name: str, version: str) -> None:
        """Delete a bundle; its number stays taken."""
        self._store.remove(_version_folder(name, version))

    def _download_bundle(self, name: str, version: str, digest: str, target: Path) -> None:
        self._store.download_directory(_version_folder(name, version), target)
        self._check_bundle(name, version, digest, target)

    def _check_bundle(self, name: str, version: str, digest: str, directory: Path) -> None:
        """Verify a bundle in a directory of this machine."""
        try:
            found = bundle_digest(directory)
        except (BundleError, OSError) as error:
            # Without the way out that it names, which is for a bundle of one's own.
            reason = str(error).partition("; ")[0].removeprefix(f"{directory}: ")
            reason = reason.replace(f"{directory}/", "")
            raise self._damaged(name, version, reason) from None
        if found != digest:
            raise self._damaged(name, version, f"{CARD_FILE} has another SHA-256")

    def _damaged(self, name: str, version: str, reason: str) -> BundleError:
        return BundleError(
            f"{self._store.address}/{_version_folder(name, version)} is not the bundle that was "
            f"registered: {reason}; put its files back, or register the bundle again and deploy "
            "that"
        )


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
