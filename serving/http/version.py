"""Which Bertha this is, as servers tell their clients."""

from importlib import metadata


def version() -> str:
    """Bertha's version."""
    try:
        return metadata.version("bertha")
    except metadata.PackageNotFoundError:  # run from a folder of sources
        return "0"
