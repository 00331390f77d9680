"""Micro-batches through the stages of a model: forward, loss, backward, in the schedule's order.

Every rank of a pipeline knows the cut of the global batch, so a micro-batch may have any shape:
nothing is padded to make stages agree, and no shape travels. With one stage this is the plain loop
of gradient accumulation. Knows no optimizer.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.distributed.mesh import Mesh
from trainers.distributed.schedule import Action, forward_only, one_forward_one_backward
from trainers.parallel.parallelize import Parallel


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device: what `TextModel.forward` takes, and what the loss needs.

    inputs: [b, s] token ids, or [b, f] numbers. weight: of each sample or token in the loss.
    teacher: [b, num_labels], the logits of another model.
    """

    inputs: Tensor
    mask: Tensor | None
    keys: Tensor | None
    positions: Tensor | None
    targets: Tensor
    weight: float
    teacher: Tensor | None = None


LossOf = Callable[[Tensor, Batch], Tensor]
Consume = Callable[[Tensor, Batch], None]
Orders = tuple[tuple[Action, ...], ...]


class Pipeline:
    """Runs batches through the stages of this rank.

    width: of the hidden states that travel between stages. precision: makes the autocast context
    of a forward.
    """

    def __init__(
        self,
        parallel: Parallel,
        width: int,
        precision: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._parallel, self._mesh, self._precision = parallel, parallel.mesh, precision
        self._width = width
        self._last_stage = parallel.mesh.layout.num_stages - 1

    def train(self, batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        """Leave the gradient of the sum of all losses in the parameters; that sum, detached.

        The sum is 0 on ranks without the last stage. Gradients are averaged over data-parallel
        ranks, hence the factor of their number.
        """
        layout, device = self._mesh.layout, batches[0].inputs.device
        orders = one_forward_one_backward(layout.pp, layout.stages_per_rank, len(batches))
        travel = Travel(self._mesh, self._width, orders, batches)
        held: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        total = torch.zeros((), device=device)
        for action in orders[self._mesh.pp_rank]:
            batch, place = batches[action.micro_batch], (action.stage, action.micro_batch)
            last = action.micro_batch == len(batches) - 1
            self._parallel.exchange(action.stage, now=last)
            if action.forward:
                entered, output = self._forward(action, batch, travel)
                if action.stage == self._last_stage:
                    output = loss_of(output, batch)
                    total += output.detach()
                else:
                    travel.send(output.detach(), action)
                held[place] = entered, output
            else:
                self._backward(action, *held.pop(place), travel)
        travel.finish()
        return total

    @torch.no_grad()
    def predict(self, batches: Sequence[Batch], consume: Consume) -> None:
        """Give the logits of each batch to `consume`, on ranks with the last stage."""
        layout = self._mesh.layout
        orders = forward_only(layout.pp, layout.stages_per_rank, len(batches))
        travel = Travel(self._mesh, self._width, orders, batches)
        for action in orders[self._mesh.pp_rank]:
            batch = batches[action.micro_batch]
            _, output = self._forward(action, batch, travel)
            if action.stage == self._last_stage:
                consume(output, batch)
            else:
                travel.send(output, action)
        travel.finish()

    def _forward(self, action: Action, batch: Batch, travel: "Travel") -> tuple[Tensor, Tensor]:
        """(what entered the stage, what left it)."""
        entered = batch.inputs
        if action.stage > 0:
            entered = travel.receive(Action(True, action.stage - 1, action.micro_batch))
            entered.requires_grad_(torch.is_grad_enabled())
        with self._precision():
            module = self._parallel.compute[action.stage]
            return entered, module(entered, batch.mask, batch.keys, batch.positions)

    def _backward(self, action: Action, entered: Tensor, output: Tensor, travel: "Travel") -> None:
        if action.stage == self._last_stage:
            (output * self._mesh.layout.dp).backward()  # type: ignore[no-untyped-call]
        else:
            gradient = travel.receive(Action(False, action.stage + 1, action.micro_batch))
            output.backward(gradient)  # type: ignore[no-untyped-call]
        if action.stage > 0:
            assert entered.grad is not None
            travel.send(entered.grad, action)


class Travel:
    """Hidden states and their gradients between the ranks of a pipeline, during one schedule.

    Sends are posted at once, and let go once something arrives that the neighbour did after it had
    taken them. Receives are taken when they are needed, in the order in which they were sent, which
    the schedule tells; what comes early is kept. Each direction has its own group, so that none
    waits behind another.
    """

    def __init__(self, mesh: Mesh, width: int, orders: Orders, batches: Sequence[Batch]) -> None:
        self._mesh, self._width, self._batches = mesh, width, batches
        self._sent: dict[Action, tuple[dist.Work | None, Tensor]] = {}  # by the action it is for
        self._turn = {action: turn for order in orders for turn, action in enumerate(order)}
        self._arrived: dict[Action, Tensor] = {}
        self._coming: dict[tuple[int, Any], deque[Action]] = {}
        for order in orders if mesh.layout.pp > 1 else ():
            for sent in order:
                if 0 <= sent.goes_to < mesh.layout.num_stages and self._is_mine(sent.goes_to):
                    link = mesh.neighbour(sent.goes_to, sent.stage)
                    self._coming.setdefault(link, deque()).append(sent)

    def send(self, tensor: Tensor, action: Action) -> None:
        """Send what `action` gave to the stage that needs it."""
        tensor = tensor.contiguous()
        rank, group = self._mesh.neighbour(action.goes_to, action.stage)
        taker = Action(action.forward, action.goes_to, action.micro_batch)
        self._sent[taker] = dist.isend(tensor, rank, group=group), tensor

    def receive(self, wanted: Action) -> Tensor:
        """What `wanted`, an action of a neighbour, gave."""
        rank, group = link = self._mesh.neighbour(wanted.goes_to, wanted.stage)
        while wanted not in self._arrived:
            sent = self._coming[link].popleft()
            tensor = self._like(self._batches[sent.micro_batch])
            dist.recv(tensor, rank, group=group)
            self._arrived[sent] = tensor
            self._release(sent)
        return self._arrived.pop(wanted)

    def _release(self, arrived: Action) -> None:
        """Let go of what its taker had before it did `arrived`."""
        taken = [
            taker
            for taker in self._sent
            if self._same_rank(taker, arrived) and self._turn[taker] < self._turn[arrived]
        ]
        for taker in taken:
            _wait(self._sent.pop(taker)[0])

    def _same_rank(self, one: Action, other: Action) -> bool:
        return (one.stage - other.stage) % self._mesh.layout.pp == 0

    def finish(self) -> None:
        """Wait until everything sent has arrived."""
        for work, _ in self._sent.values():
            _wait(work)

    def _is_mine(self, stage: int) -> bool:
        return stage % self._mesh.layout.pp == self._mesh.pp_rank

    def _like(self, batch: Batch) -> Tensor:
        rows, length = batch.inputs.shape
        if self._mesh.layout.sequence_parallel:
            length //= self._mesh.layout.tp
        return torch.empty(rows, length, self._width, device=batch.inputs.device)


def _wait(work: dist.Work | None) -> None:
    if work is not None:  # a send to nobody
        work.wait()
