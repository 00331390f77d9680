"""What a sink is given of a run, and what it has to offer. Imports no tracker."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainers.tracking.run_directory import RunDirectory

PROJECT = "bertha"  # the experiment or project, where the tracker's own variable names no other
TRIALS = "trials"  # the folder of a search that holds the runs of its trials


@dataclass(frozen=True)
class Point:
    """Scalars by name, as train/loss, of one step. time: seconds since 1970."""

    step: int
    time: float
    scalars: Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """The run that a sink tracks.

    resumed_at: the step that it goes on from. settings: of its recipe, by dotted key.
    """

    directory: RunDirectory
    resumed_at: int
    settings: Mapping[str, Any]

    @property
    def group(self) -> str:
        """The name of the search that the run is a trial of; "" for any other run."""
        *_, search, folder, _ = ("", "", *self.directory.address.split("/"))
        return search if folder == TRIALS else ""

    @property
    def name(self) -> str:
        """The name to show: of the run's directory, for a trial after that of its search."""
        own = self.directory.address.rpartition("/")[2]
        return f"{self.group} {own}" if self.group else own

    @property
    def local_home(self) -> Path:
        """The directory in which a tracker without a server writes: for a trial, its search's."""
        path = self.directory.path
        return path.parent.parent if self.group and not self.directory.home else path

    def read_state(self, tracker: str) -> dict[str, Any]:
        """Read what `write_state` has kept for `tracker`; {} before it, or where it is damaged."""
        try:
            state = json.loads(self.directory.read_file(_state_file(tracker)) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, tracker: str, state: Mapping[str, Any]) -> None:
        """Keep by what `tracker` knows the run, so that a resumed one goes on there."""
        self.directory.check_lease()
        self.directory.write_shared(_state_file(tracker), json.dumps(dict(state)) + "\n")


class Sink(Protocol):
    """A tracker's side of one run. Whatever it raises ends the tracking there, not the run."""

    def log_points(self, points: Sequence[Point]) -> None:
        """Send scalars, in the order of their steps."""

    def log_result(self, figures: Mapping[str, float], bundle: str) -> None:
        """Send the final figures by name, as test/f1, and the path or URL of the bundle."""

    def flush(self) -> None:
        """Write what is kept in this process to where it lasts."""

    def close(self, succeeded: bool) -> None:
        """Flush and end. succeeded: False for a run that stopped before its end."""


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _state_file(tracker: str) -> str:
    return f"trackers/{tracker}.json"
