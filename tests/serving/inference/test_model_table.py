"""The model table: what a registry shows is served once it is adopted, and described once."""

from pathlib import Path

import pytest

from serving.inference.model_table import ModelTable
from serving.registry.model_ref import ModelNotFound
from serving.registry.registry import Registry
from tests.support.registries import register_three_versions, registry_with_clock
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import CARD_FILE, EngineRecord, read_card, serialize_card
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


def test_a_card_that_cannot_be_read_changes_nothing(
    registry: Registry, bundle: Path, tmp_path: Path
) -> None:
    table = adopted(registry)
    registry.register(bundle, "sentiment")
    place = tmp_path / "registry" / "sentiment" / "versions" / "4" / CARD_FILE
    place.rename(place.with_suffix(".away"))
    with pytest.raises(Exception, match=r"versions/4/bundle\.json: no such file"):
        table.refresh()
    assert table.pending_states() == []
    place.with_suffix(".away").rename(place)
    table.refresh()
    (state,) = table.pending_states()
    assert list(state.versions) == ["1", "2", "3", "4"]
