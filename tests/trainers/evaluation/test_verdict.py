"""The verdict says what is wrong with a model, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.evaluation.baseline import Baseline
from trainers.evaluation.held_out import HeldOut
from trainers.evaluation.learning import Training, advise_longer_run, is_loss_falling
from trainers.evaluation.predictions import Predictions
from trainers.evaluation.sentences import beats
from trainers.evaluation.verdict import describe_baselines, judge
from trainers.training.metrics import MetricAccumulator, Metrics

LABELS = ("billing", "delivery", "login", "other")


def recipe_of(task: str, *more: str) -> Recipe:
    settings = [f"task={task}", "data.source=rows.csv", "stopping.epochs=3", *more]
    return recipes.load_recipe("csv", settings)


def training(recipe: Recipe, losses: Sequence[float] = (), **more: Any) -> Training:
    steps = [{"step": number, "loss": loss} for number, loss in enumerate(losses, 1)]
    return Training(recipe, "/home/me/runs/mine", steps, more.pop("evaluations", []), **more)


def outcome_of(
    task: str, labels: tuple[str, ...], logits: np.ndarray, targets: np.ndarray, shift: Any = None
) -> tuple[Metrics, Predictions]:
    metrics = MetricAccumulator(task, max(1, len(labels)), shift)  # type: ignore[arg-type]
    metrics.add_batch(torch.from_numpy(logits), torch.from_numpy(targets))
    metrics.keep_scores(torch.from_numpy(logits), torch.from_numpy(targets))
    rows = np.arange(len(logits))
    return metrics.compute_metrics(labels), Predictions(rows, logits, targets, len(rows))


def one_hot(said: np.ndarray, width: int = 4) -> np.ndarray:
    return 2 * np.eye(width, dtype=np.float32)[said]


def baseline_of(words: np.ndarray, common: int = 0, name: str = "TF-IDF + x") -> Baseline:
    majority = np.repeat(one_hot(np.array([common]), words.shape[1]), len(words), axis=0)
    return Baseline(majority, words, name, "", 240, 1.23)


@pytest.fixture
def collapsed() -> dict[str, Any]:
    """A model that never says the last two of four classes, and words that know them all."""
    targets = np.arange(36) % 4
    test, predictions = outcome_of("classification", LABELS, one_hot(targets % 2), targets)
    falling = list(np.linspace(1.4, 1.1, 40))
    return judge(
        training(recipe_of("classification"), falling),
        LABELS,
        test,
        predictions,
        baseline=baseline_of(one_hot(targets)),
    )


def test_a_collapsed_model_is_found_out(collapsed: Mapping[str, Any]) -> None:
    assert collapsed["metric"] == "f1" and collapsed["rows"] == 36
    assert collapsed["never_predicted"] == ["login", "other"]
    assert {each["predicted"] for each in collapsed["confusions"]} == {"billing", "delivery"}
    assert [each["rows"] for each in collapsed["confusions"]] == [9, 9]
    assert collapsed["figures"]["f1"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    words = collapsed["baselines"]["bag-of-words"]
    assert words["f1"] == 1.0 and words["seconds"] == 1.2
    assert words["difference"]["value"] == pytest.approx(-2 / 3, abs=1e-4)
    assert words["difference"]["high"] < -0.4 and beats(collapsed) == -1
    assert collapsed["baselines"]["majority"]["accuracy"] == 0.25
    assert collapsed["loss_falling"] is True
    assert collapsed["candidate"] == "fine-tuned"


def test_its_sentences_name_the_setting_and_the_command(collapsed: Mapping[str, Any]) -> None:
    said = "\n".join(collapsed["sentences"])
    assert "A bag of words does better (TF-IDF + x: f1 1.000)" in said
    assert "Never predicted: 'login', 'other' (2 of 4 labels)." in said
    assert "was taken for 'billing' in 9 of 9 rows" in said
    assert "still falling when the run ended: raise stopping.epochs from 3 to 9." in said
    assert "36 test rows tell little" in said
    assert collapsed["next"] == (
        "bertha train /home/me/runs/mine/recipe.yaml stopping.epochs=9 --run "
        "/home/me/runs/mine --resume"
    )


def test_a_good_model_is_to_be_served() -> None:
    targets = np.arange(200) % 4
    poor = np.where(np.arange(200) % 5 < 2, (targets + 1) % 4, targets)
    test, predictions = outcome_of("classification", LABELS, one_hot(targets), targets)
    run = training(recipe_of("classification"), [0.5] * 40)
    verdict = judge(run, LABELS, test, predictions, baseline=baseline_of(one_hot(poor)))
    assert beats(verdict) == 1 and verdict["next"] == "bertha serve /home/me/runs/mine"
    assert verdict["loss_falling"] is False and verdict["never_predicted"] == []
    assert verdict["figures"]["f1"]["high"] == 1.0
    assert any("It beats a bag of words" in each for each in verdict["sentences"])
    # Two logits apart by 2 are a probability of 0.71, of answers that are all right.
    assert verdict["calibration"]["ece"] == pytest.approx(1 - np.e**2 / (np.e**2 + 3), abs=1e-3)
    assert any("off by 0.29 on average (ECE)" in each for each in verdict["sentences"])


def test_what_is_no_better_than_the_commonest_answer_is_said() -> None:
    targets = np.array([0] * 30 + [1] * 10)
    test, predictions = outcome_of("classification", ("a", "b"), one_hot(targets * 0, 2), targets)
    words = Baseline(one_hot(targets * 0, 2), np.empty((0, 2)), "", "no words", 9, 0.1)
    run = training(recipe_of("classification", "evaluation.metric=accuracy"))
    verdict = judge(run, ("a", "b"), test, predictions, baseline=words)
    assert verdict["metric"] == "accuracy" and beats(verdict) is None
    said = " ".join(verdict["sentences"])
    assert "not clearly better than always giving the commonest answer (accuracy 0.750)" in said
    assert "No bag of words to compare with: no words." in said
    assert list(verdict["baselines"]) == ["majority"]


def test_regression() -> None:
    source = np.random.default_rng(0)
    targets = source.normal(1000, 50, 80).astype(np.float32)
    outputs = (targets + source.normal(0, 10, 80)).astype(np.float32)[:, None]
    test, predictions = outcome_of("regression", (), outputs, targets)
    mean = np.full((80, 1), 1000, dtype=np.float32)
    words = Baseline(mean, mean + 1, "TF-IDF + ridge", "", 300, 0.5)
    verdict = judge(training(recipe_of("regression")), (), test, predictions, baseline=words)
    assert verdict["metric"] == "r2" and list(verdict["figures"]) == [
        *("r2", "mae", "loss", "pearson", "spearman")
    ]
    figure = verdict["figures"]["r2"]
    assert 0.9 < figure["low"] < figure["value"] < figure["high"] < 1
    assert verdict["baselines"]["mean"]["r2"] == pytest.approx(0, abs=0.05)
    assert beats(verdict) == 1 and verdict["calibration"] == {} and verdict["confusions"] == []


def test_thresholds_are_told_with_and_without() -> None:
    targets = (np.arange(120).reshape(60, 2) % 3 == 0).astype(np.float32)
    logits = np.where(targets > 0, -1.0, -3.0).astype(np.float32)
    shift = np.array([-2.0, -2.0], dtype=np.float32)
    test, predictions = outcome_of("multi-label", ("x", "y"), logits, targets, shift)
    share = round(float(1 / (1 + np.exp(2))), 4)
    run = training(recipe_of("multi-label"), thresholds={"x": share, "y": share}, tuned_rows=30)
    verdict = judge(run, ("x", "y"), test, predictions, shift)
    assert verdict["figures"]["f1"]["value"] == 1.0
    assert verdict["without_thresholds"]["f1"] == 0.0
    (said,) = [each for each in verdict["sentences"] if "given" in each]
    assert said == (
        "Labels are given x from 0.12, y from 0.12, as is best on 30 validation rows: f1 1.000, "
        "where 0.5 gives 0.000."
    )


def test_a_masked_language_model_has_figures_alone() -> None:
    metrics = MetricAccumulator("masked-lm", 1)
    metrics.add_tokens(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    recipe = recipes.load_recipe("tiny-pretrain")
    verdict = judge(training(recipe), (), metrics.compute_metrics(()), None, reason="no rows")
    assert verdict["figures"]["loss"] == {"value": 1.5} and verdict["rows"] == 2
    assert verdict["baselines"] == {} and not any("words" in s for s in verdict["sentences"])
    assert verdict["next"].startswith("bertha train csv.yaml model.name=/home/me/runs/mine/bundle")


def test_no_test_rows_no_figures() -> None:
    verdict = judge(training(recipe_of("classification")), LABELS, {}, None, reason="none")
    assert verdict["rows"] == 0 and verdict["figures"] == {} and beats(verdict) is None


@pytest.mark.parametrize(
    ("losses", "held_out", "falling"),
    [
        (np.linspace(2, 1, 50), [], True),
        (np.linspace(2, 1, 50), [1.5, 1.2], True),
        (np.linspace(2, 1, 50), [1.2, 1.5], False),  # it learns by heart
        (np.full(50, 0.7), [], False),
        (0.7 + 0.2 * np.sin(np.arange(50)), [], False),
        (np.linspace(2, 1, 5), [], False),  # too few to say
        (np.array([*np.linspace(2, 1, 49), np.nan]), [], False),
    ],
)
def test_whether_the_loss_was_falling(
    losses: np.ndarray, held_out: list[float], falling: bool
) -> None:
    steps = [{"loss": float(loss)} for loss in losses]
    evaluations = [{"metrics": {"loss": loss}} for loss in held_out]
    assert is_loss_falling(steps, evaluations) is falling


def test_the_setting_that_ended_the_run_is_named() -> None:
    epochs = recipe_of("classification", "stopping.patience=2")
    assert advise_longer_run(epochs, False) == "raise stopping.epochs from 3 to 9"
    assert advise_longer_run(epochs, True) == "raise stopping.patience from 2 to 4"
    limited = recipe_of("classification", "stopping.max_steps=50")
    assert advise_longer_run(limited, False, as_setting=True) == "stopping.max_steps=150"


def test_the_bar_is_told_before_the_run() -> None:
    targets, recipe = np.arange(36) % 4, recipe_of("classification")
    rows = HeldOut(baseline=baseline_of(one_hot(targets)))
    (line,) = describe_baselines(recipe, LABELS, targets, rows)
    assert line == (
        "baseline  f1 1.000 on 36 test rows by a bag of words (TF-IDF + x, 1.2s), the bar to beat; "
        "always the commonest answer: 0.100"
    )
    (line,) = describe_baselines(recipe, LABELS, targets, HeldOut(reason="the source is gone"))
    assert line == "baseline  none: the source is gone"
    off = recipe_of("classification", "baseline=false")
    assert describe_baselines(off, LABELS, targets, rows) == []
