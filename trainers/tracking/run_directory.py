"""The run directory: what a run leaves behind, and from what it can be repeated.

    recipe.yaml       every setting, defaults written out
    record.json       data fingerprint and report, code revision, versions, hardware, workers,
                      layout and the receipt of its parity with one device
    metrics.jsonl     one row a start, step, evaluation, or notice that a machine is about to leave;
                      a start says what was lost
    tensorboard/      the same as events          plots/    the same as pictures
    checkpoints/      to go on from               bundle/   the trained model
    result.json       the outcome; there when the run has ended

All nodes see it, or its home is a prefix in S3 and each node has a directory of its own, from which
what it writes is published. Knows no model and no Ray.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers.checkpoint.stores import Depot, InStore, OnDisk
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.storage.atomic import write_file
from trainers.storage.directory import Directory

# May change when resumed: they change no result.
PERFORMANCE = ("layout", "batch.token_budget", "parity")


class RunError(BerthaError):
    """A run directory that cannot be used; the text says the way out."""


@dataclass(frozen=True)
class RunDirectory(Directory):
    """The names inside a run directory."""

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def facts(self) -> Path:
        """From what the run can be repeated."""
        return self.path / "record.json"

    @property
    def checkpoints(self) -> Depot:
        """See `checkpoint`."""
        store, here = self.store, self.path / "checkpoints"
        return OnDisk(here) if store is None else InStore(store, "checkpoints", here)

    @property
    def bundle(self) -> Path:
        """See `bundle`."""
        return self.path / "bundle"

    @property
    def outcome(self) -> Path:
        """What the run came to; absent until it has ended."""
        return self.path / "result.json"

    @property
    def refusal(self) -> Path:
        """Why the run cannot go on until its user mends something; absent otherwise."""
        return self.path / "error.txt"

    def claim(self, recipe: Recipe, resume: bool) -> None:
        """Make the directory this run's own, or check that it may be resumed.

        Raises RunError when it holds another run, or this one and `resume` is not asked for.
        """
        held = self.path / "recipe.yaml"
        self.fetch(held.name)
        if not held.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            write_file(held, recipe.to_yaml())
            self.publish(held.name)
            return
        if not resume:
            raise RunError(
                f"{self.address} holds a run already; --resume goes on with it, --run names another"
            )
        try:
            before = recipes.load(held)
        except SettingsError as error:
            raise RunError(f"cannot resume {self.address}: {error}") from None
        differing = _differences(before.model_dump(), recipe.model_dump())
        changed = [key for key in differing if not key.startswith(PERFORMANCE)]
        if changed:
            raise RunError(
                f"cannot resume {self.address}: its recipe differs in {', '.join(changed)}; "
                "resume with the same settings, or name another directory with --run"
            )

    def let_go(self) -> None:
        """Free this machine's disk of what its home has, when the run has ended."""
        if self.home:
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def forget_checkpoints(self) -> None:
        """Delete all checkpoints."""
        if self.store is not None:
            self.store.remove("checkpoints")
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def refuse(self, reason: str) -> None:
        """Leave word why the run cannot go on."""
        self.leave(self.refusal.name, reason)

    def rows(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, of one kind or all; a half-written last line is left out.

        Of a run in a store, those that lie on this machine: of rank 0.
        """
        if self.metrics.is_file():
            yield from _rows(self.metrics.read_bytes(), kind)

    def published(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The same as everybody sees them."""
        yield from _rows(self.read(self.metrics.name) or b"", kind)

    def record(self) -> dict[str, Any]:
        """What the last start wrote of its circumstances; {} before the first."""
        return dict(json.loads(self.facts.read_text())) if self.facts.is_file() else {}

    def result(self) -> dict[str, Any] | None:
        """The outcome, once the run has ended."""
        return json.loads(self.outcome.read_text()) if self.outcome.is_file() else None


def _rows(data: bytes, kind: str | None) -> Iterator[dict[str, Any]]:
    for line in data.decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if kind is None or row["kind"] == kind:
            yield row


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            found += _differences(before[key], value, f"{prefix}{key}.")
        elif before.get(key) != value:
            found.append(prefix + key)
    return found
