"""The configuration that the driver sends to every worker of a run."""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.costmodel.layout import Layout
from trainers.config.recipe import Recipe
from trainers.planning.elastic import ElasticPlanner
from trainers.tracking.run_directory import RunDirectory
from trainers.training.linear_probe import Head


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration sent to every worker.

    cache: a directory of the worker's machine. data_fingerprint: the key of the prepared dataset in
    that cache, which is absent on machines that have not trained on it. layout: over all ranks.
    token_budget: None for the recipe's or the device's. elastic: decides the layout for another
    number of ranks. write_bundle: at the end of training evaluate the test rows and write a bundle.
    head: that a new run begins with, fitted to frozen features.
    """

    recipe: Recipe
    run: RunDirectory
    cache: Path
    data_fingerprint: str
    device: str
    revision: str
    layout: Layout
    token_budget: int | None = None
    elastic: ElasticPlanner | None = None
    write_bundle: bool = True
    head: Head | None = None

    def for_world_size(self, num_workers: int) -> "WorkerConfig":
        """Return a copy with the layout for `num_workers`. Raises LayoutError if none fits."""
        # Ray restarts the group with as many workers as the cluster has now. Every rank decides the
        # layout anew from the same values (the planner carries the driver's device memory), so all
        # agree without a word. Checkpoints are stored by global tensor offsets and the sample order
        # is a function of the step, so the losses stay those of an undisturbed run.
        if self.elastic is None or self.layout.world_size == num_workers:
            return self
        plan = self.elastic.resolve_layout(self.recipe, num_workers)
        return replace(self, layout=plan.layout, token_budget=plan.token_budget)
