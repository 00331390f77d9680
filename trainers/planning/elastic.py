"""Choose the layout anew when an elastic run has gained or lost workers.

Global batch, schedule and sample order do not depend on the number of workers, so they stay as they
were. Only the layout is resolved again, by the same arithmetic as at the start; each rank of the
new group cuts the same global batches into its own share, and reads its part of the checkpoint.
"""

from dataclasses import dataclass, replace

from cluster.costmodel.layout import Layout, LayoutError, check_layout
from cluster.costmodel.model_shape import ModelShape
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.planning.layout import ResolvedLayout, resolve_layout


@dataclass(frozen=True)
class ElasticPlanner:
    """Resolves layouts for any number of workers, from the model's sizes and the cluster."""

    shape: ModelShape
    cluster: ClusterSpec

    @classmethod
    def from_cluster(cls, shape: ModelShape, cluster: ClusterSpec) -> "ElasticPlanner":
        """Freeze the device memory that this process sees.

        Workers resolve the layout independently, and machines may differ by a few megabytes: one
        figure for all of them keeps every rank at the same layout.
        """
        memory = cluster.device_memory_bytes
        update = {"device_memory_gib": None if memory is None else memory / 2**30}
        metadata = cluster.metadata.model_copy(update=update)
        return cls(shape, replace(cluster, metadata=metadata))

    def resolve_layout(self, recipe: Recipe, num_workers: int) -> ResolvedLayout:
        """Resolve the layout of `recipe` on `num_workers`. Raises LayoutError if none fits."""
        return resolve_layout(recipe, self.shape, self.cluster.with_workers(num_workers))

    def validate_sizes(self, recipe: Recipe) -> None:
        """Raise LayoutError if Ray may start a number of workers that the layout cannot use.

        An explicit layout is checked with every number. `auto` finds a layout for nearly all, so it
        is checked with the smallest, which has the least memory.
        """
        counts, layout = self.cluster.worker_counts, recipe.layout
        if not isinstance(layout, Layout):
            self.resolve_layout(recipe, counts[0])
            return
        per_node = max(1, self.cluster.metadata.devices_per_node)
        errors = {}
        for count in counts:
            try:
                check_layout(layout, self.shape, count, per_node, recipe.global_batch_size)
            except LayoutError as error:
                errors[count] = error
        if counts[-1] in errors:
            raise errors[counts[-1]]
        if errors:
            usable = ", ".join(str(count) for count in counts if count not in errors)
            raise LayoutError(
                f"metadata.min_workers = {counts[0]}: the run may have any number of workers from "
                f"{counts[0]} to {counts[-1]}, but of those layout ({layout}) is possible with "
                f"{usable}; set layout: auto, which suits any number, leave dp_replicate out, or "
                "remove min_workers"
            )
