"""A run on texts that are longer than the model reads, from recipe to bundle, in windows."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest

from cluster.spec import ClusterMetadata, ClusterSpec
from serving.batch.evaluate import evaluate_files
from serving.engine.engine import Engine
from tests.support.tiny import BAD, GOOD, PLAIN
from trainers.config.recipe import load_recipe
from trainers.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from trainers.models.card import read_card
from trainers.runtime.fit import fit

LABELS = ("negative", "positive")


def write_rows(path: Path, count: int, seed: int) -> list[str]:
    """Write long reviews whose mood stands behind what a model of 16 tokens reads."""
    draw, texts = random.Random(seed), []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for row in range(count):
            words = [draw.choice(PLAIN) for _ in range(draw.randint(20, 34))]
            words += [draw.choice((BAD, GOOD)[row % 2]) for _ in range(3)]
            words += [draw.choice(PLAIN) for _ in range(draw.randint(0, 3))]
            texts.append(" ".join(words))
            writer.writerow((texts[-1], LABELS[row % 2]))
    return texts


def test_serving_answers_what_the_run_measured(tiny_bert: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "test.csv", 60, 1)
    write_rows(tmp_path / "rows.csv", 240, 2)
    here = ClusterSpec(
        "here", "local", 1, ClusterMetadata(devices_per_node=0, cache=str(tmp_path / "cache"))
    )
    own = [f"model.name={tiny_bert}", f"data.source={tmp_path / 'rows.csv'}"]
    own += [f"data.test={tmp_path / 'test.csv'}", "batch.max_length=16", "precision=fp32"]
    own += ["baseline=false", "stopping.epochs=6", "optimizer.learning_rate=5e-3"]
    own += ["data.windows={stride: 8, pool: max}"]
    result = fit(load_recipe("csv", own), here, tmp_path / "run").result
    cut = fit(load_recipe("csv", [*own, "data.windows=null"]), here, tmp_path / "cut").result
    assert result["test"]["accuracy"] > 0.9 > 0.75 > cut["test"]["accuracy"]
    bundle = tmp_path / "run" / "bundle"
    card, engine = read_card(bundle), Engine.load(bundle)
    assert card.windows is not None and (card.windows.stride, card.windows.pool) == (8, "max")
    assert "read in windows" in (bundle / "README.md").read_text()
    stored = read_predictions(tmp_path / "run" / PREDICTIONS_FILE, "run").predictions
    assert stored.rows.tolist() == list(range(60)) and stored.total == 60
    answers = np.array([each.logits for each in engine.predict(texts)])
    np.testing.assert_allclose(answers, stored.logits, atol=1e-4)
    found = evaluate_files(engine, [str(tmp_path / "test.csv")])
    assert found.rows == 60
    assert found.figures["accuracy"].value == pytest.approx(result["test"]["accuracy"])
