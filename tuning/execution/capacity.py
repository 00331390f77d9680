"""How many trials the cluster runs at once, and on how many devices each.

A trial gets as few devices as it fits on, since trials side by side waste no time on exchanging
gradients. No more trials are started than fit: they would wait for each other's devices.
"""

from dataclasses import dataclass, replace

from cluster.costmodel.layout import LayoutError
from cluster.costmodel.model_shape import ModelShape
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.planning.layout import resolve_layout


@dataclass(frozen=True)
class Capacity:
    """The devices of a trial, and the slots: trials at once."""

    devices: int
    slots: int

    @classmethod
    def for_recipe(cls, recipe: Recipe, shape: ModelShape, cluster: ClusterSpec) -> "Capacity":
        """Return the capacity of `cluster` for trials like `recipe`.

        Raises LayoutError if not even one trial fits, with the reason.
        """
        total, reason = max(1, cluster.num_workers), ""
        for devices in range(1, total + 1):
            if total % devices:
                continue
            try:
                resolve_layout(recipe, shape, cluster.with_workers(devices))
            except LayoutError as error:
                reason = str(error)
            else:
                return cls(devices, total // devices)
        raise LayoutError(
            f"not one trial fits on the {total} device(s) of cluster {cluster.name}:\n  {reason}"
        )

    def trial_cluster(self, cluster: ClusterSpec) -> ClusterSpec:
        """Return the part of the cluster that a trial trains on.

        A trial on one device trains in its own process, without workers. The number of workers is
        fixed: a trial that loses one restarts from its checkpoint.
        """
        per_node = max(1, cluster.metadata.devices_per_node)
        update = {"min_workers": None, "devices_per_node": per_node}
        metadata = cluster.metadata.model_copy(update=update)
        workers = self.devices if self.devices > 1 else 0
        return replace(cluster, metadata=metadata, workers_present=workers)
