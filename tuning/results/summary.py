"""The outcome of a search in words."""

from typing import Any

from cluster.spec import ClusterSpec
from trainers.tracking.progress import duration
from tuning.algorithms.pareto import Variant, front
from tuning.space.space import words
from tuning.store.budget import Spend


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
    return [*said, *_cost(result, cluster), *_deployed(result), f"bundle: {result['bundle']}"]


def _deployed(result: dict[str, Any]) -> list[str]:
    """The engines on the front, and where the winner is registered."""
    sign = -1 if result["lower_is_better"] else 1
    variants = [Variant(**each) for each in result.get("variants", ())]
    said = [
        f"on the front: trial {each.trial} by {each.engine}, {result['metric']} {each.metric:.4f}, "
        f"p95 {1000 * each.p95_seconds:.0f} ms, {each.price()} a million predictions"
        for each in front(variants, sign)
    ]
    if result.get("registered"):
        name = result["registered"].partition(":")[0]
        said.append(
            f"registered as {result['registered']}: python -m serving deploy {name}@best makes it "
            "the one that answers"
        )
    return said


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
