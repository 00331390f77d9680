"""Where the workers of a run meet: at their node's address, and on loopback if all are here."""

import os

import psutil
import pytest
from ray._private import ray_constants
from torch.distributed.rendezvous import rendezvous

from tests.support.open_sockets import list_open_sockets
from trainers.runtime import ray_backend


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own setting for a Ray that is on loopback."""
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)


def listening(port: int) -> list[str]:
    found = list_open_sockets(psutil.Process(), ("NONE", "NONE"))
    return [each.address for each in found if each.port == port]


def test_the_rendezvous_listens_at_the_nodes_address_and_torch_opens_no_other(
    local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, port = ray_backend.host_rendezvous()
    assert address == "127.0.0.1" and listening(port) == ["127.0.0.1"]
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(port))
    store, _, _ = next(rendezvous("env://", rank=0, world_size=1))  # as each worker does
    other, _, _ = next(rendezvous("env://", rank=1, world_size=1))
    other.set("from", "rank 1")
    assert store.get("from") == b"rank 1"
    assert listening(port) == ["127.0.0.1"]


def test_nccl_meets_on_loopback_where_all_workers_are_here(
    local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "the user's")
    ray_backend.bind_nccl_to_loopback()
    assert os.environ["NCCL_SOCKET_IFNAME"] == "the user's"
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    ray_backend.bind_nccl_to_loopback()
    assert os.environ.pop("NCCL_SOCKET_IFNAME") == "lo"
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.7")
    ray_backend.bind_nccl_to_loopback()
    assert "NCCL_SOCKET_IFNAME" not in os.environ
