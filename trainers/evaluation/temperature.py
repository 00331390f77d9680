"""Temperature scaling: one number that divides all logits, so that probabilities can be believed.

Guo et al. 2017, arXiv 1706.04599, section 4.2. Fitted to the loss of validation rows, and kept only
where held-out folds are better with it beyond chance; the likeliest class stays the likeliest.
"""

import numpy as np

from trainers.data.splits import spread_indices
from trainers.evaluation.tally import Answers

LEAST_ROWS = 50  # of validation
LEAST_CHANCE = 0.99  # that probabilities are better for it
LEAST_GAIN = 0.01  # of the loss
LOWEST, HIGHEST = 0.1, 10.0
FOLDS = 5
DRAWS = 1_000
_MAX_LOGITS = 1_000_000  # one number needs no more
_MAX_WEIGHTS = 20_000_000  # drawn


def fit_temperature(answers: Answers) -> float:
    """Return what the logits are best divided by; 1.0 where that is not better beyond chance.

    answers: of validation rows. Tasks without probabilities have 1.0.
    """
    if answers.task not in ("classification", "multi-label") or len(answers) < LEAST_ROWS:
        return 1.0
    width = answers.outputs.shape[1]
    rows = spread_indices(len(answers), max(LEAST_ROWS, _MAX_LOGITS // width))
    logits, targets = answers.outputs[rows].astype(np.float64), answers.targets[rows]
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    gains = np.empty(len(rows))
    for number in range(FOLDS):
        own, others = fold == number, fold != number
        fitted = _minimize_loss(answers.task, logits[others], targets[others])
        plain, scaled = (
            Answers(answers.task, logits[own] / by, targets[own]).losses for by in (1.0, fitted)
        )
        gains[own] = plain - scaled
    loss = Answers(answers.task, logits, targets).losses.mean()
    if gains.mean() < LEAST_GAIN * loss or _chance_of_gain(gains) < LEAST_CHANCE:
        return 1.0
    return float(f"{_minimize_loss(answers.task, logits, targets):.4g}")


def _minimize_loss(task: str, logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature of the lowest loss of smoothed targets.

    Unsmoothed, rows that are all answered rightly would ask for probabilities of 1 (Platt 1999).
    """
    from scipy.optimize import minimize_scalar

    width = logits.shape[1]
    share = 1 / (len(logits) + 2)
    if task == "multi-label":
        wanted = (targets > 0.5) * (1 - 2 * share) + share
    else:
        wanted = np.full(logits.shape, share / width)
        wanted[np.arange(len(logits)), targets] += 1 - share

    def compute_loss(exponent: float) -> float:
        scaled = logits * np.exp(-exponent)
        if task == "multi-label":
            return float((np.logaddexp(0, scaled) - scaled * wanted).mean())
        highest = scaled.max(axis=1)
        total = np.log(np.exp(scaled - highest[:, None]).sum(axis=1)) + highest
        return float((total - (scaled * wanted).sum(axis=1)).mean())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(compute_loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def _chance_of_gain(gains: np.ndarray) -> float:
    """Return the share of Bayesian bootstrap draws of which the mean of `gains` [n] is positive."""
    draw, positive = np.random.default_rng(0), 0
    draws = min(DRAWS, max(100, _MAX_WEIGHTS // len(gains)))
    for _ in range(draws):
        positive += float(draw.standard_exponential(len(gains)) @ gains) > 0
    return positive / draws
