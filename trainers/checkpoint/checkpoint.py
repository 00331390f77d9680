"""Checkpoints that continue a run as if it had never stopped, on any layout.

`checkpoints/step-00000120/` holds the shards of weights and moments, one file for each rank that
had any; `index.json`, which says where each lies in the whole; `state.json`; and the seal,
`checkpoint.json`, with the SHA-256 of all. Ranks of another layout read just the blocks they need.
The schedule, the sample order and dropout are functions of (seed, step, sample), so there is no
random state to save. A directory that is half-written or altered is skipped with a warning.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainers.checkpoint import sharded_tensors
from trainers.checkpoint.sharded_tensors import REMOVE_IT, CheckpointError, ShardedTensorReader
from trainers.checkpoint.stores import CheckpointStore
from trainers.distributed.dtensor import to_local
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import (
    gather_from_ranks,
    get_rank,
    get_world_size,
    run_on_rank0,
)
from trainers.storage import atomic, safetensors
from trainers.storage.filesystem import StoreError

SEAL_FILE, STATE_FILE = "checkpoint.json", "state.json"
SEALED = re.compile(r"index\.json|state\.json|pieces-\d{5,}\.safetensors")  # what a seal lists


class ShardedModel(Protocol):
    """What this rank holds of a model; a `ParallelModel`."""

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this rank's parameters by their names in the whole model."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. directory: on this machine. fetch: copies a file there if need be."""

    step: int
    directory: Path
    fetch: Callable[[str], None] = field(default=lambda file: None, compare=False)

    def load_state(self) -> dict[str, Any]:
        """Return the `state` that was saved. Raises CheckpointError where it is no such thing."""
        self.fetch(STATE_FILE)
        path = self.directory / STATE_FILE
        try:
            state = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            state = None
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: is no JSON object; {REMOVE_IT}")
        return state

    def restore(self, model: ShardedModel, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load this rank's weights, and with an optimizer their moments. Not collective.

        Raises CheckpointError where the checkpoint is of another model.
        """
        with ShardedTensorReader(self.directory, self.fetch) as reader, torch.no_grad():
            for name, parameter in model.named_parameters():
                to_local(parameter).copy_(reader.read_shard(name, parameter))
                if optimizer is not None and parameter.requires_grad:
                    _restore_moments(reader, name, parameter, optimizer)

    def iter_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole parameters by name, one at a time, on the CPU."""
        with ShardedTensorReader(self.directory, self.fetch) as reader:
            for name in reader.moment_kinds:
                yield name, reader.read_tensor(name)


def save_checkpoint(
    store: CheckpointStore,
    step: int,
    model: ShardedModel,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> Checkpoint:
    """Write the checkpoint of `step`, atomically. Collective; it exists once this returns.

    state: plain values, of rank 0. Raises OSError on every rank where one could not write.
    """
    staging = run_on_rank0(lambda: store.create_staging(_step_name(step)))
    try:
        tensors = _owned_tensors(model, optimizer)
        written = gather_from_ranks(lambda: _write_shards(store, staging, tensors))
        digests = run_on_rank0(lambda: _seal_checkpoint(store, step, staging, written, state))
    except (OSError, StoreError):
        if get_rank() == 0:
            store.discard_staging(staging)
        raise
    return _make_checkpoint(store, step, digests)


def find_checkpoint(store: CheckpointStore, step: int) -> Checkpoint | None:
    """Return the checkpoint of `step` if it exists and is complete. Collective."""
    name = _step_name(step)
    digests = run_on_rank0(lambda: _read_seal(store, name))
    if digests is None:
        return None
    # Each rank verifies some files: those include its own shards if the layout is the same.
    own = sorted(digests)[(get_rank() + 1) % get_world_size() :: get_world_size()]
    damages = gather_from_ranks(
        lambda: store.find_corruption(name, {file: digests[file] for file in own})
    )
    if {sharded_tensors.INDEX_FILE, STATE_FILE} - set(digests):
        damages = [f"{SEAL_FILE} is missing or unreadable"]
    damage = run_on_rank0(lambda: next((each for each in damages if each is not None), None))
    if damage is None:
        return _make_checkpoint(store, step, digests)
    if get_rank() == 0:
        warnings.warn(f"skipping {store}/{name}: {damage}", stacklevel=2)
    return None


def find_latest(store: CheckpointStore) -> Checkpoint | None:
    """Return the newest complete checkpoint in `store`, or None. Collective."""
    strangers = run_on_rank0(store.list_strangers)
    if strangers and get_rank() == 0:
        what = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        warnings.warn(f"skipping {what} in {store}: no checkpoint", stacklevel=2)
    for step in reversed(run_on_rank0(lambda: _list_steps(store))):
        checkpoint = find_checkpoint(store, step)
        if checkpoint is not None:
            return checkpoint
    return None


def copy_from(store: CheckpointStore, source: CheckpointStore, step: int) -> bool:
    """Copy the checkpoint of `step` from `source` into `store`; return whether it is complete.

    One process calls this, while nobody writes to either.
    """
    checkpoint = find_checkpoint(source, step)
    if checkpoint is None:
        return False
    name = _step_name(step)
    digests: dict[str, str] = json.loads(source.read_file(name, SEAL_FILE))
    staging = store.create_staging(name)
    directory = store.staging_directory(staging)
    for file in digests:
        (directory / file).unlink(missing_ok=True)
        os.link(checkpoint.directory / file, directory / file)
        store.store_file(directory, file)
    (directory / SEAL_FILE).write_text(json.dumps(digests, indent=2))
    store.store_file(directory, SEAL_FILE)
    store.commit_staging(staging, name)
    return True


def prune_checkpoints(store: CheckpointStore, keep: int, needed: Collection[int | None]) -> None:
    """Delete all but the newest `keep` checkpoints and those of `needed` steps; clean up.

    What processes that were killed left behind goes too. Rank 0 alone calls this, while nobody
    saves.
    """
    store.remove_unsealed(SEAL_FILE)
    for step in _list_steps(store)[:-keep]:
        if step not in needed:
            store.remove(_step_name(step))


def _owned_tensors(model: ShardedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the weights and moments whose local shard this rank must write."""
    mesh, parameters = model.mesh, dict(model.named_parameters())
    for name in _names_of_earlier_stages(mesh, list(parameters)):
        parameters.pop(name, None)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        # FSDP swaps in whole parameters while a unit is gathered; the optimizer has the shards.
        is_shard = id(parameter) in trained or not parameter.requires_grad
        assert is_shard, f"{name} is gathered or not trained: reshard before saving"
        tensors[name] = parameter
        for kind, moment in optimizer.state.get(parameter, {}).items():
            if isinstance(moment, Tensor):
                tensors[f"{name}/{kind}"] = moment
    return {name: t for name, t in tensors.items() if sharded_tensors.is_owner(t, mesh)}


def _names_of_earlier_stages(mesh: Mesh, names: list[str]) -> set[str]:
    """Return what pipeline ranks before this one hold as well. Collective over a pipeline."""
    if mesh.device_mesh is None or mesh.layout.pp == 1:
        return set()
    names_by_rank: list[list[str]] = [[]] * mesh.layout.pp
    dist.all_gather_object(names_by_rank, names, group=mesh.device_mesh.get_group("pp"))
    return {name for earlier in names_by_rank[: mesh.pp_rank] for name in earlier}


def _write_shards(
    store: CheckpointStore, staging: str, tensors: dict[str, Tensor]
) -> tuple[sharded_tensors.Index, dict[str, str]]:
    """Write this rank's file; return its index, and its SHA-256 by name, {} where it is empty."""
    index = sharded_tensors.describe_tensors(get_rank(), tensors)
    shards = {name: to_local(tensor) for name, tensor in tensors.items()}
    shards = {name: shard for name, shard in shards.items() if shard.numel()}
    if not shards:  # fewer rows than ranks: this one's part of every tensor may be empty
        return index, {}
    directory, file = store.staging_directory(staging), sharded_tensors.shard_file(get_rank())
    safetensors.write_tensors(directory / file, shards, shards.items())
    digest = atomic.file_sha256(directory / file)
    store.store_file(directory, file)
    return index, {file: digest}


def _seal_checkpoint(
    store: CheckpointStore,
    step: int,
    staging: str,
    written: list[tuple[sharded_tensors.Index, dict[str, str]]],
    state: dict[str, Any],
) -> dict[str, str]:
    """Write index, state and seal, and make the checkpoint visible; return its SHA-256 by file."""
    directory = store.staging_directory(staging)
    sharded_tensors.write_index(
        directory, sharded_tensors.merge_indexes([index for index, _ in written])
    )
    (directory / STATE_FILE).write_text(json.dumps(state))
    listed = (sharded_tensors.INDEX_FILE, STATE_FILE)
    digests = {file: atomic.file_sha256(directory / file) for file in listed}
    for _, rank_digests in written:
        digests |= rank_digests
    (directory / SEAL_FILE).write_text(json.dumps(digests, indent=2))
    for file in (*listed, SEAL_FILE):  # the seal last: in a remote store it is the commit
        store.store_file(directory, file)
    store.commit_staging(staging, _step_name(step))
    return digests


def _restore_moments(
    reader: ShardedTensorReader,
    name: str,
    parameter: nn.Parameter,
    optimizer: torch.optim.Optimizer,
) -> None:
    moments = {}
    for kind in reader.moment_kinds[name]:
        key = f"{name}/{kind}"
        if reader.index[key].shape == ():
            moments[kind] = reader.read_tensor(key).to(_scalar_device(parameter, optimizer))
            continue
        moment = reader.read_shard(key, parameter).to(parameter.device)
        if isinstance(parameter, DTensor):
            # Shape and stride must be given: torch would infer them from even shards.
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
    """Return where torch's optimizers keep the step count: fused ones beside the parameter."""
    for group in optimizer.param_groups:
        if any(parameter is other for other in group["params"]):
            on_device = group.get("fused") or group.get("capturable")
            return parameter.device if on_device else torch.device("cpu")
    raise AssertionError("a parameter that is not trained has no moments")


def _make_checkpoint(store: CheckpointStore, step: int, digests: dict[str, str]) -> Checkpoint:
    name = _step_name(step)
    return Checkpoint(
        step, store.directory / name, lambda file: store.fetch_file(name, file, digests[file])
    )


def _read_seal(store: CheckpointStore, name: str) -> dict[str, str] | None:
    """Return SHA-256 by file; {} if it is unreadable, None if there is no checkpoint."""
    if name not in store.list_names():
        return None
    try:
        digests = json.loads(store.read_file(name, SEAL_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    # Never follow a name that leads out of the directory.
    is_valid = isinstance(digests, dict) and all(SEALED.fullmatch(file) for file in digests)
    return digests if is_valid else {}


def _step_name(step: int) -> str:
    return f"step-{step:08d}"


def _list_steps(store: CheckpointStore) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in store.list_names())
