"""The history of a registry: it loses nothing, whoever else writes and whatever is damaged."""

import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.registry.log import StateLog
from serving.registry.model_ref import ModelDamaged
from serving.registry.registry import Registry, RegistryError
from serving.registry.state import ChangeRefused, ModelState, RegistrySnapshot
from tests.support.paths import ROOT
from tests.support.registries import (
    KINDS,
    empty_store,
    memory_s3_store,
    register_three_versions,
    registry_with_clock,
)
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import read_card
from trainers.storage.filesystem import StoreError
from trainers.storage.store import LocalStore, Store


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [2.0, -3.0])


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return empty_store(request.param, tmp_path)


@pytest.fixture
def registry(store: Store) -> Registry:
    return registry_with_clock(store)


@pytest.fixture
def filled(registry: Registry, bundle: Path) -> Registry:
    return register_three_versions(registry, bundle, bundle, bundle)


DAMAGES = {
    "empty": b"",
    "cut": b'{"format": 1, "name": "sentiment", "numb',
    "no state": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_state_is_skipped_with_one_warning(
        self, filled: Registry, store: Store, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        good = filled.read_state("sentiment")
        store.create_file(f"_states/sentiment/{good.number + 1:08d}.json", DAMAGES[damage])
        for _ in range(3):
            assert filled.read_snapshot().states["sentiment"] == good
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"{good.number + 1:08d}.json is skipped: it is no state" in caplog.text
        changed = filled.set_alias("sentiment", "best", "2")
        assert changed.number == good.number + 2
        assert changed.versions == good.versions
        assert filled.history("sentiment")[-1] == changed

    def test_stray_files_are_no_states(self, filled: Registry, store: Store) -> None:
        before = filled.read_snapshot()
        store.create_file("_states/sentiment/notes.txt", b"mine")
        store.create_file("_states/README", b"mine")
        assert filled.read_snapshot(before) is before

    def test_what_a_later_version_wrote_is_read_around_and_never_buried(
        self, filled: Registry, store: Store
    ) -> None:
        good = filled.read_state("sentiment")
        document = json.loads(good.model_dump_json()) | {"format": 2, "number": good.number + 1}
        store.create_file(
            f"_states/sentiment/{good.number + 1:08d}.json", json.dumps(document).encode()
        )
        assert filled.read_snapshot().states["sentiment"] == good
        with pytest.raises(RegistryError, match="by a later version of Bertha"):
            filled.set_alias("sentiment", "best", "2")

    def test_a_lone_damaged_state_leaves_no_name(self, registry: Registry, store: Store) -> None:
        store.create_file("_states/sentiment/00000001.json", b"")
        snapshot = registry.read_snapshot()
        assert (snapshot.states, snapshot.unreadable) == ({}, ["sentiment"])
        with pytest.raises(ModelDamaged, match=r"00000001\.json is damaged: it is no state"):
            registry.deploy("sentiment", "1")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"aliases": {"live": "9"}}, "it has no version '9'"),
            ({"before": ["7"]}, "it has no version '7'"),
            ({"canary": {"version": "8", "share": 0.5, "started": 1.0}}, "it has no version '8'"),
            (
                {"versions": {"../1": {"created": 1.0, "seal": "0" * 64}}},
                "it has no version '../1'",
            ),
            ({"versions": {"1": {"created": 1.0, "seal": "../../.."}}}, "should match pattern"),
            ({"name": "news"}, "it is state 5 of news"),
            ({"number": 77}, "it is state 77 of sentiment"),
            ({"name": "../news"}, "'../news' is no name of a model"),
            ({"when": 1e300}, "less than 253402300800"),
        ],
    )
    def test_a_state_that_no_change_leads_to_is_skipped(
        self, filled: Registry, store: Store, changes: dict[str, object], reason: str
    ) -> None:
        good = filled.read_state("sentiment")
        document = json.loads(good.model_dump_json()) | {"number": good.number + 1} | changes
        path = f"_states/sentiment/{good.number + 1:08d}.json"
        store.create_file(path, json.dumps(document).encode())
        snapshot = filled.read_snapshot()
        assert snapshot.states == {"sentiment": good}
        assert snapshot.damage["sentiment"].startswith(f"{store.address}/{path} is damaged: ")
        assert reason in snapshot.damage["sentiment"]

    def test_a_state_that_is_put_back_is_read_again(
        self, filled: Registry, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        newest = filled.read_state("sentiment")
        path = f"_states/sentiment/{newest.number:08d}.json"
        whole = store.read_bytes(path)
        for _ in range(2):
            store.write_bytes(path, b"")
            damaged = filled.read_snapshot()
            assert damaged.states["sentiment"].number == newest.number - 1
            assert filled.read_snapshot(damaged) is damaged
            store.write_bytes(path, whole)
            mended = filled.read_snapshot(damaged)
            assert (mended.states["sentiment"], mended.damage) == (newest, {})
        assert len(caplog.records) == 2, "damaged twice"

    def test_a_name_that_cannot_be_read_now_is_neither_lost_nor_put_back(
        self, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Refusing(tmp_path)
        registry = register_three_versions(registry_with_clock(store), bundle, bundle, bundle)
        registry.deploy("news", registry.register(bundle, "news"))
        before = registry.read_snapshot()
        registry.deploy("sentiment", "2")
        store.refused = "_states/sentiment/00000005.json"
        held = registry.read_snapshot(before)
        for _ in range(3):
            assert held.states == before.states
            assert "00000005.json: Permission denied" in held.damage["sentiment"]
            held = registry.read_snapshot(held)
        new = registry.read_snapshot()
        assert list(new.states) == ["news"], "and not an older state"
        with pytest.raises(ModelDamaged, match=r"sentiment: .*Permission denied"):
            new.resolve_reference("sentiment:1")
        with pytest.raises(StoreError, match="Permission denied"):
            registry.set_alias("sentiment", "best", "1")
        assert len(caplog.records) == 1
        store.refused = ""
        assert registry.read_snapshot(held).states["sentiment"].live == "2"

    def test_the_default_is_not_guessed_while_a_name_before_it_cannot_be_read(
        self, registry: Registry, store: Store, bundle: Path
    ) -> None:
        for name in ("news", "sentiment"):
            registry.deploy(name, registry.register(bundle, name))
        states = {number: store.read_bytes(f"_states/news/0000000{number}.json") for number in "12"}
        for number in states:
            store.write_bytes(f"_states/news/0000000{number}.json", b"{}")
        snapshot = registry.read_snapshot()
        assert snapshot.default_name is None
        with pytest.raises(ModelDamaged, match=r"the default model may be news, and .*00000002"):
            snapshot.resolve_reference(None)
        assert snapshot.resolve_reference("sentiment")[0].live == "1"
        registry.make_default("sentiment")
        assert registry.read_snapshot().default_name == "sentiment"

    @settings(
        deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.binary(max_size=60))
    def test_no_bytes_at_all_are_fatal(self, bundle: Path, data: bytes) -> None:
        store = memory_s3_store()
        registry = Registry(store)
        registry.register(bundle, "sentiment")
        store.create_file("_states/sentiment/00000002.json", data)
        assert registry.read_snapshot().states["sentiment"].number == 1
        assert registry.set_alias("sentiment", "best", "1").number == 3


class Refusing(LocalStore):
    """A store with a file that its user may not read."""

    refused = ""

    def read_bytes(self, path: str) -> bytes:
        if path == self.refused:
            raise StoreError(f"{path}: Permission denied")
        return super().read_bytes(path)


WRITER = """
import sys
from serving.registry.registry import Registry

address, writer, changes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
registry = Registry.open(address)
for number in range(changes):
    registry.set_alias("sentiment", f"w{writer}-{number}", "1", why=f"{writer}/{number}")
"""


def write_aliases(address: str, writer: int, changes: int) -> None:
    """What one of many writers does."""
    registry = Registry.open(address)
    for number in range(changes):
        registry.set_alias("sentiment", f"w{writer}-{number}", "1", why=f"{writer}/{number}")


def check_nothing_is_lost(states: list[ModelState], writers: int, changes: int) -> None:
    """Every change is there once, each state adds one to the one before, and in each writer's
    order."""
    whys = [state.why for state in states if state.why]
    expected = {f"{writer}/{number}" for writer in range(writers) for number in range(changes)}
    assert len(whys) == len(expected)
    assert set(whys) == expected
    assert [state.number for state in states] == list(range(1, len(states) + 1))
    for before, after in itertools.pairwise(states[1:]):
        assert len(after.aliases) == len(before.aliases) + 1
        assert before.aliases.items() <= after.aliases.items()
    for writer in range(writers):
        own = [why for why in whys if why.startswith(f"{writer}/")]
        assert own == sorted(own, key=lambda why: int(why.partition("/")[2]))


class TestRaces:
    def test_threads_lose_nothing(self, tmp_path: Path, bundle: Path) -> None:
        registry = Registry.open(str(tmp_path))
        registry.register(bundle, "sentiment")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda writer: write_aliases(str(tmp_path), writer, 10), range(8)))
        check_nothing_is_lost(registry.history("sentiment"), writers=8, changes=10)

    @pytest.mark.multiprocess
    def test_processes_lose_nothing(self, tmp_path: Path, bundle: Path) -> None:
        registry = Registry.open(str(tmp_path))
        registry.register(bundle, "sentiment")
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(writer), "20"], cwd=ROOT
            )
            for writer in range(8)
        ]
        seen: RegistrySnapshot | None = None
        while any(writer.poll() is None for writer in writers):
            snapshot = registry.read_snapshot(seen)
            if seen is not None:
                assert snapshot.newest["sentiment"] >= seen.newest["sentiment"]
            assert snapshot.states["sentiment"].number == snapshot.newest["sentiment"]
            seen = snapshot
            time.sleep(0.002)
        assert [writer.wait() for writer in writers] == [0] * 8
        check_nothing_is_lost(registry.history("sentiment"), writers=8, changes=20)

    def test_bundles_registered_at_once_get_numbers_of_their_own(
        self, tmp_path: Path, bundle: Path
    ) -> None:
        address = str(tmp_path)
        with ThreadPoolExecutor(8) as pool:
            versions = list(
                pool.map(lambda _: Registry.open(address).register(bundle, "sentiment"), range(16))
            )
        assert sorted(versions, key=int) == [str(number) for number in range(1, 17)]
        registry = Registry.open(address)
        assert set(registry.read_state("sentiment").versions) == set(versions)
        for version in versions:
            read_card(registry.fetch_bundle("sentiment", version, tmp_path / "cache"))

    def test_one_of_two_promotions_wins(self, tmp_path: Path, bundle: Path) -> None:
        registry = Registry.open(str(tmp_path))
        for _ in range(2):
            registry.register(bundle, "sentiment")
        registry.deploy("sentiment", "1")
        registry.deploy("sentiment", "2", share=0.5)

        def promote(_: int) -> str:
            try:
                return str(Registry.open(str(tmp_path)).promote("sentiment", version="2").live)
            except ChangeRefused as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(promote, range(4)))
        assert outcomes.count("2") == 1
        assert registry.read_state("sentiment").before == ("1",)


def test_states_are_found_again_in_their_order(tmp_path: Path) -> None:
    """Beyond the eight digits too."""
    history = StateLog(LocalStore(tmp_path))
    for number in (99_999_999, 100_000_000):
        assert history.append(ModelState(name="sentiment", number=number))
    assert history.list_numbers()["sentiment"] == [99_999_999, 100_000_000]
    newest = history.read_newest("sentiment", history.list_numbers()["sentiment"])
    assert newest is not None
    assert newest.number == 100_000_000


def test_links_in_a_circle_are_no_states(tmp_path: Path, bundle: Path) -> None:
    registry = Registry.open(str(tmp_path))
    registry.register(bundle, "sentiment")
    folder = tmp_path / "_states" / "sentiment"
    for name, target in (("self", "self"), ("up", ".."), ("also", "..")):
        (folder / name).symlink_to(target)
    assert list(registry.read_snapshot().states) == ["sentiment"]
