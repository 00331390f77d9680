"""Whether a request may wait for a model: by the time until its turn, not by a count.

A burst is work that comes at once and is done in a while, so it waits up to `max_wait_seconds`.
Overload is work that keeps coming faster than it is done: then every queue fills, whatever its
length, and only a short one keeps those that are answered quick. Which of the two it is shows in
stretches of time: how much work was offered, how much was begun, and whether the queue ran empty.
"""

from collections.abc import Hashable
from typing import Protocol
from weakref import WeakKeyDictionary

from serving.interface import Limits

# A request is due this many times its own work after it arrived. With 1 the order is nearly that of
# arrival; the higher, the more small requests overtake large ones.
PATIENCE = 4.0
STRETCH_SECONDS, STRETCH_REQUESTS, STRETCH_BATCHES = 0.3, 10, 2  # a stretch has no less
OVERLOAD_STRETCHES = 3  # in a row, in each of which this much more was offered than was begun
OVERLOAD_RATIO = 1.15
_SMOOTHING = 0.2  # of the speed, by batch
_UNKNOWN_SPEED = 1e-4  # seconds a token, until a batch was computed


class MeasuredModel(Hashable, Protocol):
    """What admission asks of a model; see `BatchModel`."""

    batch_tokens: int
    tokens_per_second: float


class Admission:
    """The load of one engine thread. Knows no clock and no lock: the caller has both."""

    def __init__(self, limits: Limits) -> None:
        self.is_overloaded = False
        self._limits = limits
        self._speeds: WeakKeyDictionary[MeasuredModel, float] = WeakKeyDictionary()
        self._started: float | None = None  # the stretch that is under way
        self._requests = self._batches = self._offered = self._begun = 0
        self._ran_empty = True
        self._rising = 0  # stretches in a row

    def seconds_per_token(self, model: MeasuredModel) -> float:
        """Return how long a token takes where much waits, so that batches are full."""
        speed = self._speeds.get(model)
        if speed is None:
            speed = 1 / model.tokens_per_second if model.tokens_per_second else _UNKNOWN_SPEED
        return speed

    def record_batch(self, model: MeasuredModel, num_tokens: int, seconds: float) -> None:
        """Learn the speed of a model. A small batch is slow by itself, and proves but a speed."""
        now, before = seconds / max(1, num_tokens), self.seconds_per_token(model)
        is_full = 2 * num_tokens >= model.batch_tokens
        if now < before or is_full or not model.tokens_per_second:
            self._speeds[model] = before + _SMOOTHING * (now - before)

    def allowed_wait(
        self, model: MeasuredModel, num_tokens: int, seconds_left: float | None
    ) -> float:
        """Return the seconds that a request may wait for its turn.

        seconds_left: until its own deadline, None for none. A request without one may wait as long
        as it is due after its arrival, if that is longer: who asks for much work expects to wait.
        """
        work = num_tokens * self.seconds_per_token(model)
        if seconds_left is not None:
            return seconds_left - work
        return max(self._limits.max_wait_seconds, PATIENCE * work)

    def offer(self, now: float, num_tokens: int) -> None:
        """Count a request that came, admitted or not; decide whether this is overload."""
        self._requests += 1
        self._offered += num_tokens
        if self._started is None:
            self._begin_stretch(now)
        elif (
            now - self._started >= STRETCH_SECONDS
            and self._requests >= STRETCH_REQUESTS
            and (self._batches >= STRETCH_BATCHES or self._ran_empty)
        ):
            self._judge_stretch()
            self._begin_stretch(now)

    def begin(self, num_tokens: int) -> None:
        """Count a batch that the engine takes."""
        self._batches += 1
        self._begun += num_tokens

    def run_empty(self) -> None:
        """Note that the engine found nothing to take."""
        self._ran_empty = True

    def _begin_stretch(self, now: float) -> None:
        self._started = now
        self._requests = self._batches = self._offered = self._begun = 0
        self._ran_empty = False

    def _judge_stretch(self) -> None:
        is_rising = not self._ran_empty and self._offered > OVERLOAD_RATIO * self._begun
        self._rising = self._rising + 1 if is_rising else 0
        if self._rising >= OVERLOAD_STRETCHES:
            self.is_overloaded = True
        elif self._ran_empty or self._offered < self._begun:
            self.is_overloaded = False
