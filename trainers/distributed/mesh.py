"""The device mesh of a run: pp, dp_replicate, dp_shard, tp, and this rank's place in it.

Without a process group it is a mesh of one rank.
"""

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cluster.costmodel.layout import Layout

MESH_DIMS = ("pp", "dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class Mesh:
    """A resolved layout, torch's device mesh for it, and this rank's coordinates.

    device_mesh: None where the run is one process. dp_rank: over dp_replicate and dp_shard.
    stage_groups: process groups over the ranks of a pipeline, by (forward, closes the ring).
    ends_group: of the first and the last rank of a pipeline.
    """

    layout: Layout
    device_mesh: DeviceMesh | None
    pp_rank: int = 0
    dp_rank: int = 0
    tp_rank: int = 0
    stage_groups: dict[tuple[bool, bool], Any] = field(default_factory=dict)
    ends_group: Any = None

    @classmethod
    def from_layout(cls, layout: Layout, device_type: str) -> "Mesh":
        """Build the mesh of `layout` over all ranks. Collective."""
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        layout = layout.resolve_for(world_size)
        if world_size == 1:
            return cls(layout, None)
        assert layout.dp_replicate is not None
        sizes = (layout.pp, layout.dp_replicate, layout.dp_shard, layout.tp)
        mesh = init_device_mesh(device_type, sizes, mesh_dim_names=MESH_DIMS)
        pp, replicate, shard, tp = (mesh.get_local_rank(name) for name in MESH_DIMS)
        dp_rank, stage_groups, ends_group = replicate * layout.dp_shard + shard, {}, None
        if layout.pp > 1:
            pipelines = mesh.mesh.flatten(1).T.tolist()  # the ranks of each pipeline
            for forward in (True, False):
                for closes_ring in (False, True)[: 1 + (layout.stages_per_rank > 1)]:
                    stage_groups[forward, closes_ring] = _new_group(pipelines)
            ends_group = _new_group([[ranks[0], ranks[-1]] for ranks in pipelines])
        return cls(layout, mesh, pp, dp_rank, tp, stage_groups, ends_group)

    def stage_peer(self, target: int, source: int) -> tuple[int, Any]:
        """Return (global rank, group) of the other rank when stage `source` sends to `target`.

        With interleaved stages the last rank also sends forward to the first, closing the ring.
        Each direction has a group of its own, since sends and receives of one group may queue.
        """
        assert self.device_mesh is not None
        source_rank, target_rank = source % self.layout.pp, target % self.layout.pp
        forward = target > source
        closes_ring = target_rank < source_rank if forward else target_rank > source_rank
        peer = target_rank if source_rank == self.pp_rank else source_rank
        pipeline = self.device_mesh["pp"].mesh.tolist()
        return pipeline[peer], self.stage_groups[forward, closes_ring]

    @property
    def is_data_parallel(self) -> bool:
        """Whether every rank holds a copy of the whole model."""
        return self.layout.dp_replicate == self.layout.world_size

    @property
    def ranks_per_stage(self) -> int:
        """Ranks that hold parts of the same layers."""
        return self.layout.dp * self.layout.tp

    @property
    def is_tp_rank0(self) -> bool:
        """Whether this rank counts in sums what its tensor-parallel group computed alike."""
        return self.tp_rank == 0


def _new_group(ranks_of_groups: list[list[int]]) -> Any:
    """Return the group this rank is in, None where it is in none. Collective."""
    group, _ = dist.new_subgroups_by_enumeration(ranks_of_groups)  # type: ignore[no-untyped-call]
    return group
