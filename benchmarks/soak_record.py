"""The record of a soak: kills, what each cost, and whether any result was changed."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soak_kills import count_lost

Record = dict[str, Any]


class SoakRecord:
    """The record of a soak, written to `path` whenever something is added."""

    def __init__(self, path: Path, facts: Record) -> None:
        self._path, self._lock = path, threading.Lock()
        self.record: Record = facts | {"kills": [], "training": [], "searches": []}

    def add(self, kind: str, row: Record) -> None:
        """Append a row to a list of the record."""
        with self._lock:
            self.record[kind].append(row)
            self._write()
        print(f"{kind}: {row}", flush=True)

    def update_requests(self, outcomes: Sequence[Sequence[Any]]) -> None:
        """Count requests, in all and by the kill that they came after."""
        with self._lock:
            kills = self.record["kills"]
            moments = [each["moment"] for each in kills]
            for kill, lost in zip(kills, count_lost(moments, time.time(), outcomes), strict=True):
                kill.update(lost)
            failed = sum(each[1] != 200 for each in outcomes)
            counts = {"sent": len(outcomes), "lost": failed}
            counts["lost_before_kills"] = failed - sum(each["lost"] for each in kills)
            self.record["requests"] = counts
            self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self.record, indent=1) + "\n")


def summarize(record: Record) -> list[str]:
    """Return the lines that a soak ends with."""
    kills, requests = record["kills"], record["requests"]
    training, searches = record["training"], record["searches"]
    steps, trials = _total(training, "steps"), _total(searches, "trials")
    changed, apart = _total(training, "steps_changed"), _total(searches, "trials_changed")
    kinds = sorted({each["kind"] for each in kills})
    lines = [
        f"{len(kills)} kills in {record['minutes']:g} minutes",
        f"training: {len(training)} runs, {changed} of {steps} steps changed, "
        f"{_total(training, 'restarts')} restarts by the supervisor",
        f"search: {len(searches)} searches, {apart} of {trials} trials changed, "
        f"{_total(searches, 'restarts')} restarts by the supervisor",
        f"requests: {requests['lost']} of {requests['sent']} lost",
    ]
    for kind in kinds:
        of_kind = [each for each in kills if each["kind"] == kind]
        lost = [each["lost"] for each in of_kind]
        lines.append(f"  {kind}: {len(of_kind)} kills, {sum(lost)} lost, at most {max(lost)}")
    return lines


def is_unharmed(record: Record) -> bool:
    """Return whether every run and search ended, and each as if nobody had disturbed it."""
    rows = [*record["training"], *record["searches"]]
    ended = all(each["ended"] for each in rows)
    both = bool(record["training"]) and bool(record["searches"])
    changed = _total(record["training"], "steps_changed")
    return both and ended and changed + _total(record["searches"], "trials_changed") == 0


def _total(rows: Sequence[Record], name: str) -> int:
    return sum(each.get(name, 0) for each in rows)
