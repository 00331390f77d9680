"""The ranks of a run as a mesh: pp, dp_replicate, dp_shard, tp, and this rank's place in it.

Without a process group it is a mesh of one. Knows no model.
"""

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cluster.costmodel.layout import Layout

NAMES = ("pp", "dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class Mesh:
    """A resolved layout, torch's device mesh for it, and this rank's coordinates.

    devices: None where the run is one process. dp_rank counts over dp_replicate and dp_shard.
    channels: groups over the ranks of a pipeline, by direction and whether it closes the ring.
    ends: the group of the first and the last rank of a pipeline.
    """

    layout: Layout
    devices: DeviceMesh | None
    pp_rank: int = 0
    dp_rank: int = 0
    tp_rank: int = 0
    channels: dict[tuple[bool, bool], Any] = field(default_factory=dict)
    ends: Any = None

    @classmethod
    def of(cls, layout: Layout, device_type: str) -> "Mesh":
        """The mesh of `layout` over all ranks; every rank calls this."""
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        layout = layout.resolved(world_size)
        if world_size == 1:
            return cls(layout, None)
        assert layout.dp_replicate is not None
        sizes = (layout.pp, layout.dp_replicate, layout.dp_shard, layout.tp)
        devices = init_device_mesh(device_type, sizes, mesh_dim_names=NAMES)
        pp, replicate, shard, tp = (devices.get_local_rank(name) for name in NAMES)
        dp_rank, channels, ends = replicate * layout.dp_shard + shard, {}, None
        if layout.pp > 1:
            lines = devices.mesh.flatten(1).T.tolist()  # the ranks of each pipeline
            for forward in (True, False):
                for closing in (False, True)[: 1 + (layout.stages_per_rank > 1)]:
                    channels[forward, closing] = _group(lines)
            ends = _group([[line[0], line[-1]] for line in lines])
        return cls(layout, devices, pp, dp_rank, tp, channels, ends)

    def neighbour(self, to: int, origin: int) -> tuple[int, Any]:
        """(global rank, group) of the peer when stage `origin` sends to stage `to`.

        The peer is the one of both that is not this rank.
        """
        assert self.devices is not None
        num_ranks = self.layout.pp
        here, there = origin % num_ranks, to % num_ranks
        forward = to > origin
        closing = (there < here) if forward else (there > here)
        peer = there if here == self.pp_rank else here
        line = self.devices["pp"].mesh.tolist()
        return line[peer], self.channels[forward, closing]

    @property
    def is_data_parallel(self) -> bool:
        """Whether ranks are nothing but copies of the model."""
        return self.layout.dp_replicate == self.layout.world_size

    @property
    def ranks_per_stage(self) -> int:
        """Ranks that hold parts of the same layers."""
        return self.layout.dp * self.layout.tp

    @property
    def counts(self) -> bool:
        """Whether this rank counts what its tensor-parallel group computed alike."""
        return self.tp_rank == 0


def _group(lines: list[list[int]]) -> Any:
    """The group of this rank among `lines`, None where it is in none; every rank calls this."""
    group, _ = dist.new_subgroups_by_enumeration(lines)  # type: ignore[no-untyped-call]
    return group
