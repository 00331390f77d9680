"""A run whose workers leave and join: the layout for as many as there are.

The global batch, the schedule and the sample order know nothing of workers, so they stay as they
were; only the layout is decided again, by the same arithmetic as at the start. Knows no Ray.
"""

from dataclasses import dataclass, replace

from cluster.costmodel.layout import Layout, LayoutError, check
from cluster.costmodel.model_shape import Shape
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.planning.layout import Planned, planned


@dataclass(frozen=True)
class Elastic:
    """What decides a layout beside the recipe: the model's sizes and the cluster."""

    shape: Shape
    cluster: ClusterSpec

    @classmethod
    def of(cls, shape: Shape, cluster: ClusterSpec) -> "Elastic":
        """With the memory of a device as it is here, so that every node decides alike."""
        memory = cluster.device_memory
        known = {"device_memory_gib": None if memory is None else memory / 2**30}
        metadata = cluster.metadata.model_copy(update=known)
        return cls(shape, replace(cluster, metadata=metadata))

    def plan(self, recipe: Recipe, num_workers: int) -> Planned:
        """The layout of `recipe` on `num_workers`. Raises LayoutError where there is none."""
        return planned(recipe, self.shape, self.cluster.at(num_workers))

    def refuse(self, recipe: Recipe) -> None:
        """Raise LayoutError where Ray may give a number of workers that the layout cannot use.

        A layout that the recipe names is checked with every number, `auto`, which finds one for
        nearly all, with the smallest.
        """
        sizes = self.cluster.sizes
        if not isinstance(recipe.layout, Layout):
            self.plan(recipe, sizes[0])
            return
        self._check(recipe, recipe.layout, sizes[-1])
        usable = [number for number in sizes if self._runs(recipe, recipe.layout, number)]
        if len(usable) < len(sizes):
            raise LayoutError(_unusable(recipe.layout, sizes, usable))

    def _check(self, recipe: Recipe, layout: Layout, number: int) -> None:
        per_node = max(1, self.cluster.metadata.devices_per_node)
        check(layout, self.shape, number, per_node, recipe.batch.global_size)

    def _runs(self, recipe: Recipe, layout: Layout, number: int) -> bool:
        try:
            self._check(recipe, layout, number)
        except LayoutError:
            return False
        return True


def _unusable(layout: Layout, sizes: range, usable: list[int]) -> str:
    return (
        f"metadata.min_workers = {sizes[0]}: the run may have any number of workers from "
        f"{sizes[0]} to {sizes[-1]}, but of those layout ({layout}) comes out with "
        f"{', '.join(map(str, usable))}; set layout: auto, which suits any number, leave "
        "dp_replicate out, or remove min_workers"
    )
