"""How many workers an elastic run has, on a cluster that others use too.

Ray Train counts what nodes have, not what is free of it. Where a served model holds a core of two
nodes out of three, a run whose workers take whole nodes would ask for two of them for ever, though
one is free. So it asks for no more workers than find room.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.state import available_resources_per_node
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    create_scaling_policy,
)
from ray.train.v2.api import data_parallel_trainer


class FreeNodesPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's elastic policy, with as many workers as find room."""

    def __init__(self, scaling_config: ScalingConfig) -> None:
        super().__init__(scaling_config)
        self._starts = 0  # in a row, without a worker group that ran

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Return the size of a new worker group; the first time on trust.

        What the group before it held may not be free yet.
        """
        decision = super().make_decision_for_non_running_worker_group()
        if not isinstance(decision, ResizeDecision):
            return decision
        self._starts += 1
        if self._starts == 1:
            return decision
        room = self._count_room()
        if room < self.scaling_config.min_workers:
            return NoopDecision()
        return self._get_resize_decision(min(decision.num_workers, room))

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Return the size of the running worker group, which grows where there is room alone."""
        self._starts = 0
        decision = super().make_decision_for_running_worker_group(
            worker_group_state=worker_group_state, worker_group_status=worker_group_status
        )
        running = worker_group_state.num_workers
        if not isinstance(decision, ResizeDecision) or decision.num_workers <= running:
            return decision
        wanted = min(decision.num_workers, running + self._count_room())
        return NoopDecision() if wanted == running else self._get_resize_decision(wanted)

    def _count_room(self) -> int:
        """Count the workers that would find room beside what runs now."""
        return int(self._count_possible_workers(available_resources_per_node()))


@contextmanager
def count_free_nodes() -> Iterator[None]:
    """Let trainers that begin to fit inside use `FreeNodesPolicy` where they are elastic."""

    def create(scaling_config: ScalingConfig) -> Any:
        elastic = scaling_config.elasticity_enabled
        return (FreeNodesPolicy if elastic else create_scaling_policy)(scaling_config)

    module: Any = data_parallel_trainer
    before = module.create_scaling_policy
    module.create_scaling_policy = create
    try:
        yield
    finally:
        module.create_scaling_policy = before
