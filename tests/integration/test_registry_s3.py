"""The registry in S3, emulated by moto, through s3fs; skipped where either is not installed."""

import asyncio
import http.client
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serving.http.messages import HTTPError
from serving.inference import registry_watch
from serving.inference.model_server import ModelServer
from serving.interface import Limits
from serving.registry.registry import Registry
from tests.support.s3 import emulated_s3
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import BundleError, read_card
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import open_store

S3FileSystem = pytest.importorskip("s3fs").S3FileSystem

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


def test_a_bundle_that_was_exchanged_is_refused(address: str, tmp_path: Path) -> None:
    store, registry = open_store(address), Registry.open(address)
    version = registry.register(write_linear_bundle(tmp_path / "bundle", [2.0, -3.0]), "swapped")
    store.upload_directory(
        write_linear_bundle(tmp_path / "other", [1.0, 1.0]), f"swapped/versions/{version}"
    )
    for find in (registry.find_damage, lambda state: registry.find_damage(state, every_file=True)):
        assert "another SHA-256" in find(registry.read_state("swapped"))[version]
    with pytest.raises(
        BundleError, match=r"swapped/versions/1 is not .* register the bundle again"
    ):
        registry.fetch_bundle("swapped", version, tmp_path / "cache")


class FaultyS3(ThreadingHTTPServer):
    """A way to S3 on which everything is answered as `fault` says, once that is set."""

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = urlsplit(endpoint).netloc
        self.fault: tuple[int, bytes] | None = None
        self.num_faults = 0


class _Handler(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if self.server.fault is not None:
            self.server.num_faults += 1
            self._answer(*self.server.fault, {"content-type": "application/xml"})
            return
        far = http.client.HTTPConnection(self.server.endpoint)
        far.request(self.command, self.path, body, dict(self.headers))
        answer = far.getresponse()
        data = answer.read()
        self._answer(answer.status, data, dict(answer.getheaders()))

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(key, value)
        known = next((v for key, v in headers.items() if key.lower() == "content-length"), "0")
        length = known if self.command == "HEAD" else str(len(data))
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def writer(address: str) -> Registry:
    """A registry that nothing disturbs; `faulty` is to be asked for after it."""
    return Registry.open(f"{address}-faults")


@pytest.fixture
def faulty(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """What new connections to S3 lead through."""
    server = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        S3FileSystem.clear_instance_cache()
        yield server
    S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


EMPTY_LISTING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
FAULTS = {
    "it is busy": (503, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"),
    "there are too many": (429, b"<Error><Code>TooManyRequests</Code></Error>"),
    "another answers": (200, b"<html>Log in to this network</html>"),
    "it writes no XML": (200, b"\x00\xff not xml <"),
    "it has no key": (403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"),
    "it shows nothing": (200, EMPTY_LISTING),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_goes_on_while_s3_fails_and_follows_it_again(
    writer: Registry,
    faulty: FaultyS3,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(registry_watch, "POLL_SECONDS", 0.05)
    sums = write_linear_bundle(tmp_path / "sums", [1.0, 1.0])
    differences = write_linear_bundle(tmp_path / "differences", [1.0, -1.0])
    first = writer.register(sums, "numbers")
    writer.deploy("numbers", first)
    second = writer.register(differences, "numbers")
    firsts = write_linear_bundle(tmp_path / "firsts", [float(second), 0.0])
    third = writer.register(firsts, "numbers")

    async def answer(server: ModelServer, model: str | None = None) -> float:
        return float((await server.predict(model, ["5 2"])).values[0].scores[0])

    async def scenario() -> None:
        server = ModelServer(Registry.open(writer.address), tmp_path / "cache", Limits(), 1 << 30)
        await server.start()
        try:
            assert (await answer(server), await answer(server, f"numbers:{second}")) == (7, 3)
            server.executor.cache.evict_models([("numbers", second)])
            faulty.fault = FAULTS[fault]
            while faulty.num_faults < 4:
                assert await answer(server) == 7
                await asyncio.sleep(0.01)
            assert await answer(server, f"numbers:{second}") == 3, "its copy is here"
            with pytest.raises(HTTPError) as refused:
                await server.predict(f"numbers:{third}", ["5 2"])
            assert refused.value.kind == "unready"
            faulty.fault = None
            writer.deploy("numbers", second)
            while await answer(server) != 3:
                await asyncio.sleep(0.01)
            assert await answer(server, f"numbers:{third}") == 5 * float(second)
        finally:
            await server.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    told = [each for each in caplog.messages if "serving what was last read" in each]
    assert len(told) == 1
