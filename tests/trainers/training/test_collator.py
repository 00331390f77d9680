"""Micro-batches on the device: end to end, masked and keyed by (seed, epoch, row) alone."""

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
from trainers.distributed.transfer import Transfer
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
    collator = Collator(make_recipe(task, **settings), encoder, Transfer(CPU), multiple)
    (batch,) = collator.collate(split, [MicroBatch(np.array(rows), 0.25)], epoch)
    return batch


def test_rows_lie_end_to_end_with_their_targets_and_weight(encoder: Encoder) -> None:
    batch = collate(encoder, [1, 0])
    assert batch.inputs.tolist() == [[5, 6, 7, 8, 9, 10, 5, 6, 7]]
    assert batch.inputs.dtype == torch.int64
    assert batch.packed is not None and batch.packed.lengths == (6, 3)
    assert batch.packed.texts.tolist() == [0] * 6 + [1] * 3
    assert batch.packed.positions.tolist() == [*range(6), *range(3)]
    assert batch.packed.reads.tolist() == [0, 6]
    assert batch.targets.tolist() == [1, 0] and batch.weight == 0.25
    assert batch.teacher is not None and batch.teacher.tolist() == [[1.0, -1.0], [0.5, -0.5]]


def test_a_text_of_pads_that_nothing_reads_makes_a_multiple(encoder: Encoder) -> None:
    filled, plain = collate(encoder, [0, 2], multiple=4), collate(encoder, [0, 2])
    assert plain.packed is not None and filled.packed is not None
    assert filled.inputs.tolist() == [[*plain.inputs[0].tolist(), *[encoder.pad_id] * 2]]
    assert (plain.packed.lengths, filled.packed.lengths) == ((3, 3), (3, 3, 2))
    assert filled.packed.reads.tolist() == [0, 3]
    assert filled.packed.keys is not None and len(filled.packed.keys) == 3
    assert collate(encoder, [0, 2], multiple=3).inputs.shape == (1, 6)


def test_keys_belong_to_the_row_whatever_the_batch(encoder: Encoder) -> None:
    def keys(rows: list[int], epoch: int | None, **settings: Any) -> list[int] | None:
        packed = collate(encoder, rows, epoch, **settings).packed
        assert packed is not None
        return None if packed.keys is None else packed.keys.tolist()

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
    assert batch.packed is not None
    positions = batch.packed.reads
    unmasked = collate(encoder, [3, 1]).inputs.flatten()
    assert batch.targets.tolist() == unmasked[positions].tolist()
    hidden = batch.inputs.flatten()
    kept = torch.ones(len(hidden), dtype=torch.bool)
    kept[positions] = False
    assert torch.equal(hidden[kept], unmasked[kept])
    assert SPLIT.samples.values.tolist() == np.concatenate(ROWS).tolist(), "the data stay"


def test_masks_change_by_epoch_and_are_always_the_same_in_evaluation(encoder: Encoder) -> None:
    def masked(epoch: int | None) -> list[int]:
        packed = collate(encoder, [3], epoch, task="masked-lm").packed
        assert packed is not None
        return packed.reads.tolist()

    assert masked(None) == masked(None) == masked(2**31 - 1)
    assert len({tuple(masked(epoch)) for epoch in range(8)}) > 1
