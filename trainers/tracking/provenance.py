"""The facts from which a run can be repeated: code revision, versions, hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def code_revision() -> str:
    """Return the git commit of this code, with `+changes` when files differ, or `unknown`."""
    directory = Path(__file__).resolve().parent
    commit = _run_git(directory, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if _run_git(directory, "status", "--porcelain") else "")


def describe_environment() -> dict[str, Any]:
    """Describe versions and hardware of this machine, as plain values."""
    accelerator = torch.accelerator.current_accelerator()
    module = None if accelerator is None else torch.get_device_module(accelerator)
    name = None if module is None else getattr(module, "get_device_name", processor_name)()
    return {
        "python": platform.python_version(),
        **{package: find_version(package) for package in ("torch", "ray", "transformers")},
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "accelerator": name,
    }


def find_version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed, as Ray may be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _run_git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def processor_name() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
