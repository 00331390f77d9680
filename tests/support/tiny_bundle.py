"""A bundle that takes milliseconds: a random two-layer BERT, sealed as a trained one would be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from serving.optimize import export_embedder
from trainers.config.recipe import Recipe, parse_recipe
from trainers.data.tokenizer import load_encoder
from trainers.models import bundle
from trainers.models.build import LinearModel, Model, TextModel, build_model
from trainers.models.card import ModelCard

MAX_LENGTH = 16
LABELS = {
    "classification": ("negative", "positive"),
    "multi-label": ("plot", "cast", "music"),
    "regression": (),
    "masked-lm": (),
    "embedding": (),
}


def write_tiny_bundle(
    directory: Path,
    bert: Path | str,
    task: str = "classification",
    source: str = "reviews.csv",
    layers: Sequence[int] | None = None,
    **card: Any,
) -> Path:
    """Write a bundle for `task` of the BERT in the directory `bert`; where it is.

    source: of the data that its recipe names. layers: of the BERT, that are kept; default: all.
    card: what the card says otherwise, as `thresholds`.
    """
    if task == "embedding":
        export_embedder.write_embedder_bundle(bert, directory, max_length=MAX_LENGTH)
        return directory
    recipe = _recipe(task, str(bert), MAX_LENGTH, source, layers)
    model = build_model(recipe, LABELS[task], num_features=0)
    assert isinstance(model, TextModel)
    if task != "masked-lm":
        with torch.no_grad():
            model.net.classifier.weight.mul_(40)  # answers that differ from text to text
    return _seal(directory, recipe, model, str(bert), **card)


def write_linear_bundle(directory: Path, weights: Sequence[float]) -> Path:
    """Write a regression of as many numbers as there are weights; where it is."""
    recipe = _recipe("regression", "linear", 8, "numbers.csv")
    model = build_model(recipe, (), num_features=len(weights))
    assert isinstance(model, LinearModel)
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([weights]))
    return _seal(directory, recipe, model, "linear")


def _recipe(
    task: str, model: str, max_length: int, source: str, layers: Sequence[int] | None = None
) -> Recipe:
    return parse_recipe(
        {
            "task": task,
            "model": {"name": model, "layers": layers},
            "data": {"source": source},
            "batch": {"max_length": max_length},
        }
    )


def _seal(directory: Path, recipe: Recipe, model: Model, source: str, **changes: Any) -> Path:
    known: dict[str, Any] = {
        "task": recipe.task,
        "labels": LABELS[recipe.task],
        "cleaning": recipe.data.cleaning,
        "max_length": recipe.batch.max_length,
        "metrics": {"accuracy": 0.875, "f1": 0.87},
        "recipe": recipe.model_dump(mode="json"),
        "data_fingerprint": "0" * 64,
        "revision": "unknown",
        "environment": {},
    }
    card = ModelCard(**(known | changes))
    encoder = load_encoder(source, card.cleaning, card.max_length)
    bundle.write_bundle(directory, model, model.state_dict().items(), encoder, card)
    return directory
