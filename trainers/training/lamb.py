"""LAMB: Adam's update, scaled for each tensor by the size of its weights.

You et al. 2020, "Large Batch Optimization for Deep Learning" (arXiv 1904.00962), Algorithm 2, with
phi the identity. Parameters may be sharded tensors (DTensor): arithmetic is local, and only two
numbers a tensor are added up over the ranks that hold its other parts. Knows no model.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainers.distributed.dtensor import to_local

Group = dict[str, Any]


class Lamb(torch.optim.Optimizer):
    """For weights w, gradient g and step t, with decoupled weight decay lambda:

        m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + lambda w
        w = w - lr * ratio * u,   ratio = |w| / |u|, 1 where either is 0

    Groups with `adapt: False`, for biases and norms, keep the ratio at 1. A step needs memory for
    one u beside each local part of a parameter; state is exp_avg, exp_avg_sq and step, as Adam's.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Every rank of a parameter's mesh must call it with a gradient for the same parameters.
        """
        assert closure is None, "a loss that is computed again is no use to this optimizer"
        work = []
        for group in self.param_groups:
            held = [each for each in group["params"] if each.grad is not None]
            if held:
                work.append((group, held, self._updates(group, held)))
        adapted = [
            (parameter, update)
            for group, held, updates in work
            if group["adapt"]
            for parameter, update in zip(held, updates, strict=True)
        ]
        ratios = iter(_trust_ratios(adapted))
        for group, held, updates in work:
            if group["adapt"]:
                torch._foreach_mul_(updates, [next(ratios) for _ in updates])
            torch._foreach_add_([to_local(each) for each in held], updates, alpha=-group["lr"])

    def _updates(self, group: Group, held: list[Tensor]) -> list[Tensor]:
        """Advance the moments of `held`; u of its local parts."""
        beta1, beta2 = group["betas"]
        states = [self._state(each) for each in held]
        weights = [to_local(each) for each in held]
        gradients = [
            to_local(each.grad).to(weight.dtype)
            for each, weight in zip(held, weights, strict=True)
            if each.grad is not None
        ]
        first = [to_local(state["exp_avg"]) for state in states]
        second = [to_local(state["exp_avg_sq"]) for state in states]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        steps = [_advance(state) for state in states]
        updates = torch._foreach_div(second, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(updates)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        torch._foreach_div_(updates, [1 - beta1**step for step in steps])
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return list(updates)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _advance(state: dict[str, Tensor]) -> int:
    """Count a step; which it is, from 1."""
    state["step"] += 1
    return int(state["step"].item())


def _trust_ratios(adapted: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """|w| / |u| of each (parameter, local part of its update), 1 where either norm is 0."""
    if not adapted:
        return []
    locals_ = [to_local(parameter) for parameter, _ in adapted]
    norms = [
        torch.stack(torch._foreach_norm(tensors)).float()
        for tensors in (locals_, [update for _, update in adapted])
    ]
    squares = torch.stack(norms).square()
    _add_up(squares, [parameter for parameter, _ in adapted])
    weights, updates = squares.sqrt()
    ratios = torch.where((weights > 0) & (updates > 0), weights / updates, 1.0)
    return [ratio.to(each.dtype) for ratio, each in zip(ratios.unbind(), locals_, strict=True)]


def _add_up(squares: Tensor, parameters: list[Tensor]) -> None:
    """Add up columns of `squares` `[2, n]` over the ranks that hold parts of each parameter.

    One exchange for each process group, whichever meshes it belongs to.
    """
    columns: dict[str, tuple[dist.ProcessGroup, list[int]]] = {}
    for index, parameter in enumerate(parameters):
        for group in _sharding_groups(parameter):
            columns.setdefault(group.group_name, (group, []))[1].append(index)
    for group, indices in columns.values():
        part = squares[:, indices]
        dist.all_reduce(part, group=group)
        squares[:, indices] = part


def _sharding_groups(parameter: Tensor) -> list[dist.ProcessGroup]:
    """The process groups over which `parameter` is cut; none for a plain tensor."""
    if not isinstance(parameter, DTensor):
        return []
    assert not any(each.is_partial() for each in parameter.placements), "a parameter is no sum"
    mesh = parameter.device_mesh
    # Not is_shard(): what FSDP2 makes of a tensor-parallel parameter is no subclass of Shard.
    return [
        mesh.get_group(dim)
        for dim, placement in enumerate(parameter.placements)
        if not placement.is_replicate()
    ]
