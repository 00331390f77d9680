"""The tasks, and the figures of each that may choose the best weights."""

from typing import Literal

Task = Literal["classification", "multi-label", "regression", "masked-lm"]
Metric = Literal[
    "f1", "accuracy", "precision", "recall", "loss", "f1_micro", "f1_weighted", "mcc", "kappa",
    "auroc", "average_precision", "mae", "r2", "pearson", "spearman", "perplexity",
]  # fmt: skip

# The first of each is the default.
METRICS: dict[Task, tuple[str, ...]] = {
    "classification": (
        *("f1", "accuracy", "precision", "recall", "loss", "f1_micro", "f1_weighted"),
        *("mcc", "kappa", "auroc", "average_precision"),
    ),
    "multi-label": (
        *("f1", "accuracy", "precision", "recall", "loss", "f1_micro", "f1_weighted"),
        *("auroc", "average_precision"),
    ),
    "regression": ("loss", "mae", "r2", "pearson", "spearman"),
    "masked-lm": ("loss", "accuracy", "perplexity"),
}


def lower_is_better(metric: str) -> bool:
    """Return whether a smaller value of `metric` is the better one."""
    return metric in ("loss", "mae", "perplexity")
