"""When two models give a text the same answer: a pure function of their outputs.

By task: classification, the likeliest label; multi-label, every label; regression, a number within
1% of the standard deviation of the targets; embedding, a cosine of 0.999 or more; masked-lm, the
likeliest token of each mask. Knows no model.
"""

import numpy as np

NEAR = 0.01  # of the standard deviation of a regression's targets
PARALLEL = 0.999  # cosine


def agreeing(
    task: str, reference: np.ndarray, outputs: np.ndarray, deviation: float = 1.0
) -> np.ndarray:
    """Which rows [n] bool of `outputs` [n, width] mean what those of `reference` do.

    deviation: of a regression's targets.
    """
    if task == "multi-label":
        same: np.ndarray = ((reference > 0) == (outputs > 0)).all(axis=1)
    elif task == "regression":
        same = np.abs(reference - outputs)[:, 0] <= NEAR * deviation
    elif task == "embedding":
        same = (reference * outputs).sum(axis=1) >= PARALLEL
    else:
        same = reference.argmax(axis=1) == outputs.argmax(axis=1)
    return same
