"""What computes: a padded batch in, the model's outputs back. Knows no texts, labels or tasks."""

from typing import Protocol

import numpy as np


class Backend(Protocol):
    """A loaded model. Called from one thread at a time.

    name: as in "openvino int8". num_bytes: of memory that it holds.
    """

    name: str
    num_bytes: int

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None
    ) -> np.ndarray:
        """Outputs [b, width] float32 of ids [b, s] int64 (of a linear model: numbers float32).

        mask: [b, s] bool, true where a token is; None where nothing is padded. positions: [n]
        int64, flat indices into b * s, of a masked language model alone, whose outputs are
        [n, vocabulary].
        """
