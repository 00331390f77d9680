"""The run directory: what a run leaves behind, and from what it can be repeated.

    recipe.yaml       every setting, defaults written out
    record.json       data fingerprint and report, code revision, versions, hardware, workers,
                      layout and the report of its parity with one device
    metrics.jsonl     one row a start, step, evaluation, or notice that a machine is about to be
                      reclaimed; a start says what was lost
    tensorboard/      the same as events          plots/    the same as plots
    checkpoints/      to resume from              bundle/   the trained model
    result.json       the outcome; there when the run has ended

All nodes see it, or its home is a prefix in S3 and each node has a directory of its own, from which
what it writes is uploaded.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers.checkpoint.stores import CheckpointStore
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.storage.atomic import replace_file
from trainers.storage.directory import SyncedDirectory

# May change between a run and its resumption: they change no result.
CHANGEABLE_KEYS = ("layout", "batch.token_budget", "parity")


class RunError(BerthaError):
    """A run directory that cannot be used; the text says the way out."""


@dataclass(frozen=True)
class RunDirectory(SyncedDirectory):
    """A run directory and the files in it."""

    @property
    def metrics_path(self) -> Path:
        """The metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def record_path(self) -> Path:
        """The facts from which the run can be repeated."""
        return self.path / "record.json"

    @property
    def checkpoints(self) -> CheckpointStore:
        """The store of its checkpoints."""
        return CheckpointStore(self.path / "checkpoints", self.store if self.home else None)

    @property
    def bundle_path(self) -> Path:
        """The trained model."""
        return self.path / "bundle"

    @property
    def result_path(self) -> Path:
        """The outcome; absent until the run has ended."""
        return self.path / "result.json"

    @property
    def error_path(self) -> Path:
        """The error that only the user can fix; absent where there is none."""
        return self.path / "error.txt"

    def acquire(self, recipe: Recipe, resume: bool) -> None:
        """Write the recipe into a new directory, or check that this run may be resumed.

        Raises RunError when it holds another run, or this one and `resume` is not asked for.
        """
        path = self.path / "recipe.yaml"
        self.fetch_files(path.name)
        if not path.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(path, recipe.to_yaml())
            self.publish_files(path.name)
            return
        if not resume:
            raise RunError(
                f"{self.address} holds a run already; resume it with --resume, or name another "
                "directory with --run"
            )
        try:
            before = recipes.load_recipe(path)
        except SettingsError as error:
            raise RunError(f"cannot resume {self.address}: {error}") from None
        differing = _differing_keys(before.model_dump(), recipe.model_dump())
        changed = [key for key in differing if not key.startswith(CHANGEABLE_KEYS)]
        if changed:
            raise RunError(
                f"cannot resume {self.address}: its recipe differs in {', '.join(changed)}; "
                "resume with the same settings, or name another directory with --run"
            )

    def free_local_copy(self) -> None:
        """Free this machine's disk of checkpoints that the home has, when the run has ended."""
        if self.home:
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints."""
        if self.home:
            self.store.remove("checkpoints")
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def write_error(self, reason: str) -> None:
        """Write why the run cannot go on."""
        self.write_shared(self.error_path.name, reason)

    def metric_rows(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over the rows of metrics.jsonl, of one kind or all; skip a half-written one.

        Of a run in a store, those on this machine: all of them on rank 0's.
        """
        if self.metrics_path.is_file():
            yield from _parse_rows(self.metrics_path.read_bytes(), kind)

    def published_rows(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over the same rows as all machines see them."""
        yield from _parse_rows(self.read_file(self.metrics_path.name) or b"", kind)

    def read_record(self) -> dict[str, Any]:
        """Read the facts that the last start wrote; {} before the first."""
        return dict(json.loads(self.record_path.read_text())) if self.record_path.is_file() else {}

    def read_result(self) -> dict[str, Any] | None:
        """Read the outcome; None until the run has ended."""
        return json.loads(self.result_path.read_text()) if self.result_path.is_file() else None


def _parse_rows(data: bytes, kind: str | None) -> Iterator[dict[str, Any]]:
    for line in data.decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if kind is None or row["kind"] == kind:
            yield row


def _differing_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys whose values differ."""
    keys = []
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            keys += _differing_keys(before[key], value, f"{prefix}{key}.")
        elif before.get(key) != value:
            keys.append(prefix + key)
    return keys
