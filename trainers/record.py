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

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers import recipe as recipes
from trainers.depot import Depot, InStore, OnDisk
from trainers.object_store import Absent, ObjectStore, reach
from trainers.recipe import Recipe
from trainers.sealed import write_file

# May change when resumed: they change no result.
PERFORMANCE = ("layout", "batch.token_budget", "parity")


class RunError(BerthaError):
    """A run directory that cannot be used; the text says the way out."""


@dataclass(frozen=True)
class RunDirectory:
    """The names inside a run directory.

    home: the URL where its files are kept; path is then this machine's own. "": all nodes see path.
    """

    path: Path
    home: str = ""

    @classmethod
    def at(cls, run: Path | str, cache: Path) -> "RunDirectory":
        """What `run` names, a path or a URL. cache: a directory of this machine."""
        if "://" not in str(run):
            return cls(Path(run).resolve())
        home = str(run).rstrip("/")
        return cls(cache / "runs" / hashlib.sha256(home.encode()).hexdigest()[:16], home)

    @property
    def address(self) -> str:
        """What names it to its user."""
        return self.home or str(self.path)

    @property
    def store(self) -> ObjectStore | None:
        """Its home. Raises StoreError for a URL of unknown kind."""
        return reach(self.home) if self.home else None

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

    def probe(self) -> None:
        """Raise StoreError where its home cannot be written to, before anything is trained."""
        if self.store is not None:
            self.store.probe()

    def publish(self, *names: str) -> None:
        """Bring its home, if it has one, up to what files and directories of these names are here.

        One after another; a file that is not here goes there, too.
        """
        store = self.store
        if store is None:
            return
        for name in names:
            path = self.path / name
            if path.is_dir():
                store.upload(path, name)
            elif path.is_file():
                store.write(name, path.read_bytes())  # at once: it may be growing
            else:
                store.remove(name)

    def fetch(self, *names: str) -> None:
        """Bring files of these names up to what they are at its home, if it has one."""
        store = self.store
        if store is None:
            return
        for name in names:
            try:
                store.get(name, self.path / name)
            except Absent:
                (self.path / name).unlink(missing_ok=True)

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

    def refuse(self, reason: str) -> None:
        """Leave word why the run cannot go on."""
        write_file(self.refusal, reason)
        self.publish(self.refusal.name)

    def rows(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, of one kind or all; a half-written last line is left out."""
        if not self.metrics.is_file():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if kind is None or row["kind"] == kind:
                yield row

    def record(self) -> dict[str, Any]:
        """What the last start wrote of its circumstances; {} before the first."""
        return dict(json.loads(self.facts.read_text())) if self.facts.is_file() else {}

    def result(self) -> dict[str, Any] | None:
        """The outcome, once the run has ended."""
        return json.loads(self.outcome.read_text()) if self.outcome.is_file() else None


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            found += _differences(before[key], value, f"{prefix}{key}.")
        elif before.get(key) != value:
            found.append(prefix + key)
    return found
