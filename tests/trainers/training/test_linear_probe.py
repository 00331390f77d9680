"""The fitted head: where it applies, what it is worth, and the run that begins with it."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.layouts import make_loop
from trainers.config.recipe import Recipe, load_recipe
from trainers.data import prepare
from trainers.data.dataset_cache import PreparedDataset
from trainers.models.build import build_model, predict_logits
from trainers.training import linear_probe
from trainers.training.events import EvalEvent, SaveEvent, StepEvent
from trainers.training.linear_probe import Head


def recipe_of(model: Path, corpus: Path, *overrides: str) -> Recipe:
    settings = [
        f"model.name={model}",
        f"data.source={corpus}",
        "batch.global_size=16",
        "batch.max_length=32",
        "optimizer.learning_rate=1e-9",
        "stopping.epochs=1",
        "precision=fp32",
    ]
    return load_recipe("csv", [*settings, *overrides])


def fit(recipe: Recipe, cache: Path) -> tuple[Head, PreparedDataset]:
    data = prepare.prepare_dataset(recipe, cache)
    return linear_probe.fit_head(recipe, data, prepare.load_recipe_encoder(recipe, cache)), data


def test_the_head_tells_apart_what_a_fresh_one_does_not(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_bert, corpus)
    head, data = fit(recipe, tmp_path)
    assert head.weight.shape == (2, 32) and head.bias.shape == (2,) and head.rows == len(data.train)
    model = build_model(recipe, data.labels, 0).eval()
    linear_probe.set_head(model, head)
    logits = predict_logits(model, data.train.samples, 1024)
    assert (logits.argmax(axis=1) == data.train.targets).mean() > 0.8


def test_features_times_the_head_are_the_logits(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_bert, corpus)
    head, data = fit(recipe, tmp_path)
    model = build_model(recipe, data.labels, 0).eval()
    features = linear_probe.compute_features(model, data.test)
    linear_probe.set_head(model, head)
    logits = predict_logits(model, data.test.samples, 1024)
    # A random encoder tells little apart, so the head magnifies the rounding of its features.
    np.testing.assert_allclose(features @ head.weight.T + head.bias, logits, atol=2e-3)


def test_a_run_evaluates_and_keeps_the_head_before_its_first_step(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_bert, corpus)
    head, _ = fit(recipe, tmp_path)
    loop = make_loop(recipe, tmp_path, head=head)
    first, saved, step, *_ = loop.run()
    assert isinstance(first, EvalEvent) and first.step == 0 and first.best
    assert saved == SaveEvent(0) and isinstance(step, StepEvent) and step.step == 1
    assert first.metrics["accuracy"] > 0.7
    resumed = make_loop(recipe, tmp_path, head=head)
    resumed.load_state_dict(
        {"step": 0, "best_step": 0, "best_value": 1.0, "best_loss": 0.0, "tokens": 0}
    )
    assert isinstance(next(resumed.run()), StepEvent)  # it was judged before


def test_where_no_step_is_better_the_head_stays_the_best(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_bert, corpus, "optimizer.learning_rate=0.5")
    head, _ = fit(recipe, tmp_path)
    loop = make_loop(recipe, tmp_path, head=head)
    list(loop.run())
    assert loop.progress.best_step == 0 and loop.progress.step > 0


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        ((), False),  # 95 rows a class
        (("data.max_rows=90",), True),
        (("data.max_rows=90", "linear_probe=false"), False),
        (("linear_probe=true",), True),
        (("linear_probe=true", "task=masked-lm"), False),
    ],
)
def test_it_is_fitted_to_pretrained_encoders_on_few_rows(
    tiny_bert: Path, corpus: Path, tmp_path: Path, overrides: tuple[str, ...], fits: bool
) -> None:
    recipe = recipe_of(tiny_bert, corpus, *overrides)
    data = prepare.prepare_dataset(recipe, tmp_path)
    assert linear_probe.is_worth_fitting(recipe, data) is fits


@pytest.mark.parametrize("num_labels", [3, 4])
def test_classes_and_labels_without_rows_are_the_unlikeliest(num_labels: int) -> None:
    features = np.random.default_rng(0).normal(size=(60, 8))
    classes = (features[:, 0] > 0).astype(np.int64)
    weight, bias = linear_probe._fit_classes(features, classes, num_labels)
    logits = features @ weight.T + bias
    assert logits.shape == (60, num_labels)
    assert (logits.argmax(axis=1) == classes).mean() > 0.9
    hot = np.zeros((60, num_labels), dtype=np.float32)
    hot[:, 0] = classes
    weight, bias = linear_probe._fit_labels(features, hot, num_labels)
    logits = features @ weight.T + bias
    assert ((logits[:, 0] > 0) == classes).mean() > 0.9
    assert (logits[:, 1:] < -3).all()


def test_a_regression_is_fitted_on_its_scale(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    rows = [f"{'good ' * (row % 5)}film plot {row % 3},{1000 * (row % 5)}" for row in range(90)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    settings = ["task=regression", "data.validation=0", "data.test=0", "stopping.patience=null"]
    recipe = recipe_of(tiny_bert, path, *settings)
    head, data = fit(recipe, tmp_path)
    model = build_model(recipe, (), 0).eval()
    linear_probe.set_head(model, head)
    outputs = predict_logits(model, data.train.samples, 1024)[:, 0]
    assert abs(float(outputs.mean())) < 0.2 and 0.5 < float(outputs.std()) < 1.2
