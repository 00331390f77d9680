"""Canaries judged where tallies of replicas come together; replicas when HAProxy is restarted."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from serving.deployment.front import CanaryJudge, Heartbeat, ReplicaTable
from serving.deployment.haproxy import ServerSlot
from serving.registry.canary_metrics import CanaryMetrics
from serving.registry.canary_rule import CanaryRule
from serving.registry.registry import Registry
from tests.support.model_servers import make_registry
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def registry(tmp_path: Path, tiny_bert: Path) -> Registry:
    """Version 1 live, version 2 registered."""
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    registry = make_registry(tmp_path / "registry", bundle)
    registry.register(bundle, "tiny")
    return registry


def tallies(registry: Registry, requests: int, errors: int = 0) -> Mapping[str, CanaryMetrics]:
    """What one replica counted of the canary that runs."""
    canary = registry.read_snapshot().states["tiny"].canary
    assert canary is not None
    metrics = CanaryMetrics("tiny", "1", "2", canary.started)
    for number in range(requests):
        metrics.live_metrics.record_request(0.01)
        metrics.canary_metrics.record_request(0.01, failed=number < errors)
    return {"tiny": metrics}


def test_a_canary_that_answers_as_well_is_promoted(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5, rule=CanaryRule(min_requests=200, max_error_rate=0.05))
    judge = CanaryJudge(registry)
    judge.judge_canaries([tallies(registry, 100)])
    assert registry.read_snapshot().states["tiny"].live == "1"
    judge.judge_canaries([tallies(registry, 300), tallies(registry, 300)])  # of two replicas
    state = registry.read_snapshot().states["tiny"]
    assert (state.live, state.canary) == ("2", None)
    assert "requests" in state.why or "error" in state.why
    judge.judge_canaries([{}])


def test_a_canary_that_fails_is_rolled_back(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5)
    CanaryJudge(registry).judge_canaries([tallies(registry, 12, errors=12)])
    state = registry.read_snapshot().states["tiny"]
    assert (state.live, state.canary) == ("1", None)
    assert state.why


def test_a_canary_that_nobody_asks_ends(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5, rule=CanaryRule(max_seconds=1e-6))
    CanaryJudge(registry).judge_canaries([])
    assert registry.read_snapshot().states["tiny"].canary is None


def test_what_was_counted_of_another_trial_does_not_count(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5)
    before = tallies(registry, 50, errors=50)
    registry.rollback("tiny")
    registry.deploy("tiny", "2", share=0.5)
    judge = CanaryJudge(registry)
    judge.judge_canaries([before])
    assert registry.read_snapshot().states["tiny"].canary is not None
    (metrics,) = judge.merge_running([before])
    assert metrics.canary_metrics.requests == 0


class Slots:
    """A HAProxy that only remembers what it was started with."""

    def __init__(self) -> None:
        self.restarted: list[list[ServerSlot]] = []

    def list_slots(self) -> list[ServerSlot]:
        return [ServerSlot(5, "10.0.0.5:1")]

    def restart(self, slots: list[ServerSlot]) -> None:
        self.restarted.append(slots)

    def __getattr__(self, command: str) -> Callable[[object], None]:
        return lambda _: None


def test_haproxy_is_restarted_with_the_replicas_that_take_requests() -> None:
    haproxy = Slots()
    replicas = ReplicaTable(haproxy)  # type: ignore[arg-type]
    for number in range(1, 5):
        replicas.heartbeat(Heartbeat(f"10.0.0.{number}:1"))
    replicas.drain_replica("10.0.0.2:1")
    replicas.remove_replica("10.0.0.3:1")
    replicas.restart_haproxy()
    replicas.remove_replica("10.0.0.2:1")
    replicas.heartbeat(Heartbeat("10.0.0.2:1"))  # another one at its address
    replicas.restart_haproxy()
    first = [ServerSlot(5, "10.0.0.5:1"), ServerSlot(1, "10.0.0.1:1"), ServerSlot(4, "10.0.0.4:1")]
    assert haproxy.restarted == [first, [*first, ServerSlot(2, "10.0.0.2:1")]]
