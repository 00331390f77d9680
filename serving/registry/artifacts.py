"""The bundles of a registry: numbered once and for all, uploaded whole, fetched verified.

A version's number belongs to whoever created its claim; numbers are never used again. Knows no
states: a bundle that no state names is not there.
"""

from pathlib import Path

from filelock import FileLock

from serving.registry.store import Store
from trainers.models.card import CARD, BundleError, Card, parsed, read
from trainers.storage.atomic import flaw, sha256, written_aside


class Shelf:
    """The bundles in a store, by name and version."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, bundle: Path) -> str:
        """The seal of a bundle that is as it was written: the SHA-256 of its card.

        Raises BundleError.
        """
        return _seal(bundle)

    def put(self, bundle: Path, name: str, claim: bytes) -> str:
        """Copy a bundle into the store under the next version of `name`; the version.

        claim: bytes that nobody else would write.
        """
        names = [path.rpartition("/")[2] for path in self._store.files(f"{name}/claims")]
        number = max((int(each) for each in names if each.isdecimal()), default=0) + 1
        while not self._store.create(f"{name}/claims/{number}", claim):
            number += 1
        self._store.upload(bundle, _folder(name, str(number)))
        return str(number)

    def get(self, name: str, version: str, seal: str, cache: Path) -> Path:
        """Where the bundle lies on this machine, downloaded into `cache` where it did not.

        Raises BundleError where it is not what was registered.
        """
        local = self._store.local(_folder(name, version))
        if local is not None:
            return local
        target = cache / seal[:16]
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{seal[:16]}.lock"):
            if not _is_sealed(target, seal):
                with written_aside(target) as aside:
                    self._store.download(_folder(name, version), aside)
                    if not _is_sealed(aside, seal):
                        raise BundleError(
                            f"{self._store.address}/{_folder(name, version)}: not the bundle that "
                            "was registered (its SHA-256 differ); register it again"
                        )
        return target

    def card(self, name: str, version: str) -> Card:
        """The card of a bundle, its files not verified. Raises BundleError."""
        path = f"{_folder(name, version)}/{CARD}"
        return parsed(self._store.read(path), f"{self._store.address}/{path}")

    def drop(self, name: str, version: str) -> None:
        """Delete a bundle; its number stays taken."""
        self._store.remove(_folder(name, version))


def _seal(directory: Path) -> str:
    """The SHA-256 of a bundle's card, all the files of which are as it says.

    Raises BundleError, for those of its engines too.
    """
    for engine in read(directory).engines:
        damage = flaw(directory, engine.files)
        if damage is not None:
            raise BundleError(f"{directory}: {engine.name}: {damage}; build it again")
    return sha256(directory / CARD)


def _is_sealed(directory: Path, seal: str) -> bool:
    """Whether a directory is the bundle of that seal."""
    try:
        return _seal(directory) == seal
    except BundleError:
        return False


def _folder(name: str, version: str) -> str:
    return f"{name}/versions/{version}"
