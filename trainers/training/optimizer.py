"""How a gradient becomes a step: the optimizer, and the learning rate at every step."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trainers.config.recipe import Recipe, Schedule
from trainers.training.lamb import Lamb


class Named(Protocol):
    """A module, or the parts of one on this rank."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def build_optimizer(
    model: Named, recipe: Recipe, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over `model`; biases and norms are not decayed.

    fused: one pass over memory instead of one an operation, where the device has it.
    """
    settings = recipe.optimizer
    groups = _groups(model, settings.weight_decay)
    rate = settings.learning_rate
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
    if settings.name == "lamb":
        return Lamb(groups, lr=rate, betas=settings.betas, eps=settings.eps)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=settings.betas, eps=settings.eps, fused=fused)


def _groups(model: Named, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: the decayed first, then biases and norms.

    Tensors on different meshes, or on none, keep apart: torch's kernels for many tensors at once
    refuse a mixture. `adapt` is read by LAMB alone.
    """
    groups: dict[tuple[bool, object], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.dim() >= 2 and not name.endswith("bias")
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((decayed, mesh), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: not item[0][0])
    return [
        {"params": held, "weight_decay": weight_decay if decayed else 0.0, "adapt": decayed}
        for (decayed, _), held in ordered
    ]


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
