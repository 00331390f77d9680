"""A replica and the front that is passed to it: heartbeats, health, load, and a quiet end."""

import asyncio
import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.deployment import replica as replica_module
from serving.deployment.front import Heartbeat
from serving.deployment.replica import Replica
from tests.support.fake_gpu import CARD, install_gpu
from tests.support.model_servers import make_registry
from tests.support.tiny_bundle import write_linear_bundle


class Front:
    """A front that remembers its calls, and whether the replica's server ran at the time.

    fails: methods whose next call raises.
    """

    def __init__(self, *fails: str) -> None:
        self.fails = set(fails)
        self.calls: list[tuple[str, Any]] = []
        self.is_alive: Callable[[], bool] = lambda: True
        self.answers = {"merge_samples": {("bertha_replicas", ()): 7.0}}

    def __getattr__(self, method: str) -> Any:
        front = self

        class Response:
            def __init__(self, failed: bool) -> None:
                self.failed = failed

            def result(self, timeout_s: float) -> Any:
                if self.failed:
                    raise ConnectionError(f"no front to hear {method}")
                return front.answers.get(method)

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Response:
                front.calls.append((method, (*arguments, front.is_alive())))
                failed = method in front.fails
                front.fails.discard(method)
                return Response(failed)

        return Method

    def heard(self, *methods: str) -> list[tuple[str, Any]]:
        return [call for call in self.calls if call[0] in methods]


class AwaitedReplica(Replica):
    """A replica that ends by `end`, as Serve awaits its end; the collector awaits nothing."""

    async def end(self) -> None:
        await super().__del__()

    def __del__(self) -> None:  # type: ignore[override]
        pass


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("registry")
    bundle = write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [2.0, -1.0])
    make_registry(place / "models", bundle, "numbers")
    return str(place / "models")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replica_module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(replica_module, "DRAIN_SECONDS", 0.0)
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def start(registry: str, front: Front) -> AwaitedReplica:
    return AwaitedReplica({"registry": registry}, "127.0.0.1", front)  # type: ignore[arg-type]


def test_it_is_known_to_the_front_and_answers(registry: str) -> None:
    front = Front()
    replica = start(registry, front)
    (beat, _) = front.calls[0][1]
    assert isinstance(beat, Heartbeat) and beat.address.startswith("127.0.0.1:")
    assert ("bertha_waiting_requests", ()) in beat.samples
    assert asyncio.run(replica.predict(["3 1", "0.5 0"])) == [{"value": 5.0}, {"value": 1.0}]
    assert asyncio.run(replica.predict(["1 0"], "numbers:1")) == [{"value": 2.0}]
    asyncio.run(replica.end())


def test_a_front_that_is_being_replaced_hears_the_next_heartbeat(
    registry: str, caplog: pytest.LogCaptureFixture
) -> None:
    front = Front("heartbeat")
    replica = start(registry, front)  # returns when it is known
    assert len(front.heard("heartbeat")) >= 2
    assert "the front does not hear 127.0.0.1:" in caplog.text
    asyncio.run(replica.end())


@pytest.mark.parametrize(("share", "limits"), [(None, []), (1.0, []), (0.25, [("cuda", 0.25)])])
def test_it_holds_to_its_share_of_a_gpu(
    share: float | None,
    limits: list[tuple[str, float]],
    tmp_path: Path,
    tiny_classifier: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_gpu(monkeypatch)
    limited: list[tuple[str, float]] = []
    monkeypatch.setattr(replica_module, "limit_device_memory", lambda *given: limited.append(given))
    make_registry(tmp_path / "models", tiny_classifier, "reviews")
    settings = {"device": "cuda", "gpus_per_replica": share, "registry": str(tmp_path / "models")}
    front = Front()
    replica = AwaitedReplica(settings, "127.0.0.1", front)  # type: ignore[arg-type]
    assert limited == limits
    samples = front.calls[0][1][0].samples
    assert samples["bertha_device", (("device", "cuda"), ("name", CARD))] == 1
    (scores,) = asyncio.run(replica.predict(["a warm film"]))
    assert sum(scores.values()) == pytest.approx(1)
    asyncio.run(replica.end())


def test_its_metrics_are_those_that_the_front_adds_up(registry: str) -> None:
    front = Front()
    replica = start(registry, front)
    connection = http.client.HTTPConnection(front.calls[0][1][0].address)
    connection.request("GET", "/metrics")
    assert b"\nbertha_replicas 7" in connection.getresponse().read()
    connection.close()
    asyncio.run(replica.end())


@pytest.mark.parametrize("fails", [(), ("drain_replica",)])
def test_it_leaves_the_front_before_its_server_stops_and_frees_its_slot_after(
    registry: str, fails: tuple[str, ...]
) -> None:
    front = Front()
    replica = start(registry, front)
    front.fails, front.is_alive = set(fails), replica._server.is_alive
    replica.check_health()
    asyncio.run(replica.end())
    asyncio.run(replica.end())  # Serve may end it twice
    address = front.calls[0][1][0].address
    assert front.heard("drain_replica", "remove_replica") == [
        ("drain_replica", (address, True)),
        ("remove_replica", (address, False)),
    ]
    with pytest.raises(RuntimeError, match="the HTTP server has ended"):
        replica.check_health()


class Loaded:
    """A server of known load, whose model does not answer."""

    def __init__(self, *totals: float) -> None:
        self.totals = totals

    def load_totals(self) -> tuple[float, ...]:
        return self.totals

    def is_alive(self) -> bool:
        return True

    def run_in_loop(self, work: object) -> bool:
        return False


def test_the_load_is_of_the_time_since_the_last_report(registry: str) -> None:
    replica = start(registry, Front())
    asyncio.run(replica.end())
    replica._load = (100.0, 1.0, 2.0, 4.0)
    for totals, busy, waited in (
        ((110.0, 6.0, 3.5, 10.0), 0.5, 0.25),  # 5 of 10 s, and 1.5 s of 6 requests
        ((120.0, 7.0, 3.5, 10.0), 0.1, 0.0),  # nobody asked
        ((120.5, 9.0, 3.5, 11.0), 1.0, 0.0),  # a batch that began before
    ):
        replica._server = Loaded(*totals)  # type: ignore[assignment]
        assert replica.record_autoscaling_stats() == {"busy": busy, "waited_seconds": waited}
    with pytest.raises(RuntimeError, match="the model does not answer"):
        replica.check_health()
