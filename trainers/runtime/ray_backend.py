"""Connect Ray's workers to one torch process group, for every kind of device alike.

Ray's own backend knows CPUs, GPUs and TPUs. For a device that it does not know (`neuron_cores`) it
tells Accelerate "cpu", and does not set the rendezvous address of collectives across nodes
(ray#65070); this backend corrects both. Only the cpu row has run on hardware; the corrections are
tested with a resource of a made-up name.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cluster.hardware.nics import bind_gloo_interface
from trainers.distributed.device import DEVICES, Device


class _DeviceBackend(_TorchBackend):  # type: ignore[misc]
    """Ray's torch backend, with what must be set before it and corrected after it."""

    def on_start(self, worker_group: Any, backend_config: "DeviceTorchConfig") -> None:
        """Connect the workers, each of which has its device from Ray."""
        device = backend_config.device
        worker_group.execute(bind_gloo_to_node_address)
        if device.root_address_variable is not None:
            root = worker_group.execute_single(0, find_free_address)
            worker_group.execute(set_default_env, {device.root_address_variable: root})
        super().on_start(worker_group, backend_config)
        worker_group.execute(set_accelerate_device, device.kind)


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


def bind_gloo_to_node_address() -> None:
    """Make gloo use the interface of the address by which Ray knows this node."""
    bind_gloo_interface(ray.util.get_node_ip_address())


def set_default_env(variables: Mapping[str, str]) -> None:
    """Set environment variables of this process, unless its user has set them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def set_accelerate_device(kind: str) -> None:
    """Tell Accelerate the kind of device, where Ray has named another."""
    if os.environ.get("ACCELERATE_TORCH_DEVICE", "").split(":")[0] != kind:
        os.environ["ACCELERATE_TORCH_DEVICE"] = kind
