"""Class weights, focal loss and label smoothing: torch's own losses, and what they are for."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cluster.errors import BerthaError
from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.layouts import make_loop, tiny_recipe
from trainers.config import recipe as recipes
from trainers.config.sections import LossConfig
from trainers.data import prepare
from trainers.planning.dry_run import describe_run
from trainers.training.losses import class_weights, sample_losses, training_losses, weighted_losses

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0]])
CLASSES, WEIGHTS = torch.tensor([0, 2, 1]), torch.tensor([0.5, 2.0, 3.0])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def test_without_settings_the_losses_are_those_of_an_evaluation() -> None:
    plain = LossConfig()
    for task, targets in (("classification", CLASSES), ("multi-label", LABELS)):
        found = weighted_losses(task, LOGITS, targets, plain, None)  # type: ignore[arg-type]
        assert torch.equal(found, sample_losses(task, LOGITS, targets))  # type: ignore[arg-type]


def test_weights_and_smoothing_are_torchs() -> None:
    found = weighted_losses("classification", LOGITS, CLASSES, LossConfig(), WEIGHTS)
    expected = F.cross_entropy(LOGITS, CLASSES, weight=WEIGHTS, reduction="none")
    torch.testing.assert_close(found, expected)
    smooth = LossConfig(label_smoothing=0.2)
    found = weighted_losses("classification", LOGITS, CLASSES, smooth, None)
    expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(found, expected)
    found = weighted_losses("multi-label", LOGITS, LABELS, smooth, WEIGHTS)
    expected = F.binary_cross_entropy_with_logits(
        LOGITS, LABELS * 0.8 + 0.1, pos_weight=WEIGHTS, reduction="none"
    ).mean(dim=1)
    torch.testing.assert_close(found, expected)


def test_focal_loss_counts_what_is_right_less() -> None:
    focal = LossConfig(focal_gamma=2)
    share = LOGITS.softmax(dim=1)[torch.arange(3), CLASSES]
    found = weighted_losses("classification", LOGITS, CLASSES, focal, None)
    torch.testing.assert_close(found, -share.log() * (1 - share) ** 2)
    share = torch.where(LABELS > 0.5, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
    found = weighted_losses("multi-label", LOGITS, LABELS, focal, None)
    torch.testing.assert_close(found, (-share.log() * (1 - share) ** 2).mean(dim=1))


@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_balanced_weights_are_of_the_training_rows(
    tiny_bert: Path, tmp_path: Path, task: str
) -> None:
    rows = [(f"film {row}", "rare" if row % 8 == 0 else "frequent") for row in range(80)]
    path = write_rows(tmp_path / "rows.csv", rows)
    settings = [f"task={task}", f"model.name={tiny_bert}", "loss.class_weights=balanced"]
    recipe = tiny_recipe(path, *settings)
    data = prepare.prepare_dataset(recipe, tmp_path / "cache")
    counts = data.report.label_counts["train"]
    frequent, rare = counts["frequent"], counts["rare"]
    expected = [(frequent + rare) / 2 / frequent, (frequent + rare) / 2 / rare]
    if task == "multi-label":
        expected = [rare / frequent, frequent / rare]
    weights = class_weights(recipe, data)
    assert weights is not None
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    more = tiny_recipe(path, *settings, "data.labels=[frequent, rare, unseen]")
    of_three = class_weights(more, prepare.prepare_dataset(more, tmp_path / "cache"))
    assert of_three is not None and of_three[2] == 1.0
    named = tiny_recipe(path, *settings[:2], "loss.class_weights={rare: 3}")
    assert class_weights(named, data).tolist() == [1.0, 3.0]  # type: ignore[union-attr]
    wrong = tiny_recipe(path, *settings[:2], "loss.class_weights={rear: 3}")
    with pytest.raises(BerthaError, match="names 'rear', but the classes are 'frequent', 'rare'"):
        class_weights(wrong, data)


@pytest.mark.parametrize("task", ["classification", "multi-label"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_a_row_that_is_surely_right_has_a_gradient(task: Any, gamma: float) -> None:
    """One minus the probability is 0 in fp32, where a power below 1 is infinitely steep."""
    logits = torch.tensor([[90.0, -90.0], [-1.0, 2.0]], requires_grad=True)
    targets = torch.tensor([0, 0]) if task == "classification" else torch.eye(2)
    focal = LossConfig(focal_gamma=gamma)
    losses = weighted_losses(task, logits, targets, focal, None)
    losses.sum().backward()
    assert logits.grad is not None
    assert losses[0] < 1e-6 and torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all() and logits.grad[1].abs().max() > 0.02


def test_a_label_that_all_rows_have_is_learned(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [(f"film {row}", "all,some" if row % 4 == 0 else "all") for row in range(80)]
    settings = ["task=multi-label", f"model.name={tiny_bert}", "loss.class_weights=balanced"]
    settings += ["data.label_separator=,"]
    recipe = tiny_recipe(write_rows(tmp_path / "rows.csv", rows), *settings)
    data = prepare.prepare_dataset(recipe, tmp_path / "cache")
    weights = class_weights(recipe, data)
    assert data.labels == ("all", "some") and weights is not None
    assert weights[0] == 1 and weights[1] > 1


def test_a_weight_of_no_class_is_refused_by_a_dry_run(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", [(f"film {row}", "ab"[row % 2]) for row in range(80)])
    recipe = tiny_recipe(path, f"model.name={tiny_bert}", "loss.class_weights={c: 3}")
    metadata = ClusterMetadata(cache=str(tmp_path), devices_per_node=2)
    with pytest.raises(BerthaError, match=r"class_weights names 'c', but the classes are 'a', 'b'"):
        list(describe_run(recipe, ClusterSpec("here", "local", 1, metadata)))


def test_a_teacher_is_learned_beside_weighted_labels() -> None:
    settings = ["loss.label_smoothing=0.1", "distillation.teacher=t", "distillation.weight=0.25"]
    recipe = recipes.load_recipe("csv", settings)
    labels = weighted_losses("classification", LOGITS, CLASSES, recipe.loss, WEIGHTS)
    found = training_losses(recipe, LOGITS, CLASSES, LOGITS, WEIGHTS)  # a teacher that agrees
    torch.testing.assert_close(found, 0.75 * labels)


@pytest.mark.parametrize("task", ["regression", "masked-lm"])
def test_a_task_without_classes_refuses_them(task: str) -> None:
    with pytest.raises(BerthaError, match="loss weighs classes"):
        recipes.load_recipe("csv", [f"task={task}", "loss.focal_gamma=1"])


def test_balanced_weights_find_a_rare_class(tiny_bert: Path, tmp_path: Path) -> None:
    """A thousand rows, 2.5% of them positive, told by a word that others have as well."""
    draw, rows = np.random.default_rng(0), []
    for row in range(1000):
        is_rare = row % 40 == 0
        word = "good" if is_rare or draw.random() < 0.05 else "bad"
        rows.append(
            (f"the film was {word} {'and ' * (row % 5)}plot {row % 7}", "pos" if is_rare else "neg")
        )
    path = write_rows(tmp_path / "rows.csv", rows)

    def recall_of(*overrides: str) -> float:
        settings: list[Any] = [f"model.name={tiny_bert}", "stopping.max_steps=null"]
        settings += ["stopping.epochs=3", "data.validation=0.3", "batch.global_size=32", *overrides]
        loop = make_loop(tiny_recipe(path, *settings), tmp_path / "cache")
        list(loop.run())
        return float(loop.evaluate(loop.data.validation)["per_class"]["pos"]["recall"])

    assert recall_of() == 0.0
    assert recall_of("loss.class_weights=balanced") >= 0.6
