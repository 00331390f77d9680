"""Frozen layers: they stay what they were, cost no gradient and no moment, and runs resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from cluster.costmodel.layout import Layout
from cluster.errors import BerthaError
from tests.support.layouts import full_weights, make_loop, tiny_recipe
from tests.support.ranks import spawn_ranks
from trainers.checkpoint import checkpoint
from trainers.checkpoint.stores import CheckpointStore
from trainers.config import recipe as recipes
from trainers.models.config import ModelError
from trainers.training.events import SaveEvent, StepEvent
from trainers.training.loop import TrainingLoop

FROZEN = {"embeddings": 0, "1": 1, "encoder": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def make_frozen(model: Path, corpus: Path, cache: Path, *overrides: str) -> TrainingLoop:
    settings = [f"model.name={model}", "stopping.max_steps=4", "evaluation.every_steps=2"]
    return make_loop(tiny_recipe(corpus, *settings, *overrides), cache)


def is_below(name: str, depth: int) -> bool:
    below = [".embeddings.", *(f".layer.{layer}." for layer in range(depth))]
    return any(part in name for part in below)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_what_is_frozen_stays_and_has_no_moments(
    tiny_bert: Path, corpus: Path, cache: Path, frozen: str, task: str
) -> None:
    loop = make_frozen(tiny_bert, corpus, cache, f"model.freeze={frozen}", f"task={task}")
    before = full_weights(loop)
    list(loop.run())
    after = full_weights(loop)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    below = {name for name in before if is_below(name, FROZEN[frozen])}
    assert below and not moved & below
    names = {id(parameter): name for name, parameter in loop.parallel.named_parameters()}
    groups = loop.optimizer.param_groups
    assert {names[id(p)] for group in groups for p in group["params"]} == set(before) - below
    assert {names[id(parameter)] for parameter in loop.optimizer.state} == set(before) - below
    unmoved = set(before) - below - moved
    assert not unmoved, unmoved


def test_no_activation_of_frozen_layers_is_kept(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    kept = {}
    for freeze in ("null", "embeddings", "1", "encoder"):
        loop, sizes = make_frozen(tiny_bert, corpus, cache, f"model.freeze={freeze}"), list[int]()

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            loop.loss_and_grad()
        kept[freeze] = sum(sizes)
    assert kept["null"] > kept["embeddings"] > kept["1"] > kept["encoder"]
    assert kept["encoder"] < kept["null"] / 10


def test_a_run_with_frozen_layers_resumes_bitwise(
    tiny_bert: Path, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path)
    loop = make_frozen(tiny_bert, corpus, cache, "model.freeze=1")
    losses = []
    for event in loop.run():
        if isinstance(event, StepEvent):
            losses.append(event.loss)
        if isinstance(event, SaveEvent) and event.step == 2:
            saved = checkpoint.save_checkpoint(
                store, 2, loop.parallel, loop.optimizer, loop.state_dict()
            )
    assert dict(saved.iter_tensors()).keys() == full_weights(loop).keys()
    other = make_frozen(tiny_bert, corpus, cache, "model.freeze=1")
    saved.restore(other.parallel, other.optimizer)
    other.load_state_dict(saved.load_state())
    rest = [event.loss for event in other.run() if isinstance(event, StepEvent)]
    assert rest == losses[2:]
    found, expected = full_weights(other), full_weights(loop)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_more_layers_than_there_are_is_refused(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"model.freeze = 3: .* has 2 layers here; give at most 2"):
        make_frozen(tiny_bert, corpus, cache, "model.freeze=3")
    with pytest.raises(ModelError, match=r"model.freeze = 2: .* has 1 layers here"):
        make_frozen(tiny_bert, corpus, cache, "model.freeze=2", "model.layers=[1]")


@pytest.mark.parametrize("frozen", ["0", "-1", "pooler", "true", "1.5"])
def test_what_is_no_part_is_refused(frozen: str) -> None:
    with pytest.raises(BerthaError, match=r"model\.freeze"):
        recipes.load_recipe("csv", [f"model.freeze={frozen}"])


def test_a_model_that_has_learned_nothing_is_not_frozen() -> None:
    with pytest.raises(BerthaError, match="freeze = encoder keeps what a named model has learned"):
        recipes.load_recipe("csv", ["model.name=linear", "model.freeze=encoder"])


@pytest.mark.multiprocess
def test_a_frozen_stage_is_saved_in_shards(
    tiny_bert: Path, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    recipe = frozen_stage_recipe(tiny_bert, corpus)
    make_loop(recipe, cache)  # so that no rank prepares the data
    spawn_ranks(_save_frozen_stage, (recipe, cache, tmp_path), nprocs=4)
    saved = checkpoint.find_latest(CheckpointStore(tmp_path / "checkpoints"))
    alone = make_loop(recipe, cache)
    list(alone.run())
    assert saved is not None
    found, expected = dict(saved.iter_tensors()), full_weights(alone)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=0, atol=2e-5, err_msg=name)


def frozen_stage_recipe(model: Path, corpus: Path) -> recipes.Recipe:
    settings = [f"model.name={model}", "model.freeze=1", "data.validation=0"]
    return tiny_recipe(corpus, *settings, "stopping.max_steps=2")


def _save_frozen_stage(rank: int, recipe: recipes.Recipe, cache: Path, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=4)
    loop = make_loop(recipe, cache, Layout(pp=2, dp_shard=2))
    for event in loop.run():
        if isinstance(event, SaveEvent):
            assert all(isinstance(p, DTensor) for _, p in loop.parallel.named_parameters())
            store = CheckpointStore(out / "checkpoints")
            checkpoint.save_checkpoint(store, 2, loop.parallel, loop.optimizer, loop.state_dict())
    dist.destroy_process_group()
