"""The model table: what a registry shows is served once it is adopted, and described once."""

import json
import shutil
from pathlib import Path

import pytest

from serving.inference.model_table import ModelTable
from serving.registry.model_ref import ModelDamaged, ModelNotFound
from serving.registry.registry import Registry
from tests.support.registries import register_three_versions, registry_with_clock
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.models.card import CARD_FILE, EngineRecord, read_card, serialize_card
from trainers.storage.atomic import file_sha256
from trainers.storage.store import LocalStore


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [2.0, -3.0])


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Registry:
    """`sentiment` of three versions, the first live."""
    registry = registry_with_clock(LocalStore(tmp_path / "registry"))
    return register_three_versions(registry, bundle, bundle, bundle)


def adopted(registry: Registry) -> ModelTable:
    table = ModelTable(registry)
    table.refresh()
    table.adopt_states(table.pending_states())
    return table


def test_nothing_is_served_before_it_is_adopted(registry: Registry) -> None:
    table = ModelTable(registry)
    table.refresh()
    (state,) = table.pending_states()
    assert (state.name, table.served_state("sentiment"), table.default_key()) == (
        "sentiment",
        None,
        None,
    )
    with pytest.raises(ModelNotFound, match="no model is live"):
        table.resolve_reference(None)
    table.adopt_states([state])
    assert table.pending_states() == []
    assert table.resolve_reference(None)[0] is table.served_state("sentiment") is state
    assert table.default_key() == ("sentiment", "1")


def test_the_old_state_serves_until_the_new_one_is_adopted(registry: Registry) -> None:
    table = adopted(registry)
    registry.deploy("sentiment", "2")
    table.refresh()
    assert table.default_key() == ("sentiment", "1")
    table.adopt_states(table.pending_states())
    assert table.default_key() == ("sentiment", "2")


def test_a_name_that_is_adopted_leaves_the_others_as_they_are(
    registry: Registry, bundle: Path
) -> None:
    registry.deploy("news", registry.register(bundle, "news"))
    table = adopted(registry)
    for name in ("news", "sentiment"):
        registry.register(bundle, name)
    table.refresh()
    table.adopt_states(s for s in table.pending_states() if s.name == "news")
    assert [state.name for state in table.pending_states()] == ["sentiment"]
    assert set(table.list_versions()) == {
        *(("news", each) for each in "12"),
        *(("sentiment", each) for each in "123"),
    }


def test_the_default_model_and_live_versions_are_listed_first_then_the_newest(
    registry: Registry, bundle: Path
) -> None:
    registry.deploy("news", registry.register(bundle, "news"))
    registry.deploy("sentiment", "2")
    registry.make_default("sentiment")
    assert adopted(registry).list_versions() == [
        ("sentiment", "2"),
        ("sentiment", "3"),
        ("sentiment", "1"),
        ("news", "1"),
    ]
    registry.make_default("news")
    assert adopted(registry).list_versions()[0] == ("news", "1")


def test_a_version_is_described_by_its_card(registry: Registry, bundle: Path) -> None:
    info = adopted(registry).get_info(("sentiment", "1"), "ready")
    card = read_card(bundle)
    assert (info.name, info.version, info.state) == ("sentiment", "1", "ready")
    assert (info.task, info.labels, info.max_length) == ("regression", (), card.max_length)
    assert (info.engine, info.base_model) == ("torch fp32", "linear")
    assert (info.metrics, info.revision) == (card.metrics, "unknown")
    assert info.weights_sha256 == card.files["model.safetensors"]
    assert (info.created, info.aliases, info.pooling) == (1.0, ("live",), "")


def test_an_embedder_is_described_by_the_width_of_its_vectors(
    registry: Registry, tiny_bert: Path, tmp_path: Path
) -> None:
    embedder = write_tiny_bundle(tmp_path / "embedder", tiny_bert, "embedding")
    registry.deploy("vectors", registry.register(embedder, "vectors"))
    table = adopted(registry)
    hidden_size = json.loads((tiny_bert / "config.json").read_text())["hidden_size"]
    assert table.get_info(("vectors", "1"), "cold").width == hidden_size > 0
    assert table.get_info(("sentiment", "1"), "cold").width == 0


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_an_embedder_without_its_config_is_damaged(
    registry: Registry, tiny_bert: Path, tmp_path: Path, change: str
) -> None:
    embedder = write_tiny_bundle(tmp_path / "embedder", tiny_bert, "embedding")
    registry.deploy("vectors", registry.register(embedder, "vectors"))
    config = tmp_path / "registry/vectors/versions/1/config.json"
    config.write_text('{"hidden_size": 7}') if change == "altered" else config.unlink()
    with pytest.raises(ModelDamaged, match=r"vectors.*config\.json (has another|is missing)"):
        adopted(registry).get_info(("vectors", "1"), "cold")


def test_the_chosen_engine_is_named_with_the_tokens_it_computes(
    registry: Registry, tmp_path: Path
) -> None:
    built = write_linear_bundle(tmp_path / "built", [2.0, -3.0])
    engines = tuple(
        EngineRecord(
            name=name, chosen=chosen, agreement=1, max_logit_difference=0, rows=1, batch_tokens=n
        )
        for name, chosen, n in (("torch fp32", False, 64), ("torch bf16", True, 512))
    )
    card = read_card(built).model_copy(update={"engines": engines})
    (built / CARD_FILE).write_text(serialize_card(card))
    registry.register(built, "sentiment")
    info = adopted(registry).get_info(("sentiment", "4"), "cold")
    assert (info.engine, info.batch_tokens, info.state) == ("torch bf16", 512, "cold")


def test_a_description_changes_with_its_aliases_and_its_load_state_alone(
    registry: Registry,
) -> None:
    table, key = adopted(registry), ("sentiment", "1")
    first = table.get_info(key, "ready")
    assert table.get_info(key, "ready") is first
    assert table.get_info(key, "cold").state == "cold"
    registry.set_alias("sentiment", "best", "1")
    table.refresh()
    assert table.get_info(key, "ready").aliases == ("live",)
    table.adopt_states(table.pending_states())
    assert table.get_info(key, "ready").aliases == ("best", "live")
    assert table.get_info(key, "ready").state == "ready"


def test_a_version_whose_card_is_damaged_is_left_out_until_it_is_mended(
    registry: Registry, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.set_alias("sentiment", "best", registry.register(bundle, "sentiment"))
    card = tmp_path / "registry" / "sentiment" / "versions" / "4" / CARD_FILE
    card.rename(card.with_suffix(".away"))
    table = adopted(registry)
    for _ in range(3):
        table.refresh()
    assert [version for _, version in table.list_versions()] == ["1", "3", "2"]
    with pytest.raises(ModelDamaged, match=r"^sentiment:4 is damaged: .*json is missing; put its"):
        table.get_info(("sentiment", "4"), "cold")
    assert table.resolve_reference("sentiment@best")[0].aliases["best"] == "4"
    (warning,) = caplog.messages
    assert warning.startswith("sentiment:4 is skipped: ")
    card.with_suffix(".away").rename(card)
    table.refresh()
    assert (table.damage, table.pending_states()) == ({}, [])
    assert table.get_info(("sentiment", "4"), "cold").aliases == ("best",)


@pytest.mark.parametrize(
    "card", [b"", b"\xff", b"[1]", b'{"format": 9}', b"[" * 100_000, b'{"recipe": {"model": 1}}']
)
def test_no_card_at_all_is_fatal(registry: Registry, tmp_path: Path, card: bytes) -> None:
    (tmp_path / "registry" / "sentiment" / "versions" / "2" / CARD_FILE).write_bytes(card)
    table = adopted(registry)
    assert list(table.damage) == [("sentiment", "2")]
    assert table.default_key() == ("sentiment", "1")


def test_a_card_of_a_later_version_of_bertha_is_told(
    registry: Registry, bundle: Path, tmp_path: Path
) -> None:
    registry.register(bundle, "sentiment")
    card = tmp_path / "registry" / "sentiment" / "versions" / "4" / CARD_FILE
    card.write_text(card.read_text().replace('"format": 1', '"format": 2'))
    state = next((tmp_path / "registry" / "_states" / "sentiment").glob("*5.json"))
    seal = registry.read_state("sentiment").versions["4"].seal
    document = json.loads(state.read_text())
    document["versions"]["4"]["seal"] = file_sha256(card)
    state.write_text(json.dumps(document))
    assert seal != file_sha256(card)
    assert "is not of format 1" in adopted(registry).damage["sentiment", "4"]


def test_names_that_the_registry_shows_no_longer_are_served_as_before(
    registry: Registry, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.deploy("news", registry.register(bundle, "news"))
    table = adopted(registry)
    place, away = tmp_path / "registry", tmp_path / "away"
    place.rename(away)
    versions = table.list_versions()
    for _ in range(2):
        for _ in range(3):
            table.refresh()
            assert (table.list_versions(), table.pending_states()) == (versions, [])
        place.mkdir(exist_ok=True)  # what is mounted comes back empty
    (warning,) = caplog.messages
    assert f"{place} shows no news, sentiment any more; serving what was last" in warning
    place.rmdir()
    away.rename(place)
    registry.deploy("sentiment", "2")
    table.refresh()
    (state,) = table.pending_states()
    assert state.live == "2"
    away = place / "_states" / "news"
    away.rename(place / "away")
    table.refresh()
    assert caplog.messages[1:] == [warning.replace("news, sentiment", "news")]


def test_a_version_of_a_registry_that_was_made_anew_is_described_anew(
    registry: Registry, tmp_path: Path
) -> None:
    table = adopted(registry)
    old = table.get_info(("sentiment", "1"), "cold").weights_sha256
    shutil.rmtree(tmp_path / "registry")
    other = write_linear_bundle(tmp_path / "other", [1.0, 1.0])
    registry.deploy("sentiment", registry.register(other, "sentiment"))
    table.refresh()
    table.adopt_states(table.pending_states())
    assert table.list_versions() == [("sentiment", "1")]
    new = table.get_info(("sentiment", "1"), "cold").weights_sha256
    assert new == read_card(other).files["model.safetensors"] != old
