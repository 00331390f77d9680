"""A registry goes bad under a server and is mended: who is answered meanwhile, what is told."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from cluster.errors import BerthaError
from serving.http.messages import HTTPError
from serving.inference import registry_watch
from serving.inference.model_server import ModelServer
from serving.registry.canary_rule import judge_canary
from serving.registry.registry import Registry
from tests.support.model_servers import make_registry, run_scenario
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import CARD_FILE
from trainers.storage.filesystem import StoreError
from trainers.storage.store import LocalStore

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that adds its two numbers."""
    return write_linear_bundle(tmp_path_factory.mktemp("sums") / "bundle", [1.0, 1.0])


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that subtracts its second number from its first."""
    return write_linear_bundle(tmp_path_factory.mktemp("differences") / "bundle", [1.0, -1.0])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def registry(place: Path, sums: Path, differences: Path) -> Registry:
    """`adds` is the default model and has a version 2 that subtracts; so does `subtracts`."""
    registry = make_registry(place, sums, "adds")
    registry.register(differences, "adds")
    registry.deploy("subtracts", registry.register(differences, "subtracts"))
    registry.make_default("adds")
    return registry


def serve(registry: Registry, scenario: Callable[[ModelServer], Awaitable[None]]) -> None:
    async def with_client(_: httpx.AsyncClient, server: ModelServer) -> None:
        await scenario(server)

    run_scenario(registry, with_client)


async def answer(server: ModelServer, model: str | None = None) -> float:
    """What a model makes of 5 and 2."""
    return float((await server.predict(model, ["5 2"])).values[0].scores[0])


async def refusal(server: ModelServer, model: str | None = None) -> str:
    """Why a model does not answer, though it may later."""
    with pytest.raises(HTTPError) as refused:
        await server.predict(model, ["5 2"])
    assert refused.value.kind == "unready"
    return str(refused.value)


def lose(path: Path) -> Callable[[], object]:
    """Take a file or directory away; returns what puts it back."""
    away = path.with_name(f".{path.name}.away")
    path.rename(away)
    return lambda: away.rename(path)


def overwrite(path: Path, data: bytes) -> Callable[[], object]:
    """Write other bytes into a file; returns what puts the old ones back."""
    before = path.read_bytes()
    path.write_bytes(data)
    return lambda: path.write_bytes(before)


def exchange(path: Path, other: Path | None) -> Callable[[], object]:
    """Put another directory, or an empty one, in the place of something; returns what undoes it."""
    back = lose(path)
    path.mkdir()
    if other is not None:
        shutil.copytree(other, path, dirs_exist_ok=True)

    def undo() -> None:
        shutil.rmtree(path)
        back()

    return undo


DAMAGES: dict[str, tuple[Callable[[Path, Path], Callable[[], object]], str]] = {
    "its card is missing": (lambda v, _: lose(v / CARD_FILE), "bundle.json is missing"),
    "its card is no JSON": (lambda v, _: overwrite(v / CARD_FILE, b"{"), "another SHA-256"),
    "its card is a directory": (lambda v, _: exchange(v / CARD_FILE, None), "Is a directory"),
    "its directory is missing": (lambda v, _: lose(v), "bundle.json is missing"),
    "it is another bundle": (exchange, "another SHA-256; put its files back, or register"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_concerns_nobody_who_does_not_ask_for_it(
    registry: Registry, place: Path, sums: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = DAMAGES[damage]
    mend = spoil(place / "adds" / "versions" / "2", sums)

    async def scenario(server: ModelServer) -> None:
        for _ in range(3):
            await server.refresh()
        assert (await answer(server), await answer(server, "subtracts")) == (7, 3)
        assert reason in await refusal(server, "adds:2")
        with pytest.raises(HTTPError, match=r"adds:2 is damaged") as refused:
            server.get_info("adds:2")
        assert refused.value.kind == "unready"
        assert [info.version for info in server.list_models() if info.name == "adds"] == ["1"]
        mend()
        await server.refresh()
        assert await answer(server, "adds:2") == 3
        assert server.get_info("adds:2").version == "2"

    serve(registry, scenario)
    (told,) = (each for each in caplog.messages if "adds:2" in each)
    assert told.startswith("adds:2 is skipped: ")


@pytest.mark.parametrize("file", [CARD_FILE, WEIGHTS])
@pytest.mark.parametrize("name", ["adds", "subtracts"])
def test_a_name_whose_live_version_is_damaged_says_so_while_the_others_answer(
    registry: Registry, place: Path, name: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = overwrite(place / name / "versions" / "1" / file, b"bits")
    (other,) = {"adds", "subtracts"} - {name}
    monkeypatch.setattr(registry_watch, "RETRY_POLLS", 2)

    async def scenario(server: ModelServer) -> None:
        for _ in range(2):
            assert "is not the" in await refusal(server, name)
            assert await answer(server, other) == {"adds": 7, "subtracts": 3}[other]
        if name == "adds":
            assert "is not the" in await refusal(server), "no other model answers for the default"
        assert await server.is_ready()
        mend()
        for _ in range(2):
            await server.refresh()
        assert (await answer(server), await answer(server, "subtracts")) == (7, 3)
        assert await server.is_ready()

    serve(registry, scenario)


def test_a_server_of_which_nothing_can_be_served_does_not_start(
    registry: Registry, place: Path
) -> None:
    overwrite(place / "adds" / "versions" / "1" / WEIGHTS, b"bits")
    lose(place / "subtracts" / "versions" / "1")

    async def scenario(_: ModelServer) -> None:
        raise AssertionError

    with pytest.raises(BerthaError) as refused:
        serve(registry, scenario)
    assert str(refused.value).startswith("no live version can be served: adds:1: ")
    assert "; subtracts:1: " in str(refused.value)
    assert "bundle.json is missing" in str(refused.value)


def test_a_state_that_cannot_be_read_keeps_its_name_alone_from_answering(
    registry: Registry, place: Path
) -> None:
    states = sorted((place / "_states" / "subtracts").iterdir())
    mends = [overwrite(path, b"") for path in states]

    async def scenario(server: ModelServer) -> None:
        assert await answer(server) == 7
        assert "00000002.json is damaged: it is no state" in await refusal(server, "subtracts")
        for mend in mends:
            mend()
        await server.refresh()
        assert await answer(server, "subtracts") == 3

    serve(registry, scenario)


def test_what_is_damaged_later_answers_from_memory(registry: Registry, place: Path) -> None:
    async def scenario(server: ModelServer) -> None:
        assert await answer(server, "adds:2") == 3
        for version in "12":
            shutil.rmtree(place / "adds" / "versions" / version)
        registry.set_alias("adds", "best", "2")
        await server.refresh()
        assert (await answer(server), await answer(server, "adds@best")) == (7, 3)
        assert await server.is_ready()

    serve(registry, scenario)


def test_a_live_version_that_is_damaged_is_adopted_once_it_is_mended(
    registry: Registry, place: Path, differences: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: ModelServer) -> None:
        assert await answer(server) == 7
        registry.deploy("adds", registry.register(differences, "adds"))
        back = overwrite(place / "adds" / "versions" / "3" / CARD_FILE, b"{}")
        for _ in range(3):
            await server.refresh()
            assert await answer(server) == 7, "the version before goes on"
        back()
        await server.refresh()
        assert await answer(server) == 3

    serve(registry, scenario)
    told = [each for each in caplog.messages if each.startswith("adds:3")]
    assert [each.split(": ")[0] for each in told] == [
        "adds:3 is skipped",
        "adds:3 cannot be served",
    ]


def test_a_registry_that_is_gone_is_missed_by_nobody(registry: Registry, place: Path) -> None:
    async def scenario(server: ModelServer) -> None:
        assert await answer(server, "subtracts") == 3
        for empty in (False, True):
            back = lose(place)
            if empty:
                place.mkdir()
            for _ in range(3):
                await server.refresh()
                assert (await answer(server), await answer(server, "subtracts")) == (7, 3)
            assert "bundle.json is missing" in await refusal(server, "adds:2")
            shutil.rmtree(place, ignore_errors=True)
            back()
        registry.deploy("adds", "2")
        await server.refresh()
        assert await answer(server) == 3

    serve(registry, scenario)


def test_a_registry_that_is_made_anew_is_served_anew(
    registry: Registry, place: Path, differences: Path
) -> None:
    async def scenario(server: ModelServer) -> None:
        assert (await answer(server), await answer(server, "subtracts")) == (7, 3)
        shutil.rmtree(place)
        await server.refresh()
        registry.deploy("adds", registry.register(differences, "adds"))
        await server.refresh()
        assert await answer(server, "adds:1") == await answer(server) == 3
        assert await answer(server, "subtracts") == 3, "it answers from memory"

    serve(registry, scenario)


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("file", [CARD_FILE, WEIGHTS])
def test_a_damaged_canary_is_judged_unfit_and_costs_nobody_an_answer(
    registry: Registry,
    place: Path,
    file: str,
    shadow: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = registry.deploy("adds", "2", share=0.5, shadow=shadow)
    assert state.canary is not None
    rule = state.canary.rule
    (place / "adds" / "versions" / "2" / file).write_bytes(b"bits")

    async def scenario(server: ModelServer) -> None:
        for _ in range(40):
            assert await answer(server) == 7
            await asyncio.sleep(0.002)  # a turn for what loads the canary
        metrics = server.canary_router.metrics["adds"]
        assert judge_canary(metrics, rule, 1.0).action == "rollback"
        assert metrics.live_metrics.errors == 0
        registry.rollback("adds", "2")
        await server.refresh()
        assert await answer(server) == 7

    serve(registry, scenario)
    told = [each for each in caplog.messages if each.startswith("adds:2 cannot be served")]
    assert len(told) == 1, "not for every request"


def test_an_alias_of_a_damaged_version_says_so(registry: Registry, place: Path) -> None:
    registry.set_alias("adds", "best", "2")
    (place / "adds" / "versions" / "2" / CARD_FILE).unlink()

    async def scenario(server: ModelServer) -> None:
        assert "bundle.json is missing" in await refusal(server, "adds@best")
        assert await answer(server, "adds@live") == 7

    serve(registry, scenario)


class Failing(LocalStore):
    """A directory that fails to be listed as it is told."""

    error: Exception | None = None
    num_failures = 0

    def list_files(self, folder: str) -> list[str]:
        if self.error is not None:
            self.num_failures += 1
            raise self.error
        return super().list_files(folder)


@pytest.mark.parametrize(
    "error",
    [
        StoreError("registry: cannot be listed: Input/output error"),
        TimeoutError("slow"),
        RecursionError("maximum recursion depth exceeded"),
        KeyError("Contents"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_failure_ends_the_polls_and_each_is_told_once(
    registry: Registry,
    place: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(registry_watch, "POLL_SECONDS", 0.001)
    store = Failing(place)

    async def scenario(server: ModelServer) -> None:
        store.error = error
        while store.num_failures < 5:
            assert await answer(server) == 7
        registry.deploy("adds", "2")
        store.error = None
        while await answer(server) != 3:
            await asyncio.sleep(0.001)

    with caplog.at_level(logging.WARNING):
        serve(Registry(store), scenario)
    told = [each for each in caplog.messages if "the registry" in each]
    assert len(told) == 2
    assert told[0].startswith("the registry cannot be read; serving what was last read: ")
    assert told[1] == "the registry can be read again"


class Slow(LocalStore):
    """A directory whose next listing, once it is asked to, arrives late."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.late = False
        self.listed, self.free = threading.Event(), threading.Event()

    def list_files(self, folder: str) -> list[str]:
        paths = super().list_files(folder)
        if self.late:
            self.late = False
            self.listed.set()
            assert self.free.wait(30)
        return paths


def test_an_older_reading_of_the_registry_is_not_adopted_after_a_newer_one(
    registry: Registry, place: Path
) -> None:
    store = Slow(place)

    async def scenario(server: ModelServer) -> None:
        store.late = True
        older = asyncio.create_task(server.refresh())
        await asyncio.to_thread(store.listed.wait, 30)
        registry.deploy("adds", "2")
        newer = asyncio.create_task(server.refresh())
        await asyncio.wait([newer], timeout=0.3)  # if it does not wait for the older one
        store.free.set()
        await asyncio.gather(older, newer)
        assert await answer(server) == 3

    serve(Registry(store), scenario)
