"""Connect Ray's workers to one torch process group, for every kind of device alike.

Ray's own backend knows CPUs, GPUs and TPUs. For a device that it does not know (`neuron_cores`) it
tells Accelerate "cpu", and does not set the rendezvous address of collectives across nodes
(ray#65070); this backend corrects both. Only the cpu row has run on hardware; the corrections are
tested with a resource of a made-up name.

Nor does torch's rendezvous listen at every address of the machine here, as Ray has it do, but at
the one by which Ray knows the node: loopback, where all workers are on this machine.
"""

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend, get_address_and_port
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cluster.hardware.nics import bind_gloo_interface, find_interface
from trainers.distributed.device import DEVICES, Device

_hosted: list[TCPStore] = []  # of this worker


class _DeviceBackend(_TorchBackend):  # type: ignore[misc]
    """Ray's torch backend, with what must be set before it and corrected after it."""

    def on_start(self, worker_group: Any, backend_config: "DeviceTorchConfig") -> None:
        """Connect the workers, each of which has its device from Ray."""
        device = backend_config.device
        worker_group.execute(bind_gloo_to_node_address)
        worker_group.execute(bind_nccl_to_loopback)
        if device.root_address_variable is not None:
            root = worker_group.execute_single(0, find_free_address)
            worker_group.execute(set_default_env, {device.root_address_variable: root})
        super().on_start(_HostingGroup(worker_group), backend_config)
        worker_group.execute(set_accelerate_device, device.kind)


class _HostingGroup:
    """A group of workers, whose rank 0 hosts the rendezvous when Ray asks it for a free port."""

    def __init__(self, workers: Any) -> None:
        self._workers = workers

    def __len__(self) -> int:
        return len(self._workers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any) -> Any:
        if function is get_address_and_port:
            function = host_rendezvous
        return self._workers.execute_single(rank, function, *args)


@dataclass
class DeviceTorchConfig(TorchConfig):  # type: ignore[misc]
    """Connects workers that have one `device` each, with the backend of its row."""

    device: Device = DEVICES["cpu"]

    def __post_init__(self) -> None:
        """Set Ray's `backend` to the device's."""
        self.backend = self.device.backend

    @property
    def backend_cls(self) -> type[_DeviceBackend]:
        """The class that Ray's controller calls when workers start and end."""
        return _DeviceBackend


def find_free_address() -> str:
    """Return an `address:port` of this node that is free now, for a rendezvous that follows."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(("", 0))
        return f"{address}:{listener.getsockname()[1]}"


def host_rendezvous() -> tuple[str, int]:
    """Open torch's rendezvous at this node's address alone; return the address and the port."""
    address = ray.util.get_node_ip_address()
    listener = socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    )
    port = int(listener.getsockname()[1])
    # torch would listen at every address. It finds the store of a port that this process hosts
    # already, so this one must be kept until then.
    _hosted.append(
        TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
    )
    return address, port


def bind_gloo_to_node_address() -> None:
    """Make gloo use the interface of the address by which Ray knows this node."""
    bind_gloo_interface(ray.util.get_node_ip_address())


def bind_nccl_to_loopback() -> None:
    """Make NCCL meet on loopback, which it takes last by itself, where all workers are here."""
    address = ray.util.get_node_ip_address()
    name = find_interface(address)
    if name and ipaddress.ip_address(address).is_loopback:
        set_default_env({"NCCL_SOCKET_IFNAME": name})


def set_default_env(variables: Mapping[str, str]) -> None:
    """Set environment variables of this process, unless its user has set them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def set_accelerate_device(kind: str) -> None:
    """Tell Accelerate the kind of device, where Ray has named another."""
    if os.environ.get("ACCELERATE_TORCH_DEVICE", "").split(":")[0] != kind:
        os.environ["ACCELERATE_TORCH_DEVICE"] = kind
