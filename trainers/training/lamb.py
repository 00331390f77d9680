"""LAMB: Adam's update, scaled for each tensor by the size of its weights.

You et al. 2020, "Large Batch Optimization for Deep Learning" (arXiv 1904.00962), Algorithm 2, with
phi the identity. Parameters may be DTensors: arithmetic is local, and only two numbers a tensor are
all-reduced over the ranks that hold its other shards.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainers.distributed.dtensor import to_local

ParamGroup = dict[str, Any]


class Lamb(torch.optim.Optimizer):
    """LAMB with decoupled weight decay.

    For weights w, gradient g, step t and weight decay lambda:

        m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + lambda w
        w = w - lr * ratio * u,   ratio = |w| / |u|, 1 where either is 0

    Groups with `adapt: False`, for biases and norms, keep the ratio at 1. A step needs memory for
    one u per local shard; the state is exp_avg, exp_avg_sq and step, as Adam's.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[ParamGroup],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        decay = {"weight_decay": weight_decay, "adapt": True}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, **decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Every rank of a parameter's mesh must call it with a gradient for the same parameters.
        """
        assert closure is None, "LAMB takes no closure"
        work = []
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                work.append((group, params, self._compute_updates(group, params)))
        adapted = [
            (param, update)
            for group, params, updates in work
            if group["adapt"]
            for param, update in zip(params, updates, strict=True)
        ]
        # The ratios of all groups at once: one all-reduce per process group and step.
        ratios = iter(_trust_ratios(adapted))
        for group, params, updates in work:
            if group["adapt"]:
                torch._foreach_mul_(updates, [next(ratios) for _ in updates])
            torch._foreach_add_([to_local(param) for param in params], updates, alpha=-group["lr"])

    def _compute_updates(self, group: ParamGroup, params: list[Tensor]) -> list[Tensor]:
        """Advance the moments of `params`; return u of their local shards."""
        beta1, beta2 = group["betas"]
        states = [self._init_state(param) for param in params]
        weights = [to_local(param) for param in params]
        gradients = [
            to_local(param.grad).to(weight.dtype)
            for param, weight in zip(params, weights, strict=True)
            if param.grad is not None
        ]
        first = [to_local(state["exp_avg"]) for state in states]
        second = [to_local(state["exp_avg_sq"]) for state in states]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        steps = [_increment_step(state) for state in states]
        updates = torch._foreach_div(second, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(updates)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        torch._foreach_div_(updates, [1 - beta1**step for step in steps])
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return list(updates)

    def _init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _increment_step(state: dict[str, Tensor]) -> int:
    """Return the number of the step, from 1. It is counted on the host, as Adam's is."""
    state["step"] += 1
    return int(state["step"])


def _trust_ratios(adapted: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return |w| / |u| of each (parameter, local shard of its update), 1 where either is 0."""
    if not adapted:
        return []
    local_weights = [to_local(parameter) for parameter, _ in adapted]
    norms = [
        torch.stack(torch._foreach_norm(tensors)).float()
        for tensors in (local_weights, [update for _, update in adapted])
    ]
    # Norms do not add up over shards, their squares do.
    squares = torch.stack(norms).square()
    _all_reduce_squares(squares, [parameter for parameter, _ in adapted])
    weights, updates = squares.sqrt()
    ratios = torch.where((weights > 0) & (updates > 0), weights / updates, 1.0)
    pairs = zip(ratios.unbind(), local_weights, strict=True)
    return [ratio.to(weight.dtype) for ratio, weight in pairs]


def _all_reduce_squares(squares: Tensor, parameters: list[Tensor]) -> None:
    """Sum each column of `squares` `[2, n]` over the ranks that hold shards of its parameter.

    A parameter cut along two mesh dimensions is summed over one group after the other.
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
    """Return the process groups over which `parameter` is sharded; none for a plain tensor."""
    if not isinstance(parameter, DTensor):
        return []
    assert not any(each.is_partial() for each in parameter.placements), (
        "a parameter is never partial"
    )
    mesh = parameter.device_mesh
    # Not is_shard(): FSDP2 makes a tensor-parallel parameter a _StridedShard, which is no Shard.
    return [
        mesh.get_group(dim)
        for dim, placement in enumerate(parameter.placements)
        if not placement.is_replicate()
    ]
