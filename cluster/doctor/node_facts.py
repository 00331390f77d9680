"""Facts of one machine: versions, devices, network cards, disk space, environment variables.

The driver and torch are queried in processes of their own, so that one that hangs or dies costs
only its own answer.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.hardware.nics import NetworkInterface, list_interfaces
from cluster.hardware.types import Kind

PACKAGES = ("ray", "torch", "transformers", "numpy", "pyarrow")
CODE = ("cluster", "trainers", "tuning", "serving")
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_AUTH_MODE")
QUERY_SECONDS = 120  # that a driver, or torch on a cold disk, may take to answer
TORCH_QUERY = """
import json, torch
kind = torch.accelerator.current_accelerator()
module = torch.get_device_module(kind) if kind else None
name = getattr(module, "get_device_name", lambda index: kind.type)
print(json.dumps([str(name(index)) for index in range(torch.accelerator.device_count())]))
"""


@dataclass(frozen=True)
class DeviceList:
    """The names of the devices that a driver or torch sees, or the reason why it sees none."""

    names: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class DiskSpace:
    """Bytes of the file system that holds a path."""

    total: int
    free: int


@dataclass(frozen=True)
class NodeFacts:
    """Facts of one node.

    driver: None where a device of this kind has no driver to query. space: by use of the directory.
    """

    hostname: str
    versions: Mapping[str, str]
    driver: DeviceList | None
    torch: DeviceList | None
    cards: tuple[NetworkInterface, ...]
    space: Mapping[str, DiskSpace]
    variables: Mapping[str, str]


def collect_node_facts(kind: Kind, directories: Mapping[str, str]) -> NodeFacts:
    """Collect this machine's facts. kind: of the training devices. directories: by their use."""
    torch_query = (sys.executable, "-c", TORCH_QUERY)
    return NodeFacts(
        hostname=socket.gethostname(),
        versions=collect_versions(),
        driver=_query_devices(*DRIVER_QUERIES[kind]) if kind in DRIVER_QUERIES else None,
        torch=None if kind == "cpu" else _query_devices(torch_query, _parse_json),
        cards=list_interfaces(),
        space={use: disk_space(Path(path)) for use, path in directories.items()},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def collect_versions() -> dict[str, str]:
    """Return the versions of Python, of PACKAGES, and a hash of Bertha's own source files."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for path in sorted(path for package in CODE for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {**versions, "Bertha's code": digest.hexdigest()[:12]}


def disk_space(path: Path) -> DiskSpace:
    """Return the space of the file system that holds `path`, or would hold it once it exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    total, _, free = shutil.disk_usage(path)
    return DiskSpace(total, free)


def _query_devices(command: Sequence[str], parse: Callable[[str], tuple[str, ...]]) -> DeviceList:
    """Run a program that lists the devices, with none of them hidden from it."""
    # Ray sets *_VISIBLE_DEVICES to "" in a process that asked for no device.
    visible = {name: value for name, value in os.environ.items() if value or "VISIBLE" not in name}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_SECONDS, env=visible, check=True
        )
        return DeviceList(parse(done.stdout))
    except FileNotFoundError:
        return DeviceList(trouble=f"no program {command[0]}")
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        return DeviceList(trouble=f"{name} did not answer within {QUERY_SECONDS} s")
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        exited = f"{command[0]} exited with status {error.returncode}"
        return DeviceList(trouble=lines[-1] if lines else exited)
    except (ValueError, KeyError, TypeError) as error:
        return DeviceList(trouble=f"output of {Path(command[0]).name} is not readable: {error}")


def _parse_json(text: str) -> tuple[str, ...]:
    return tuple(map(str, json.loads(text.strip().splitlines()[-1])))


def _parse_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _parse_neuron_cores(text: str) -> tuple[str, ...]:
    """Return one name per core; `neuron-ls` counts those of each chip."""
    chips = json.loads(text)
    return tuple(
        f"core of chip {n}" for n, chip in enumerate(chips) for _ in range(chip["nc_count"])
    )


# How to query the driver of a kind of device. Not run on hardware.
DRIVER_QUERIES: Mapping[Kind, tuple[Sequence[str], Callable[[str], tuple[str, ...]]]] = {
    "cuda": (("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"), _parse_lines),
    "neuron": (("neuron-ls", "--json-output"), _parse_neuron_cores),
}
