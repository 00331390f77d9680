"""A cluster as the doctor sees it, on agents of this machine; only Ray is a stand-in."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.doctor import node_agent
from cluster.doctor.allreduce import Link
from cluster.doctor.node_agent import NOT_SHARED, NodeAgent
from cluster.doctor.observations import Observations
from cluster.doctor.probe import ClusterNotFoundError, observe_cluster, watched_directories
from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.fake_ray import GCS_ADDRESS, FakeRay, node_id, node_row

HEAD = {"Resources": {"node:__internal_head__": 1.0}}


def make_cluster(storage: Path | str, cache: str = "/var/cache/lab") -> ClusterSpec:
    return ClusterSpec("lab", "local", 3, ClusterMetadata(storage=str(storage), cache=cache))


@dataclass
class Doctor:
    """Observes nodes a, b and c, of which b is the head."""

    patch: pytest.MonkeyPatch
    storage: Path

    def observe(
        self,
        agents: Mapping[str, type] | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
        storage: str = "",
        cluster: ClusterSpec | None = None,
        addresses: Sequence[str] = ("127.0.0.1",),
        **ray: Any,
    ) -> Observations:
        rows = rows or [node_row("c"), node_row("a"), node_row("b", **HEAD)]
        stand_ins = {(node_id(name), "NodeAgent"): agent for name, agent in (agents or {}).items()}
        self.ray = FakeRay(rows, {**stand_ins, **ray.pop("actors", {})}, **ray).install(self.patch)
        cluster = cluster or make_cluster(storage or self.storage)
        return observe_cluster(cluster, self.find_suspects, lambda line: None, addresses)

    def find_suspects(self, seen: Observations) -> Sequence[Link]:
        return [link for link in seen.links if link.seconds and link.seconds > 5]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    monkeypatch.setattr(node_agent, "VISIBLE_SECONDS", 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Doctor(monkeypatch, tmp_path / "runs")


def test_nothing_is_wrong_on_a_healthy_cluster(doctor: Doctor) -> None:
    seen = doctor.observe()
    assert [node.name for node in seen.nodes] == ["b", "a", "c"], "the head first"
    assert set(seen.facts) == set(seen.clocks) == {"a", "b", "c"}
    assert all(abs(clock.ahead) < 1 and clock.within >= 0 for clock in seen.clocks.values())
    wrong = (seen.unresponsive, seen.unreachable, seen.write_errors, seen.read_errors)
    assert wrong == ({}, {}, {}, {}) and seen.open_dashboard is None
    assert list(doctor.storage.iterdir()) == [], "the test files are gone"
    assert doctor.ray.shutdowns == 1


class LabHead(NodeAgent):
    def read_cluster_name(self, gcs_address: str) -> str | None:
        return "lab" if gcs_address == GCS_ADDRESS else None


class OtherHead(NodeAgent):
    def read_cluster_name(self, gcs_address: str) -> str | None:
        return "attic"


def test_the_ray_of_another_cluster_is_refused(doctor: Doctor) -> None:
    with pytest.raises(ClusterNotFoundError) as refused:
        doctor.observe({"b": OtherHead})
    assert "the Ray here is cluster attic, with the nodes 127.0.0.1, " in str(refused.value)
    assert "run the doctor on a node of lab" in str(refused.value)
    assert not doctor.storage.exists(), "nothing was written into the storage"
    assert doctor.observe({"b": LabHead}, addresses=()).facts, "its name is enough"


def test_a_ray_without_a_file_is_known_by_its_addresses(doctor: Doctor) -> None:
    assert doctor.observe(addresses=["10.0.0.1", "127.0.0.1"]).facts
    with pytest.raises(ClusterNotFoundError, match="was started without a cluster file"):
        doctor.observe(addresses=["10.0.0.1"])


def test_this_machine_alone_is_one_node(doctor: Doctor) -> None:
    here = ClusterSpec("here", "local", 1, ClusterMetadata(storage=str(doctor.storage)))
    assert doctor.observe(rows=[node_row("b", **HEAD)], cluster=here, addresses=()).facts
    with pytest.raises(ClusterNotFoundError, match="without a cluster file, with the nodes"):
        doctor.observe(cluster=here, addresses=())


def test_a_head_that_does_not_answer_is_no_reason_to_refuse(doctor: Doctor) -> None:
    seen = doctor.observe(silent=frozenset({node_id("b")}), addresses=())
    assert "b" in seen.unresponsive and "a" in seen.facts


def test_a_ray_that_was_joined_before_is_left_joined(doctor: Doctor) -> None:
    doctor.observe(is_initialized=True)
    assert doctor.ray.shutdowns == 0


def test_a_node_that_came_back_is_not_dead(doctor: Doctor) -> None:
    rows = [
        node_row("a", "10.0.0.1", Alive=False),
        node_row("gone", "10.0.0.2", Alive=False),
        node_row("a", "10.0.0.1", NodeID=node_id("again")),
    ]
    seen = doctor.observe(rows=rows)
    assert [node.id for node in seen.nodes] == [node_id("again")]
    assert [node.name for node in seen.dead_nodes] == ["gone"]


def test_two_nodes_of_one_name_are_told_apart(doctor: Doctor) -> None:
    rows = [
        node_row("gpu", "127.0.0.1", NodeID="abcdef".ljust(56, "9")),
        node_row("gpu", "127.0.0.2", NodeID="123456".ljust(56, "9")),
    ]
    assert {node.name for node in doctor.observe(rows=rows).nodes} == {
        "gpu (127.0.0.1, abcdef)",
        "gpu (127.0.0.2, 123456)",
    }


def test_a_silent_node_is_told_and_asked_nothing_more(doctor: Doctor) -> None:
    seen = doctor.observe(silent=frozenset({node_id("c")}))
    assert seen.unresponsive == {"c": "no answer within 300 s"}
    assert set(seen.facts) == set(seen.clocks) == {"a", "b"}
    assert seen.unreachable == seen.write_errors == {}


class AheadAgent(NodeAgent):
    def read_clock(self) -> float:
        return time.time() + 100


class DeafAgent(NodeAgent):
    def open_port(self) -> int:
        return 1


class UnmountedAgent(NodeAgent):
    def write_file(self, storage: str, *rest: Any) -> str:
        return super().write_file(f"{storage}-elsewhere", *rest)


class ForgetfulAgent(NodeAgent):
    def write_file(self, storage: str, name: str, text: str, *rest: Any) -> str:
        return super().write_file(storage, name, "something else", *rest)


class OpenAgent(NodeAgent):
    def probe_http(self, url: str) -> int:
        return 200 if url == "http://127.0.0.1:8265/api/jobs/" else 404


def test_a_clock_that_is_ahead_is_read_as_ahead(doctor: Doctor) -> None:
    clocks = doctor.observe({"a": AheadAgent}).clocks
    assert clocks["a"].ahead == pytest.approx(100, abs=1) and abs(clocks["c"].ahead) < 1


def test_every_pair_that_cannot_connect_has_its_reason(doctor: Doctor) -> None:
    seen = doctor.observe({"a": DeafAgent})
    assert seen.unreachable == {
        ("b", "a"): "Connection refused",
        ("c", "a"): "Connection refused",
    }


def test_storage_that_a_node_does_not_mount(doctor: Doctor) -> None:
    seen = doctor.observe({"c": UnmountedAgent})
    assert seen.write_errors == {"c": NOT_SHARED} and seen.read_errors == {}
    assert list(doctor.storage.iterdir()) == []


def test_storage_that_loses_what_a_node_wrote_is_told_by_its_readers(doctor: Doctor) -> None:
    seen = doctor.observe({"a": ForgetfulAgent})
    assert seen.write_errors == {}
    assert seen.read_errors == {(reader, "a"): "has other contents" for reader in ("a", "b", "c")}


def test_a_relative_storage_is_tried_on_one_node_alone(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = doctor.observe(storage="relative")
    assert seen.write_errors == seen.read_errors == {} and not Path("relative").exists()
    doctor.observe(storage="relative", rows=[node_row("a")])
    assert Path("relative").exists()


def test_a_dashboard_that_serves_without_a_token_is_told_by_the_head_alone(doctor: Doctor) -> None:
    assert doctor.observe({"b": OpenAgent}).open_dashboard == "127.0.0.1:8265"
    assert doctor.observe({"a": OpenAgent}).open_dashboard is None


def test_a_suspect_is_timed_again_alone_and_its_better_time_counts(doctor: Doctor) -> None:
    seconds = [9.0, 9.0, 3.0, 3.0]  # of two ranks, together with others and then alone

    class Rank:
        def __init__(self, host: str) -> None:
            self.host = host

        def rendezvous_address(self) -> str:
            return "tcp://nowhere"

        def time_allreduce(self, *_: Any) -> tuple[float, str]:
            return seconds.pop(0), "eth0"

    rows = [node_row(name, Resources={"CPU": 1.0}) for name in "abc"]
    ranks = {(node_id(name), "AllReduceRank"): Rank for name in "abc"}
    seen = doctor.observe({"a": DeafAgent}, rows, actors=ranks)
    assert seen.busy_nodes == ()
    (link,) = seen.links
    assert set(link.ends) == {"b", "c"}, "pairs that cannot connect are not timed"
    assert link.seconds == 3.0 and seconds == []


def test_only_directories_of_the_node_are_watched() -> None:
    here = watched_directories(make_cluster("/mnt/runs"))
    assert here["storage"] == "/mnt/runs" and here["cache"] == "/var/cache/lab"
    bucket = watched_directories(make_cluster("s3://bucket/runs"))
    assert bucket.keys() == here.keys() - {"storage"}


@pytest.mark.parametrize("error", [ConnectionError("no"), ValueError("version"), RuntimeError()])
def test_a_ray_that_cannot_be_joined_says_how_to_reach_it(doctor: Doctor, error: Exception) -> None:
    with pytest.raises(ClusterNotFoundError) as raised:
        doctor.observe(init_error=error)
    assert str(raised.value).startswith("no live Ray on this machine that could be joined")
    assert "ray dashboard FILE" in str(raised.value) and "ray job submit" in str(raised.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "http://127.0.0.1:8265"])
def test_an_address_where_nothing_listens_is_not_waited_for(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterNotFoundError, match=f"no live Ray at RAY_ADDRESS = {address} "):
        doctor.observe(init_error=AssertionError("was asked to join"))
