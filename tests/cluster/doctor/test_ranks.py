"""Ranks of all-reduces over groups of nodes, and replies that come late or not at all."""

from typing import Any

import pytest

from cluster.doctor.allreduce import Link
from cluster.doctor.observations import Node
from cluster.doctor.ranks import RankActors, gather_replies
from tests.support.fake_ray import FakeRay, Reply, node_id


class QuickRank:
    """A rank that takes (1 + rank) seconds over a card called after its node."""

    def __init__(self, host: str) -> None:
        self.host = host

    def rendezvous_address(self) -> str:
        return f"tcp://{self.host}"

    def time_allreduce(self, address: str, backend: str, rank: int, size: int) -> tuple[float, str]:
        assert address == "tcp://10.0.0.a" and 0 <= rank < size
        return 1.0 + rank, f"{self.host} {rank}"


class BrokenRank(QuickRank):
    """A rank that fails."""

    def time_allreduce(self, *_: Any) -> tuple[float, str]:
        raise RuntimeError("a long trace\n\n  NCCL error: no route  \n")


def make_node(name: str, **resources: float) -> Node:
    return Node(node_id(name), name, f"10.0.0.{name}", False, resources)


NODES = [make_node("a", GPU=2, CPU=8), make_node("b", GPU=1, CPU=8)]


def stand_ins(**ranks: type) -> dict[tuple[str, str], type]:
    return {(node_id(name), "AllReduceRank"): rank for name, rank in ranks.items()}


def test_a_rank_a_device_holds_it_and_the_slowest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(actors=stand_ins(a=QuickRank, b=QuickRank)).install(monkeypatch)
    with RankActors(NODES, "cuda") as actors:
        assert actors.ready_nodes == ["a", "b"] and actors.multi_rank_nodes == [("a",)]
        links = actors.time_groups([("a", "b"), ("a",)])
    # The cards are those of the first rank of each node: ranks 0 and 2.
    assert links == [
        Link(("a", "b"), "nccl", 3, 3.0, ("10.0.0.a 0", "10.0.0.b 2")),
        Link(("a",), "nccl", 2, 2.0, ("10.0.0.a 0",)),
    ]
    assert [actor.options["num_gpus"] for actor in fake.started] == [1, 1, 1]
    assert all(actor.options["num_cpus"] == 0 for actor in fake.started)
    assert fake.killed == fake.started


@pytest.mark.parametrize("kind", ["cpu", "neuron", "tpu"])
def test_other_devices_are_timed_by_one_rank_a_node_over_the_network(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fake = FakeRay(actors=stand_ins(a=QuickRank, b=QuickRank)).install(monkeypatch)
    with RankActors(NODES, kind) as actors:
        assert actors.backend == "gloo" and actors.multi_rank_nodes == []
        assert [actor.node for actor in fake.started] == [node_id("a"), node_id("b")]
    assert all("num_gpus" not in actor.options for actor in fake.started)


def test_a_node_whose_ranks_do_not_start_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = stand_ins(a=QuickRank, b=QuickRank)
    FakeRay(actors=actors, silent=frozenset({node_id("a")})).install(monkeypatch)
    with RankActors(NODES, "cuda") as ranks:
        assert ranks.busy_nodes == ("a",), "once, though both of its ranks are late"
        assert ranks.ready_nodes == ["b"] and ranks.multi_rank_nodes == []


def test_a_group_that_fails_says_why_and_gets_new_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(actors=stand_ins(a=QuickRank, b=BrokenRank)).install(monkeypatch)
    with RankActors(NODES, "cuda") as actors:
        first = list(fake.started)
        (link,) = actors.time_groups([("a", "b")])
        assert link == Link(("a", "b"), "nccl", 3, None, trouble="NCCL error: no route")
        assert fake.killed == first and len(fake.started) == 6
        (inside,) = actors.time_groups([("a",)])
        assert inside.seconds == 2.0, "a healthy node is not held to what its partner did"
    assert fake.killed == fake.started


def test_the_reason_of_a_failure_is_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(silent=frozenset({"late"})).install(monkeypatch)

    def fail(error: Exception) -> Any:
        raise error

    futures = {
        "fine": Reply("n", lambda: 7),
        "late": Reply("late", lambda: 8),
        "told": Reply("n", lambda: fail(ValueError("Traceback\n  why\n"))),
        "mute": Reply("n", lambda: fail(OSError())),
    }
    replies, failed = gather_replies(futures, 30)
    assert replies == {"fine": 7}
    assert failed == {"late": "no answer within 30 s", "told": "why", "mute": "OSError"}


def test_a_mistake_of_ours_is_no_illness_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay().install(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        gather_replies({"a": Reply("n", lambda: 1 // 0)}, 30)
