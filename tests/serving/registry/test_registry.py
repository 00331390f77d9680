"""The registry: immutable versions, what is served of them, and who asks for what."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.errors import BerthaError
from serving.registry.canary_rule import CanaryRule
from serving.registry.model_ref import InvalidReference, ModelNotFound, ModelReference
from serving.registry.registry import Registry
from serving.registry.state import ChangeRefused
from tests.support.registries import (
    KINDS,
    empty_store,
    memory_s3_store,
    register_three_versions,
    registry_with_clock,
)
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import BundleError, EngineRecord, read_card, serialize_card
from trainers.storage.atomic import file_sha256
from trainers.storage.store import LocalStore, S3Store, Store


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [2.0, -3.0])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [1.0, 1.0])


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return empty_store(request.param, tmp_path)


@pytest.fixture
def registry(store: Store) -> Registry:
    return registry_with_clock(store)


@pytest.fixture
def filled(registry: Registry, bundle: Path, other: Path) -> Registry:
    return register_three_versions(registry, bundle, other, bundle)


class TestVersions:
    def test_they_are_numbered_and_keep_what_they_were(
        self, registry: Registry, bundle: Path, other: Path, tmp_path: Path
    ) -> None:
        assert registry.register(bundle, "sentiment", note="first") == "1"
        assert registry.register(other, "sentiment") == "2"
        assert registry.register(other, "news") == "1"
        state = registry.read_state("sentiment")
        assert list(state.versions) == ["1", "2"]
        assert state.versions["1"].note == "first"
        assert state.versions["1"].source == str(bundle)
        assert state.live is None, "nothing is served by being there"
        for version, source in (("1", bundle), ("2", other)):
            fetched = registry.fetch_bundle("sentiment", version, tmp_path / "cache")
            assert read_card(fetched) == read_card(source)
            assert (fetched / "model.safetensors").read_bytes() == (
                source / "model.safetensors"
            ).read_bytes()

    def test_a_number_is_never_used_again(self, filled: Registry, other: Path) -> None:
        filled.remove_version("sentiment", "3")
        assert filled.register(other, "sentiment") == "4"
        with pytest.raises(ModelNotFound, match="sentiment:3: no such version"):
            filled.fetch_bundle("sentiment", "3", Path("cache"))

    def test_the_card_of_a_version_is_known_without_fetching(self, filled: Registry) -> None:
        assert filled.read_card("sentiment", "2").task == "regression"
        with pytest.raises(BundleError, match=r"sentiment/versions/9 is not .*\.json is missing"):
            filled.read_card("sentiment", "9")

    def test_damaged_versions_are_found_and_the_others_are_not(
        self, filled: Registry, store: Store
    ) -> None:
        state = filled.read_state("sentiment")
        assert filled.find_damage(state) == filled.find_damage(state, every_file=True) == {}
        store.remove("sentiment/versions/2/bundle.json")
        store.write_bytes("sentiment/versions/3/model.safetensors", b"bits")
        by_card = filled.find_damage(state)
        assert list(by_card) == ["2"] and "bundle.json is missing" in by_card["2"]
        by_file = filled.find_damage(state, every_file=True)
        assert list(by_file) == ["2", "3"] and "model.safetensors" in by_file["3"]

    def test_a_version_in_use_stays(self, filled: Registry) -> None:
        filled.set_alias("sentiment", "best", "2")
        filled.deploy("sentiment", "3", share=0.1)
        for version, why in (("1", "is live; move"), ("2", "is best; move"), ("3", "is a canary")):
            with pytest.raises(ChangeRefused, match=why):
                filled.remove_version("sentiment", version)

    def test_a_bundle_that_is_not_whole_is_not_taken(
        self, registry: Registry, bundle: Path, tmp_path: Path
    ) -> None:
        broken = shutil.copytree(bundle, tmp_path / "broken")
        (broken / "config.json").write_text("{}")
        with pytest.raises(BundleError, match=r"config\.json is not the file that was written"):
            registry.register(broken, "sentiment")
        with pytest.raises(InvalidReference, match="no name of a model"):
            registry.register(bundle, "../sentiment")
        assert registry.read_snapshot().states == {}

    def test_an_upload_that_was_killed_is_not_there(
        self, registry: Registry, store: Store, bundle: Path
    ) -> None:
        store.create_file("sentiment/claims/1", b"somebody who died")
        assert registry.read_snapshot().states == {}
        assert registry.register(bundle, "sentiment") == "2"
        assert list(registry.read_state("sentiment").versions) == ["2"]


class TestFetching:
    def test_a_directory_needs_no_copy(self, tmp_path: Path, bundle: Path) -> None:
        registry = Registry(LocalStore(tmp_path / "registry"))
        registry.register(bundle, "sentiment")
        fetched = registry.fetch_bundle("sentiment", "1", tmp_path / "cache")
        assert fetched == tmp_path / "registry" / "sentiment" / "versions" / "1"
        assert not (tmp_path / "cache").exists()

    def test_a_damaged_copy_is_fetched_again(self, tmp_path: Path, bundle: Path) -> None:
        registry = Registry(memory_s3_store())
        registry.register(bundle, "sentiment")
        fetched = registry.fetch_bundle("sentiment", "1", tmp_path)
        (fetched / "model.safetensors").write_bytes(b"bits")
        assert read_card(registry.fetch_bundle("sentiment", "1", tmp_path)) == read_card(bundle)

    @pytest.mark.parametrize("name", ["model.safetensors", "bundle.json"])
    def test_a_store_that_was_tampered_with_is_told(
        self, tmp_path: Path, bundle: Path, name: str
    ) -> None:
        memory = MemoryFileSystem(global_store=False, skip_instance_cache=True)
        registry = Registry(S3Store(memory, "/r"))
        registry.register(bundle, "sentiment")
        path = f"/r/sentiment/versions/1/{name}"
        memory.pipe_file(path, memory.cat_file(path).replace(b"0", b"1"))
        with pytest.raises(BundleError, match="not the bundle that was registered"):
            registry.fetch_bundle("sentiment", "1", tmp_path)
        assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []

    def test_the_files_of_engines_are_looked_at_too(self, bundle: Path, tmp_path: Path) -> None:
        built = shutil.copytree(bundle, tmp_path / "built")
        (built / "onnx").mkdir()
        (built / "onnx" / "model.onnx").write_bytes(b"graph")
        engine = EngineRecord(
            name="onnx fp32",
            files={"onnx/model.onnx": file_sha256(built / "onnx" / "model.onnx")},
            agreement=1.0,
            max_logit_difference=0.0,
            rows=1,
        )
        (built / "bundle.json").write_text(
            serialize_card(read_card(built).model_copy(update={"engines": (engine,)}))
        )
        registry = Registry(memory_s3_store())
        registry.register(built, "sentiment")
        fetched = registry.fetch_bundle("sentiment", "1", tmp_path / "cache")
        for damaged in (fetched, built):
            (damaged / "onnx" / "model.onnx").write_bytes(b"bits")
        again = registry.fetch_bundle("sentiment", "1", tmp_path / "cache")
        assert (again / "onnx" / "model.onnx").read_bytes() == b"graph"
        with pytest.raises(BundleError, match=r"onnx fp32: onnx/model\.onnx is not the file"):
            registry.register(built, "sentiment")

    def test_many_at_once_download_once(
        self, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry, downloads = Registry(memory_s3_store()), []
        registry.register(bundle, "sentiment")
        download = S3Store.download_directory

        def counted(self: S3Store, folder: str, target: Path) -> None:
            downloads.append(threading.get_ident())
            download(self, folder, target)

        monkeypatch.setattr(S3Store, "download_directory", counted)
        with ThreadPoolExecutor(8) as pool:
            fetched = set(
                pool.map(lambda _: registry.fetch_bundle("sentiment", "1", tmp_path), range(16))
            )
        assert len(fetched) == len(downloads) == 1


class TestServing:
    def test_a_canary_is_promoted(self, filled: Registry) -> None:
        rule = CanaryRule(min_requests=7)
        state = filled.deploy("sentiment", "2", share=0.1, rule=rule, why="more epochs")
        assert state.canary is not None
        assert (state.live, state.canary.version, state.canary.share) == ("1", "2", 0.1)
        assert state.canary.rule == rule
        state = filled.promote("sentiment")
        assert (state.live, state.canary, state.before) == ("2", None, ("1",))

    def test_a_rollback_ends_the_canary_and_only_then_the_live_version(
        self, filled: Registry
    ) -> None:
        filled.deploy("sentiment", "2")
        filled.deploy("sentiment", "3", share=0.5)
        assert filled.rollback("sentiment").live == "2"
        state = filled.rollback("sentiment")
        assert (state.live, state.before) == ("1", ())
        with pytest.raises(ChangeRefused, match="nothing to roll back to"):
            filled.rollback("sentiment")

    def test_a_wider_canary_is_the_same_trial(self, filled: Registry) -> None:
        first = filled.deploy("sentiment", "2", share=0.1).canary
        wider = filled.deploy("sentiment", "2", share=0.5).canary
        another = filled.deploy("sentiment", "3", share=0.5).canary
        assert first and wider and another
        assert first.started == wider.started < another.started

    def test_a_judge_that_is_late_changes_nothing(self, filled: Registry) -> None:
        """Its decision is on version 2, and by now version 3 is the canary, or none."""
        filled.deploy("sentiment", "2", share=0.1)
        filled.deploy("sentiment", "3", share=0.1)
        for late in (filled.promote, filled.rollback):
            with pytest.raises(ChangeRefused, match="sentiment:3 is"):
                late("sentiment", version="2")
        filled.rollback("sentiment", version="3")
        for late in (filled.promote, filled.rollback):
            with pytest.raises(ChangeRefused, match="no canary runs"):
                late("sentiment", version="3")
        assert filled.read_state("sentiment").live == "1"

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda r: r.deploy("sentiment", "9"), "sentiment:9: no such version; there is 1, 2"),
            (lambda r: r.deploy("sentiment", "1", share=0.5), "sentiment:1 is live already"),
            (lambda r: r.deploy("sentiment", "2", share=1.5), "share = 1.5: no share"),
            (lambda r: r.deploy("sentimant", "1"), "sentimant: no such .* did you mean sentiment"),
            (
                lambda r: r.deploy("sentiment", "2", share=0.5, rule=CanaryRule(min_agreement=0.9)),
                "min_agreement = 0.9: .* make the canary a shadow",
            ),
            (lambda r: r.promote("sentiment"), "no canary runs"),
            (lambda r: r.set_alias("sentiment", "live", "2"), "deploy the version instead"),
            (lambda r: r.set_alias("sentiment", "best", None), "sentiment@best: no such alias"),
            (lambda r: r.remove_version("../../etc", "1"), "no name of a model"),
            (lambda r: r.read_state("news"), "news: no such model; there is sentiment"),
        ],
    )
    def test_what_cannot_be_is_refused_and_not_written(
        self, filled: Registry, change: Callable[[Registry], object], error: str
    ) -> None:
        before = filled.read_snapshot()
        with pytest.raises(BerthaError, match=error):
            change(filled)
        assert filled.read_snapshot(before) is before

    def test_a_canary_wants_a_live_version_beside_it(
        self, registry: Registry, bundle: Path
    ) -> None:
        registry.register(bundle, "sentiment")
        with pytest.raises(ChangeRefused, match="no version is live to hold a canary against"):
            registry.deploy("sentiment", "1", shadow=True)

    def test_a_shadow_gets_every_request_unless_told(self, filled: Registry) -> None:
        canary = filled.deploy("sentiment", "2", shadow=True).canary
        assert canary is not None
        assert (canary.share, canary.shadow) == (1.0, True)

    def test_aliases_move_and_go(self, filled: Registry) -> None:
        filled.set_alias("sentiment", "best", "2")
        assert filled.set_alias("sentiment", "best", "3").aliases == {"live": "1", "best": "3"}
        assert filled.set_alias("sentiment", "best", None).aliases == {"live": "1"}


class TestReading:
    def test_an_unchanged_registry_is_the_same_snapshot(self, filled: Registry) -> None:
        first = filled.read_snapshot()
        assert filled.read_snapshot(first) is first
        filled.set_alias("sentiment", "best", "2")
        second = filled.read_snapshot(first)
        assert second.states["sentiment"].aliases["best"] == "2"
        assert first.states["sentiment"].aliases == {"live": "1"}, "what was read stays as it was"

    def test_it_reads_only_what_changed(self, registry: Registry, bundle: Path) -> None:
        for name in ("news", "sentiment"):
            registry.register(bundle, name)
        first = registry.read_snapshot()
        registry.deploy("news", "1")
        assert registry.read_snapshot(first).states["sentiment"] is first.states["sentiment"]

    def test_a_change_that_changes_nothing_is_none(self, filled: Registry) -> None:
        before = filled.read_state("sentiment")
        assert filled.deploy("sentiment", "1") == before
        assert filled.set_alias("sentiment", "best", "2").number == before.number + 1
        assert filled.set_alias("sentiment", "best", "2").number == before.number + 1

    def test_the_history_tells_who_when_and_why(self, filled: Registry) -> None:
        filled.deploy("sentiment", "2", share=0.25, why="more epochs")
        filled.promote("sentiment", why="0 of 2000 requests failed")
        history = filled.history("sentiment")
        assert [state.number for state in history] == list(range(1, 7))
        assert [state.what for state in history] == [
            "register 1",
            "register 2",
            "register 3",
            "deploy 1",
            "canary 2 on 0.25 of the requests",
            "promote",
        ]
        assert {state.who for state in history} == {"mia"}
        assert [state.when for state in history] == sorted({state.when for state in history})
        assert history[-1].why == "0 of 2000 requests failed"

    def test_the_default_is_the_first_live_name_until_one_is_made_so(
        self, registry: Registry, bundle: Path
    ) -> None:
        assert registry.read_snapshot().default_name is None
        with pytest.raises(ModelNotFound, match="no model is live"):
            registry.read_snapshot().resolve_reference(None)
        for name in ("news", "sentiment", "spam"):
            registry.register(bundle, name)
        registry.deploy("spam", "1")
        registry.deploy("sentiment", "1")
        assert registry.read_snapshot().default_name == "sentiment"
        registry.make_default("spam")
        assert registry.read_snapshot().resolve_reference(None)[1] == ModelReference("spam")
        registry.make_default("news")
        assert registry.read_snapshot().default_name == "spam", "of news nothing is live"

    def test_a_snapshot_finds_what_is_asked_for(self, filled: Registry) -> None:
        state, reference = filled.read_snapshot().resolve_reference("sentiment@best")
        assert (state.name, reference.alias) == ("sentiment", "best")
        with pytest.raises(
            ModelNotFound, match=r"sentimint: no such model; did you mean sentiment\?"
        ):
            filled.read_snapshot().resolve_reference("sentimint")

    def test_nobody_needs_a_name(self, tmp_path: Path, bundle: Path) -> None:
        registry = Registry.open(str(tmp_path))
        registry.register(bundle, "sentiment")
        assert "@" in registry.read_state("sentiment").who
        assert registry.address == str(tmp_path)
