"""How Ray's workers become one process group of torch, for every kind of device alike.

Ray's own set-up knows CPUs, GPUs and TPUs. For a device that it does not know (`neuron_cores`) it
says CPU to Accelerate and leaves out the address at which collectives across nodes meet; both are
set right here. Rows other than cpu are not run on hardware; the mending is tested with a resource
of a made-up name.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cluster.hardware.nics import meet_over
from trainers.distributed.device import DEVICES, Device


class _Backend(_TorchBackend):  # type: ignore[misc]
    """Ray's set-up of torch, between what must come before it and what it gets wrong."""

    def on_start(self, worker_group: Any, backend_config: "Connection") -> None:
        """Connect the workers, each of which has been given its device by Ray."""
        device = backend_config.device
        worker_group.execute(meet_over_own_card)
        if device.root_variable is not None:
            root = worker_group.execute_single(0, free_address)
            worker_group.execute(export, {device.root_variable: root})
        super().on_start(worker_group, backend_config)
        worker_group.execute(name_device, device.kind)


@dataclass
class Connection(TorchConfig):  # type: ignore[misc]
    """Connects workers that have one `device` each, with the backend of its row."""

    device: Device = DEVICES["cpu"]

    def __post_init__(self) -> None:
        """The backend is the row's."""
        self.backend = self.device.backend

    @property
    def backend_cls(self) -> type[_Backend]:
        """What runs on the controller when workers start and end."""
        return _Backend


def free_address() -> str:
    """`address:port` of this node where nothing listens yet, for a meeting that comes at once."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.bind(("", 0))
        return f"{address}:{held.getsockname()[1]}"


def meet_over_own_card() -> None:
    """Let gloo meet others at the address of this node that Ray gives out."""
    meet_over(ray.util.get_node_ip_address())


def export(variables: Mapping[str, str]) -> None:
    """Set environment variables of this process, unless its user has set them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def name_device(kind: str) -> None:
    """Tell Accelerate the device of this process where Ray told it another kind."""
    if os.environ.get("ACCELERATE_TORCH_DEVICE", "").split(":")[0] != kind:
        os.environ["ACCELERATE_TORCH_DEVICE"] = kind
