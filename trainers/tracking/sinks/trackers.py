"""The trackers of a run, each fed by a thread: training never waits for one, nor fails with it.

A tracker whose library or server fails is left out from then on, with one warning.
"""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from cluster.errors import BerthaError
from trainers.tracking.sinks.sink import Point, Sink, TrackedRun

EXTRAS = {"tensorboard": "train", "mlflow": "mlflow", "wandb": "wandb"}  # that install a tracker
FLUSH_SECONDS = 10.0  # waited at most for a tracker to write what it has
CLOSE_SECONDS = 30.0  # waited at most at the end of a run


class TrackerError(BerthaError):
    """A tracker that cannot be used; the message says the way out."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise TrackerError for a tracker whose package is not installed here."""
    for name in names:
        if find_spec(name) is None:
            raise TrackerError(
                f'tracking: {name} is not installed; pip install "bertha-ray[{EXTRAS[name]}]", or '
                "remove it"
            )


def open_sink(name: str, run: TrackedRun) -> Sink:
    """Open the sink of the tracker `name`; imports its library, which takes a second or two."""
    if name == "mlflow":
        from trainers.tracking.sinks.mlflow_sink import MlflowSink

        return MlflowSink(run)
    if name == "wandb":
        from trainers.tracking.sinks.wandb_sink import WandbSink

        return WandbSink(run)
    from trainers.tracking.sinks.tensorboard_sink import TensorboardSink

    return TensorboardSink(run)


class Trackers:
    """The trackers called `names`, all told the same of `run`.

    warn: called, from another thread, with the sentence about a tracker that has failed.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: TrackedRun,
        warn: Callable[[str], None],
        open_one: Callable[[str, TrackedRun], Sink] = open_sink,
    ) -> None:
        self._feeders = [_Feeder(name, run, warn, open_one) for name in dict.fromkeys(names)]

    def log_point(self, point: Point) -> None:
        """Send scalars of a step."""
        for feeder in self._feeders:
            feeder.put(point)

    def log_result(self, figures: Mapping[str, float], bundle: str) -> None:
        """Send the final figures and where the bundle is."""
        for feeder in self._feeders:
            feeder.put(_Result(figures, bundle))

    def flush(self) -> None:
        """Let trackers write what they have; one that takes long goes on by itself."""
        requests = [_Flush() for _ in self._feeders]
        for feeder, request in zip(self._feeders, requests, strict=True):
            feeder.put(request)
        for request in requests:
            request.done.wait(FLUSH_SECONDS)

    def close(self, succeeded: bool, seconds: float = CLOSE_SECONDS) -> None:
        """End all of them; warn of one that is not done after so many seconds, and leave it."""
        for feeder in self._feeders:
            feeder.put(_Close(succeeded))
        for feeder in self._feeders:
            feeder.join(seconds)


@dataclass(frozen=True)
class _Result:
    figures: Mapping[str, float]
    bundle: str


@dataclass(frozen=True)
class _Flush:
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Close:
    succeeded: bool


_Item = Point | _Result | _Flush | _Close


class _Feeder:
    """Feeds one sink from a queue, in a thread."""

    def __init__(
        self,
        name: str,
        run: TrackedRun,
        warn: Callable[[str], None],
        open_one: Callable[[str, TrackedRun], Sink],
    ) -> None:
        self._name, self._run, self._warn, self._open = name, run, warn, open_one
        self._queue = queue.SimpleQueue[_Item]()
        self._thread = threading.Thread(target=self._feed, name=f"tracking {name}", daemon=True)
        self._thread.start()

    def put(self, item: _Item) -> None:
        self._queue.put(item)

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"tracking: {self._name} was not done {seconds:.0f}s after the run; left")

    def _feed(self) -> None:
        items = deque[_Item]()
        try:
            sink = self._open(self._name, self._run)
            while not self._send_next(sink, items):
                pass
        except Exception as error:  # whatever a tracker's library or server raises: see above
            reason = " ".join(str(error).split())[:300]
            self._warn(
                f"tracking: {self._name} has failed and is left out from here on "
                f"({type(error).__name__}: {reason}); training goes on"
            )
            self._discard(items)

    def _send_next(self, sink: Sink, items: deque[_Item]) -> bool:
        """Send the next of `items`, which stays among them until then; return whether it is over.

        Points that follow each other go together: a request each would be slow.
        """
        while not items or not self._queue.empty():
            items.append(self._queue.get())
        points = list(itertools.takewhile(lambda item: isinstance(item, Point), items))
        if points:
            sink.log_points([item for item in points if isinstance(item, Point)])
        else:
            _send_item(sink, items[0])
        sent = [items.popleft() for _ in range(max(1, len(points)))]
        return isinstance(sent[-1], _Close)

    def _discard(self, items: deque[_Item]) -> None:
        """Drop items until the end, so that nobody waits for a tracker that has failed."""
        while True:
            item = items.popleft() if items else self._queue.get()
            if isinstance(item, _Flush):
                item.done.set()
            elif isinstance(item, _Close):
                return


def _send_item(sink: Sink, item: _Item) -> None:
    if isinstance(item, _Result):
        sink.log_result(item.figures, item.bundle)
    elif isinstance(item, _Flush):
        sink.flush()
        item.done.set()
    elif isinstance(item, _Close):
        sink.close(item.succeeded)
