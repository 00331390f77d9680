"""A registry is changed over HTTP: what is asked for is served at once, or refused by kind."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from serving.http.messages import HTTPError
from serving.inference.management import RegistryAdmin
from serving.inference.model_server import ModelServer
from serving.registry.registry import Registry
from tests.support.model_servers import make_registry, run_scenario
from tests.support.tiny_bundle import write_linear_bundle
from trainers.storage.filesystem import StoreError
from trainers.storage.store import LocalStore

Admin = Callable[[RegistryAdmin, ModelServer], Awaitable[None]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("one") / "numbers" / "bundle", [2.0, -3.0])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("two") / "Sums 7" / "bundle", [1.0, 1.0])


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Registry:
    return make_registry(tmp_path / "registry", bundle, "numbers")


def administer(registry: Registry, scenario: Admin) -> None:
    async def with_client(_: httpx.AsyncClient, server: ModelServer) -> None:
        await scenario(server.management, server)

    run_scenario(registry, with_client)


async def answer(server: ModelServer, model: str) -> float:
    return (await server.predict(model, ["5 1"])).values[0].scores[0]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_registered_version_answers_by_its_number_at_once(
    registry: Registry, other: Path, scheme: str
) -> None:
    async def scenario(admin: RegistryAdmin, server: ModelServer) -> None:
        info = await admin.register(f"{scheme}{other}", "numbers")
        assert (info.name, info.version, info.aliases) == ("numbers", "2", ())
        assert await answer(server, "numbers:2") == 6.0
        assert await answer(server, "numbers") == 7.0

    administer(registry, scenario)


def test_a_bundle_without_a_name_is_called_after_its_run(registry: Registry, other: Path) -> None:
    async def scenario(admin: RegistryAdmin, _: ModelServer) -> None:
        info = await admin.register(str(other), None)
        assert (info.name, info.version) == ("sums-7", "1")

    administer(registry, scenario)


def test_the_default_version_answers_for_the_bare_name(registry: Registry, other: Path) -> None:
    async def scenario(admin: RegistryAdmin, server: ModelServer) -> None:
        await admin.register(str(other), "numbers")
        await admin.set_default("numbers", "2")
        assert await answer(server, "numbers") == 6.0

    administer(registry, scenario)


def test_a_version_is_removed_by_its_number_and_the_live_one_stays(
    registry: Registry, other: Path
) -> None:
    async def scenario(admin: RegistryAdmin, server: ModelServer) -> None:
        await admin.register(str(other), "numbers")
        await admin.unregister("numbers", "2")
        assert [info.version for info in server.list_models()] == ["1"]
        with pytest.raises(HTTPError, match=r"numbers:1 is live; move that") as refused:
            await admin.unregister("numbers", None)
        assert refused.value.kind == "malformed"

    administer(registry, scenario)


def test_memory_is_freed_and_taken_again(registry: Registry, other: Path) -> None:
    registry.register(other, "numbers")

    async def scenario(admin: RegistryAdmin, server: ModelServer) -> None:
        states = []
        for change in (admin.load_model, admin.unload_model, admin.load_model):
            await change("numbers:2")
            states.append(server.get_info("numbers:2").state)
        assert states == ["ready", "cold", "ready"]
        assert server.get_info("numbers:1").state == "ready"

    administer(registry, scenario)


class FullDisk(LocalStore):
    """A directory in which nothing can be created, or read any more, as it is told."""

    full = gone = False

    def create_file(self, path: str, data: bytes) -> bool:
        if self.full:
            raise StoreError(f"{path}: cannot be written: No space left on device")
        return super().create_file(path, data)

    def list_files(self, folder: str) -> list[str]:
        if self.gone:
            raise StoreError(f"{folder}: cannot be listed: Stale file handle")
        return super().list_files(folder)


def test_a_registry_that_cannot_be_written_or_read_is_not_the_fault_of_who_asks(
    registry: Registry, other: Path, tmp_path: Path
) -> None:
    store = FullDisk(tmp_path / "registry")

    async def scenario(admin: RegistryAdmin, server: ModelServer) -> None:
        for fault, words in (("full", "No space left on device"), ("gone", "Stale file handle")):
            setattr(store, fault, True)
            with pytest.raises(HTTPError, match=words) as refused:
                await admin.register(str(other), "numbers")
            assert refused.value.kind == "unready"
            assert await answer(server, "numbers") == 7.0
            setattr(store, fault, False)
        assert (await admin.register(str(other), "numbers")).name == "numbers"

    administer(Registry(store), scenario)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda a: a.register("s3://far/bundle", "n"), "malformed", "path of a bundle's directory"),
        (lambda a: a.register("/nowhere", "n"), "malformed", "/nowhere: no such directory"),
        (lambda a: a.set_default("numbers", "9"), "no-model", "numbers:9: no such version"),
        (lambda a: a.set_default("Numbers", "1"), "no-model", "'Numbers' is no name of a model"),
        (lambda a: a.unregister("nobody", "1"), "no-model", "nobody: no such model"),
        (lambda a: a.unregister("nobody", None), "no-model", "nobody: no such model"),
        (lambda a: a.load_model("numbers:9"), "no-model", "numbers:9: no such version"),
        (lambda a: a.unload_model("numbers:9"), "no-model", "numbers:9: no such version"),
    ],
)
def test_what_cannot_be_done_is_refused_by_kind(
    registry: Registry,
    change: Callable[[RegistryAdmin], Awaitable[object]],
    kind: str,
    words: str,
) -> None:
    before = registry.read_snapshot()

    async def scenario(admin: RegistryAdmin, _: ModelServer) -> None:
        with pytest.raises(HTTPError, match=words) as refused:
            await change(admin)
        assert refused.value.kind == kind

    administer(registry, scenario)
    assert registry.read_snapshot(before) is before
