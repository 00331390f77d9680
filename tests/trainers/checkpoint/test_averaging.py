"""The mean of checkpoints: element by element, the same numbers on any layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cluster.costmodel.layout import Layout
from tests.support.layouts import full_weights, make_loop, tiny_recipe
from tests.support.ranks import spawn_ranks
from trainers.checkpoint import checkpoint
from trainers.checkpoint.averaging import CheckpointAverage, mean_of
from trainers.checkpoint.stores import CheckpointStore
from trainers.config.recipe import Recipe
from trainers.training.events import SaveEvent

LAYOUTS = (Layout(dp_shard=2), Layout(tp=2), Layout(pp=2))


def averaging_recipe(model: Path, corpus: Path) -> Recipe:
    settings = ["evaluation.every_steps=2", "checkpoints.average=3", "stopping.max_steps=7"]
    return tiny_recipe(corpus, f"model.name={model}", *settings)


def average_of(store: CheckpointStore, steps: list[int]) -> CheckpointAverage:
    found = [checkpoint.find_checkpoint(store, step) for step in steps]
    return CheckpointAverage(tuple(each for each in found if each is not None))


def test_a_mean_is_exact_where_a_sum_in_its_own_precision_is_not() -> None:
    tensors = [torch.tensor([2.0**24, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 6.0])]
    assert mean_of(tensors).tolist() == [np.float32((2**24 + 2) / 3), 3.0]
    assert mean_of(tensors).dtype == torch.float32
    assert tensors[0].tolist() == [2.0**24, 1.0]


@pytest.mark.multiprocess
def test_any_layout_reads_the_same_mean(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    recipe, store = averaging_recipe(tiny_bert, corpus), CheckpointStore(tmp_path / "checkpoints")
    loop = make_loop(recipe, tmp_path / "cache")
    for event in loop.run():
        if isinstance(event, SaveEvent):
            checkpoint.save_checkpoint(store, event.step, loop.parallel, loop.optimizer, {})
    assert loop.averaged_steps() == [4, 6, 7]
    average = average_of(store, [4, 6, 7])
    expected = {name: tensor.numpy() for name, tensor in average.iter_tensors()}
    average.restore(loop.parallel)
    found = full_weights(loop)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    spawn_ranks(_compare_mean, (recipe, tmp_path, expected), nprocs=2)


def _compare_mean(rank: int, recipe: Recipe, place: Path, expected: dict[str, np.ndarray]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    for layout in LAYOUTS:
        loop = make_loop(recipe, place / "cache", layout)
        average_of(CheckpointStore(place / "checkpoints"), [4, 6, 7]).restore(loop.parallel)
        for name, value in full_weights(loop).items():
            assert np.array_equal(value, expected[name]), (layout, name)
    dist.destroy_process_group()


def test_what_an_interruption_saves_is_not_averaged(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    loop = make_loop(averaging_recipe(tiny_bert, corpus), tmp_path / "cache")
    store, seen = CheckpointStore(tmp_path / "checkpoints"), []
    for event in loop.run():
        if isinstance(event, SaveEvent):
            seen.append(loop.averaged_steps())
            for step in (event.step, event.step + 100):  # as if one more had been interrupted
                checkpoint.save_checkpoint(store, step, loop.parallel, loop.optimizer, {})
            checkpoint.prune_checkpoints(store, 1, loop.averaged_steps())
    assert seen == [[2], [2, 4], [2, 4, 6], [4, 6, 7]]
    assert sorted(store.list_names()) == [f"step-{step:08d}" for step in (4, 6, 7, 107)]
