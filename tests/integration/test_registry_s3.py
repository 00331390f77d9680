"""The registry in S3, emulated by moto, through s3fs; skipped where either is not installed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.registry.registry import Registry
from tests.support.s3 import emulated_s3
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import read_card
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import open_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The URL of an empty bucket on a server of its own."""
    with emulated_s3("models") as bucket:
        yield f"{bucket}/registry"


def test_a_file_is_created_once(address: str) -> None:
    store = open_store(address)
    assert store.create_file("a/1", b"mine")
    assert not store.create_file("a/1", b"yours")
    assert store.create_file("a/1", b"mine")
    assert store.read_bytes("a/1") == b"mine"
    assert store.list_files("a") == ["a/1"]
    assert store.list_files("nowhere") == []
    with pytest.raises(NotFound, match="no such file"):
        store.read_bytes("a/2")
    store.remove("a")
    assert store.list_files("a") == []


def test_a_bundle_goes_there_and_back(address: str, tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path / "bundle", [2.0, -3.0])
    writer, reader = Registry.open(address), Registry.open(address)
    assert reader.read_snapshot().states == {}
    assert writer.register(bundle, "sentiment") == "1"
    writer.deploy("sentiment", "1")
    snapshot = reader.read_snapshot()
    assert snapshot.states["sentiment"].live == "1"
    assert reader.read_snapshot(snapshot) is snapshot
    assert read_card(reader.fetch_bundle("sentiment", "1", tmp_path / "cache")) == read_card(bundle)


def test_writers_at_once_lose_nothing(address: str, tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path / "bundle", [2.0, -3.0])
    Registry.open(address).register(bundle, "news")

    def change(writer: int) -> None:
        for number in range(5):
            Registry.open(address).set_alias("news", f"w{writer}-{number}", "1")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    state = Registry.open(address).read_state("news")
    assert len(state.aliases) == 20
    assert state.number == 21


def test_a_bucket_that_is_not_there_is_named(address: str) -> None:
    with pytest.raises(StoreError, match="s3://no-such-bucket/r/a"):
        open_store("s3://no-such-bucket/r").create_file("a", b"1")
