"""From what a run can be repeated: code revision, versions, hardware."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def revision() -> str:
    """The git commit of this code, with `+changes` when files differ; `unknown` outside git."""
    here = Path(__file__).resolve().parent
    commit = _git(here, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if _git(here, "status", "--porcelain") else "")


def environment() -> dict[str, Any]:
    """Versions and hardware of this machine, as plain values."""
    accelerator = torch.accelerator.current_accelerator()
    name = torch.get_device_module(accelerator).get_device_name() if accelerator else None
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "ray", "transformers")},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "accelerator": name,
    }


def _git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
