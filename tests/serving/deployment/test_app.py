"""What Serve is asked for: the resources of a replica, and how many of them on a node."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from serving.deployment import app
from serving.deployment.config import EndpointConfig
from serving.deployment.placement import PlacementError


class FakeServe:
    """Remembers the options of each deployment and what it was bound to."""

    def __init__(self, patch: pytest.MonkeyPatch, nodes: list[dict[str, float]]) -> None:
        self.deployments: dict[str, dict[str, Any]] = {}
        self.bound: dict[str, tuple[Any, ...]] = {}
        self.running: list[str] = []
        state = SimpleNamespace(
            available_resources_per_node=lambda: dict(enumerate(nodes)),
        )
        total: dict[str, float] = {}
        for node in nodes:
            for name, number in node.items():
                total[name] = total.get(name, 0.0) + number
        patch.setattr(ray, "init", lambda **_: None)
        patch.setattr(ray, "cluster_resources", lambda: total)
        patch.setattr(ray._private, "state", state)
        patch.setattr(serve, "start", lambda **_: None)
        patch.setattr(serve, "deployment", self._deployment)
        patch.setattr(serve, "run", lambda _, name, **__: self.running.append(name))
        patch.setattr(app, "close_token_file", lambda: None)

    def _deployment(self, **options: Any) -> Any:
        name = options["name"]
        self.deployments[name] = options

        def bind(*given: Any) -> str:
            self.bound[name] = given
            return name

        return lambda _: SimpleNamespace(bind=bind)


@pytest.mark.parametrize(
    ("settings", "nodes", "reserved", "on_a_node"),
    [
        ({"max_replicas": 4}, [{"CPU": 8.0}, {"CPU": 8.0}], {}, 4),
        ({"max_replicas": 2}, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], {"num_gpus": 0.5}, 2),
        ({"max_replicas": 2}, [{"CPU": 8.0, "GPU": 1.0}] * 3, {"num_gpus": 1.0}, 1),
        (
            {"max_replicas": 6, "device": "cuda", "gpus_per_replica": 0.25},
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}],
            {"num_gpus": 0.25},
            6,
        ),
        (
            {"max_replicas": 6, "device": "cuda", "gpus_per_replica": 0.5},
            [{"CPU": 8.0, "GPU": 1.0}] * 4,
            {"num_gpus": 0.5},
            2,
        ),
        ({"max_replicas": 6, "device": "cpu"}, [{"CPU": 8.0, "GPU": 1.0}] * 4, {}, 2),
    ],
)
def test_replicas_are_placed_by_their_device(
    settings: dict[str, Any],
    nodes: list[dict[str, float]],
    reserved: dict[str, float],
    on_a_node: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeServe(monkeypatch, nodes)
    placed = app.deploy_endpoint(EndpointConfig(registry="r", **settings), "auto")
    replica = fake.deployments["replica"]
    variables = {"runtime_env": {"env_vars": app.REPLICA_VARIABLES}}
    assert replica["ray_actor_options"] == {"num_cpus": 1, **reserved, **variables}
    assert replica["max_replicas_per_node"] == on_a_node
    assert "num_gpus" not in fake.deployments["front"]["ray_actor_options"]
    assert fake.running == [app.APPLICATION]
    given = EndpointConfig(**fake.bound["replica"][0])
    assert given == placed and given.device == ("cuda" if reserved else "cpu")


@pytest.mark.parametrize("grpc", [True, False])
def test_the_front_is_told_of_grpc(grpc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServe(monkeypatch, [{"CPU": 8.0}])
    app.deploy_endpoint(EndpointConfig(registry="r", grpc=grpc), "auto")
    assert fake.bound["front"] == ("127.0.0.1", 8000, None, "r", (), None, grpc)
    assert EndpointConfig(**fake.bound["replica"][0]).grpc is grpc


def test_a_gpu_that_no_node_has_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeServe(monkeypatch, [{"CPU": 8.0}])
    with pytest.raises(PlacementError, match="there is no GPU"):
        app.deploy_endpoint(EndpointConfig(registry="r", device="cuda"), "auto")
    assert not fake.running and not fake.deployments
