"""Texts end to end are answered as Transformers answers each alone: every family, every task."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from serving.engine import networks
from serving.engine.networks import PackedNetwork, build_embedder, load_network
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.bert import TextModel
from trainers.models.card import read_card
from trainers.models.families import FAMILIES, position_ids
from trainers.models.packed import PackedBatch, pad_into_rows

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "embedding_size": 8,
}
PAD = 1
ROWS = [np.array([2, 5, 9, 7, 3]), np.array([2, 3]), np.array([2, 8, PAD, 8, 30, 31, 32, 3])]


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> AutoConfig:
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, pad_token_id=PAD, num_labels=3)
    config.update(SIZES)
    return config


def packed(config: AutoConfig, reads: list[int] | None = None) -> PackedBatch:
    positions = [position_ids(config.to_dict(), row) for row in ROWS]
    return PackedBatch.from_rows(ROWS, positions, None if reads is None else np.array(reads))


def both(network: PackedNetwork, batch: PackedBatch) -> list[np.ndarray]:
    """Outputs with attention text by text, and as in a graph, under a mask."""
    with torch.inference_mode():
        tensors = map(torch.from_numpy, batch.arrays)
        folded = map(torch.from_numpy, batch.graph_inputs.values())
        return [network(*tensors, lengths=batch.lengths).numpy(), network(*folded).numpy()]


def alone(model: PreTrainedModel) -> list[torch.Tensor]:
    """What the model of Transformers gives of each text."""
    with torch.inference_mode():
        outputs = [model.eval()(torch.from_numpy(row[None])) for row in ROWS]
    return [each[0][0] for each in outputs]


def test_labels(config: AutoConfig) -> None:
    model = AutoModelForSequenceClassification.from_config(config)
    expected = torch.stack(alone(model))
    text_model = TextModel(model)
    network = PackedNetwork(text_model.family, text_model.net, "labels").eval()
    for found in both(network, packed(config)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_words(config: AutoConfig) -> None:
    model = AutoModelForMaskedLM.from_config(config)
    first, _, third = alone(model)
    expected = torch.stack([first[3], third[0], third[7]])
    text_model = TextModel(model)
    network = PackedNetwork(text_model.family, text_model.net, "words").eval()
    for found in both(network, packed(config, reads=[3, 7, 14])):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors(config: AutoConfig, pooling: str) -> None:
    model = AutoModel.from_config(config)
    hidden = alone(model)
    pooled = torch.stack([each.mean(dim=0) if pooling == "mean" else each[0] for each in hidden])
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    for found in both(build_embedder(model, pooling).eval(), packed(config)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_a_text_is_computed_with_does_not_change_it(tiny_bert: Path, tmp_path: Path) -> None:
    """Nor what follows it, nor how much: no mask reaches into a neighbour."""
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    network, config = (
        load_network(place, read_card(place)),
        json.loads((place / "config.json").read_text()),
    )
    rng = np.random.default_rng(0)
    text = rng.integers(5, config["vocab_size"], 9)
    found = []
    for length in (1, 5, 40):
        other = rng.integers(5, config["vocab_size"], length)
        for rows in ([text, other], [other, text]):
            batch = PackedBatch.from_rows(rows, [np.arange(len(row)) for row in rows])
            place_of_text = 0 if rows[0] is text else 1
            found += [outputs[place_of_text] for outputs in both(network, batch)]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [found[0]] * len(found), atol=1e-5)


def test_texts_are_folded_into_rows_as_wide_as_the_longest() -> None:
    grid, owners, places = pad_into_rows((3, 8, 2, 5))
    assert owners.tolist() == [[1] * 8, [3] * 5 + [0] * 3, [2, 2] + [-1] * 6]
    assert grid[owners >= 0].tolist() == [*range(3, 11), *range(13, 18), *range(3), 11, 12]
    assert grid.reshape(-1)[places].tolist() == list(range(18)), "and back again"
    grid, owners, places = pad_into_rows((4,))
    assert (grid.tolist(), owners.tolist(), places.tolist()) == (
        [[0, 1, 2, 3]],
        [[0] * 4],
        [0, 1, 2, 3],
    )


class LargestOutput(TorchDispatchMode):
    """Counts the numbers of the largest tensor that is computed."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        outputs = func(*args, **(kwargs or {}))
        if isinstance(outputs, torch.Tensor):
            self.numel = max(self.numel, outputs.numel())
        return outputs


def test_a_mean_over_each_text_costs_no_more_than_the_tokens() -> None:
    lengths = [1, 3, 2] * 200
    texts = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    hidden = torch.randn(len(texts), 4, generator=torch.manual_seed(0))
    reads = torch.tensor(
        [0, *np.cumsum(lengths)[:-1], 0, 0]
    )  # slots that hold no text read token 0
    with LargestOutput() as largest:
        found = networks._mean_by_text(hidden, texts, reads)
    expected = torch.stack([part.mean(dim=0) for part in hidden.split(lengths)])
    torch.testing.assert_close(found, torch.cat([expected, expected[:1], expected[:1]]))
    assert largest.numel <= hidden.numel()


def test_a_mean_over_a_long_text_is_summed_in_fp32() -> None:
    hidden = torch.full((5000, 2), 1.5, dtype=torch.bfloat16)  # bf16 counts no further than 256
    texts = torch.zeros(5000, dtype=torch.int64)
    found = networks._mean_by_text(hidden, texts, torch.tensor([0]))
    assert found.tolist() == [[1.5, 1.5]]
