"""Regressions: learned on a scale of their own, told and served in the user's unit."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.layouts import make_loop
from tests.support.padded import one_text
from trainers.config.recipe import Recipe, load_recipe
from trainers.models.build import build_model
from trainers.runtime.fit import fit
from trainers.training.events import EvalEvent, StepEvent
from trainers.training.linear_probe import output_layer_name
from trainers.training.loop import TrainingError
from trainers.training.target_scale import TargetScale, describe_targets


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with a price of about 20,000 that their words decide."""
    path, draw = tmp_path_factory.mktemp("prices") / "prices.csv", random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for _ in range(160):
            good, others = draw.randint(0, 4), draw.choices(["film", "plot", "cast", "scene"], k=4)
            writer.writerow((" ".join(["good"] * good + others), 20_000 + 1_000 * good))
    return path


def regression(model: Path, prices: Path, *overrides: str) -> Recipe:
    settings = [
        "task=regression",
        f"model.name={model}",
        f"data.source={prices}",
        "batch.global_size=16",
        "batch.max_length=16",
        "optimizer.learning_rate=5e-3",
        "stopping.epochs=12",
        "stopping.patience=null",
        "precision=fp32",
    ]
    return load_recipe("csv", [*settings, *overrides])


def test_prices_are_learned_and_told_in_their_own_unit(
    tiny_bert: Path, prices: Path, tmp_path: Path
) -> None:
    loop = make_loop(regression(tiny_bert, prices), tmp_path)
    events = list(loop.run())
    last = [event for event in events if isinstance(event, EvalEvent)][-1].metrics
    assert last["r2"] > 0.5 and 50 < last["mae"] < 1_500
    first = next(event for event in events if isinstance(event, StepEvent))
    # The loss of a step is in the unit of the evaluation's: squared dollars.
    variance = np.var(loop.data.train.targets)
    assert 0.3 * variance < first.loss < 3 * variance
    raw = make_loop(regression(tiny_bert, prices, "data.standardize=false"), tmp_path)
    told = [event for event in raw.run() if isinstance(event, EvalEvent)][-1].metrics
    assert told["r2"] < 0  # which is what the scale is for


def test_the_folded_layer_answers_in_the_unit(
    tiny_bert: Path, prices: Path, tmp_path: Path
) -> None:
    recipe = regression(tiny_bert, prices)
    loop = make_loop(recipe, tmp_path)
    model = build_model(recipe, (), 0).eval()
    folded = dict(loop.scale.fold_into(model.state_dict().items(), output_layer_name(model)))
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.inference_mode():
        expected = loop.scale.restore(model(*one_text(ids)))
        model.load_state_dict(folded)
        assert torch.allclose(model(*one_text(ids)), expected, rtol=1e-6)
    assert loop.scale.mean > 20_000 and expected.item() > 10_000


def test_a_checkpoint_on_another_scale_is_refused_with_the_way_out(
    tiny_bert: Path, prices: Path, tmp_path: Path
) -> None:
    scaled = make_loop(regression(tiny_bert, prices), tmp_path)
    raw = make_loop(regression(tiny_bert, prices, "data.standardize=false"), tmp_path)
    with pytest.raises(TrainingError, match=r"data.standardize than True.* set it to false"):
        scaled.load_state_dict(raw.state_dict())
    with pytest.raises(TrainingError, match=r"data.standardize than False.* set it to true"):
        raw.load_state_dict(scaled.state_dict())
    scaled.load_state_dict(scaled.state_dict())


def test_equal_targets_are_only_moved(tiny_bert: Path, prices: Path, tmp_path: Path) -> None:
    loop = make_loop(regression(tiny_bert, prices), tmp_path)
    same = np.full(len(loop.data.train), 7.0, dtype=np.float32)
    object.__setattr__(loop.data.train, "targets", same)
    assert TargetScale.for_recipe(loop.recipe, loop.data) == TargetScale(7.0, 1.0)
    assert describe_targets(loop.recipe, loop.data) == {
        "mean": 7.0,
        "deviation": 0.0,
        "low": 7.0,
        "high": 7.0,
    }


def test_a_bundle_that_is_trained_on_begins_with_its_own_answers(
    tiny_bert: Path, prices: Path, tmp_path: Path
) -> None:
    here = ClusterSpec("here", "local", 1, ClusterMetadata(devices_per_node=0, cache=str(tmp_path)))
    settings = ["linear_probe=false", "baseline=false"]
    first = fit(regression(tiny_bert, prices, *settings), here, tmp_path / "first").result["test"]
    settings += ["optimizer.learning_rate=1e-12", "stopping.max_steps=1", "model.dropout=0"]
    bundle = tmp_path / "first" / "bundle"
    again = fit(regression(bundle, prices, *settings), here, tmp_path / "again").result["test"]
    assert first["r2"] > 0.5
    for name in ("loss", "mae", "r2"):
        assert again[name] == pytest.approx(first[name], rel=1e-3), name
