"""Load a backend of a bundle, its files verified."""

from pathlib import Path

from cluster.errors import BerthaError
from serving.engine.backends.backend import Backend
from serving.engine.backends.registry import BACKENDS, REFERENCE, STUDENT, LoadContext
from trainers.models.card import (
    CARD_FILE,
    BundleError,
    EngineRecord,
    ModelCard,
    list_bundle_files,
)
from trainers.storage.atomic import find_corruption


def load_backend(directory: Path, card: ModelCard, name: str, num_threads: int) -> Backend:
    """Load the backend of a bundle by name, and verify its files.

    Raises BundleError if there is none, or its files are not as they were written.
    """
    spec = BACKENDS.get(name)
    if spec is None:
        raise BundleError(f"no engine {name!r}; there is {', '.join(BACKENDS)}")
    missing = spec.missing_requirement()
    if missing is not None:
        raise BundleError(
            f"{directory}: {spec.name}: {missing}; or name another engine, as {REFERENCE!r}"
        )
    if spec.directory:
        _verify_files(directory, spec.name, card.find_engine(spec.name))
    try:
        return spec.load(LoadContext(directory, card, directory / spec.directory, num_threads))
    except (BerthaError, OSError):
        raise
    except Exception as error:  # each library has kinds of its own, some of them no more than this
        reason = " ".join(str(error).split())[:300]
        raise BundleError(
            f"{directory}: {spec.name!r} cannot be loaded ({type(error).__name__}: {reason}); "
            f"build again: bertha build {directory}, or name another engine"
        ) from None


def _verify_files(directory: Path, name: str, record: EngineRecord | None) -> None:
    """Raise a BundleError unless the bundle holds the files of an engine as they were written."""
    if record is None or not record.files:
        why = "was never built" if record is None else f"was refused at {record.agreement:.2%}"
        how = f"build {directory}" + (" --student BUNDLE" if name == STUDENT else "")
        raise BundleError(
            f"{directory}: {name!r} {why}; bertha {how}, with --allow where it is to "
            f"serve all the same, or name {REFERENCE!r}"
        )
    folder = BACKENDS[name].directory
    unlisted = set(list_bundle_files(directory, folder)) - set(record.files)
    if unlisted:
        raise BundleError(
            f"{directory}: {CARD_FILE} does not list {min(unlisted)} as a file of {name!r}, so "
            f"nobody has verified it; build again: bertha build {directory}, or name "
            f"{REFERENCE!r}"
        )
    damage = find_corruption(directory, record.files)
    if damage is not None:
        raise BundleError(
            f"{directory}: {damage}; build again: bertha build {directory}, or name {REFERENCE!r}"
        )
