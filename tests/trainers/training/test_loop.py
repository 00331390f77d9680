"""The loop: law 1 over processes, exact resumption, early stopping, and a known right answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.layouts import full_weights, make_loop
from trainers.checkpoint import checkpoint
from trainers.checkpoint.stores import CheckpointStore
from trainers.config import recipe as recipes
from trainers.training.events import EvalEvent, Event, SaveEvent, StepEvent, TrainProgress
from trainers.training.loop import TrainingError, TrainingLoop


def tiny_recipe(model: Path, corpus: Path, *overrides: str) -> recipes.Recipe:
    """A tiny BERT with every dropout on, batches that do not divide evenly, clipping that bites."""
    settings = [
        f"model.name={model}",
        "model.dropout=0.1",
        "model.attention_dropout=0.1",
        f"data.source={corpus}",
        "batch.global_size=13",
        "batch.max_length=32",
        "batch.token_budget=96",
        "optimizer.learning_rate=2e-3",
        "optimizer.max_grad_norm=0.5",
        "stopping.epochs=1",
        "stopping.patience=null",
        "evaluation.every_steps=5",
        "precision=fp32",
    ]
    return recipes.load_recipe("csv", [*settings, *overrides])


def steps_of(events: list[Event]) -> list[StepEvent]:
    return [event for event in events if isinstance(event, StepEvent)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tiny_bert: Path, corpus: Path, cache: Path) -> tuple[list[Event], dict[str, Any]]:
    loop = make_loop(tiny_recipe(tiny_bert, corpus), cache)
    return list(loop.run()), full_weights(loop)


@pytest.mark.parametrize("budget", [32, 416])
def test_the_token_budget_changes_no_loss(
    tiny_bert: Path,
    corpus: Path,
    cache: Path,
    undisturbed: tuple[list[Event], dict[str, Any]],
    budget: int,
) -> None:
    loop = make_loop(tiny_recipe(tiny_bert, corpus, f"batch.token_budget={budget}"), cache)
    found, expected = steps_of(list(loop.run())), steps_of(undisturbed[0])
    assert [s.micro_batches for s in found] != [s.micro_batches for s in expected]
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected], abs=2e-5)


def test_a_resumed_run_repeats_the_rest_bitwise(
    tiny_bert: Path,
    corpus: Path,
    cache: Path,
    tmp_path: Path,
    undisturbed: tuple[list[Event], dict[str, Any]],
) -> None:
    first = make_loop(tiny_recipe(tiny_bert, corpus), cache)
    for event in first.run():
        if isinstance(event, SaveEvent):
            checkpoint.save_checkpoint(
                CheckpointStore(tmp_path),
                event.step,
                first.parallel,
                first.optimizer,
                first.state_dict(),
            )
            break
    second = make_loop(tiny_recipe(tiny_bert, corpus), cache)
    found = checkpoint.find_latest(CheckpointStore(tmp_path))
    assert found is not None
    found.restore(second.parallel, second.optimizer)
    second.load_state_dict(found.load_state())
    rest = [step.loss for step in steps_of(list(second.run()))]
    expected = [step.loss for step in steps_of(undisturbed[0])]
    assert rest == expected[found.step :]
    assert len(rest) > 5
    for name, value in undisturbed[1].items():
        np.testing.assert_array_equal(full_weights(second)[name], value)


def test_evaluation_is_in_the_precision_that_serves(
    tiny_bert: Path, corpus: Path, cache: Path
) -> None:
    plain, mixed = (
        make_loop(tiny_recipe(tiny_bert, corpus, f"precision={precision}"), cache)
        for precision in ("fp32", "bf16")
    )
    assert plain.evaluate(plain.data.test) == mixed.evaluate(mixed.data.test)
    trained = [next(loop.run()) for loop in (plain, mixed)]
    assert all(isinstance(step, StepEvent) for step in trained)
    assert trained[0].loss != trained[1].loss, "bf16 does train in another precision"


def test_it_learns(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    loop = make_loop(tiny_recipe(tiny_bert, corpus, "stopping.epochs=6"), cache)
    judged = [event for event in loop.run() if isinstance(event, EvalEvent)]
    assert judged[-1].metrics["accuracy"] >= 0.9
    assert loop.evaluate(loop.data.test)["accuracy"] >= 0.9


def test_patience_ends_a_run_that_gets_no_better() -> None:
    progress = TrainProgress()
    for step, value in enumerate([0.5, 0.7, 0.6, 0.65], 1):
        assert not progress.stopped
        progress = progress.after_evaluation(step, value, "f1", patience=2)
    assert progress == TrainProgress(
        0, best_step=2, best_value=0.7, evaluations_without_better=2, stopped=True
    )
    assert (
        TrainProgress()
        .after_evaluation(1, 0.5, "loss", None)
        .after_evaluation(2, 0.4, "loss", None)
        .best_step
        == 2
    )


def test_of_equal_values_the_one_with_the_lower_loss_is_the_best() -> None:
    progress = TrainProgress()
    for step, loss in enumerate([0.9, 0.6, 0.6, 0.7], 1):
        progress = progress.after_evaluation(step, 0.0, "f1", patience=9, loss=loss)
    assert (progress.best_step, progress.best_loss) == (2, 0.6)
    assert progress.evaluations_without_better == 2
    assert progress.after_evaluation(5, 0.1, "f1", 9, loss=2.0).best_step == 5


def test_a_run_stops_early(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    overrides = ["stopping.patience=1", "optimizer.learning_rate=1e-9", "evaluation.every_steps=2"]
    loop = make_loop(tiny_recipe(tiny_bert, corpus, *overrides), cache)
    events = list(loop.run())
    assert loop.progress.stopped
    assert len(steps_of(events)) == 4
    assert isinstance(events[-1], SaveEvent)


def test_a_loss_that_is_no_number_ends_the_run(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    overrides = [
        "optimizer.name=sgd",
        "optimizer.learning_rate=1e30",
        "optimizer.max_grad_norm=null",
    ]
    loop = make_loop(tiny_recipe(tiny_bert, corpus, *overrides, "schedule.warmup=0"), cache)
    with pytest.raises(TrainingError, match=r"lower optimizer.learning_rate \(1e\+30\)"):
        list(loop.run())


def test_multi_label_learns(tiny_bert: Path, tmp_path: Path, cache: Path) -> None:
    """Two labels that are each a word of the text."""
    rows = ["text,label"]
    for row in range(400):
        words = (
            ["the film"] + ["good"] * (row % 2) + ["bad"] * (row // 2 % 2) + ["plot"] * (row % 5)
        )
        labels = "|".join(["kind"] * (row % 2) + ["cross"] * (row // 2 % 2))
        rows.append(
            f"{' '.join(words)} {['was', 'and', 'very'][row % 3]} {'a ' * (row % 7)},{labels}"
        )
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(rows))
    overrides = ["task=multi-label", "stopping.epochs=16", "data.validation=0.2"]
    overrides += ["model.dropout=0", "model.attention_dropout=0", "schedule.name=constant"]
    loop = make_loop(tiny_recipe(tiny_bert, path, *overrides), cache)
    assert loop.data.labels == ("cross", "kind")
    list(loop.run())
    assert loop.evaluate(loop.data.validation)["f1"] > 0.95


class TestHousePrices:
    """Gradient descent on mean squared error, against least squares and gradients by hand."""

    @pytest.fixture
    def loop(self, cache: Path) -> TrainingLoop:
        return make_loop(recipes.load_recipe("house-prices"), cache)

    @staticmethod
    def rows(loop: TrainingLoop) -> tuple[np.ndarray, np.ndarray]:
        train = loop.data.train
        return train.samples.values.astype(np.float64), train.targets.astype(np.float64)

    def test_it_ends_at_the_least_squares_answer(self, loop: TrainingLoop) -> None:
        area, price = self.rows(loop)
        (slope, intercept), *_ = np.linalg.lstsq(
            np.stack([area, np.ones_like(area)], axis=1), price, rcond=None
        )
        list(loop.run())
        found = full_weights(loop)
        assert found["linear.weight"].item() == pytest.approx(slope, abs=1e-4)
        assert found["linear.bias"].item() == pytest.approx(intercept, abs=1e-4)
        assert loop.evaluate(loop.data.test)["r2"] > 0.9

    def test_each_step_is_the_hand_derived_one(self, loop: TrainingLoop) -> None:
        """w <- w - rate 2 mean(e x), b <- b - rate 2 mean(e), loss = mean(e^2), e = wx + b - y."""
        area, price = self.rows(loop)
        rate, slope, intercept = 0.2, 0.0, 0.0
        for step, event in zip(range(20), loop.run(), strict=False):
            assert isinstance(event, StepEvent)
            error = slope * area + intercept - price
            assert event.loss == pytest.approx((error**2).mean(), rel=1e-4)
            gradient = 2 * (error * area).mean(), 2 * error.mean()
            assert event.grad_norm == pytest.approx(np.hypot(*gradient), rel=1e-3), step
            slope, intercept = slope - rate * gradient[0], intercept - rate * gradient[1]
