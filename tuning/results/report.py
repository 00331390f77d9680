"""What a search came to, for people: `RUN/report.html`, which needs nothing else, and
`RUN/report.md`.

Written when a search ends, and again by `python -m tuning report RUN`, from result.json and the
journal alone. Knows no Ray and trains nothing.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from trainers.storage.directory import Directory
from trainers.tracking.progress import duration
from tuning.algorithms.pareto import Variant, front
from tuning.results import figures, render
from tuning.results.importance import FEWEST, importances
from tuning.results.importance import words as share_words
from tuning.results.render import Section
from tuning.space.space import words
from tuning.store import reader
from tuning.store.budget import Spend
from tuning.store.lease import at_hand
from tuning.store.reader import RESULT, JournalError, Snapshot

Result = dict[str, Any]
HTML, MARKDOWN = "report.html", "report.md"


def main(arguments: list[str]) -> int:
    """The command `report`. Raises BerthaError."""
    parser = argparse.ArgumentParser(prog="python -m tuning report", description="of a search")
    parser.add_argument("run", help="a search that has ended: its directory, or s3://...")
    with at_hand(parser.parse_args(arguments).run) as run:
        for name in write(run):
            print(f"report: {run.address}/{name}")
    return 0


def write(run: Directory) -> tuple[str, str]:
    """Write both files; their names. Raises JournalError where the search has not ended."""
    where = run.address
    if not (run.path / RESULT).is_file():
        raise JournalError(
            f"{where}: holds no {RESULT}, which a search leaves when it ends; go on with it "
            f"(python -m tuning resume {where}), or look at it as it is (python -m tuning "
            f"dashboard {where})"
        )
    result: Result = json.loads((run.path / RESULT).read_text(encoding="utf-8"))
    snapshot = reader.read(run.path)
    parts = list(sections(result, snapshot))
    title = f"Search {run.path.resolve().name}"
    run.leave(HTML, render.html(title, parts))
    run.leave(MARKDOWN, render.markdown(title, parts))
    return HTML, MARKDOWN


def sections(result: Result, snapshot: Snapshot) -> Iterator[Section]:
    """The report, part by part."""
    yield _winner(result)
    yield _repeat(result)
    yield _importance(snapshot)
    yield Section(
        "Learning curves",
        ("Each trial by its number; dotted: trained again with another seed.",),
        figure=figures.curves(snapshot, result["winner"]),
    )
    heat = figures.heat(snapshot)
    if heat is not None:
        told = "The best of each cell; trials that were stopped count where they are expected to "
        yield Section("Learning rate and batch size", (f"{told}end.",), figure=heat)
    if result.get("variants"):
        yield _deployment(result)
    yield _cost(result, snapshot)
    yield _trials(result)


def _winner(result: Result) -> Section:
    """Who won, by how much, and how sure that is."""
    metric, winner = result["metric"], result["winner"]
    verdict = result["verdict"]
    shown = "the best of each model" if result.get("variants") else "the winner"
    told = (
        f"{verdict[0].upper()}{verdict[1:]}.",
        "Validation: the mean over seeds that nobody chose, ± their standard deviation. Test: rows "
        f"that were shown to {shown} and the recipe's own settings alone, once.",
    )
    rows = [("trial", "settings", "seeds", f"validation {metric}", f"test {metric}")]
    for standing in result["standings"]:
        number = standing["trial"]
        spread = "" if standing["spread"] is None else f" ± {standing['spread']:.4f}"
        test = result["test"].get(str(number), {}).get(metric)
        rows.append(
            (
                f"{number}{' (winner)' if number == winner else ''}",
                words(_settings(result, number)),
                str(len(standing["by_seed"])),
                f"{standing['mean']:.4f}{spread}",
                "" if test is None else f"{test:.4f}",
            )
        )
    return Section("The winner", told, tuple(rows))


def _repeat(result: Result) -> Section:
    """The command that trains the winner again, and where its bundle is."""
    told = [f"The bundle: {result['bundle']}"]
    if result.get("registered"):
        told.append(f"Registered as {result['registered']}, and called best.")
    if len(result["lineage"]) > 1:
        steps = (
            f"from token {each['from_tokens']:,} {words(each['settings'])}"
            for each in result["lineage"]
        )
        told.append(
            "Its settings changed while it trained, which no one command repeats: "
            + "; ".join(steps)
            + ". The command trains the last of them alone."
        )
    return Section("Repeat it", tuple(told), code=result["repeat"])


def _importance(snapshot: Snapshot) -> Section:
    found = importances(snapshot)
    if not found:
        return Section("What mattered", (f"Fewer than {FEWEST} trials say nothing of that.",))
    told = (
        "How much rarer the values of the best trials are than those of all (PED-ANOVA), of all "
        "settings together 1. In brackets and as lines: where nine in ten of the shares lie when "
        "trials are drawn again; wide ones mean that more trials are needed to tell."
    )
    rows = [("setting", "share"), *((each.key, share_words(each)) for each in found)]
    return Section("What mattered", (told,), tuple(rows), figure=figures.importance(found))


def _deployment(result: Result) -> Section:
    """The variants, those on the front marked."""
    variants = [Variant(**each) for each in result["variants"]]
    sign = -1 if result["lower_is_better"] else 1
    best = front(variants, sign)
    told = (
        "Engines of the best trial of each model, measured on this machine by `python -m serving "
        "build`, on all held-out rows. p95: two batches of texts as long as the model reads. "
        "Marked: the Pareto front, which no other beats in one thing without losing in another."
    )
    head = ("", "trial", "engine", result["metric"], "p95", "CPU-seconds / million", "$ / million")
    rows = [head, *(_variant(each, each in best) for each in variants)]
    figure = figures.pareto(variants, result["metric"], sign)
    return Section("For deployment", (told,), tuple(rows), figure=figure)


def _variant(variant: Variant, on_front: bool) -> tuple[str, ...]:
    return (
        "*" if on_front else "",
        str(variant.trial),
        variant.engine + (f" ({variant.refused})" if variant.refused else ""),
        f"{variant.metric:.4f}",
        f"{1000 * variant.p95_seconds:.1f} ms",
        f"{variant.cpu_seconds:,.0f}",
        "" if variant.usd is None else f"{variant.usd:,.4f}",
    )


def _cost(result: Result, snapshot: Snapshot) -> Section:
    """What it cost, and what more is expected to."""
    spend = result["spend"]
    more = Spend.of(spend["even_chance_of_better"]["seconds"], snapshot.cluster)
    states = [trial["state"] for trial in result["trials"]]
    rows = [
        ("what", "how much"),
        ("the cluster was held", str(Spend.of(spend["seconds"], snapshot.cluster))),
        ("trials", f"{len(states)}, {states.count('stopped')} of them stopped early"),
        ("trained and evaluated", duration(spend["trial_seconds"])),
        ("tokens", f"{spend['tokens']:,}: {spend['tokens'] / spend['whole_run_tokens']:.1f} runs"),
        ("an even chance of something better", f"expected to cost {more} more"),
    ]
    if spend["tune_overhead"] is not None:
        share = f"{spend['tune_overhead']:.1%} of the trials' own time"
        rows.insert(4, ("placing trials", share))
    return Section("Cost", (), tuple(rows))


def _trials(result: Result) -> Section:
    """All of them, and why those that did not end did not."""
    rows = [("trial", "settings", "seed", "state", result["metric"], "tokens", "why")]
    for trial in result["trials"]:
        again = trial["repeats"]
        rows.append(
            (
                str(trial["number"]),
                words(trial["settings"]) if again is None else f"repeats trial {again}",
                str(trial["seed"]),
                trial["state"],
                "" if trial["best"] is None else f"{trial['best']:.4f}",
                f"{trial['tokens']:,}",
                _why(trial, result),
            )
        )
    return Section("Trials", (), tuple(rows))


def _why(trial: Result, result: Result) -> str:
    """Why a trial did not come to its end."""
    if trial["reason"] or trial["state"] != "stopped":
        return str(trial["reason"])
    if result["sampler"] == "pbt":
        return "its round ended"
    share = trial["tokens"] / result["spend"]["whole_run_tokens"]
    return f"{result['scheduler']}: behind others at {share:.0%}"


def _settings(result: Result, number: int) -> dict[str, Any]:
    return dict(next(t["settings"] for t in result["trials"] if t["number"] == number))
