"""The optimizer of a recipe, and its learning rate schedule."""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trainers.config.recipe import Recipe
from trainers.config.sections import OptimizerConfig, ScheduleConfig
from trainers.models.bert import TextModel
from trainers.parallel.parallelize import ParallelModel
from trainers.training.lamb import Lamb


def build_optimizer(
    model: nn.Module | ParallelModel, recipe: Recipe, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over what `model` trains; biases and norms are not decayed.

    fused: use torch's fused kernels, where the device has them. The learning rate of a group is
    that of the schedule times its `scale`: `optimizer.layer_decay` to the power of the layers above
    (Clark et al. 2020, arXiv 2003.10555, appendix A), 1 of the head.
    """
    settings = recipe.optimizer
    groups, rate = _parameter_groups(model, settings), recipe.learning_rate
    if settings.name == "sgd":
        if any(isinstance(each, DTensor) for _, each in model.named_parameters()):
            fused = None  # torch has no fused SGD of sharded parameters
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
    if settings.name == "lamb":
        return Lamb(groups, lr=rate, betas=settings.betas, eps=settings.eps)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=settings.betas, eps=settings.eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the head, and in proportion that of the layers below."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def _parameter_groups(
    model: nn.Module | ParallelModel, settings: OptimizerConfig
) -> list[dict[str, Any]]:
    """Return parameter groups: the decayed first, then biases and norms.

    Tensors on different meshes, or on none, are in different groups: torch's foreach kernels refuse
    a mixture. `adapt` is for LAMB alone.
    """
    groups: dict[tuple[bool, object, float], list[nn.Parameter]] = {}
    if not any(parameter.requires_grad for _, parameter in model.named_parameters()):
        groups[False, None, 1.0] = []  # a frozen pipeline stage: torch takes no less than a group
    module = model if isinstance(model, nn.Module) else next(iter(model.stage_modules.values()))
    text_model = module if isinstance(module, TextModel) else None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.dim() >= 2 and not name.endswith("bias")
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        above = text_model.num_layers + 1 - text_model.depth_of(name) if text_model else 0
        scale = settings.layer_decay**above
        groups.setdefault((decayed, mesh, scale), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: not item[0][0])
    return [
        {
            "params": params,
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "adapt": decayed,
            "scale": scale,
        }
        for (decayed, _, scale), params in ordered
    ]


def learning_rate_at(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0."""
    return recipe.learning_rate * _schedule_factor(recipe.schedule, step, total_steps)


def _schedule_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate: linear warmup, then the schedule's shape."""
    warmup = round(schedule.warmup * total_steps)
    if schedule.warmup_steps is not None:
        warmup = min(schedule.warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return 1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
