"""Which device replicas get: what Ray reserves for each, and what is said where there is none."""

import argparse
from typing import Any

import pytest

from cluster.settings import SettingsError, validate_settings
from serving import commands
from serving.deployment import placement
from serving.deployment.config import EndpointConfig
from serving.deployment.placement import (
    PlacementError,
    actor_options,
    count_places,
    describe_placement,
    place_endpoint,
)
from serving.interface import SERVED_DEVICES
from tests.support.fake_gpu import install_gpu


def endpoint(replicas: int = 1, most: int | None = None, **settings: Any) -> EndpointConfig:
    return EndpointConfig(
        registry="r", min_replicas=replicas, max_replicas=most or replicas, **settings
    )


@pytest.mark.parametrize(
    ("asked", "gpus", "expected", "said"),
    [
        (endpoint(), 0, {"num_cpus": 1}, "cpu"),
        (endpoint(device="cpu"), 4, {"num_cpus": 1}, "cpu"),
        (endpoint(), 1, {"num_cpus": 1, "num_gpus": 1.0}, "cuda, a GPU each"),
        (endpoint(4), 1, {"num_cpus": 1, "num_gpus": 0.25}, "cuda, 0.25 of a GPU each"),
        (endpoint(3), 1, {"num_cpus": 1, "num_gpus": 0.33}, "cuda, 0.33 of a GPU each"),
        (endpoint(1, 5), 2, {"num_cpus": 1, "num_gpus": 0.33}, "cuda, 0.33 of a GPU each"),
        (endpoint(2), 8, {"num_cpus": 1, "num_gpus": 1.0}, "cuda, a GPU each"),
        (
            endpoint(2, device="xpu", gpus_per_replica=0.5),
            1,
            {"num_cpus": 1, "num_gpus": 0.5},
            "xpu, 0.5 of a GPU each",
        ),
        (endpoint(device="mps"), 0, {"num_cpus": 1}, "mps"),
    ],
)
def test_what_ray_reserves_for_a_replica(
    asked: EndpointConfig, gpus: int, expected: dict[str, Any], said: str
) -> None:
    placed = place_endpoint(asked, {"CPU": 16.0, "GPU": float(gpus)})
    assert actor_options(placed) == pytest.approx(expected)
    assert describe_placement(placed) == said
    assert place_endpoint(placed, {"GPU": float(gpus)}) == placed  # again by Ray's own count


def test_neuron_cores_are_reserved_once_there_is_an_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = endpoint(device="neuron")
    with pytest.raises(PlacementError, match="device = neuron: serving has no engine for it yet"):
        place_endpoint(asked, {"neuron_cores": 2.0})
    monkeypatch.setattr(placement, "SERVED_DEVICES", (*SERVED_DEVICES, "neuron"))
    placed = place_endpoint(asked, {"neuron_cores": 2.0})
    assert actor_options(placed) == {"num_cpus": 1, "resources": {"neuron_cores": 1}}
    assert count_places(placed, [{"CPU": 9, "neuron_cores": 2}, {"CPU": 9}]) == [2]


@pytest.mark.parametrize(
    ("asked", "gpus", "message"),
    [
        (endpoint(device="cuda"), 0, "device = cuda: there is no GPU here .* choose cpu, or auto"),
        (endpoint(gpus_per_replica=0.25), 0, "gpus_per_replica = 0.25: there is no GPU; leave it"),
        (
            endpoint(3, gpus_per_replica=0.5),
            1,
            "gpus_per_replica = 0.5: 3 replicas of it do not fit on 1 GPU; take at most 2 "
            "replicas, or 0.33 of a GPU each",
        ),
        # 0.6 of a GPU leaves 0.4 of each: a replica is never on two.
        (endpoint(3, gpus_per_replica=0.6), 2, "3 replicas of it do not fit on 2 GPUs; .* most 2"),
    ],
)
def test_what_cannot_be_placed_says_what_can(
    asked: EndpointConfig, gpus: int, message: str
) -> None:
    with pytest.raises(PlacementError, match=message):
        place_endpoint(asked, {"GPU": float(gpus)} if gpus else {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cpu", "gpus_per_replica": 0.5}, "gpus_per_replica = 0.5 with device = cpu"),
        ({"device": "neuron", "gpus_per_replica": 1}, "holds no GPU; leave the share out"),
        ({"gpus_per_replica": 2}, "gpus_per_replica.*2"),
        ({"gpus_per_replica": 0}, "gpus_per_replica.*0"),
        ({"device": "gpu"}, "device.*'gpu'"),
    ],
)
def test_a_setting_that_is_none_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate_settings(EndpointConfig, {"registry": "r", **settings}, "options")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (endpoint(device="cpu"), [7, 2, 1]),
        (endpoint(device="cuda", gpus_per_replica=1.0), [2]),
        (endpoint(device="cuda", gpus_per_replica=0.25), [7]),
        (endpoint(device="cuda", gpus_per_replica=0.4), [4]),
    ],
)
def test_a_node_holds_as_many_as_its_cores_and_its_gpus_allow(
    asked: EndpointConfig, expected: list[int]
) -> None:
    nodes = [{"CPU": 7.5, "GPU": 2.0}, {"CPU": 2.0}, {"CPU": 1.0, "GPU": 0.5}, {"GPU": 1.0}]
    assert count_places(asked, nodes) == expected


def test_the_command_line_names_device_and_share() -> None:
    parser = argparse.ArgumentParser()
    commands.add_endpoint_arguments(parser)
    words = ["--device", "cuda", "--gpus-per-replica", "0.25", "--replicas", "3"]
    made = commands.endpoint_from_options(parser.parse_args(words), "r", num_replicas=9)
    assert (made.device, made.gpus_per_replica, made.min_replicas) == ("cuda", 0.25, 3)
    made = commands.endpoint_from_options(parser.parse_args([]), "r", num_replicas=9)
    assert (made.device, made.gpus_per_replica, made.min_replicas) == ("auto", None, 9)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_gpus_of_this_machine_are_counted_as_torch_finds_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu(monkeypatch, kind)
    assert placement.find_local_gpus() == (("cpu", 0) if kind == "mps" else (kind, 2))
