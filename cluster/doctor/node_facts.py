"""What a machine says of itself: versions, devices, network cards, free space, its token.

Runs on every node of a cluster, in a process of Ray's, for `python -m cluster doctor`. The driver
and torch are asked in processes of their own, so that one that hangs or dies costs its own answer
alone. Judges nothing and knows no Ray; torch is imported by the process that is asked only.
"""

from __future__ import annotations

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

from cluster.hardware.nics import Card, cards
from cluster.hardware.types import Kind

PACKAGES = ("ray", "torch", "transformers", "numpy", "pyarrow")
CODE = ("cluster", "trainers", "tuning", "serving")
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_AUTH_MODE")
PATIENCE = 120  # seconds that a driver, or torch on a cold disk, may take to answer
ASK_TORCH = """
import json, torch
kind = torch.accelerator.current_accelerator()
named = torch.get_device_module(kind) if kind else None
tell = getattr(named, "get_device_name", lambda index: kind.type)
print(json.dumps([str(tell(index)) for index in range(torch.accelerator.device_count())]))
"""


@dataclass(frozen=True)
class Devices:
    """The names of the devices somebody sees, or why he sees none."""

    names: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Space:
    """Bytes of the file system that holds a path."""

    total: int
    free: int


@dataclass(frozen=True)
class Vitals:
    """All that.

    driver: None where a device of this kind has no driver to ask. space: by what it is used for.
    """

    hostname: str
    versions: Mapping[str, str]
    driver: Devices | None
    torch: Devices | None
    cards: tuple[Card, ...]
    space: Mapping[str, Space]
    variables: Mapping[str, str]


def vitals(kind: Kind, places: Mapping[str, str]) -> Vitals:
    """Of this machine. kind: of the devices that train. places: directories by their use."""
    return Vitals(
        hostname=socket.gethostname(),
        versions=versions(),
        driver=_asked(*DRIVERS[kind]) if kind in DRIVERS else None,
        torch=None if kind == "cpu" else _asked((sys.executable, "-c", ASK_TORCH), _of_json),
        cards=cards(),
        space={use: space(Path(place)) for use, place in places.items()},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def versions() -> dict[str, str]:
    """Of Python, of the packages that must be equal everywhere, and of Bertha's own code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return {**found, "Bertha's code": _code()}


def space(place: Path) -> Space:
    """Of the file system that holds `place`, or would hold it once it is made."""
    while not place.exists() and place != place.parent:
        place = place.parent
    total, _, free = shutil.disk_usage(place)
    return Space(total, free)


def _code() -> str:
    """A hash of the source files of the packages that are imported here."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for path in sorted(path for package in CODE for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _asked(command: Sequence[str], read: Callable[[str], tuple[str, ...]]) -> Devices:
    """What a program says of the devices, with none of them hidden from it."""
    # Ray hides the devices from a process that asked for none of them.
    shown = {name: value for name, value in os.environ.items() if value or "VISIBLE" not in name}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env=shown, check=True
        )
        return Devices(read(done.stdout))
    except FileNotFoundError:
        return Devices(trouble=f"no program {command[0]}")
    except subprocess.TimeoutExpired:
        return Devices(trouble=f"{Path(command[0]).name} did not answer within {PATIENCE} s")
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        return Devices(trouble=said[-1] if said else f"{command[0]} ended with {error.returncode}")
    except (ValueError, KeyError, TypeError) as error:
        return Devices(trouble=f"{Path(command[0]).name} answered what cannot be read: {error}")


def _of_json(text: str) -> tuple[str, ...]:
    return tuple(map(str, json.loads(text.strip().splitlines()[-1])))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _neuron_cores(text: str) -> tuple[str, ...]:
    """One name a core; `neuron-ls` counts those of each chip."""
    chips = json.loads(text)
    return tuple(
        f"core of chip {n}" for n, chip in enumerate(chips) for _ in range(chip["nc_count"])
    )


# How the driver of a kind of device is asked. Not run on hardware.
DRIVERS: Mapping[Kind, tuple[Sequence[str], Callable[[str], tuple[str, ...]]]] = {
    "cuda": (("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"), _lines),
    "neuron": (("neuron-ls", "--json-output"), _neuron_cores),
}
