"""How a gradient becomes a step: the optimizer, and the learning rate at every step."""

import math

import torch
from torch import nn

from trainers.recipe import Recipe, Schedule


def build_optimizer(
    model: nn.Module, recipe: Recipe, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `model`; biases and norms are not decayed.

    fused: one pass over memory instead of one an operation, where the device has it.
    """
    settings = recipe.optimizer
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (free if parameter.dim() < 2 or name.endswith("bias") else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=settings.betas, eps=settings.eps, fused=fused)


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of the optimizer step `step`, counted from 0."""
    return recipe.optimizer.learning_rate * _share(recipe.schedule, step, total_steps)


def _share(schedule: Schedule, step: int, total_steps: int) -> float:
    """Share of the highest learning rate: up in a line, then along the schedule's shape."""
    warmup = round(schedule.warmup * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return 1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
