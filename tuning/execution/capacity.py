"""How many trials the cluster carries at once, and how many devices each of them gets.

A trial gets as few devices as it fits on: trials that run side by side waste nothing on exchanging
gradients. More trials than fit are never started, since they would wait for each other's devices.
Pure arithmetic; starts nothing.
"""

from dataclasses import dataclass, replace

from cluster.costmodel.layout import LayoutError
from cluster.costmodel.model_shape import Shape
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.planning.layout import planned


@dataclass(frozen=True)
class Capacity:
    """devices: of a trial. slots: trials at once."""

    devices: int
    slots: int

    @classmethod
    def of(cls, recipe: Recipe, shape: Shape, cluster: ClusterSpec) -> "Capacity":
        """What `cluster` gives trials like `recipe`.

        Raises LayoutError where not even one trial fits, with the reason.
        """
        total, refusal = max(1, cluster.num_workers), ""
        for devices in range(1, total + 1):
            if total % devices:
                continue
            try:
                planned(recipe, shape, cluster.at(devices))
            except LayoutError as error:
                refusal = str(error)
            else:
                return cls(devices, total // devices)
        raise LayoutError(
            f"not one trial fits on the {total} device(s) of cluster {cluster.name}:\n  {refusal}"
        )

    def cluster(self, whole: ClusterSpec) -> ClusterSpec:
        """The part of the cluster that a trial trains on.

        A trial of one device trains in the trial's own process. Its number of workers is fixed: a
        trial that loses one starts again from its checkpoint.
        """
        per_node = max(1, whole.metadata.devices_per_node)
        update = {"min_workers": None, "devices_per_node": per_node}
        metadata = whole.metadata.model_copy(update=update)
        return replace(whole, metadata=metadata, present=self.devices if self.devices > 1 else 0)
