"""The outcome of a search in words."""

from typing import Any

from cluster.spec import ClusterSpec
from trainers.progress import duration
from tuning.budget import Spend
from tuning.space import words


def lines(result: dict[str, Any], cluster: ClusterSpec) -> list[str]:
    """A few lines for a person: who won, by how much, what it cost, and what more would."""
    metric, winner = result["metric"], result["winner"]
    said = [result["verdict"]]
    for standing in result["standings"]:
        number = standing["trial"]
        spread = "" if standing["spread"] is None else f" ± {standing['spread']:.4f}"
        test = result["test"].get(str(number), {}).get(metric)
        tested = "" if test is None else f"  test {test:.4f}"
        seeds = len(standing["by_seed"])
        settings = next(t["settings"] for t in result["trials"] if t["number"] == number)
        mark = "*" if number == winner else " "
        said.append(
            f"{mark} trial {number:<3} {metric} {standing['mean']:.4f}{spread} ({seeds} seed(s))"
            f"{tested}  {words(settings)}"
        )
    return [*said, *_cost(result, cluster), f"bundle: {result['bundle']}"]


def _cost(result: dict[str, Any], cluster: ClusterSpec) -> list[str]:
    spend = result["spend"]
    paid = Spend.of(spend["seconds"], cluster)
    more = Spend.of(spend["even_chance_of_better"]["seconds"], cluster)
    runs = spend["tokens"] / spend["whole_run_tokens"]
    states = [trial["state"] for trial in result["trials"]]
    said = [
        f"spent {paid}: {len(states)} trials, {states.count('stopped')} stopped early, as many "
        f"tokens as {runs:.1f} whole runs",
        f"an even chance of something better is expected to cost {more} more",
    ]
    if spend["tune_overhead"] is not None:
        said.append(
            f"placing trials took {spend['tune_overhead']:.1%} of their own time "
            f"({duration(spend['trial_seconds'])})"
        )
    return said
