"""How many replicas a load asks for."""

import pytest

from serving.deployment.config import desired_replicas, suggest_replicas


@pytest.mark.parametrize(
    ("replicas", "busy", "waited", "expected"),
    [
        (1, 0.0, 0.0, 1),
        (1, 0.7, 0.0, 1),
        (1, 0.9, 0.0, 2),
        (2, 0.2, 0.0, 1),
        (2, 0.69, 0.0, 2),
        (2, 0.5, 0.5, 3),  # the queue says more than the engines
        (4, 1.0, 9.0, 6),
        (1, 1.0, 9.0, 2),
        (0, 0.0, 0.0, 1),
    ],
)
def test_replicas_follow_the_load(replicas: int, busy: float, waited: float, expected: int) -> None:
    assert desired_replicas(replicas, busy, waited) == expected


@pytest.mark.parametrize(
    ("cores", "memory", "expected"), [(1, 64, 1), (2, 24, 2), (16, 12, 8), (8, 1, 1)]
)
def test_a_replica_a_core_where_memory_allows(cores: int, memory: float, expected: int) -> None:
    assert suggest_replicas(cores, memory) == expected
