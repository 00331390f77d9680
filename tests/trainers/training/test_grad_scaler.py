"""Loss scaling: the scale as a value, and fp16 that trains, skips what overflows, and resumes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.layouts import make_loop
from trainers.checkpoint import checkpoint
from trainers.checkpoint.stores import CheckpointStore
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.training.events import SaveEvent, StepEvent
from trainers.training.grad_scaler import GROWTH_INTERVAL, LossScale, unscale_gradients
from trainers.training.loop import TrainingError, TrainingLoop


def fp16(tiny_bert: Path, corpus: Path, *overrides: str) -> Recipe:
    settings = [
        f"model.name={tiny_bert}",
        f"data.source={corpus}",
        "batch.global_size=13",
        "batch.max_length=32",
        "batch.token_budget=96",
        "optimizer.learning_rate=2e-3",
        "stopping.max_steps=6",
        "stopping.patience=null",
        "evaluation.every_steps=3",
        "precision=fp16",
    ]
    return recipes.load_recipe("csv", [*settings, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def steps(loop: TrainingLoop) -> list[StepEvent]:
    return [event for event in loop.run() if isinstance(event, StepEvent)]


def test_the_scale_halves_at_once_and_doubles_with_patience() -> None:
    scale = LossScale(8.0, 5)
    assert scale.next_scale(overflowed=True) == LossScale(4.0, 0)
    assert scale.next_scale(overflowed=False) == LossScale(8.0, 6)
    assert LossScale(8.0, GROWTH_INTERVAL - 1).next_scale(overflowed=False) == LossScale(16.0, 0)
    assert not LossScale(1.0).is_exhausted and LossScale(0.5).is_exhausted


def test_unscaling_is_exact_and_counts_a_shared_parameter_once() -> None:
    shared, idle = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    shared.grad = torch.tensor([3.0, -5.0, 7e4])
    unscale_gradients([shared, shared, idle], 2.0**16)
    assert torch.equal(shared.grad * 2.0**16, torch.tensor([3.0, -5.0, 7e4]))


def test_fp16_trains_as_fp32_does(tiny_bert: Path, corpus: Path, cache: Path) -> None:
    half = steps(make_loop(fp16(tiny_bert, corpus), cache))
    full = steps(make_loop(fp16(tiny_bert, corpus, "precision=fp32"), cache))
    assert [s.loss for s in half] == pytest.approx([s.loss for s in full], abs=2e-3)
    assert [s.loss for s in half] != [s.loss for s in full]
    assert [s.grad_norm for s in half] == pytest.approx([s.grad_norm for s in full], rel=2e-2)


def test_what_overflows_is_skipped_and_the_scale_halves(
    tiny_bert: Path, corpus: Path, cache: Path
) -> None:
    loop = make_loop(fp16(tiny_bert, corpus), cache)
    loop.loss_scale = LossScale(2.0**30)
    before = {name: p.detach().clone() for name, p in loop.parallel.named_parameters()}
    run = loop.run()
    first = next(run)
    assert isinstance(first, StepEvent) and not math.isfinite(first.grad_norm)
    assert loop.loss_scale == LossScale(2.0**29)
    assert all(torch.equal(before[name], p) for name, p in loop.parallel.named_parameters())
    rest = [event for event in run if isinstance(event, StepEvent)]
    assert len(rest) == 5, "a skipped step is a step: the schedule and the order go on"


def test_a_gradient_that_no_scale_saves_ends_the_run(
    tiny_bert: Path, corpus: Path, cache: Path
) -> None:
    loop = make_loop(fp16(tiny_bert, corpus), cache)
    loop.loss_scale = LossScale(2.0**30)
    run = loop.run()
    next(run)
    loop.loss_scale = replace(loop.loss_scale, factor=0.5)
    with pytest.raises(TrainingError, match=r"overflow fp16 .* set precision: fp32"):
        next(run)


def test_a_resumed_run_repeats_the_rest_bitwise(
    tiny_bert: Path, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    recipe = fp16(tiny_bert, corpus)
    whole = make_loop(recipe, cache)
    whole.loss_scale = LossScale(2.0**22)
    losses = [step.loss for step in steps(whole)]
    first = make_loop(recipe, cache)
    first.loss_scale = LossScale(2.0**22)
    for event in first.run():
        if isinstance(event, SaveEvent):
            checkpoint.save_checkpoint(
                CheckpointStore(tmp_path),
                event.step,
                first.parallel,
                first.optimizer,
                first.state_dict(),
            )
            break
    second = make_loop(recipe, cache)
    found = checkpoint.find_latest(CheckpointStore(tmp_path))
    assert found is not None
    found.restore(second.parallel, second.optimizer)
    second.load_state_dict(found.load_state())
    assert second.loss_scale == first.loss_scale
    assert [step.loss for step in steps(second)] == losses[found.step :]
