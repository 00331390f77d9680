"""Stores and registries to test with: in a directory, or in a file system in memory."""

import itertools
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from serving.registry.registry import Registry
from serving.registry.store import DirectoryStore, Store
from trainers.storage.object_store import ObjectStore

KINDS = ("directory", "objects")


def objects() -> ObjectStore:
    """An empty store as in S3."""
    memory = MemoryFileSystem(global_store=False, skip_instance_cache=True)
    return ObjectStore(memory, "/models/registry")


def empty(kind: str, directory: Path) -> Store:
    """An empty store of one of the KINDS."""
    return DirectoryStore(directory / "registry") if kind == "directory" else objects()


def ticking(store: Store) -> Registry:
    """A registry of somebody named mia, whose clock shows 1, 2, 3, ..."""
    clock = itertools.count(1)
    return Registry(store, who="mia", clock=lambda: float(next(clock)))


def three_versions(registry: Registry, *bundles: Path) -> Registry:
    """Three bundles registered as `sentiment`, the first live."""
    for bundle in bundles:
        registry.register(bundle, "sentiment")
    registry.deploy("sentiment", "1")
    return registry
