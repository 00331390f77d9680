"""Ranges: what they mean, and what is wrong with them in one line."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.settings import SettingsError
from trainers.config import recipe as recipes
from trainers.config.defaults import choose_settings
from tuning.space import space as spaces
from tuning.space.scaling_rule import RATE, SIZE, ScalingRule
from tuning.space.space import Choices, Range

SETTINGS: dict[str, Any] = {
    "model": {"name": "package:all-minilm-l6-v2"},
    "data": {"source": "data.csv"},
    "batch": {"global_size": 32, "max_length": 64},
    "optimizer": {"learning_rate": 1e-4},
}
RECIPE = recipes.parse_recipe(SETTINGS)


def parse_ranges(**ranges: Any) -> spaces.Space:
    named = {key.replace("__", "."): value for key, value in ranges.items()}
    return spaces.parse_space(SETTINGS | {"tune": named}, RECIPE, 22_000_000, "recipe")


def test_ranges_are_read() -> None:
    space = parse_ranges(
        optimizer__learning_rate="log 1e-6..1e-3",
        stopping__epochs="1..4",
        optimizer__weight_decay="0..0.1",
        batch__global_size=[16, 32],
    )
    assert space["optimizer.learning_rate"] == Range(1e-6, 1e-3, log=True)
    assert space["stopping.epochs"] == Range(1, 4, whole=True)
    assert space["optimizer.weight_decay"] == Range(0, 0.1)
    assert space["batch.global_size"] == Choices((16, 32))


def test_the_loss_and_what_is_frozen_may_be_searched() -> None:
    space = parse_ranges(
        loss__class_weights=[None, "balanced"],
        loss__focal_gamma="0..3",
        loss__label_smoothing="0..0.2",
        optimizer__layer_decay="0.7..1",
        schedule__warmup_steps="0..100",
        model__freeze=[None, "embeddings", 2, "encoder"],
    )
    assert space["loss.class_weights"] == Choices((None, "balanced"))
    assert space["model.freeze"] == Choices((None, "embeddings", 2, "encoder"))
    assert space["schedule.warmup_steps"] == Range(0, 100, whole=True)
    found = spaces.apply_point(SETTINGS, {"loss.focal_gamma": 2.0, "model.freeze": 2})
    assert (found.loss.focal_gamma, found.model.freeze) == (2.0, 2)


def test_keys_may_be_nested_and_a_range_may_be_taken_back() -> None:
    nested = {"optimizer": {"learning_rate": "log 1e-6..1e-3", "weight_decay": None}}
    space = spaces.parse_space(SETTINGS | {"tune": nested}, RECIPE, 1, "recipe")
    assert list(space) == ["optimizer.learning_rate"]
    overridden = {"batch.global_size": [8, 16], "batch": {"global_size": None}, **nested}
    assert spaces.parse_space(SETTINGS | {"tune": overridden}, RECIPE, 1, "recipe") == space


def test_rates_as_people_write_them_are_numbers_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name: package:all-minilm-l6-v2}\ndata: {source: data.csv}\n"
        "optimizer: {learning_rate: 5e-5}\n"
        "tune:\n  optimizer.learning_rate: [1e-5, 3e-5, 5e-5]\n  optimizer.eps: [1e-8, 1]\n"
    )
    recipe = recipes.load_recipe(path)
    for overrides in ([], ["tune.optimizer.learning_rate=['1e-5', 3e-5, 0.00005]"]):
        settings, origin = recipes.read_settings(path, overrides)
        space = spaces.parse_space(settings, recipe, 22_000_000, origin)
        rates = space["optimizer.learning_rate"]
        assert rates == Choices((1e-5, 3e-5, 5e-5)) and rates.is_ordered
        assert rates.contains(spaces.extract_point(recipe, space)["optimizer.learning_rate"])
        assert space["optimizer.eps"] == Choices((1e-8, 1.0))
    with pytest.raises(SettingsError, match="names a choice twice"):
        parse_ranges(optimizer__learning_rate=["1e-4", 1e-4])


def test_a_list_may_be_a_choice() -> None:
    space = parse_ranges(model__layers=[None, [0, 2, 4]])
    assert space["model.layers"].bounds == (None, "[0, 2, 4]"), "a word, as samplers want it"
    base = RECIPE.model_dump(mode="json")
    student = spaces.apply_point(base, {"model.layers": "[0, 2, 4]"})
    assert student.model.layers == (0, 2, 4)
    assert spaces.extract_point(student, space) == {"model.layers": "[0, 2, 4]"}
    assert spaces.apply_point(base, {"model.layers": None}) == RECIPE


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"optimizer__learning_rate": "log 1e-3..1e-6"}, "upside down; write 1e-6..1e-3"),
        ({"stopping__epochs": "3..3"}, "upside down"),
        ({"optimizer__learning_rte": "1e-6..1e-3"}, "did you mean optimizer.learning_rate"),
        ({"optimiser__learning_rate": "1e-6..1e-3"}, "did you mean optimizer"),
        ({"optimizer__learning_rate": "log 0..1e-3"}, "needs ends above 0"),
        ({"optimizer__learning_rate": "-1..1"}, r"learning_rate = -1.* greater than 0"),
        ({"optimizer__learning_rate": "1e-6 to 1e-3"}, "not a range; write"),
        ({"optimizer__learning_rate": 3}, "not a range"),
        ({"batch__global_size": "16.5..64.5"}, "global_size = 16.5"),
        ({"batch__global_size": []}, "names no choice"),
        ({"batch__global_size": [16, 16]}, "names a choice twice"),
        ({"optimizer__betas": [[[0.9], [0.99]]]}, "a choice is a number, a word"),
        ({"optimizer__betas": [[0.9, 0.99], [0.9]]}, "betas"),
        ({"optimizer__name": ["adamw", "adamx"]}, "adamx"),
        ({"optimizer__name": ["adamw", "sgd"], "optimizer__momentum": [0.0, 0.9]}, "momentum"),
        ({"model__name__size": [1, 2]}, "name is no group of settings"),
        ({"seed": [1, 2]}, "lucky seed"),
        ({"layout__tp": [1, 2]}, "changes no result"),
        ({"batch__token_budget": [64, 128]}, "changes no result"),
        ({"data__max_rows": [10, 20]}, "two data sets cannot be compared"),
        ({"evaluation__metric": ["f1", "loss"]}, "decides itself"),
    ],
)
def test_what_is_wrong_is_said_in_one_error(ranges: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_ranges(**ranges)


def test_tune_must_be_ranges() -> None:
    with pytest.raises(SettingsError, match="give a range to each key"):
        spaces.parse_space(SETTINGS | {"tune": "all of it"}, RECIPE, 1, "recipe")
    with pytest.raises(SettingsError, match="names no range"):
        parse_ranges(optimizer__learning_rate=None)


def test_the_default_space_suits_the_size_of_the_model_and_holds_the_recipe() -> None:
    rates = {}
    for parameters in (4e6, 110e6, 340e6):
        space = spaces.default_space(RECIPE, int(parameters))
        rates[parameters] = space[RATE]
        assert space[RATE].contains(1e-4) and space[SIZE] == Choices((16, 32, 64, 128))
        spaces.check_space(space, RECIPE, "default")
    assert rates[4e6].bounds[1] > rates[110e6].bounds[1]
    assert rates[340e6].bounds[0] < rates[110e6].bounds[0]
    small = SETTINGS | {"batch": {"global_size": 1}}
    assert spaces.default_space(recipes.parse_recipe(small), 1)[SIZE] == Choices((1, 2, 4))


def test_shares_of_a_range_are_even_in_what_it_says() -> None:
    log, even, whole = Range(1e-6, 1e-2, log=True), Range(2.0, 4.0), Range(1, 4, whole=True)
    assert log.value_at(0.5) == pytest.approx(1e-4)
    assert even.value_at(0.25) == 2.5
    drawn = [whole.value_at((i + 0.5) / 1000) for i in range(1000)]
    assert all(drawn.count(value) == 250 for value in (1, 2, 3, 4))
    assert {Choices(("a", "b")).value_at(share) for share in (0.0, 0.49)} == {"a"}
    assert Choices(("a", "b")).value_at(1.0) == "b"


def test_the_rule_scales_with_the_root_for_adam_and_in_proportion_for_sgd() -> None:
    space = {RATE: Range(1e-5, 1e-3, log=True), SIZE: Choices((8, 32, 128))}
    searched = {RATE: 1e-4, SIZE: 128}
    assert ScalingRule.for_space(space, 32, "adamw", True).to_settings(searched)[
        RATE
    ] == pytest.approx(2e-4)
    assert ScalingRule.for_space(space, 32, "sgd", True).to_settings(searched)[
        RATE
    ] == pytest.approx(4e-4)
    assert ScalingRule.for_space(space, 32, "adamw", False).to_settings(searched) == searched
    alone = {RATE: space[RATE]}
    assert ScalingRule.for_space(alone, 32, "adamw", True).to_settings({RATE: 1e-4}) == {RATE: 1e-4}
    by_name = {**searched, "optimizer.name": "sgd"}
    rule = ScalingRule.for_space(space, 32, "adamw", True)
    assert rule.to_settings(by_name)[RATE] == pytest.approx(4e-4)
    assert rule.to_search_point(rule.to_settings(by_name)) == pytest.approx(by_name)


def test_shown_rates_are_as_wide_as_they_come_out() -> None:
    space = {RATE: Range(1e-5, 1e-3, log=True), SIZE: Choices((8, 32, 128))}
    wider = ScalingRule.for_space(space, 32, "adamw", True).settings_space(space)[RATE]
    assert isinstance(wider, Range)
    assert math.isclose(wider.low, 0.5e-5) and math.isclose(wider.high, 2e-3)


def test_a_recipe_file_may_hold_ranges_that_trainers_leave_alone(tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"tune": {"stopping.epochs": "1..4"}}))
    assert recipes.load_recipe(path) == RECIPE
    settings, _ = recipes.read_settings(path, ["tune.stopping.epochs=1..9"])
    assert settings["tune"] == {"stopping.epochs": "1..4", "stopping": {"epochs": "1..9"}}


def test_the_shipped_recipes_can_be_searched() -> None:
    for path in recipes.SHIPPED.glob("*.yaml"):
        settings, origin = recipes.read_settings(path)
        recipe = choose_settings(recipes.load_recipe(path), 1000, 384).recipe
        space = spaces.parse_space(settings, recipe, 22_000_000, origin)
        spaces.check_space(space, recipe, origin)
