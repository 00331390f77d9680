"""Checkpoints: everything a run needs to go on as if it had never stopped.

`checkpoints/step-00000120/` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and
`checkpoint.json` with the SHA-256 of each. The schedule, the sample order and dropout are functions
of (seed, step, sample), so the position is all there is to keep of them: there is no random state.
A directory that is half-written or altered is skipped with a warning, never loaded.
"""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainers.sealed import digests, flaw, written_aside


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk: its step and its directory."""

    step: int
    directory: Path

    def state(self) -> dict[str, Any]:
        """What `save` was given as `state`."""
        state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return state

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the weights into `model`, and the moments into `optimizer` where one is given."""
        model.load_state_dict(load_file(self.directory / "model.safetensors"))
        if optimizer is not None:
            parameters = dict(model.named_parameters())
            for key, moment in load_file(self.directory / "optimizer.safetensors").items():
                name, _, kind = key.rpartition("/")
                parameter = parameters[name]
                place = parameter.device if moment.dim() else moment.device
                optimizer.state[parameter][kind] = moment.to(place)


def save(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Checkpoint:
    """Write the checkpoint of `step` under `directory`; it appears only when it is whole."""
    target = directory / f"step-{step:08d}"
    moments = {
        f"{name}/{kind}": moment.contiguous()
        for name, parameter in model.named_parameters()
        for kind, moment in optimizer.state[parameter].items()
        if isinstance(moment, Tensor)
    }
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with written_aside(target) as aside:
        save_file(weights, aside / "model.safetensors")
        save_file(moments, aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps(state))
        (aside / "checkpoint.json").write_text(json.dumps(digests(aside), indent=2))
    return Checkpoint(step, target)


def find(directory: Path, step: int) -> Checkpoint | None:
    """The checkpoint of `step`, where it exists and is whole."""
    checkpoint = Checkpoint(step, directory / f"step-{step:08d}")
    if not checkpoint.directory.is_dir():
        return None
    try:
        listed = json.loads((checkpoint.directory / "checkpoint.json").read_text())
        damage = flaw(checkpoint.directory, listed)
    except (OSError, ValueError):
        damage = "checkpoint.json is missing or unreadable"
    if damage is None:
        return checkpoint
    warnings.warn(f"skipping {checkpoint.directory}: {damage}", stacklevel=2)
    return None


def latest(directory: Path) -> Checkpoint | None:
    """The newest whole checkpoint under `directory`, or None."""
    for step in reversed(_steps(directory)):
        checkpoint = find(directory, step)
        if checkpoint is not None:
            return checkpoint
    return None


def prune(directory: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best, and what a kill left behind."""
    for leftover in directory.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for step in _steps(directory)[:-keep]:
        if step != best_step:
            shutil.rmtree(directory / f"step-{step:08d}")


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*"))
