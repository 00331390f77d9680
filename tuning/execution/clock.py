"""What it costs to place trials on devices: the time that slots stand empty between them."""

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """When trials ran, to see what placing them costs. Seconds since the epoch."""

    began: float = field(default_factory=time.time)
    last_begin: float = 0.0
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def ran(self, identity: str, seconds: float) -> None:
        """A trial has run for `seconds` until now."""
        now = time.time()
        self.spans[identity] = (now - seconds, now)
        self.last_begin = max(self.last_begin, now - seconds)

    def overhead(self, slots: int) -> float | None:
        """Time that slots stood empty, as a share of the time trials ran in them.

        Until the last trial began: afterwards there is nothing to fill them with.
        """
        end = self.last_begin
        busy = sum(max(0.0, min(until, end) - since) for since, until in self.spans.values())
        return slots * (end - self.began) / busy - 1 if busy else None
