"""The learning rate: warmup by share and by steps, and by layer."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from trainers.config import recipe as recipes
from trainers.models.bert import TextModel
from trainers.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate

RATE = "optimizer.learning_rate=1e-3"


def test_warmup_in_steps() -> None:
    recipe = recipes.load_recipe("csv", [RATE, "schedule.warmup_steps=4", "schedule.warmup=0.5"])
    rates = [learning_rate_at(recipe, step, 100) for step in range(6)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == pytest.approx(1e-3)
    assert rates[5] < 1e-3
    assert learning_rate_at(recipe, 1, 2) == pytest.approx(1e-3)  # no longer than the run


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_each_layer_below_learns_more_slowly(tiny_bert: Path, name: str) -> None:
    model = TextModel(AutoModelForSequenceClassification.from_pretrained(tiny_bert))
    settings = [RATE, f"optimizer.name={name}", "optimizer.layer_decay=0.5"]
    optimizer = build_optimizer(model, recipes.load_recipe("csv", settings))
    set_learning_rate(optimizer, 0.8)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(names.values())
    layers = model.config.num_hidden_layers
    for key, rate in rates.items():
        depth = layers + 1
        if ".embeddings." in key:
            depth = 0
        elif ".layer." in key:
            depth = int(key.partition(".layer.")[2].split(".")[0]) + 1
        assert rate == pytest.approx(0.8 * 0.5 ** (layers + 1 - depth)), key
    assert min(rates.values()) == pytest.approx(0.8 * 0.5 ** (layers + 1))


def test_without_decay_there_are_two_groups(tiny_bert: Path) -> None:
    model = TextModel(AutoModelForSequenceClassification.from_pretrained(tiny_bert))
    optimizer: torch.optim.Optimizer = build_optimizer(model, recipes.load_recipe("csv", [RATE]))
    assert [group["scale"] for group in optimizer.param_groups] == [1.0, 1.0]
