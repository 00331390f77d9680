"""The configuration of a search, `RUN/plan.yaml`: with the journal, all that resuming needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.settings import Settings, SettingsError, did_you_mean, read_yaml, validate_settings
from cluster.yaml_schema import dump_yaml
from trainers.config import recipe as recipes
from trainers.config.metrics import lower_is_better
from trainers.config.recipe import Recipe
from trainers.storage.atomic import replace_file
from tuning.algorithms.sampler import Sampler
from tuning.algorithms.scheduler import Scheduler

PLAN = "plan.yaml"


class SearchConfig(Settings):
    """Everything that decides what a search tries."""

    recipe: Recipe = Field(description="the recipe as it stands: trial 0")
    ranges: dict[str, Any] | None = Field(
        None, description="its `tune:`; null: learning rate and batch size by model size"
    )
    cluster: str = Field(description="the cluster file")
    trials: Annotated[int, Field(ge=1)] = Field(
        16, description="of the search, the recipe's own among them; repeats come on top"
    )
    has_more_trials: bool = Field(
        False, description="whether trials were added since, so that some follow the first repeats"
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
    register_as: str | None = Field(None, description="the name that the winner is registered as")
    registry: str = Field("registry", description="the directory or URL of the registry")

    @property
    def sign(self) -> int:
        """1 if a higher metric is better, -1 if a lower one is: score = sign * metric."""
        return -1 if lower_is_better(self.recipe.metric) else 1

    @property
    def population_size(self) -> int:
        """Members of the population of `pbt`, of which trial 0 is none; 0 for other samplers."""
        return self.trials - 1 if self.sampler == "pbt" else 0

    def with_trials(self, trials: int) -> "SearchConfig":
        """Return the same search with so many trials. Raises SettingsError for fewer than before.

        The members of a population are bred from those before them, so their number stands.
        """
        if trials == self.trials:
            return self
        if trials < self.trials:
            raise SettingsError(
                f"--trials {trials}: the search has {self.trials}; a search can only grow: give "
                f"{self.trials} or more"
            )
        if self.sampler == "pbt":
            raise SettingsError(
                f"--trials {trials}: the population of --sampler pbt keeps its {self.trials - 1} "
                "members; begin another search with --run"
            )
        return self.model_copy(update={"trials": trials, "has_more_trials": True})

    def save(self, run: Path) -> None:
        """Write it into the directory of the search."""
        replace_file(run / PLAN, dump_yaml(self.model_dump(mode="json")))


def build_search_config(recipe: str, overrides: Sequence[str], **fields: Any) -> SearchConfig:
    """Return the configuration of a search of `recipe`, a file or a shipped name.

    fields: of SearchConfig, but for the recipe and its ranges. Validated as far as that needs no
    data; raises SettingsError.
    """
    settings, origin = recipes.read_settings(recipe, overrides)
    ranges = settings.pop(recipes.SEARCH_KEY, None)
    parsed = recipes.parse_recipe(settings, origin).with_absolute_paths()
    given = {"recipe": parsed.model_dump(mode="json"), "ranges": ranges, **fields}
    given["cluster"] = resolve_cluster(given.get("cluster", "local.yaml"))
    registry = given.get("registry", "registry")
    given["registry"] = registry if "://" in registry else str(Path(registry).resolve())
    return validate_settings(SearchConfig, given, "search")


def resolve_cluster(name: str) -> str:
    """Return the absolute path of a cluster file, or the name of a shipped one."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def load_search_config(run: Path, address: str = "") -> SearchConfig:
    """Load the configuration of the search in `run`, known to its user as `address`.

    Raises SettingsError if there is none, or it is invalid.
    """
    if not (run / PLAN).is_file():
        near = (
            [] if "://" in address else [path.parent.name for path in run.parent.glob(f"*/{PLAN}")]
        )
        meant = did_you_mean(run.name, near)
        raise SettingsError(f"{address or run}: holds no search ({PLAN} is not there){meant}")
    return validate_settings(SearchConfig, read_yaml(run / PLAN), str(run / PLAN))
