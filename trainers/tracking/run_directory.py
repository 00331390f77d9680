"""The run directory: what a run leaves behind, and from what it can be repeated.

    recipe.yaml       every setting, defaults written out
    record.json       data fingerprint and report, code revision, versions, hardware, workers,
                      layout and the report of its parity with one device
    metrics.jsonl     one row a start, step, evaluation, warning, notice that a machine is about to
                      be reclaimed, or conclusion: training is over; a start says what was lost
    tensorboard/      the same as events          plots/    the same as plots
    trackers/         by what other trackers know the run
    checkpoints/      to resume from              bundle/   the trained model
    result.json       the outcome and its verdict; there when the run has ended
    errors.csv        the test rows, the worst answered first
    predictions.npz   their logits, for comparisons with other runs
    traceback.txt     of the failure that nobody foresaw and that ended the last attempt
    lease/            which process writes all this

All nodes see it, or its home is a prefix in S3 and each node has a directory of its own, from which
what it writes is uploaded.

Disks fail and people edit files, so what is read here may be anything. A damaged file that the run
can do without, or write again, is left out with a warning; any other is a RunError that names it.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers.checkpoint.stores import CheckpointStore
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.storage.directory import SyncedDirectory
from trainers.storage.lease import Lease
from trainers.tracking.metric_rows import Row, is_count, parse_rows
from trainers.tracking.resumption import RecipeChange, compare_recipes, format_value

FILES = ("recipe.yaml", "record.json", "metrics.jsonl", "result.json", "error.txt", "traceback.txt")
FOLDERS = ("checkpoints", "bundle", "plots", "tensorboard", "trackers", "lease", "ray")


class RunError(BerthaError):
    """A run directory that cannot be used; the text says the way out."""


@dataclass(frozen=True)
class RunDirectory(SyncedDirectory):
    """A run directory and the files in it.

    lease: of the driver that this process belongs to; None for who only reads.
    """

    lease: Lease | None = field(default=None, compare=False)

    @property
    def recipe_path(self) -> Path:
        """The recipe as it runs, defaults written out."""
        return self.path / "recipe.yaml"

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
        store = self.store if self.home else None
        return CheckpointStore(self.path / "checkpoints", store, self.check_lease)

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

    @property
    def traceback_path(self) -> Path:
        """The traceback of a failure that nobody foresaw; absent where there was none."""
        return self.path / "traceback.txt"

    def acquire(self, recipe: Recipe, resume: bool) -> RecipeChange:
        """Write the recipe into a new directory, or check that this run may be resumed.

        A run that is to be longer than before has no result any more. Returns what has changed.
        Raises RunError as `check_recipe` does.
        """
        change = self.check_recipe(recipe, resume)
        if change.longer:  # first the result: a run killed in between then trains, and says no lie
            self.result_path.unlink(missing_ok=True)
            self.publish_files(self.result_path.name)
            grown = [*self.read_record().get("longer", []), {"settings": change.longer}]
            record = self.read_record() | {"longer": grown}
            self.write_file(self.record_path, json.dumps(record, indent=2) + "\n")
        if change.longer or not self.recipe_path.is_file():
            self.write_file(self.recipe_path, recipe.to_yaml())
        return change

    def check_recipe(self, recipe: Recipe, resume: bool) -> RecipeChange:
        """Check, and write nothing, that a run of `recipe` may begin here, or be resumed.

        Returns what has changed since it began. Raises RunError when the directory holds another
        run, or this one and `resume` is not asked for, or what no run can go on with.
        """
        path = self.recipe_path
        self.fetch_files(path.name, self.record_path.name, self.result_path.name)
        self._check_kinds()
        if not path.is_file():
            remains = [
                p for p in (self.metrics_path, self.record_path, self.result_path) if p.exists()
            ]
            if remains:
                raise RunError(
                    f"{self.address} holds {remains[0].name} of a run, but not its recipe.yaml; "
                    "put that back, or name another directory with --run"
                )
            return RecipeChange()
        if not resume:
            raise RunError(
                f"{self.address} holds a run already; resume it with --resume, or name another "
                "directory with --run"
            )
        try:
            before = recipes.load_recipe(path)
        except (SettingsError, ValueError, RecursionError) as error:
            raise RunError(
                f"cannot resume {self.address}: {' '.join(str(error).split())}; put back the "
                "recipe.yaml that it began with, or name another directory with --run"
            ) from None
        change = compare_recipes(before, recipe, self.read_record().get("settings") or {})
        if change.changed:
            raise RunError(
                f"cannot resume {self.address}: its recipe differs in {', '.join(change.changed)}; "
                "resume with the same settings, or name another directory with --run"
            )
        if change.shorter:
            key, values = next(iter(change.shorter.items()))
            old, new = map(format_value, values)
            least = f"{key}={old}" + ("" if old == "null" else " or more")
            raise RunError(
                f"cannot resume {self.address}: {key} = {new}, but the run has {old}; it can only "
                f"grow: give {least}, or name another directory with --run"
            )
        result = self.read_result() if change.longer else None
        if result and result["stopped_early"] and "stopping.patience" not in change.longer:
            raise RunError(
                f"{self.address}: stopped early, after {recipe.stopping.patience} evaluations "
                "without a better metric, so it would not train longer; raise stopping.patience, "
                "too"
            )
        return change

    def free_local_copy(self) -> None:
        """Free this machine's disk of checkpoints that the home has, when the run has ended."""
        if self.home:
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints."""
        if self.home:
            self.store.remove("checkpoints")
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    @property
    def is_held(self) -> bool:
        """Whether the driver of this process may still write here."""
        return self.lease is None or self.lease.is_held

    def check_lease(self) -> None:
        """Raise LeaseError where another driver has taken the run over."""
        if self.lease is not None:
            self.lease.check_held()

    def write_file(self, path: Path, text: str) -> None:
        """Replace a file of the run, for all machines to see.

        Raises RunError where it cannot be written, LeaseError where another driver has the run.
        """
        self.check_lease()
        try:
            self.write_shared(path.name, text)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written: {error.strerror or error}; make room, or name another "
                "directory with --run"
            ) from None

    def write_error(self, reason: str) -> None:
        """Write why the run cannot go on."""
        self.write_file(self.error_path, reason)

    def write_traceback(self, text: str) -> None:
        """Write where a failure that nobody foresaw came from."""
        self.write_file(self.traceback_path, text)

    def read_rows(self) -> tuple[list[Row], bool]:
        """Return the rows of metrics.jsonl on this machine, and whether there are damaged lines."""
        if not self.metrics_path.is_file():
            return [], False
        skipped: list[int] = []
        rows = list(parse_rows(self.metrics_path.read_bytes(), skipped.append))
        return rows, bool(skipped)

    def metric_rows(self, kind: str | None = None) -> Iterator[Row]:
        """Iterate over the rows of metrics.jsonl, of one kind or all; skip a half-written one.

        Of a run in a store, those on this machine: all of them on rank 0's.
        """
        if self.metrics_path.is_file():
            yield from self._parse_rows(self.metrics_path.read_bytes(), kind)

    def published_rows(self, kind: str | None = None) -> Iterator[Row]:
        """Iterate over the same rows as all machines see them."""
        yield from self._parse_rows(self.read_file(self.metrics_path.name) or b"", kind)

    def read_record(self) -> dict[str, Any]:
        """Read the facts that the last start wrote; {} before the first."""
        return read_object(self.record_path, "the next start writes it again") or {}

    def read_result(self) -> dict[str, Any] | None:
        """Read the outcome; None until the run has ended."""
        advice = "resuming the run writes it again"
        return read_object(self.result_path, advice, _is_result)

    def _parse_rows(self, data: bytes, kind: str | None) -> Iterator[Row]:
        skipped: list[int] = []
        for row in parse_rows(data, skipped.append):
            if kind is None or row["kind"] == kind:
                yield row
        if skipped:  # of which there may be many
            others = f" and {len(skipped) - 1:,} others" if len(skipped) > 1 else ""
            where = f"{self.address}/{self.metrics_path.name}"
            warnings.warn(
                f"skipping line {skipped[0]:,}{others} of {where}: no row of metrics", stacklevel=3
            )

    def _check_kinds(self) -> None:
        """Raise RunError where a folder lies in the place of a file, or the reverse."""
        for name in (*FILES, *FOLDERS):
            path = self.path / name
            fits = path.is_file() if name in FILES else path.is_dir()
            if os.path.lexists(path) and not fits:
                kind = "file" if name in FILES else "directory"
                raise RunError(
                    f"{path}: is no {kind}, as it is in a run; move it away, or name another "
                    "directory with --run"
                )


def read_object(
    path: Path, advice: str, is_valid: Callable[[dict[str, Any]], bool] = lambda value: True
) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none, or it is damaged: with a warning."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and is_valid(value):
        return value
    warnings.warn(f"skipping {path}: it is damaged; {advice}", stacklevel=3)
    return None


def _is_result(value: dict[str, Any]) -> bool:
    counts = all(is_count(value.get(name)) for name in ("steps", "best_step"))
    tested = value.get("test", 0)
    return counts and "stopped_early" in value and (tested is None or isinstance(tested, dict))
