"""Run micro-batches through the stages of a model, forward and backward, as the schedule orders.

Every rank of a pipeline knows all micro-batches of a step, so they may have any number of tokens,
and no shapes are sent. With one stage this is plain gradient accumulation.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainers.distributed.mesh import Mesh
from trainers.distributed.schedule import PipelineAction, forward_only, one_forward_one_backward
from trainers.models.packed import PackedTexts
from trainers.models.window_pool import WindowPool
from trainers.parallel.parallelize import ParallelModel


@dataclass(frozen=True)
class DeviceBatch:
    """One micro-batch on its device: the inputs of `TextModel.forward` and of the loss.

    inputs: [1, t] token ids of texts end to end, or [b, f] numbers, and then packed is None.
    weight: of each sample or token in the loss. count: of the targets that count; those behind them
    fill up a shape. teacher: [b, num_labels], logits of the teacher in
    distillation. rows: [b] int64, the places of the samples in their split.
    pool: makes one row of logits of those of a text's windows; None: every text is one sequence.
    """

    inputs: Tensor
    packed: PackedTexts | None
    targets: Tensor
    weight: float | Tensor
    teacher: Tensor | None = None
    rows: np.ndarray | None = None
    count: int | None = None
    pool: WindowPool | None = None

    @property
    def num_targets(self) -> int:
        """The number of targets that count."""
        return len(self.targets) if self.count is None else self.count

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors on the device."""
        packed = self.packed
        of_texts = () if packed is None else (packed.texts, packed.positions, packed.reads)
        of_pool = () if self.pool is None else self.pool.tensors
        rest = (self.inputs, self.targets, self.teacher, packed and packed.keys, *of_pool)
        return [*of_texts, *(tensor for tensor in rest if tensor is not None)]


LossFunction = Callable[[Tensor, DeviceBatch], Tensor]
OutputConsumer = Callable[[Tensor, DeviceBatch], None]
PipelineSchedule = tuple[tuple[PipelineAction, ...], ...]


class Pipeline:
    """Runs batches through the stages of this rank.

    hidden_size: of the activations sent between stages. autocast: makes the context of a forward.
    """

    def __init__(
        self,
        parallel: ParallelModel,
        hidden_size: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._parallel, self._mesh, self._autocast = parallel, parallel.mesh, autocast
        self._hidden_size = hidden_size
        self._last_stage = parallel.mesh.layout.num_stages - 1

    def forward_backward(self, batches: Sequence[DeviceBatch], loss_fn: LossFunction) -> Tensor:
        """Accumulate the gradient of the sum of all losses; return that sum, detached.

        The sum is 0 on ranks without the last stage.
        """
        layout, device = self._mesh.layout, batches[0].inputs.device
        schedule = one_forward_one_backward(layout.pp, layout.stages_per_rank, len(batches))
        transport = StageTransport(
            self._mesh, self._hidden_size, schedule, batches, self._parallel.first_trained_stage
        )
        in_flight: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        total = torch.zeros((), device=device)
        for action in schedule[self._mesh.pp_rank]:
            batch, key = batches[action.micro_batch], (action.stage, action.micro_batch)
            is_last = action.micro_batch == len(batches) - 1
            self._parallel.set_gradient_sync(action.stage, is_last)
            if action.forward:
                stage_input, output = self._forward(action, batch, transport)
                if action.stage == self._last_stage:
                    output = loss_fn(output, batch)
                    total += output.detach()
                else:
                    transport.send(output.detach(), action)
                if action.stage >= self._parallel.first_trained_stage:
                    in_flight[key] = stage_input, output
            else:
                if key in in_flight:
                    self._backward(action, *in_flight.pop(key), transport)
                if batch.packed is not None:
                    batch.packed.free()
        transport.wait_all()
        return total

    @torch.no_grad()
    def predict(self, batches: Sequence[DeviceBatch], consume: OutputConsumer) -> None:
        """Call `consume` with the logits of each batch, on ranks with the last stage."""
        layout = self._mesh.layout
        schedule = forward_only(layout.pp, layout.stages_per_rank, len(batches))
        transport = StageTransport(
            self._mesh, self._hidden_size, schedule, batches, self._parallel.first_trained_stage
        )
        for action in schedule[self._mesh.pp_rank]:
            batch = batches[action.micro_batch]
            _, output = self._forward(action, batch, transport)
            if action.stage == self._last_stage:
                consume(output, batch)
            else:
                transport.send(output, action)
        transport.wait_all()

    def _forward(
        self, action: PipelineAction, batch: DeviceBatch, transport: "StageTransport"
    ) -> tuple[Tensor, Tensor]:
        """Return the (input, output) of the stage."""
        stage_input = batch.inputs
        if action.stage > 0:
            source = PipelineAction(True, action.stage - 1, action.micro_batch)
            stage_input = transport.receive(source)
            is_needed = action.stage > self._parallel.first_trained_stage
            stage_input.requires_grad_(torch.is_grad_enabled() and is_needed)
        with self._autocast():
            output = self._parallel.wrapped_modules[action.stage](stage_input, batch.packed)
        if batch.pool is not None and action.stage == self._last_stage:
            output = batch.pool(output)
        return stage_input, output

    def _backward(
        self,
        action: PipelineAction,
        stage_input: Tensor,
        output: Tensor,
        transport: "StageTransport",
    ) -> None:
        if action.stage == self._last_stage:
            # Losses are weighed to sum up over the data-parallel ranks, but DDP and FSDP average.
            (output * self._mesh.layout.dp).backward()  # type: ignore[no-untyped-call]
        else:
            source = PipelineAction(False, action.stage + 1, action.micro_batch)
            output.backward(transport.receive(source))  # type: ignore[no-untyped-call]
        if action.stage > self._parallel.first_trained_stage:
            assert stage_input.grad is not None
            transport.send(stage_input.grad, action)


class StageTransport:
    """Sends activations and gradients between the ranks of a pipeline, during one schedule.

    Why it cannot deadlock: sends are asynchronous, so a rank only ever blocks in a receive. What it
    waits for is an action that precedes its own in a schedule whose dependencies have no cycle, and
    the rank that owes it never waits for this one to take a message first.

    first_trained_stage: no gradient is sent below it.
    """

    def __init__(
        self,
        mesh: Mesh,
        hidden_size: int,
        schedule: PipelineSchedule,
        batches: Sequence[DeviceBatch],
        first_trained_stage: int = 0,
    ) -> None:
        self._mesh, self._hidden_size, self._batches = mesh, hidden_size, batches
        # Sends that may be under way, by the action that uses them; the tensor must stay alive.
        self._sent: dict[PipelineAction, tuple[dist.Work | None, Tensor]] = {}
        self._turn = {action: turn for order in schedule for turn, action in enumerate(order)}
        self._arrived: dict[PipelineAction, Tensor] = {}
        # What each (peer, group) will send this rank, in order: messages carry no tag, so the
        # n-th receive from a peer gets its n-th send, whichever tensor this rank needs first.
        self._incoming: dict[tuple[int, Any], deque[PipelineAction]] = {}
        for order in schedule if mesh.layout.pp > 1 else ():
            for action in order:
                target = action.target_stage
                lowest = 0 if action.forward else first_trained_stage
                if lowest <= target < mesh.layout.num_stages and self._is_local(target):
                    link = mesh.stage_peer(target, action.stage)
                    self._incoming.setdefault(link, deque()).append(action)

    def send(self, tensor: Tensor, action: PipelineAction) -> None:
        """Send the result of `action` to the stage that needs it, without waiting."""
        tensor = tensor.contiguous()
        rank, group = self._mesh.stage_peer(action.target_stage, action.stage)
        user = PipelineAction(action.forward, action.target_stage, action.micro_batch)
        self._sent[user] = dist.isend(tensor, rank, group=group), tensor

    def receive(self, source: PipelineAction) -> Tensor:
        """Return the result of `source`, an action of a neighbouring stage; wait for it."""
        rank, group = link = self._mesh.stage_peer(source.target_stage, source.stage)
        while source not in self._arrived:  # keep what the peer sent before it
            action = self._incoming[link].popleft()
            tensor = self._empty_activation(self._batches[action.micro_batch])
            dist.recv(tensor, rank, group=group)
            self._arrived[action] = tensor
            self._release_sent(action)
        return self._arrived.pop(source)

    def _release_sent(self, arrived: PipelineAction) -> None:
        """Drop the tensors that the peer had received before it computed `arrived`.

        Its order proves it: it computed the user of such a tensor earlier, so waiting returns at
        once. Keeping them until the end would hold the activations of all micro-batches.
        """
        used = [
            user
            for user in self._sent
            if self._is_same_rank(user, arrived) and self._turn[user] < self._turn[arrived]
        ]
        for user in used:
            _wait_for(self._sent.pop(user)[0])

    def wait_all(self) -> None:
        """Wait until everything sent has been received."""
        for work, _ in self._sent.values():
            _wait_for(work)

    def _is_same_rank(self, one: PipelineAction, other: PipelineAction) -> bool:
        return (one.stage - other.stage) % self._mesh.layout.pp == 0

    def _is_local(self, stage: int) -> bool:
        return stage % self._mesh.layout.pp == self._mesh.pp_rank

    def _empty_activation(self, batch: DeviceBatch) -> Tensor:
        length = batch.inputs.shape[1]
        if self._mesh.layout.sequence_parallel:
            length //= self._mesh.layout.tp
        return torch.empty(1, length, self._hidden_size, device=batch.inputs.device)


def _wait_for(work: dist.Work | None) -> None:
    if work is not None:  # None for a send to a rank outside the group
        work.wait()
