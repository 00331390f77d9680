"""How a text that is longer than the model reads becomes overlapping windows, instead of being cut.

Every window is a sequence of the model of its own, with special tokens around it; the logits of a
text's windows are pooled to one row (`trainers.models.window_pool`) before anything else sees them:
the loss, the metrics, the thresholds and the answers of a server. So a text is one sample whatever
its length, in training as in serving.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from cluster.settings import Settings

Pool = Literal["mean", "max"]

SPECIAL_TOKENS = 2  # around a text, as [CLS] and [SEP]


class WindowsConfig(Settings):
    """Overlapping windows over texts that are longer than batch.max_length."""

    stride: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="tokens from the start of one window to the start of the next (the rest "
        "overlaps); default: half of batch.max_length",
    )
    pool: Pool = Field(
        "mean",
        description="how the logits of a text's windows become its own: their mean, or the highest "
        "of each label, which suits labels that one passage decides",
    )
    max_windows: Annotated[int, Field(ge=2, le=1024)] = Field(
        16, description="most windows of a text; what lies behind them is cut, and said"
    )

    def step(self, max_length: int) -> int:
        """Return the stride over windows of `max_length` tokens."""
        return self.stride or max_length // 2

    def max_tokens(self, max_length: int) -> int:
        """Return the longest text that is read whole, in tokens, special ones included."""
        return max_length + (self.max_windows - 1) * self.step(max_length)

    def computed_tokens(self, tokens: float, max_length: int) -> float:
        """Return the tokens of the windows of a text of `tokens`: where they overlap, twice."""
        step, read = self.step(max_length), min(tokens, self.max_tokens(max_length))
        return read + math.ceil(max(0.0, read - max_length) / step) * (max_length - step)

    def spans(self, num_tokens: int, room: int, max_length: int) -> list[tuple[int, int]]:
        """Return (start, end) of each window over `num_tokens` tokens, none of them special.

        room: most of them in a window. The last window ends with the text, or is the last that is
        read.
        """
        starts = range(0, max(1, num_tokens), self.step(max_length))
        found: list[tuple[int, int]] = []
        for start in starts[: self.max_windows]:
            found.append((start, min(start + room, num_tokens)))
            if start + room >= num_tokens:
                break
        return found
