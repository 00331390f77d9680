"""When the client of the request at hand stops waiting.

Set by the HTTP surface, read by the models; on the clock of `time.perf_counter`.
"""

import math
import time
from collections.abc import Mapping
from contextvars import ContextVar

HEADER = "x-request-timeout-seconds"
DEFAULT_SECONDS = 60.0

deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def of(headers: Mapping[str, str]) -> float:
    """The deadline of a request by its headers; what is no number is not heeded."""
    try:
        seconds = float(headers.get(HEADER, DEFAULT_SECONDS))
    except ValueError:
        seconds = DEFAULT_SECONDS
    if not (math.isfinite(seconds) and 0 < seconds < DEFAULT_SECONDS):
        seconds = DEFAULT_SECONDS
    return time.perf_counter() + seconds
