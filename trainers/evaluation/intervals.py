"""Figures of held-out rows with 95% intervals, and paired differences between two models.

A Bayesian bootstrap (Rubin 1981, doi 10.1214/aos/1176345338): each draw weighs every row by a
standard exponential. For few rows three things make it honest, as simulations in the tests show:

- Half a right and half a wrong row are added, Jeffreys' prior of a proportion. Without them 35
  right answers out of 35 would promise that no answer is ever wrong.
- Each label gets one more row, answered as well as those of all labels together. A macro average
  counts a label of two rows, or of none, as much as the others, though hardly anything is known of
  it.
- The percentiles widen as Student's t does (Hesterberg 2015, arXiv 1411.5279, section 5.3).

Macro averages are over the labels that are true or predicted of any row. Figures of the order of
scores get the half rows as pairs that are ranked rightly and wrongly; the ranks of Spearman's
correlation stay those of all rows.
"""

import math
from collections.abc import Sequence

import numpy as np

from trainers.config.metrics import METRICS
from trainers.evaluation.tally import Answers as Answers
from trainers.evaluation.tally import Ranking, Tally
from trainers.training import figures

Interval = tuple[float, float]

# By task, the one that a model is judged by first.
FIGURES: dict[str, tuple[str, ...]] = {
    **{str(task): names for task, names in METRICS.items()},
    "regression": ("r2", "mae", "loss", "pearson", "spearman"),
}
DRAWS, MIN_DRAWS = 1000, 250
LEVEL = 0.95
_CELLS = 1_000_000  # weights drawn at once
_ALL_CELLS = 20_000_000  # and in all: of many rows fewer draws do
_PRIOR_ROWS = 0.5  # of each kind, right and wrong
_RANKED_CELLS = 40_000_000  # rows x labels x draws that are ranked unasked, and
_RANKED_DRAWS = 100  # of the figure that is asked for at least so many


def compute_figures(answers: Answers, names: Sequence[str] | None = None) -> dict[str, float]:
    """Return each figure of the rows, as `trainers.training.metrics` computes it.

    names: of those that are wanted; default: all.
    """
    tally = Tally(answers)
    sums = tally.add_up(np.ones((1, len(answers))))
    found = {name: float(values[0]) for name, values in tally.compute_figures(sums, sums).items()}
    wanted = FIGURES[answers.task] if names is None else names
    if not found.keys() >= set(wanted):
        found |= figures.rank_figures(answers.task, answers.outputs, answers.targets)
    return {name: found[name] for name in wanted}


def bootstrap_intervals(
    answers: Answers, seed: int = 0, names: Sequence[str] | None = None
) -> dict[str, Interval]:
    """Return the 95% interval of each figure.

    names: of those that are wanted; default: all but those of the order of scores where ranking so
    many would take long.
    """
    found = _draw_figures([answers], seed, names)[0]
    return {name: find_interval(values, len(answers)) for name, values in found.items()}


def bootstrap_difference(ours: Answers, theirs: Answers, metric: str, seed: int = 0) -> Interval:
    """Return the 95% interval of `metric` of ours minus theirs, of the same rows in one order.

    Both are weighed alike in each draw, so that rows that are hard for both do not count.
    """
    one, other = _draw_figures([ours, theirs], seed, [metric])
    return find_interval(one[metric] - other[metric], len(ours))


def bootstrap_chance(ours: Answers, theirs: Answers, metric: str, seed: int = 0) -> float:
    """Return the share of draws in which `metric` of ours is higher than theirs."""
    one, other = _draw_figures([ours, theirs], seed, [metric])
    return float((one[metric] > other[metric]).mean())


def find_interval(draws: np.ndarray, rows: int, value: float | None = None) -> Interval:
    """Return the percentiles of bootstrapped `draws` that hold 95% for a sample of `rows`.

    value: of all rows, which the interval is stretched to include.
    """
    from scipy.special import ndtr, stdtrit

    freedom = max(1, rows - 1)
    tail = ndtr(math.sqrt(1 + 1 / freedom) * stdtrit(freedom, (1 - LEVEL) / 2))
    low, high = (float(bound) for bound in np.quantile(draws, [tail, 1 - tail]))
    return (low, high) if value is None else (min(low, value), max(high, value))


def _draw_figures(
    models: Sequence[Answers], seed: int, names: Sequence[str] | None = None
) -> list[dict[str, np.ndarray]]:
    """Return the figures [draws] of one model, or of two on the same draws.

    Of figures of the order of scores there may be fewer draws.
    """
    tallies, rows = [Tally(answers) for answers in models], len(models[0])
    wanted = FIGURES[models[0].task] if names is None else names
    draw, found = np.random.default_rng(seed), [list[dict[str, np.ndarray]]() for _ in models]
    draws = min(DRAWS, max(MIN_DRAWS, _ALL_CELLS // max(1, rows)))
    num_ranked = _count_ranked_draws(models[0], draws, wanted, is_asked=names is not None)
    rankings = [Ranking(answers) if num_ranked else None for answers in models]
    per_turn = max(1, min(draws, _CELLS // max(1, rows, 3 * models[0].outputs.shape[1])))
    for start in range(0, draws, per_turn):
        count = min(per_turn, draws - start)
        weights = draw.standard_exponential((count, rows))
        prior = draw.standard_gamma(_PRIOR_ROWS, (2, count, 1))
        for place, tally in enumerate(tallies):
            # Where one model has the row right, the other has it wrong: that they agree is for
            # the data to say.
            right, wrong = prior if place == 0 else prior[::-1]
            sums = tally.add_up(weights, right, wrong)
            turn = tally.compute_figures(sums, tally.add_label_rows(sums, draw))
            ranking = rankings[place]
            if ranking is not None and start < num_ranked:
                turn |= ranking.compute_figures(weights, right, wrong)
            found[place].append({name: turn[name] for name in wanted if name in turn})
    return [
        {name: np.concatenate([turn[name] for turn in turns if name in turn]) for name in turns[0]}
        for turns in found
    ]


def _count_ranked_draws(answers: Answers, draws: int, wanted: Sequence[str], is_asked: bool) -> int:
    """Return in how many draws scores are ranked: fewer of many rows, none of very many unasked."""
    if answers.task == "regression" or not set(wanted) & set(figures.RANKED):
        return 0
    affordable = _RANKED_CELLS // max(1, answers.outputs.size)
    if affordable < _RANKED_DRAWS:
        return min(draws, _RANKED_DRAWS) if is_asked else 0
    return min(draws, affordable)
