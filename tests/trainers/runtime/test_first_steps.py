"""A run in this process, from recipe to bundle: the fitted head, and a number's own unit."""

import csv
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cluster.spec import ClusterMetadata, ClusterSpec
from serving.engine.engine import Engine
from trainers.config import defaults
from trainers.config.recipe import load_recipe
from trainers.models.card import read_card
from trainers.runtime.fit import fit
from trainers.tracking.run_directory import RunDirectory

SMALL = ["batch.max_length=32", "precision=fp32", "baseline=false", "stopping.patience=null"]


@pytest.fixture
def here(tmp_path: Path) -> ClusterSpec:
    metadata = ClusterMetadata(devices_per_node=0, cache=str(tmp_path / "cache"))
    return ClusterSpec("here", "local", 1, metadata)


def test_where_fine_tuning_only_harms_the_bundle_is_the_frozen_encoder(
    tiny_bert: Path, corpus: Path, here: ClusterSpec, tmp_path: Path
) -> None:
    harm = ["optimizer.learning_rate=0.5", "stopping.epochs=1", "linear_probe=true"]
    own = [f"model.name={tiny_bert}", f"data.source={corpus}", *SMALL, *harm]
    run = tmp_path / "run"
    result = fit(load_recipe("csv", own), here, run).result
    assert result["best_step"] == 0 and result["steps"] > 0
    assert result["verdict"]["candidate"] == "frozen encoder"
    assert result["test"]["accuracy"] > 0.7
    recorded = RunDirectory(run).read_record()["settings"]
    assert recorded["stopping.epochs"] == 1 and recorded["batch.global_size"] == 16
    card = read_card(run / "bundle")
    assert card.metrics["accuracy"] == result["test"]["accuracy"]
    profile = card.profile  # that live texts are compared with
    assert profile is not None and profile.unknown_id is not None
    assert {sum(each.counts) for each in profile.features.values()} == {profile.rows}
    assert profile.rows == 24  # a tenth of the corpus
    assert profile.features["labels"].names == card.labels


def test_a_run_goes_on_with_the_settings_that_it_began_with(
    tiny_bert: Path,
    corpus: Path,
    here: ClusterSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a later version chooses others."""
    own = [f"model.name={tiny_bert}", f"data.source={corpus}", *SMALL]
    recipe, run = load_recipe("csv", own), tmp_path / "run"

    def leave(metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, here, run, report=leave)
    begun = RunDirectory(run).read_record()["settings"]
    monkeypatch.setattr(defaults, "RATE", 1e-3)
    monkeypatch.setattr(defaults, "SMALL_BATCH", 64)
    fit(recipe, here, run, resume=True)
    assert RunDirectory(run).read_record()["settings"] == begun
    rates = [row["learning_rate"] for row in RunDirectory(run).metric_rows("step")]
    assert max(rates) == pytest.approx(begun["optimizer.learning_rate"])


def test_the_bundle_of_a_regression_answers_in_the_unit_of_the_file(
    tiny_bert: Path, here: ClusterSpec, tmp_path: Path
) -> None:
    source, draw = tmp_path / "prices.csv", random.Random(0)
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for _ in range(160):
            good, others = draw.randint(0, 4), draw.choices(["film", "plot", "cast", "scene"], k=4)
            writer.writerow((" ".join(["good"] * good + others), 20_000 + 1_000 * good))
    own = [f"model.name={tiny_bert}", f"data.source={source}", "task=regression", *SMALL]
    run = tmp_path / "run"
    result = fit(load_recipe("csv", own), here, run).result
    assert result["test"]["r2"] > 0.5
    card = read_card(run / "bundle")
    assert card.target["low"] == 20_000 and card.target["high"] == 24_000
    assert card.profile is not None
    assert all(19_000 < edge < 25_000 for edge in card.profile.features["values"].edges)
    few, many = Engine.load(run / "bundle").predict(["film plot", "good good good good film plot"])
    assert np.isfinite(few.scores[0]) and few.scores[0] < many.scores[0]
    assert 19_000 < few.scores[0] < 23_000 < many.scores[0] + 1_500
