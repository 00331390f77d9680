"""The optimizer of a recipe, and its learning rate schedule."""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trainers.config.recipe import Recipe
from trainers.config.sections import ScheduleConfig
from trainers.parallel.parallelize import ParallelModel
from trainers.training.lamb import Lamb


def build_optimizer(
    model: nn.Module | ParallelModel, recipe: Recipe, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over `model`; biases and norms are not decayed.

    fused: use torch's fused kernels, where the device has them.
    """
    settings = recipe.optimizer
    groups = _parameter_groups(model, settings.weight_decay)
    rate = recipe.learning_rate
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
    if settings.name == "lamb":
        return Lamb(groups, lr=rate, betas=settings.betas, eps=settings.eps)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=settings.betas, eps=settings.eps, fused=fused)


def _parameter_groups(
    model: nn.Module | ParallelModel, weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups: the decayed first, then biases and norms.

    Tensors on different meshes, or on none, are in different groups: torch's foreach kernels refuse
    a mixture. `adapt` is for LAMB alone.
    """
    groups: dict[tuple[bool, object], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.dim() >= 2 and not name.endswith("bias")
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((decayed, mesh), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: not item[0][0])
    return [
        {"params": params, "weight_decay": weight_decay if decayed else 0.0, "adapt": decayed}
        for (decayed, _), params in ordered
    ]


def learning_rate_at(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0."""
    return recipe.learning_rate * _schedule_factor(recipe.schedule, step, total_steps)


def _schedule_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate: linear warmup, then the schedule's shape."""
    warmup = round(schedule.warmup * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return 1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
