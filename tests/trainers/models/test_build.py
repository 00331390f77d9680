"""The model computes less than the plain one, and gives the same logits and gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from tests.support.padded import pack, use_padded_dropout
from trainers.config import recipe as recipes
from trainers.data.microbatch import sample_keys
from trainers.models.bert import TextModel
from trainers.models.build import build_model, load_model
from trainers.models.config import ModelError, build_config
from trainers.models.shape import shape_from_config


def plain(directory: Path, **settings: object) -> BertForSequenceClassification:
    torch.manual_seed(3)
    return BertForSequenceClassification.from_pretrained(directory, num_labels=3, **settings)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (4, 12), generator=generator)
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 10])[:, None]
    return ids.masked_fill(~mask, 0), mask, torch.tensor([0, 1, 2, 1])


def gradients(model: torch.nn.Module, logits: torch.Tensor, targets: torch.Tensor) -> dict:
    torch.nn.functional.cross_entropy(logits, targets).backward()
    named = {name.removeprefix("net."): p for name, p in model.named_parameters()}
    return {name: p.grad for name, p in named.items()}


@pytest.mark.parametrize("dropouts", [(0.0, 0.0), (0.3, 0.0), (0.3, 0.2)])
def test_logits_and_gradients_equal_the_plain_model(
    tiny_bert: Path, batch: tuple[torch.Tensor, ...], dropouts: tuple[float, float]
) -> None:
    """With dropout too: the plain model is given the same keyed masks and all of its last layer."""
    hidden, attention = dropouts
    ids, mask, targets = batch
    rates = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attention}
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(4)))
    ours = TextModel(plain(tiny_bert, **rates)).train()
    logits = ours(*pack(ids, mask, keys))
    reference = plain(tiny_bert, **rates).train()
    use_padded_dropout(reference, keys)
    expected = reference(input_ids=ids, attention_mask=mask[:, None, None, :]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    found, wanted = gradients(ours, logits, targets), gradients(reference, expected, targets)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_last_layer_computes_one_position(
    tiny_bert: Path, batch: tuple[torch.Tensor, ...]
) -> None:
    model = TextModel(plain(tiny_bert)).eval()
    seen: dict[str, torch.Size] = {}
    last = model.net.bert.encoder.layer[-1]
    for name, module in (("query", last.attention.self.query), ("ffn", last.intermediate.dense)):
        module.register_forward_hook(
            lambda _m, inputs, _o, name=name: seen.update({name: inputs[0].shape})
        )
    model(*pack(*batch[:2]))
    assert seen == {"query": torch.Size([1, 4, 32]), "ffn": torch.Size([1, 4, 32])}


def test_company_does_not_change_a_sample(tiny_bert: Path, batch: tuple[torch.Tensor, ...]) -> None:
    ids, mask, _ = batch
    model = TextModel(plain(tiny_bert, hidden_dropout_prob=0.3)).train()
    keys = torch.from_numpy(sample_keys(0, 0, np.array([8, 2, 5, 9])))
    together = model(*pack(ids, mask, keys))
    alone = model(*pack(ids[1:2], mask[1:2], keys[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-6)


def test_a_saved_model_loads_in_transformers_and_here(
    tiny_bert: Path, batch: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    ids, mask, _ = batch
    model = TextModel(plain(tiny_bert)).eval()
    model.save_pretrained(tmp_path)
    expected = model(*pack(ids, mask))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(input_ids=ids, attention_mask=mask).logits, expected)
    assert torch.equal(load_model(tmp_path)(*pack(ids, mask)), expected)


def test_every_parameter_gets_a_gradient(tiny_bert: Path, batch: tuple[torch.Tensor, ...]) -> None:
    ids, mask, targets = batch
    model = TextModel(plain(tiny_bert)).eval()
    torch.nn.functional.cross_entropy(model(*pack(ids, mask)), targets).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def random_recipe(tiny_bert: Path, *overrides: str) -> recipes.Recipe:
    sizes = "num_hidden_layers=1 num_attention_heads=2 intermediate_size=16 hidden_size=8"
    changes = [f"model.{size}" for size in sizes.split()]
    return recipes.load_recipe(
        "csv", ["model.name=random", f"model.tokenizer={tiny_bert}", *changes, *overrides]
    )


def test_parameters_are_counted_without_allocating_them(tiny_bert: Path) -> None:
    recipe = random_recipe(tiny_bert)
    counted = shape_from_config(
        build_config(recipe, ("a", "b", "c")), recipe.task, 3
    ).num_parameters
    assert counted == sum(p.numel() for p in build_model(recipe, ("a", "b", "c"), 0).parameters())


def test_a_random_model_is_a_function_of_the_seed(tiny_bert: Path) -> None:
    weights = [
        build_model(random_recipe(tiny_bert, f"seed={seed}"), ("a", "b"), 0).state_dict()
        for seed in (1, 1, 2)
    ]
    name = "net.classifier.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert weights[0]["net.bert.embeddings.word_embeddings.weight"].shape == (37, 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=nobody/nothing"], "not loadable from the hub.*give a directory"),
        (["model.name={tiny}", "batch.max_length=65"], "positions for 64 tokens; set batch.max_l"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_the_way_out(
    tiny_bert: Path, overrides: list[str], message: str
) -> None:
    recipe = recipes.load_recipe("csv", [o.format(tiny=tiny_bert) for o in overrides])
    with pytest.raises(ModelError, match=message):
        build_model(recipe, ("a", "b"), 0)
