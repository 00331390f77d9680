"""The report of a search: `RUN/report.html`, which needs no other file, and `RUN/report.md`.

Written when a search ends, and again by `bertha tune report RUN`, from result.json and the
journal alone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.spec import ClusterSpec
from trainers.storage.directory import SyncedDirectory
from trainers.tracking.progress import format_duration
from tuning.algorithms.pareto import DeploymentOption, pareto_front
from tuning.results import figures, render
from tuning.results.importance import MIN_TRIALS, compute_importances
from tuning.results.render import Section
from tuning.space.space import format_point
from tuning.store import reader
from tuning.store.budget import Spend, is_perfect
from tuning.store.reader import RESULT, JournalError, SearchSnapshot

Result = dict[str, Any]  # of result.json
HTML, MARKDOWN = "report.html", "report.md"
HEAT_MAP_TEXT = (
    "The best trial of each cell, with what it reached itself. Its colour is where it ended or, if "
    "it was stopped, where it is expected to end."
)


def write_report(run: SyncedDirectory) -> tuple[str, str]:
    """Write both files; return their names. Raises JournalError if the search has not ended."""
    where = run.address
    result = reader.read_result(run.path)
    if result is None:
        raise JournalError(
            f"{where}: holds no {RESULT} that is whole, which a search leaves when it ends; go on "
            f"with it (bertha tune resume {where}), or look at it as it is (bertha tune "
            f"dashboard {where})"
        )
    sections = list(build_sections(result, reader.read_snapshot(run.path)))
    title = f"Search {run.path.resolve().name}"
    run.write_shared(HTML, render.render_html(title, sections))
    run.write_shared(MARKDOWN, render.render_markdown(title, sections))
    return HTML, MARKDOWN


def summary_lines(result: Result, cluster: ClusterSpec) -> Iterator[str]:
    """Yield a few lines for the terminal: who won, by how much, and what it cost."""
    yield result["verdict"]
    for row in _finalist_rows(result):
        mark = "*" if row.number == result["winner"] else " "
        test = f"  test {row.test}" if row.test else ""
        yield (
            f"{mark} trial {row.number:<3} {result['metric']} {row.validation} "
            f"({row.num_seeds} seed(s)){test}  {row.settings}"
        )
    spend, states = result["spend"], [trial["state"] for trial in result["trials"]]
    yield (
        f"spent {Spend.for_seconds(spend['seconds'], cluster)}: {len(states)} trials, "
        f"{states.count('stopped')} stopped early, as many tokens as {_whole_runs(result)} "
        "whole runs"
    )
    yield f"an even chance of something better: {_next_improvement(result)}"
    if spend["tune_overhead"] is not None:
        yield f"placing trials took {spend['tune_overhead']:.1%} of their own time"
    for option in _split_options(result)[1]:
        yield (
            f"on the front: trial {option.trial} by {option.engine}, {result['metric']} "
            f"{option.metric:.4f}, p95 {1000 * option.p95_seconds:.0f} ms, {option.price_text} "
            "a million predictions"
        )
    if result.get("registered"):
        name = result["registered"].partition(":")[0]
        yield (
            f"registered as {result['registered']}: bertha deploy {name}@best makes it "
            "the one that answers"
        )
    yield f"bundle: {result['bundle']}"


def build_sections(result: Result, snapshot: SearchSnapshot) -> Iterator[Section]:
    """Yield the sections of the report."""
    yield _winner_section(result)
    yield _repeat_section(result)
    yield _importance_section(snapshot)
    yield Section(
        "Learning curves",
        ("Each trial by its number; dotted: trained again with another seed.",),
        figure=figures.plot_curves(snapshot, result["winner"]),
    )
    heat_map = figures.plot_heat_map(snapshot)
    if heat_map is not None:
        yield Section("Learning rate and batch size", (HEAT_MAP_TEXT,), figure=heat_map)
    if result.get("variants"):
        yield _deployment_section(result)
    yield _cost_section(result, snapshot)
    yield _trials_section(result)


class _FinalistRow(NamedTuple):
    number: int
    settings: str
    num_seeds: int
    validation: str  # mean ± standard deviation
    test: str  # "" where it was not tested


def _finalist_rows(result: Result) -> Iterator[_FinalistRow]:
    for standing in result["standings"]:
        number = standing["trial"]
        spread = "" if standing["spread"] is None else f" ± {standing['spread']:.4f}"
        test = result["test"].get(str(number), {}).get(result["metric"])
        yield _FinalistRow(
            number,
            format_point(next(t["settings"] for t in result["trials"] if t["number"] == number)),
            len(standing["by_seed"]),
            f"{standing['mean']:.4f}{spread}",
            "" if test is None else f"{test:.4f}",
        )


def _winner_section(result: Result) -> Section:
    metric, verdict = result["metric"], result["verdict"]
    shown = "the best of each model" if result.get("variants") else "the winner"
    text = (
        f"{verdict[0].upper()}{verdict[1:]}.",
        "Validation: the mean over seeds that nobody chose, ± their standard deviation. Test: rows "
        f"that were shown to {shown} and the recipe's own settings alone, once.",
    )
    rows = [("trial", "settings", "seeds", f"validation {metric}", f"test {metric}")]
    for row in _finalist_rows(result):
        number = f"{row.number}{' (winner)' if row.number == result['winner'] else ''}"
        rows.append((number, row.settings, str(row.num_seeds), row.validation, row.test))
    return Section("The winner", text, tuple(rows))


def _repeat_section(result: Result) -> Section:
    """Build the section with the winner's bundle and the command that trains it again."""
    text = [f"The bundle: {result['bundle']}"]
    if result.get("registered"):
        text.append(f"Registered as {result['registered']}, and called best.")
    if len(result["lineage"]) > 1:
        steps = (
            f"from token {each['from_tokens']:,} {format_point(each['settings'])}"
            for each in result["lineage"]
        )
        text.append(
            "Its settings changed while it trained, which no one command repeats: "
            + "; ".join(steps)
            + ". The command trains the last of them alone."
        )
    return Section("Repeat it", tuple(text), code=result["repeat"])


def _importance_section(snapshot: SearchSnapshot) -> Section:
    importances = compute_importances(snapshot)
    if not importances:
        return Section("What mattered", (f"Fewer than {MIN_TRIALS} trials say nothing of that.",))
    text = (
        "How much rarer the values of the best trials are than those of all (PED-ANOVA), of all "
        "settings together 1. In brackets and as lines: where nine in ten of the shares lie when "
        "trials are drawn again; wide ones mean that more trials are needed to tell."
    )
    rows = [("setting", "share"), *((each.key, str(each)) for each in importances)]
    figure = figures.plot_importances(importances)
    return Section("What mattered", (text,), tuple(rows), figure=figure)


def _split_options(result: Result) -> tuple[list[DeploymentOption], list[DeploymentOption], int]:
    """Return all deployment options, those on the Pareto front, and the sign of the metric."""
    options = [DeploymentOption(**each) for each in result.get("variants", ())]
    sign = -1 if result["lower_is_better"] else 1
    return options, pareto_front(options, sign), sign


def _deployment_section(result: Result) -> Section:
    options, front, sign = _split_options(result)
    text = (
        "Engines of the best trial of each model, measured on this machine by `bertha "
        "build`, on all held-out rows. p95: two batches of texts as long as the model reads. "
        "Marked: the Pareto front, which no other beats in one thing without losing in another."
    )
    rows = [
        ("", "trial", "engine", result["metric"], "p95", "CPU-seconds / million", "$ / million")
    ]
    for option in options:
        rows.append(
            (
                "*" if option in front else "",
                str(option.trial),
                option.engine + (f" ({option.refused})" if option.refused else ""),
                f"{option.metric:.4f}",
                f"{1000 * option.p95_seconds:.1f} ms",
                f"{option.cpu_seconds:,.0f}",
                "" if option.usd is None else f"{option.usd:,.4f}",
            )
        )
    figure = figures.plot_pareto_front(options, result["metric"], sign)
    return Section("For deployment", (text,), tuple(rows), figure=figure)


def _cost_section(result: Result, snapshot: SearchSnapshot) -> Section:
    spend = result["spend"]
    states = [trial["state"] for trial in result["trials"]]
    rows = [
        ("what", "how much"),
        ("the cluster was held", str(Spend.for_seconds(spend["seconds"], snapshot.cluster))),
        ("trials", f"{len(states)}, {states.count('stopped')} of them stopped early"),
        ("trained and evaluated", format_duration(spend["trial_seconds"])),
        ("tokens", f"{spend['tokens']:,}: {_whole_runs(result)} runs"),
        ("an even chance of something better", _next_improvement(result)),
    ]
    if spend["tune_overhead"] is not None:
        share = f"{spend['tune_overhead']:.1%} of the trials' own time"
        rows.insert(4, ("placing trials", share))
    return Section("Cost", (), tuple(rows))


def _trials_section(result: Result) -> Section:
    rows = [("trial", "settings", "seed", "state", result["metric"], "tokens", "why")]
    for trial in result["trials"]:
        repeated = trial["repeats"]
        settings = format_point(trial["settings"])
        rows.append(
            (
                str(trial["number"]),
                settings if repeated is None else f"repeats trial {repeated}",
                str(trial["seed"]),
                trial["state"],
                "" if trial["best"] is None else f"{trial['best']:.4f}",
                f"{trial['tokens']:,}",
                _stop_reason(trial, result),
            )
        )
    return Section("Trials", (), tuple(rows))


def _stop_reason(trial: Result, result: Result) -> str:
    if trial["reason"] or trial["state"] != "stopped":
        return str(trial["reason"])
    if result["sampler"] == "pbt":
        return "its round ended"
    share = trial["tokens"] / result["spend"]["whole_run_tokens"]
    return f"{result['scheduler']}: behind others at {share:.0%}"


def _next_improvement(result: Result) -> str:
    """Say what an even chance of a better trial costs: in trials, for their cost is said once."""
    metric, winner = result["metric"], result["winner"]
    mean = next(each["mean"] for each in result["standings"] if each["trial"] == winner)
    if is_perfect(metric, mean):
        return f"there is none, {metric} is {mean:.4f}"
    own = sum(trial["repeats"] is None for trial in result["trials"])
    return f"expected after as many trials again, {own}, for as much again"


def _whole_runs(result: Result) -> str:
    return f"{result['spend']['tokens'] / result['spend']['whole_run_tokens']:.1f}"
