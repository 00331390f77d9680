"""Stores and registries to test with: in a directory, or in a file system in memory."""

import itertools
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from serving.registry.registry import Registry
from trainers.storage.store import LocalStore, S3Store, Store

KINDS = ("directory", "objects")


def memory_s3_store() -> S3Store:
    """An empty store as in S3."""
    memory = MemoryFileSystem(global_store=False, skip_instance_cache=True)
    return S3Store(memory, "/models/registry")


def empty_store(kind: str, directory: Path) -> Store:
    """An empty store of one of the KINDS."""
    return LocalStore(directory / "registry") if kind == "directory" else memory_s3_store()


def registry_with_clock(store: Store) -> Registry:
    """A registry of somebody named mia, whose clock shows 1, 2, 3, ..."""
    clock = itertools.count(1)
    return Registry(store, who="mia", clock=lambda: float(next(clock)))


def register_three_versions(registry: Registry, *bundles: Path) -> Registry:
    """Three bundles registered as `sentiment`, the first live."""
    for bundle in bundles:
        registry.register(bundle, "sentiment")
    registry.deploy("sentiment", "1")
    return registry
