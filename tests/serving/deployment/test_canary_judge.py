"""Canaries judged where everything comes together: tallies of replicas become changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serving.deployment.canary_judge import Bench
from serving.registry.canary_metrics import Tally
from serving.registry.canary_rule import Rule
from serving.registry.registry import Registry
from tests.support.model_servers import registry_of
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def registry(tmp_path: Path, tiny_bert: Path) -> Registry:
    """Version 1 live, version 2 registered."""
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    registry = registry_of(tmp_path / "registry", bundle)
    registry.register(bundle, "tiny")
    return registry


def tallies(registry: Registry, requests: int, errors: int = 0) -> Mapping[str, Mapping[str, Any]]:
    """What one replica counted of the canary that runs."""
    canary = registry.read().states["tiny"].canary
    assert canary is not None
    tally = Tally("tiny", "1", "2", canary.started)
    for number in range(requests):
        tally.of_live.count(0.01)
        tally.of_canary.count(0.01, failed=number < errors)
    return {"tiny": tally.to_json()}


def test_a_canary_that_answers_as_well_is_promoted(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5, rule=Rule(min_requests=200, max_error_rate=0.05))
    bench = Bench(registry)
    bench.sit([tallies(registry, 100)])
    assert registry.read().states["tiny"].live == "1"
    bench.sit([tallies(registry, 300), tallies(registry, 300)])  # of two replicas
    state = registry.read().states["tiny"]
    assert (state.live, state.canary) == ("2", None)
    assert "requests" in state.why or "error" in state.why
    bench.sit([{}])


def test_a_canary_that_fails_is_rolled_back(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5)
    Bench(registry).sit([tallies(registry, 12, errors=12)])
    state = registry.read().states["tiny"]
    assert (state.live, state.canary) == ("1", None)
    assert state.why


def test_a_canary_that_nobody_asks_ends(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5, rule=Rule(max_seconds=1e-6))
    Bench(registry).sit([])
    assert registry.read().states["tiny"].canary is None


def test_what_was_counted_of_another_trial_does_not_count(registry: Registry) -> None:
    registry.deploy("tiny", "2", share=0.5)
    before = tallies(registry, 50, errors=50)
    registry.rollback("tiny")
    registry.deploy("tiny", "2", share=0.5)
    bench = Bench(registry)
    bench.sit([before])
    assert registry.read().states["tiny"].canary is not None
    (tally,) = bench.summed([before])
    assert tally.of_canary.requests == 0
