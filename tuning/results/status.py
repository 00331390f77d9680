"""How far a search has come and what it has cost, in words for a page. Writes nothing."""

import time
from collections import Counter

from trainers.tracking.progress import duration
from tuning.algorithms import pbt
from tuning.algorithms.trial import Trial, completed, searched
from tuning.space.space import words
from tuning.store.budget import Budget
from tuning.store.config import Plan
from tuning.store.reader import RESULT, Snapshot


def status(snapshot: Snapshot, now: float | None = None) -> dict[str, str]:
    """A line for each thing that a person wants to know, by what it is about.

    now: seconds since 1970.
    """
    own = searched(snapshot.trials)
    repetitions = len(snapshot.trials) - len(own)
    told = {
        "state": _state(snapshot, time.time() if now is None else now),
        "trials": f"{len(own)} of {_asked(snapshot.plan)}: {_counted(own)}",
        "spent": str(snapshot.spent),
        "work": f"as many tokens as {_whole_runs(snapshot):.1f} whole runs",
    }
    if repetitions:
        told["other seeds"] = f"{repetitions} runs: {_counted(snapshot.trials[len(own) :])}"
    if snapshot.plan.budget is not None:
        most = Budget.parse(snapshot.plan.budget, snapshot.cluster)
        left = max(0.0, most.seconds - snapshot.held_seconds)
        told["budget"] = f"{snapshot.plan.budget}; {duration(left)} of holding the cluster are left"
    best = _best(snapshot)
    if best is not None:
        told["best so far"] = best
    if snapshot.next_improvement is not None:
        told["an even chance of better"] = f"expected to cost {snapshot.next_improvement} more"
    return told


def _state(snapshot: Snapshot, now: float) -> str:
    if (snapshot.run / RESULT).is_file():
        return f"ended; see {snapshot.run.resolve() / 'report.html'}"
    if not snapshot.heard:
        return "begun"
    return f"newest decision {duration(max(0.0, now - snapshot.heard))} ago"


def _asked(plan: Plan) -> int:
    """Trials of a whole search; of a population, one a member and round."""
    rounds = pbt.ROUNDS if plan.sampler == "pbt" else 1
    return 1 + (plan.trials - 1) * rounds


def _counted(trials: list[Trial] | tuple[Trial, ...]) -> str:
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _whole_runs(snapshot: Snapshot) -> float:
    return sum(trial.tokens for trial in snapshot.trials) / snapshot.total_tokens


def _best(snapshot: Snapshot) -> str | None:
    """The completed trial with the best score, before other seeds have confirmed it."""
    ended = completed(snapshot.trials)
    if not ended or ended[0].score is None:
        return None
    best = ended[0]
    value = f"{snapshot.metric} {snapshot.shown(ended[0].score):.4f}"
    return f"trial {best.number}, {value} on the validation rows: {words(best.point)}"
