"""Replies of many processes of Ray's, those that come in time and why the others did not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

Key = TypeVar("Key")


def gathered(asked: Mapping[Key, Any], seconds: float) -> tuple[dict[Key, Any], dict[Key, str]]:
    """The replies that came within `seconds`, and in a line why each of the others did not."""
    import ray

    replies: dict[Key, Any] = {}
    failed: dict[Key, str] = {}
    give_up = time.monotonic() + seconds
    for key, future in asked.items():
        try:
            replies[key] = ray.get(future, timeout=max(0.01, give_up - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            failed[key] = f"no answer within {seconds:.0f} s"
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            failed[key] = _last_line(error)
    return replies, failed


def _last_line(error: Exception) -> str:
    """The line that says it: Ray puts where it happened before what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
