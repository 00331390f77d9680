"""What `auto` becomes: by rows, by width, by what the recipe states; and too few steps are said."""

import pytest

from cluster.settings import SettingsError
from trainers.config.defaults import (
    LEAST_EPOCHS,
    MOST_EPOCHS,
    STEPS_NEEDED,
    STEPS_WARNED,
    apply_values,
    choose_settings,
    stated_settings,
)
from trainers.config.recipe import Recipe, load_recipe


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe("csv.yaml", ["data.source=x.csv", *overrides])


@pytest.mark.parametrize("rows", [8, 80, 240, 400, 1000, 1999, 2000, 10_000, 1_000_000])
def test_few_rows_get_enough_steps_and_many_rows_few_epochs(rows: int) -> None:
    chosen = choose_settings(recipe_of(), rows, 384)
    epochs, steps = chosen.recipe.epochs, chosen.num_steps
    assert LEAST_EPOCHS <= epochs <= MOST_EPOCHS and steps is not None
    assert steps >= STEPS_NEEDED or epochs == MOST_EPOCHS
    if epochs > LEAST_EPOCHS:  # no more of them than needed
        assert steps * (epochs - 1) / epochs < STEPS_NEEDED


def test_learning_rates_fall_with_the_width() -> None:
    rates = [choose_settings(recipe_of(), 5000, width).recipe.learning_rate for width in WIDTHS]
    assert rates == sorted(rates, reverse=True)
    assert 2e-5 <= rates[WIDTHS.index(1024)] <= 5e-5  # as published for BERT-large
    assert 2e-5 <= rates[WIDTHS.index(768)] <= 6e-5  # and for BERT-base
    assert rates[0] == rates[1]  # narrower ones than were measured get no more


WIDTHS = [128, 384, 768, 1024]


def test_learning_rates_grow_with_the_batch_but_not_for_ever() -> None:
    sizes = (8, 16, 64, 1024, 65536)
    rates = [
        choose_settings(recipe_of(f"batch.global_size={size}"), 5000, 384).recipe.learning_rate
        for size in sizes
    ]
    assert rates[2] == pytest.approx(2 * rates[1], rel=0.05) and rates[0] < rates[1]
    assert rates[3] == rates[4] < 1e-3


def test_what_a_recipe_states_stays() -> None:
    stated = recipe_of("batch.global_size=64", "optimizer.learning_rate=3e-5", "stopping.epochs=2")
    chosen = choose_settings(stated, 200, 384)
    assert chosen.recipe == stated and chosen.values == {}
    one = choose_settings(recipe_of("batch.global_size=64"), 200, 384)
    assert one.recipe.global_batch_size == 64 and "batch.global_size" not in one.values
    assert one.num_steps == -(-200 // 64) * one.recipe.epochs


def test_a_run_goes_on_with_the_numbers_that_it_began_with() -> None:
    begun = choose_settings(recipe_of(), 300, 384)
    recorded = stated_settings(begun.recipe) | {"model.name": "another"}
    assert apply_values(recipe_of(), recorded) == begun.recipe
    assert apply_values(recipe_of("stopping.epochs=1"), recorded).epochs == 1


def test_too_few_steps_are_said_with_the_setting_to_change() -> None:
    short = choose_settings(recipe_of("stopping.epochs=1"), 300, 384)
    assert short.num_steps is not None and short.num_steps < STEPS_WARNED
    assert f"{short.num_steps} optimizer steps are too few" in short.warning
    assert "stopping.epochs=" in short.warning and short.warning in short.to_lines()[-1]
    limited = choose_settings(recipe_of("stopping.max_steps=5"), 300, 384)
    assert "raise stopping.max_steps" in limited.warning and limited.num_steps == 5
    assert choose_settings(recipe_of(), 300, 384).warning == ""


def test_following_the_warning_ends_it() -> None:
    warning = choose_settings(recipe_of("stopping.epochs=1"), 300, 384).warning
    setting = next(word for word in warning.split() if word.startswith("stopping.epochs="))
    assert choose_settings(recipe_of(setting.rstrip(",")), 300, 384).warning == ""


def test_of_unknown_rows_the_steps_are_unknown() -> None:
    chosen = choose_settings(recipe_of(), None, 768)
    assert chosen.num_steps is None and chosen.warning == ""
    assert choose_settings(recipe_of("stopping.max_steps=9"), None, 768).num_steps == 9


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("batch.global_size=many", "many"),
        ("stopping.epochs=0", "0"),
        ("optimizer.learning_rate=-1", "-1"),
        ("stopping.epochs=automatic", "automatic"),
    ],
)
def test_what_is_neither_auto_nor_a_number_is_told_once(override: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        recipe_of(override)
    message = str(error.value)
    assert message.count(override.partition("=")[0]) == 1 and value in message
