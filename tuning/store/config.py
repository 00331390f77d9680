"""What a search was asked for, frozen: from it and the journal a search goes on.

`RUN/plan.yaml`. Knows no torch and no Ray.
"""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from cluster.settings import Settings, SettingsError, read_yaml, validated
from trainers.config.recipe import Recipe
from trainers.storage.atomic import write_file
from tuning.algorithms.sampler import Sampler
from tuning.algorithms.scheduler import Scheduler

PLAN = "plan.yaml"


class Plan(Settings):
    """Everything that decides what a search tries."""

    recipe: Recipe = Field(description="the recipe as it stands: trial 0")
    ranges: dict[str, Any] | None = Field(
        None, description="its `tune:`; null: learning rate and batch size by model size"
    )
    cluster: str = Field(description="the cluster file")
    trials: Annotated[int, Field(ge=1)] = Field(
        16, description="of the search, the recipe's own among them; repetitions come on top"
    )
    sampler: Sampler = Field("gp", description="which settings are tried next")
    scheduler: Scheduler = Field("asha", description="which trials are stopped early")
    seeds: Annotated[int, Field(ge=1)] = Field(
        3, description="with which the best trials and the recipe's own are trained in all"
    )
    budget: str | None = Field(None, description="the most that it may cost: 2h, 50USD or 3kWh")
    scaling_rule: bool = Field(
        True, description="whether learning rate and batch size are searched together"
    )
    deployment: bool = Field(
        False,
        description="whether the best of each model is measured on every engine, for the front of "
        "metric, p95 latency and price; trials then compete within their model alone",
    )
    register_as: str | None = Field(
        None, description="the name that the winner is registered under"
    )
    registry: str = Field("registry", description="the directory or URL where that is done")

    def save(self, run: Path) -> None:
        """Write it into the directory of the search."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_file(run / PLAN, text)


def load(run: Path, called: str = "") -> Plan:
    """The plan of the search in `run`, which its user calls `called`. Raises SettingsError."""
    if not (run / PLAN).is_file():
        raise SettingsError(f"{called or run}: holds no search ({PLAN} is not there)")
    return validated(Plan, read_yaml(run / PLAN), str(run / PLAN))
