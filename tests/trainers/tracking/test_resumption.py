"""What of a recipe may change between a run and its resumption."""

import pytest

from trainers.config.recipe import load_recipe
from trainers.tracking.resumption import compare_recipes


@pytest.mark.parametrize(
    ("before", "now", "kind"),
    [
        ("stopping.epochs=3", "stopping.epochs=5", "longer"),
        ("stopping.epochs=5", "stopping.epochs=3", "shorter"),
        ("stopping.max_steps=10", "stopping.max_steps=null", "longer"),
        ("stopping.max_steps=null", "stopping.max_steps=10", "shorter"),
        ("stopping.patience=null", "stopping.patience=2", "shorter"),
        ("stopping.epochs=3", "stopping.epochs=auto", "changed"),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate=2e-4", "changed"),
        ("loss.class_weights=null", "loss.class_weights=balanced", "changed"),
        ("batch.token_budget=1000", "batch.token_budget=2000", ""),
    ],
)
def test_a_run_may_only_grow(before: str, now: str, kind: str) -> None:
    change = compare_recipes(load_recipe("csv", [before]), load_recipe("csv", [now]), {})
    keys = {"changed": change.changed, "longer": change.longer, "shorter": change.shorter}
    assert {name: list(found) for name, found in keys.items() if found} == (
        {kind: [now.partition("=")[0]]} if kind else {}
    )


def test_what_was_left_auto_is_what_the_run_had() -> None:
    before, now = load_recipe("csv"), load_recipe("csv", ["stopping.epochs=9"])
    change = compare_recipes(before, now, {"stopping.epochs": 6})
    assert change.longer == {"stopping.epochs": (6, 9)}
    assert "stopping.epochs 6 -> 9" in change.to_line()
