"""Checkpoints: everything a run needs to go on as if it had never stopped, on any layout.

`checkpoints/step-00000120/` holds the pieces of weights and moments, a file for each rank that had
any; `index.json`, which says where each lies in the whole; `state.json`; and `checkpoint.json` with
the SHA-256 of all. Ranks of another layout read just the pieces they need. The schedule, the sample
order and dropout are functions of (seed, step, sample), so the position is all there is to keep of
them: there is no random state. A directory that is half-written or altered is skipped with a
warning, never loaded. Where it lies, on a disk or in a store, is known to its depot.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainers.checkpoint import sharded_tensors
from trainers.checkpoint.sharded_tensors import Reader
from trainers.checkpoint.stores import Depot
from trainers.distributed.dtensor import to_local
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import num_ranks, on_all, on_first, rank
from trainers.storage import atomic, safetensors

SEAL, STATE = "checkpoint.json", "state.json"


class Parts(Protocol):
    """What this rank holds of a model: `parallelize.Parallel`."""

    @property
    def mesh(self) -> Mesh:
        """The layout over all ranks, and this rank's place in it."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their name in the whole model; one that two stages hold is in both."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its step, and its directory on this machine.

    fetch: what sees to it that a file lies there.
    """

    step: int
    directory: Path
    fetch: Callable[[str], None] = field(default=lambda file: None, compare=False)

    def state(self) -> dict[str, Any]:
        """What `save` was given as `state`."""
        self.fetch(STATE)
        state: dict[str, Any] = json.loads((self.directory / STATE).read_text())
        return state

    def restore(self, parts: Parts, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load this rank's weights, and where an optimizer is given its moments.

        No rank waits for another. Raises CheckpointError where the model is another one.
        """
        with Reader(self.directory, self.fetch) as reader, torch.no_grad():
            for name, parameter in parts.named_parameters():
                to_local(parameter).copy_(reader.part(name, parameter))
                if optimizer is not None:
                    _restore_moments(reader, name, parameter, optimizer)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters, one at a time, on the CPU."""
        with Reader(self.directory, self.fetch) as reader:
            for name in reader.kinds:
                yield name, reader.whole(name)


def save(
    depot: Depot,
    step: int,
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Checkpoint:
    """Write the checkpoint of `step` into `depot`; it appears only when it is whole.

    Every rank calls this, and it is there when it returns. state: plain values, of rank 0. OSError
    on every rank where one could not write.
    """
    name = _name(step)
    begun = on_first(lambda: depot.begin(name))
    held = _owned(parts, optimizer)
    written = on_all(lambda: _write_pieces(depot, begun, held))

    def finish() -> dict[str, str]:
        aside = depot.aside(begun)
        sharded_tensors.write_index(aside, sharded_tensors.joined([index for index, _ in written]))
        (aside / STATE).write_text(json.dumps(state))
        digests = {name: atomic.sha256(aside / name) for name in (sharded_tensors.INDEX, STATE)}
        for _, of_rank in written:
            digests |= of_rank
        (aside / SEAL).write_text(json.dumps(digests, indent=2))
        for file in (sharded_tensors.INDEX, STATE, SEAL):
            depot.keep(aside, file)
        depot.reveal(begun, name)
        return digests

    return _checkpoint(depot, step, on_first(finish))


def find(depot: Depot, step: int) -> Checkpoint | None:
    """The checkpoint of `step`, where it exists and is whole; every rank calls this.

    Each rank verifies some of its files, its own of the same layout among them.
    """
    name = _name(step)
    listed = on_first(lambda: _seal(depot, name))
    if listed is None:
        return None
    own = sorted(listed)[(rank() + 1) % num_ranks() :: num_ranks()]
    flaws = on_all(lambda: depot.flaw(name, {file: listed[file] for file in own}))
    unsealed = {sharded_tensors.INDEX, STATE} - set(listed)
    if unsealed:
        flaws = [f"{SEAL} is missing or unreadable"]
    damage = on_first(lambda: next((flaw for flaw in flaws if flaw is not None), None))
    if damage is None:
        return _checkpoint(depot, step, listed)
    if rank() == 0:
        warnings.warn(f"skipping {depot}/{name}: {damage}", stacklevel=2)
    return None


def latest(depot: Depot) -> Checkpoint | None:
    """The newest whole checkpoint in `depot`, or None; every rank calls this."""
    for step in reversed(on_first(lambda: _steps(depot))):
        checkpoint = find(depot, step)
        if checkpoint is not None:
            return checkpoint
    return None


def adopt(depot: Depot, other: Depot, step: int) -> bool:
    """Put the checkpoint of `step` in `other` into `depot`, too; whether there is a whole one.

    One process calls this, while nobody writes to either.
    """
    held = find(other, step)
    if held is None:
        return False
    name = _name(step)
    digests: dict[str, str] = json.loads(other.read(name, SEAL))
    begun = depot.begin(name)
    aside = depot.aside(begun)
    for file in digests:
        (aside / file).unlink(missing_ok=True)
        os.link(held.directory / file, aside / file)
        depot.keep(aside, file)
    (aside / SEAL).write_text(json.dumps(digests, indent=2))
    depot.keep(aside, SEAL)
    depot.reveal(begun, name)
    return True


def prune(depot: Depot, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best, and what a kill left behind.

    Rank 0 alone calls this, when no other saves.
    """
    depot.sweep(SEAL)
    for step in _steps(depot)[:-keep]:
        if step != best_step:
            depot.remove(_name(step))


def _owned(parts: Parts, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights and moments of which this rank writes its part."""
    mesh, own = parts.mesh, dict(parts.named_parameters())
    for name in _names_of_earlier_stages(mesh, list(own)):
        own.pop(name, None)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    held: dict[str, Tensor] = {}
    for name, parameter in own.items():
        assert id(parameter) in known, f"{name} is gathered or not trained: reshard before saving"
        held[name] = parameter
        for kind, moment in optimizer.state.get(parameter, {}).items():
            if isinstance(moment, Tensor):
                held[f"{name}/{kind}"] = moment
    return {name: tensor for name, tensor in held.items() if sharded_tensors.owns(tensor, mesh)}


def _names_of_earlier_stages(mesh: Mesh, names: list[str]) -> set[str]:
    """What pipeline ranks before this one hold as well; all ranks of a pipeline call this."""
    if mesh.devices is None or mesh.layout.pp == 1:
        return set()
    of_ranks: list[list[str]] = [[]] * mesh.layout.pp
    dist.all_gather_object(of_ranks, names, group=mesh.devices.get_group("pp"))
    return {name for held in of_ranks[: mesh.pp_rank] for name in held}


def _write_pieces(
    depot: Depot, begun: str, held: dict[str, Tensor]
) -> tuple[sharded_tensors.Index, dict[str, str]]:
    """Write this rank's file; the index of it, and its SHA-256 by name, none where it is empty."""
    aside = depot.aside(begun)
    parts = {name: to_local(tensor) for name, tensor in held.items()}
    parts = {name: part for name, part in parts.items() if part.numel()}
    if not parts:
        return sharded_tensors.described(rank(), held), {}
    file = sharded_tensors.file_of(rank())
    safetensors.write(aside / file, parts, parts.items())
    digest = atomic.sha256(aside / file)
    depot.keep(aside, file)
    return sharded_tensors.described(rank(), held), {file: digest}


def _restore_moments(
    reader: Reader, name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> None:
    moments = {}
    for kind in reader.kinds[name]:
        key = f"{name}/{kind}"
        if reader.index[key].shape == ():
            moments[kind] = reader.whole(key).to(_scalar_device(parameter, optimizer))
            continue
        moment = reader.part(key, parameter).to(parameter.device)
        if isinstance(parameter, DTensor):
            moment = DTensor.from_local(
                moment,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        moments[kind] = moment
    optimizer.state[parameter] = moments


def _scalar_device(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.device:
    """Where torch's optimizers keep a count of steps: fused ones beside the parameter."""
    for group in optimizer.param_groups:
        if any(parameter is other for other in group["params"]):
            beside = group.get("fused") or group.get("capturable")
            return parameter.device if beside else torch.device("cpu")
    raise AssertionError("a parameter that is not trained has no moments")


def _checkpoint(depot: Depot, step: int, digests: dict[str, str]) -> Checkpoint:
    name = _name(step)
    return Checkpoint(
        step, depot.directory / name, lambda file: depot.fetch(name, file, digests[file])
    )


def _seal(depot: Depot, name: str) -> dict[str, str] | None:
    """SHA-256 by file; {} where that cannot be read, None where there is no checkpoint."""
    if name not in depot.names():
        return None
    try:
        listed = json.loads(depot.read(name, SEAL))
    except (OSError, ValueError):
        return {}
    sound = isinstance(listed, dict) and all(Path(file).name == file for file in listed)
    return listed if sound else {}  # a name that leads elsewhere is none that was written here


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(depot: Depot) -> list[int]:
    names = [name for name in depot.names() if name.startswith("step-")]
    return sorted(int(name.removeprefix("step-")) for name in names)
