"""Bundles: written tensor by tensor, as `save_pretrained` writes them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedModel,
    RobertaConfig,
)

from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle
from trainers.data.tokenizer import load_encoder
from trainers.models import bundle
from trainers.models.bert import TextModel
from trainers.models.build import load_model
from trainers.models.card import ModelCard
from trainers.storage import safetensors

SIZES = {"vocab_size": 32, "num_attention_heads": 2}
SMALL = SIZES | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
FAMILIES = {
    "roberta": RobertaConfig(**SMALL),
    "electra": ElectraConfig(**SMALL, embedding_size=4),
    "distilbert": DistilBertConfig(**SIZES, dim=8, hidden_dim=8, n_layers=1, num_labels=3),
}

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "a": torch.tensor([True, False, True]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "step": torch.tensor(7.0),
    "count": torch.tensor([2**40]),
    "none": torch.empty(0, 4),
}


def card() -> ModelCard:
    return ModelCard(
        task="classification",
        labels=("no", "yes"),
        cleaning="none",
        max_length=8,
        metrics={},
        recipe={"model": {"name": "tiny"}},
        data_fingerprint="0" * 64,
        revision="unknown",
        environment={},
    )


def keys(directory: Path) -> dict[str, str]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
@pytest.mark.parametrize("family", ["bert", *FAMILIES])
def test_it_is_what_save_pretrained_writes(
    tiny_bert: Path, tmp_path: Path, kind: Any, family: str
) -> None:
    """From a model on the meta device and a stream of tensors, tied ones once."""
    net: PreTrainedModel
    if family == "bert":
        net = kind.from_pretrained(tiny_bert)
    else:
        net = kind.from_config(FAMILIES[family])
    net.eval().save_pretrained(tmp_path / "transformers")
    with torch.device("meta"):
        sketch = TextModel(kind.from_config(copy.deepcopy(net.config)))
    stream = reversed([(f"net.{name}", tensor) for name, tensor in net.named_parameters()])
    encoder = load_encoder(str(tiny_bert), "none", 8)
    bundle.write_bundle(tmp_path / "bundle", sketch, stream, encoder, card())
    assert keys(tmp_path / "bundle") == keys(tmp_path / "transformers")
    ours, theirs = (
        json.loads((tmp_path / name / "config.json").read_text())
        for name in ("bundle", "transformers")
    )
    assert ours == theirs
    ids = torch.arange(12).view(2, 6)
    loaded = kind.from_pretrained(tmp_path / "bundle").eval()
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, net(ids).logits)


def test_live_models_are_written_too(tiny_bert: Path, tmp_path: Path) -> None:
    text = write_tiny_bundle(tmp_path / "text", tiny_bert)
    linear = write_linear_bundle(tmp_path / "linear", [2.0, -3.0])
    assert load_model(linear).linear.weight.tolist() == [[2.0, -3.0]]
    assert isinstance(load_model(text), TextModel)


class TestTensorFile:
    def test_safetensors_reads_what_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "file.safetensors"
        safetensors.write_tensors(path, TENSORS, TENSORS.items())
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(TENSORS)
            for name, expected in TENSORS.items():
                found = file.get_tensor(name)
                assert found.dtype == expected.dtype and torch.equal(found, expected)
            assert torch.equal(file.get_slice("b")[1:3, 0:1], TENSORS["b"][1:3, 0:1])

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            ({"b": torch.zeros(3, 2)}, "a and 4 others were not given"),
            ({"b": torch.zeros(2, 2)}, r"b \[2, 2\]: .* holds \[3, 2\] once"),
            ({"c": torch.zeros(2)}, r"c \[2\]: .* holds no such tensor"),
        ],
    )
    def test_what_is_not_as_announced_is_named(
        self, tmp_path: Path, given: dict[str, Tensor], error: str
    ) -> None:
        with pytest.raises(ValueError, match=error):
            safetensors.write_tensors(tmp_path / "file", TENSORS, given.items())
