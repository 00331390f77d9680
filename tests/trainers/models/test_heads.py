"""A model's head under another task or other labels: kept, put in order, or drawn anew."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.support.tiny_bundle import write_tiny_bundle
from trainers.config.recipe import Recipe, parse_recipe
from trainers.models.bert import TextModel
from trainers.models.build import build_model
from trainers.models.config import ModelError
from trainers.models.heads import plan_head

FIVE = ("a", "b", "c", "d", "e")
SMALL = {"vocab_size": 40, "num_labels": 2}
WIDE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = {
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL, **WIDE)),
    "electra": lambda: ElectraForSequenceClassification(
        ElectraConfig(**SMALL, **WIDE, embedding_size=8)
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(**SMALL, dim=8, n_layers=2, n_heads=2, hidden_dim=16)
    ),
}


def recipe_of(directory: Path, task: str = "classification", seed: int = 0) -> Recipe:
    return parse_recipe(
        {
            "task": task,
            "model": {"name": str(directory)},
            "data": {"source": "x.csv"},
            "batch": {"max_length": 16},
            "seed": seed,
        }
    )


def weights(model: Any) -> Mapping[str, torch.Tensor]:
    assert isinstance(model, TextModel)
    return {name.removeprefix("net."): p.detach() for name, p in model.named_parameters()}


def stored(directory: Path) -> Mapping[str, torch.Tensor]:
    kept = AutoModelForSequenceClassification.from_pretrained(directory).named_parameters()
    return {name: p.detach() for name, p in kept}


def test_a_bundle_of_two_classes_begins_with_a_new_head_of_five(tiny_classifier: Path) -> None:
    before = stored(tiny_classifier)
    built = weights(build_model(recipe_of(tiny_classifier), FIVE, 0))
    assert built["classifier.weight"].shape == (5, 32)
    encoder = [name for name in before if name.startswith("bert.")]
    assert encoder and all(torch.equal(built[name], before[name]) for name in encoder)
    again = weights(build_model(recipe_of(tiny_classifier), FIVE, 0))
    assert torch.equal(built["classifier.weight"], again["classifier.weight"])
    other = weights(build_model(recipe_of(tiny_classifier, seed=1), FIVE, 0))
    assert not torch.equal(built["classifier.weight"], other["classifier.weight"])
    assert not built["classifier.bias"].any()
    said = plan_head(recipe_of(tiny_classifier), FIVE).line
    assert said == (
        f"drawn anew for 5 classes: {tiny_classifier} has 2 classes (negative, positive)"
    )


def test_the_same_classes_in_another_order_are_mapped_by_name(tiny_classifier: Path) -> None:
    before, labels = stored(tiny_classifier), ("positive", "negative")
    built = weights(build_model(recipe_of(tiny_classifier), labels, 0))
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(built[name], before[name].flip(0)), name
    said = plan_head(recipe_of(tiny_classifier), labels).line
    assert said == "kept, its classes put in order by their names"


def test_of_three_classes_each_keeps_its_own_row(tmp_path: Path) -> None:
    config = BertConfig(**SMALL | {"num_labels": 3}, **WIDE)
    config.id2label = dict(enumerate("abc"))
    model = BertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    built = weights(build_model(recipe_of(tmp_path), ("b", "c", "a"), 0))
    assert torch.equal(built["classifier.weight"], model.classifier.weight.detach()[[1, 2, 0]])


def test_the_same_classes_keep_their_head_and_nothing_is_said(tiny_classifier: Path) -> None:
    plan = plan_head(recipe_of(tiny_classifier), ("negative", "positive"))
    assert (plan.is_drawn, plan.rows, plan.line) == (False, None, "")
    built = weights(build_model(recipe_of(tiny_classifier), ("negative", "positive"), 0))
    assert torch.equal(built["classifier.weight"], stored(tiny_classifier)["classifier.weight"])


def test_as_many_classes_of_other_names_draw_a_head_anew(tiny_classifier: Path) -> None:
    recipe, labels = recipe_of(tiny_classifier), ("ham", "spam")
    built, before = weights(build_model(recipe, labels, 0)), stored(tiny_classifier)
    assert not torch.equal(built["classifier.weight"], before["classifier.weight"])
    said = plan_head(recipe, labels).line
    assert said == f"drawn anew for 2 classes: those of {tiny_classifier} are negative, positive"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_without_names_is_kept_or_drawn_in_every_family(family: str, tmp_path: Path) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    recipe, before = recipe_of(tmp_path), stored(tmp_path)
    kept = weights(build_model(recipe, ("x", "y"), 0))
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert "have no names, and are taken as x, y" in plan_head(recipe, ("x", "y")).line
    drawn = weights(build_model(recipe, FIVE, 0))
    ends = {name for name in before if not torch.equal(before[name], drawn[name])}
    assert ends and all(not name.startswith(f"{family}.") for name in ends)
    assert plan_head(recipe, FIVE).line == f"drawn anew for 5 classes: {tmp_path} has 2 classes"


def test_other_heads_are_said(tiny_bert: Path, tmp_path: Path) -> None:
    def write(name: str, kind: Any, **settings: Any) -> Path:
        torch.manual_seed(0)
        kind.from_pretrained(tiny_bert, **settings).save_pretrained(tmp_path / name)
        return tmp_path / name

    masked = write("masked", AutoModelForMaskedLM)
    tags = write("tags", AutoModelForTokenClassification, num_labels=2)
    number = write("number", AutoModelForSequenceClassification, num_labels=1)
    two = write("two", AutoModelForSequenceClassification, num_labels=2)
    several = write_tiny_bundle(tmp_path / "several", tiny_bert, "multi-label")
    sentences = write("sentences", AutoModelForMaskedLM)
    AutoModelForMaskedLM.from_pretrained(tiny_bert).bert.save_pretrained(sentences)
    (sentences / "modules.json").write_text("[]")
    music = ("plot", "cast", "music")
    for directory, task, labels, said in [
        (masked, "classification", FIVE, "drawn anew for 5 classes: X is a masked language model"),
        (masked, "masked-lm", (), ""),
        (two, "masked-lm", (), "drawn anew to guess words: X is a classifier"),
        (tiny_bert, "masked-lm", (), "drawn anew to guess words: X has an encoder alone"),
        (tiny_bert, "classification", FIVE, ""),
        (tags, "classification", ("x", "y"), "drawn anew for 2 classes: X is a BertForTokenClass"),
        (number, "classification", ("x", "y"), "drawn anew for 2 classes: X gives a number"),
        (number, "regression", (), ""),
        (two, "regression", (), "drawn anew for a number: X has 2 classes"),
        (several, "classification", music, "kept; X gave a text several of its classes"),
        (sentences, "classification", FIVE, "drawn anew for 5 classes: X gives sentence embedding"),
    ]:
        recipe = recipe_of(directory, task)
        line = plan_head(recipe, labels).line.replace(str(directory), "X")
        assert line.startswith(said) and bool(line) is bool(said), (directory.name, task, line)
        built = weights(build_model(recipe, labels, 0))
        assert all(torch.isfinite(each).all() for each in built.values())
    kept = stored(tags)
    drawn = weights(build_model(recipe_of(tags), ("x", "y"), 0))
    assert not torch.equal(drawn["classifier.weight"], kept["classifier.weight"])


def test_a_head_of_another_size_than_its_configuration_says(
    tiny_classifier: Path, tmp_path: Path
) -> None:
    for path in tiny_classifier.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(enumerate(FIVE))
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = plan_head(recipe_of(tmp_path), FIVE)
    assert plan.is_drawn and plan.line.endswith("holds 2 of 5")
    assert weights(build_model(recipe_of(tmp_path), FIVE, 0))["classifier.weight"].shape == (5, 32)


def test_a_model_in_half_precision_is_trained_in_fp32(tiny_bert: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_bert).half().save_pretrained(tmp_path)
    built = build_model(recipe_of(tmp_path), ("x", "y"), 0)
    assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_weights_under_other_names_are_not_silently_drawn(
    tiny_classifier: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((tiny_classifier / "config.json").read_bytes())
    tensors = load_file(tiny_classifier / "model.safetensors")
    renamed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"its files hold no bert\.embeddings\..* fetch it again"):
        build_model(recipe_of(tmp_path), ("negative", "positive"), 0)
