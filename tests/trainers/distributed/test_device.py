"""Devices: what a row says, and workers connected by it, with a device that Ray does not know."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.hardware.nics import find_interface
from trainers.distributed.device import DEVICES, Device, autocast_dtype
from trainers.runtime.ray_backend import (
    DeviceTorchConfig,
    find_free_address,
    set_accelerate_device,
    set_default_env,
)

FAKE = Device("made-up", "made_up_cores", "gloo", False, 128, "MADE_UP_ROOT_ID")


@pytest.mark.parametrize(
    ("kind", "resource", "backend"),
    [
        ("cpu", "CPU", "gloo"),
        ("cuda", "GPU", "nccl"),
        ("neuron", "neuron_cores", "neuron"),
        ("tpu", "TPU", "tpu_dist"),
    ],
)
def test_a_row_for_each_kind(kind: str, resource: str, backend: str) -> None:
    row = DEVICES[kind]
    assert (row.resource, row.backend) == (resource, backend)
    assert DeviceTorchConfig(device=row).backend == backend


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), None),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ],
)
def test_cuda_computes_in_what_its_generation_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert autocast_dtype(DEVICES["cuda"], "auto") == dtype
    assert autocast_dtype(DEVICES["cuda"], "fp32") is None
    assert autocast_dtype(DEVICES["cuda"], "fp16") == torch.float16


def test_accelerate_is_told_the_row_where_ray_says_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:1")
    set_accelerate_device("cuda")
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cuda:1"
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    set_accelerate_device("neuron")
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "neuron"


def test_a_users_own_variable_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADE_UP_ROOT_ID", "10.0.0.1:62182")
    set_default_env({"MADE_UP_ROOT_ID": "elsewhere:1"})
    assert os.environ["MADE_UP_ROOT_ID"] == "10.0.0.1:62182"


def test_a_free_address_is_one_where_nothing_listens() -> None:
    address, _, port = find_free_address().rpartition(":")
    assert address and 0 < int(port) < 2**16


@pytest.fixture
def made_up() -> Iterator[None]:
    """A Ray whose node has two cores of a kind that Ray knows nothing of."""
    register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ray.init(
        address="local",
        num_cpus=2,
        resources={"made_up_cores": 2},
        log_to_driver=False,
        include_dashboard=False,
    )
    yield
    ray.shutdown()
    unregister_pickle_by_value(sys.modules[__name__])


def _tell(config: dict[str, Any]) -> None:
    """A worker that writes down what it was given."""
    total = torch.ones(())
    dist.all_reduce(total)
    told = {
        "backend": dist.get_backend(),
        "total": total.item(),
        "root": os.environ["MADE_UP_ROOT_ID"],
        "store": os.environ["MASTER_PORT"],
        "device": os.environ["ACCELERATE_TORCH_DEVICE"],
        "card": os.environ.get("GLOO_SOCKET_IFNAME", ""),
        "address": ray.util.get_node_ip_address(),
        "resources": ray.get_runtime_context().get_assigned_resources(),
    }
    (Path(config["out"]) / f"{dist.get_rank()}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_workers_of_an_unknown_device_are_connected_by_its_row(
    made_up: None, tmp_path: Path
) -> None:
    TorchTrainer(
        _tell,
        train_loop_config={"out": str(tmp_path)},
        torch_config=DeviceTorchConfig(device=FAKE),
        scaling_config=ScalingConfig(
            num_workers=2, resources_per_worker={"CPU": 0.5, "made_up_cores": 1}
        ),
        run_config=RunConfig(name="run", storage_path=str(tmp_path / "ray")),
    ).fit()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["root"] == second["root"]
    assert not first["root"].endswith(f":{first['store']}")
    for told in (first, second):
        assert (told["backend"], told["total"], told["device"]) == ("gloo", 2.0, "made-up")
        assert told["resources"]["made_up_cores"] == 1
        assert told["card"] == find_interface(told["address"]) != ""
