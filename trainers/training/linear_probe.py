"""Linear probe: fit the last layer alone, on features of the frozen encoder, before fine-tuning.

On few rows a head that starts from random weights spends the first epochs bending the encoder to
them. Fitting it first costs seconds, keeps the encoder's features, and is a model in its own right,
which the run keeps where no step of fine-tuning beats it (Kumar et al. 2022, arXiv 2202.10054).
The head is fitted once, by the driver, so it is the same on any layout.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit, PreparedDataset
from trainers.data.tokenizer import Encoder
from trainers.models.bert import TextModel
from trainers.models.build import Model, build_model, predict_logits
from trainers.models.packed import PackedTexts
from trainers.training.target_scale import TargetScale

FEW_ROWS = 50  # a class or label; above, fine-tuning from a random head was as good or better
FEW_NUMBERS = 500  # rows of a regression
MAX_TOKENS = 120_000  # of which the features are seconds of a core
TOKENS_AT_ONCE = 2048
FOLDS = 3
REGULARIZATIONS = np.logspace(-4, 1, 6)  # C of logistic regression
PENALTIES = np.logspace(-2, 5, 15)  # alpha of ridge


@dataclass(frozen=True)
class Head:
    """The last layer: weight [num_labels, width] and bias [num_labels] float32.

    seconds: that fitting it took, on `rows` rows.
    """

    weight: np.ndarray
    bias: np.ndarray
    rows: int = 0
    seconds: float = 0.0


def is_worth_fitting(recipe: Recipe, data: PreparedDataset) -> bool:
    """Return whether a run of `recipe` begins with a fitted head."""
    if recipe.task == "masked-lm" or recipe.model.name in ("random", "linear"):
        return False
    if recipe.linear_probe != "auto":
        return recipe.linear_probe
    lengths = data.train.samples.lengths
    few = FEW_ROWS * len(data.labels) if data.labels else FEW_NUMBERS
    return len(lengths) <= few and int(lengths.sum()) <= MAX_TOKENS


def fit_head(recipe: Recipe, data: PreparedDataset, encoder: Encoder) -> Head:
    """Fit the head of the recipe's model to the training rows of `data`.

    Logistic regression, for multi-label of each label; its strength by cross-validation. Ridge for
    regression. Raises ModelError when the model cannot be loaded.
    """
    started = time.monotonic()
    features = frozen_features(recipe, data, encoder)
    scale = np.maximum(features.std(axis=0), 1e-6)
    center = features.mean(axis=0)
    targets = data.train.take_targets()
    if recipe.task == "regression":
        unit = TargetScale.for_recipe(recipe, data)
        targets = (targets - unit.mean) / unit.deviation
    standardized = (features - center) / scale
    fitted = _FITS[recipe.task](standardized, targets, max(1, len(data.labels)))
    weight = fitted[0] / scale
    bias = fitted[1] - weight @ center
    seconds = time.monotonic() - started
    return Head(weight.astype(np.float32), bias.astype(np.float32), len(data.train), seconds)


def frozen_features(recipe: Recipe, data: PreparedDataset, encoder: Encoder) -> np.ndarray:
    """Return the features [n, width] float32 of the training rows, of the recipe's encoder.

    Raises ModelError when the model cannot be loaded.
    """
    model = build_model(recipe, data.labels, 0, encoder)
    assert isinstance(model, TextModel)
    return compute_features(model.eval(), data.train)


def compute_features(model: TextModel, split: DatasetSplit) -> np.ndarray:
    """Return what the last layer reads of each row: [n, width] float32."""
    output = output_layer(model)

    class Features(torch.nn.Module):
        def forward(self, inputs: Tensor, packed: PackedTexts) -> Tensor:
            caught: list[Tensor] = []
            hook = output.register_forward_hook(lambda _, args, __: caught.append(args[0]))
            model(inputs, packed)
            hook.remove()
            return caught[0]

    return predict_logits(Features(), split.samples, TOKENS_AT_ONCE)


def output_layer_name(model: Model) -> str:
    """Return the name of the layer that makes the logits of a classifier or a regression."""
    return f"net.{model.family.output}" if isinstance(model, TextModel) else "linear"


def output_layer(model: Model) -> torch.nn.Linear:
    """Return the layer that makes the logits of a whole model."""
    layer = model.get_submodule(output_layer_name(model))
    assert isinstance(layer, torch.nn.Linear)
    return layer


def set_head(model: Model, head: Head) -> None:
    """Replace the last layer's numbers by those of `head`."""
    layer = output_layer(model)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))


def _fit_classes(
    features: np.ndarray, targets: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    fitted, offsets = _fit_logistic(features, targets)
    if len(fitted) == 1:  # of two classes scikit-learn fits the difference
        fitted, offsets = np.concatenate([-fitted, fitted]) / 2, np.append(-offsets, offsets) / 2
    present = np.unique(targets)
    weight = np.zeros((num_labels, features.shape[1]))
    bias = np.full(num_labels, offsets.min())  # of a class without a row
    weight[present], bias[present] = fitted, offsets
    return weight, bias


def _fit_labels(
    features: np.ndarray, targets: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    pairs = [_fit_label(features, column) for column in targets.T.astype(np.int64)]
    return np.concatenate([w for w, _ in pairs]), np.concatenate([b for _, b in pairs])


def _fit_label(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = targets.mean()
    if share in (0.0, 1.0):  # nothing to tell apart: as likely as Laplace's rule says
        odds = (targets.sum() + 1) / (len(targets) - targets.sum() + 1)
        return np.zeros((1, features.shape[1])), np.log([odds])
    return _fit_logistic(features, targets)


def _fit_logistic(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    model: Any = LogisticRegression(max_iter=1000, class_weight="balanced")
    rarest = int(np.bincount(targets)[np.unique(targets)].min())
    if rarest >= FOLDS:
        grid = {"C": list(REGULARIZATIONS)}
        model = GridSearchCV(model, grid, scoring="neg_log_loss", cv=FOLDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(features, targets)
    best = getattr(model, "best_estimator_", model)
    return best.coef_, best.intercept_


def _fit_number(
    features: np.ndarray, targets: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(PENALTIES).fit(features, targets)
    return model.coef_[None], np.array([model.intercept_])


_FITS = {
    "classification": _fit_classes,
    "multi-label": _fit_labels,
    "regression": _fit_number,
}
