"""An elastic run on a cluster that others use too: as many workers as find room."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from ray.train.v2.api import data_parallel_trainer

from trainers.runtime import elastic_policy
from trainers.runtime.elastic_policy import FreeNodesPolicy, count_free_nodes

WHOLE = {name: {"CPU": 2.0, "memory": 8.0} for name in ("head", "one", "two")}
CONFIG = ScalingConfig(num_workers=(1, 3), resources_per_worker={"CPU": 2})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Cores that are free of each node; Ray sees what nodes have."""
    cores = {name: 2.0 for name in WHOLE}
    monkeypatch.setattr(FreeNodesPolicy, "_get_reserved_resources", lambda _: WHOLE)
    monkeypatch.setattr(FreeNodesPolicy, "_maybe_send_resource_request", lambda _: None)
    monkeypatch.setattr(
        elastic_policy,
        "available_resources_per_node",
        lambda: {name: {"CPU": count} for name, count in cores.items()},
    )
    return cores


def size_of(decision: Any) -> int | None:
    assert isinstance(decision, ResizeDecision | NoopDecision)
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def running(policy: FreeNodesPolicy, workers: int) -> int | None:
    state: Any = SimpleNamespace(num_workers=workers, start_time=float("-inf"))
    policy._latest_monitor_time = float("-inf")
    decide: Any = policy.make_decision_for_running_worker_group
    return size_of(decide(worker_group_state=state, worker_group_status=None))  # as Ray calls it


def test_a_start_that_found_no_room_is_tried_with_what_is_free(free: dict[str, float]) -> None:
    policy = FreeNodesPolicy(CONFIG)
    free |= {"one": 1.0, "two": 1.0}  # a replica of a served model on each
    starts = [size_of(policy.make_decision_for_non_running_worker_group()) for _ in range(3)]
    assert starts == [3, 1, 1]
    free |= {"one": 2.0}
    assert size_of(policy.make_decision_for_non_running_worker_group()) == 2


def test_without_room_for_the_least_it_waits(free: dict[str, float]) -> None:
    policy = FreeNodesPolicy(CONFIG)
    free |= {name: 1.0 for name in free}
    starts = [size_of(policy.make_decision_for_non_running_worker_group()) for _ in range(2)]
    assert starts == [3, None]


def test_a_running_group_grows_into_free_nodes_alone(free: dict[str, float]) -> None:
    policy = FreeNodesPolicy(CONFIG)
    free |= {"head": 0.0, "one": 1.0, "two": 1.0}  # its own worker is on the head
    assert running(policy, 1) is None
    free |= {"two": 2.0}
    assert running(policy, 1) == 2
    free |= {"one": 2.0}
    assert running(policy, 1) == 3


def test_a_group_that_ran_is_trusted_again(free: dict[str, float]) -> None:
    policy = FreeNodesPolicy(CONFIG)
    for _ in range(2):
        policy.make_decision_for_non_running_worker_group()
    running(policy, 3)
    free |= {name: 0.0 for name in free}  # it has just ended and is not cleared away yet
    assert size_of(policy.make_decision_for_non_running_worker_group()) == 3


def test_trainers_inside_have_it_where_they_are_elastic() -> None:
    before = data_parallel_trainer.create_scaling_policy
    with count_free_nodes():
        make: Any = data_parallel_trainer.create_scaling_policy
        assert isinstance(make(CONFIG), FreeNodesPolicy)
        assert isinstance(make(ScalingConfig(num_workers=2)), FixedScalingPolicy)
    assert data_parallel_trainer.create_scaling_policy is before
