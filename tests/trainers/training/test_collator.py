"""Micro-batches on the device: padded, masked and keyed by (seed, epoch, row) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.config.recipe import Recipe, parse_recipe
from trainers.data.dataset_cache import DatasetSplit
from trainers.data.microbatch import MicroBatch
from trainers.data.ragged import ragged_from_rows
from trainers.data.tokenizer import Encoder, load_encoder
from trainers.parallel.pipeline import DeviceBatch
from trainers.training.collator import Collator

CPU = torch.device("cpu")
ROWS = [np.arange(5, 5 + n) for n in (3, 6, 3, 14)]
SPLIT = DatasetSplit(
    ragged_from_rows(ROWS, np.int32),
    np.array([0, 1, 1, 0]),
    teacher=np.array([[0.5, -0.5], [1.0, -1.0], [2.0, -2.0], [3.0, -3.0]], np.float32),
)


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> Encoder:
    return load_encoder(str(tiny_bert), "text-v1", 16)


def make_recipe(task: str = "classification", **settings: Any) -> Recipe:
    return parse_recipe(
        {"task": task, "model": {"name": "x"}, "data": {"source": "x"}, "seed": 3, **settings}
    )


def collate(
    encoder: Encoder,
    rows: list[int],
    epoch: int | None = 0,
    split: DatasetSplit = SPLIT,
    multiple: int = 1,
    task: str = "classification",
    **settings: Any,
) -> DeviceBatch:
    collator = Collator(make_recipe(task, **settings), encoder, CPU, multiple)
    (batch,) = collator.collate(split, [MicroBatch(np.array(rows), 0.25)], epoch)
    return batch


def test_rows_are_padded_to_the_longest_with_their_targets_and_weight(encoder: Encoder) -> None:
    batch = collate(encoder, [1, 0])
    pad = encoder.pad_id
    assert batch.inputs.tolist() == [[5, 6, 7, 8, 9, 10], [5, 6, 7, pad, pad, pad]]
    assert batch.inputs.dtype == torch.int64
    assert batch.mask is not None and batch.mask.sum(1).tolist() == [6, 3]
    assert batch.targets.tolist() == [1, 0] and batch.weight == 0.25
    assert batch.teacher is not None and batch.teacher.tolist() == [[1.0, -1.0], [0.5, -0.5]]
    assert batch.positions is None


def test_a_batch_without_padding_has_no_mask(encoder: Encoder) -> None:
    assert collate(encoder, [0, 2]).mask is None
    padded = collate(encoder, [0, 2], multiple=4)
    assert padded.mask is not None and padded.inputs.shape == (2, 4)


def test_keys_belong_to_the_row_whatever_the_batch(encoder: Encoder) -> None:
    def keys(rows: list[int], epoch: int | None, **settings: Any) -> list[int] | None:
        found = collate(encoder, rows, epoch, **settings).keys
        return None if found is None else found.tolist()

    alone = {(row, epoch): keys([row], epoch) for row in range(4) for epoch in (0, 1)}
    assert len(set(map(str, alone.values()))) == 8
    assert keys([3, 1], 1) == [*(alone[3, 1] or []), *(alone[1, 1] or [])]
    assert keys([0], 0, seed=4) != alone[0, 0]
    assert keys([0], None) is None, "an evaluation drops nothing"


def test_numbers_stay_numbers(encoder: Encoder) -> None:
    numbers = ragged_from_rows([np.array([1.5, 2.5], np.float32)], np.float32)
    split = DatasetSplit(numbers, np.array([0.5], np.float32))
    batch = collate(encoder, [0], split=split, task="regression")
    assert batch.inputs.dtype == torch.float32 and batch.inputs.tolist() == [[1.5, 2.5]]
    assert batch.teacher is None


def test_masked_tokens_are_the_targets_and_stand_at_their_positions(encoder: Encoder) -> None:
    batch = collate(encoder, [3, 1], task="masked-lm")
    assert batch.positions is not None
    unmasked = collate(encoder, [3, 1]).inputs.flatten()
    assert batch.targets.tolist() == unmasked[batch.positions].tolist()
    hidden = batch.inputs.flatten()
    kept = torch.ones(len(hidden), dtype=torch.bool)
    kept[batch.positions] = False
    assert torch.equal(hidden[kept], unmasked[kept])
    assert SPLIT.samples.values.tolist() == np.concatenate(ROWS).tolist(), "the data stay"


def test_masks_change_by_epoch_and_are_always_the_same_in_evaluation(encoder: Encoder) -> None:
    def masked(epoch: int | None) -> list[int]:
        positions = collate(encoder, [3], epoch, task="masked-lm").positions
        assert positions is not None
        return positions.tolist()

    assert masked(None) == masked(None) == masked(2**31 - 1)
    assert len({tuple(masked(epoch)) for epoch in range(8)}) > 1
