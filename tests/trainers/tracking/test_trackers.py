"""Trackers hear of a run, and one that fails or hangs does not disturb it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.metric_rows import start_row, to_line
from trainers.config import recipe as recipes
from trainers.tracking.metric_logger import MetricLogger, final_figures
from trainers.tracking.progress import ProgressPrinter
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.sinks import trackers
from trainers.tracking.sinks.sink import Point, Sink, TrackedRun, flatten_settings
from trainers.tracking.sinks.trackers import TrackerError, Trackers, check_trackers


class ListSink:
    """A tracker that keeps all it hears; `fails` names the method that raises."""

    def __init__(self, fails: str = "", gate: threading.Event | None = None) -> None:
        self.heard: list[object] = []
        self._fails, self._gate = fails, gate

    def _hear(self, name: str, *values: object) -> None:
        if self._gate is not None:
            self._gate.wait()
        if name == self._fails:
            raise ConnectionError("the server\nhas gone")
        self.heard += values

    def log_points(self, points: Sequence[Point]) -> None:
        self._hear("log_points", *(point.step for point in points))

    def log_result(self, figures: Mapping[str, float], bundle: str) -> None:
        self._hear("log_result", dict(figures), bundle)

    def flush(self) -> None:
        self._hear("flush", "flush")

    def close(self, succeeded: bool) -> None:
        self._hear("close", succeeded)


def tracked(directory: Path) -> TrackedRun:
    return TrackedRun(RunDirectory(directory), 0, {"seed": 0})


def opens(**sinks: Sink) -> Callable[[str, TrackedRun], Sink]:
    return lambda name, run: sinks[name]


def point(step: int) -> Point:
    return Point(step, 0.0, {"train/loss": 1.0 / step})


def test_a_tracker_hears_everything_in_order(tmp_path: Path) -> None:
    sink, warned = ListSink(), list[str]()
    told = Trackers(["one", "one"], tracked(tmp_path), warned.append, opens(one=sink))
    for step in (1, 2):
        told.log_point(point(step))
    told.flush()
    assert sink.heard == [1, 2, "flush"], "and is told once, however often it is named"
    told.log_point(point(3))
    told.log_result({"test/f1": 0.5}, "runs/mine/bundle")
    told.close(True)
    assert sink.heard[3:] == [3, {"test/f1": 0.5}, "runs/mine/bundle", True]
    assert warned == []


@pytest.mark.parametrize("method", ["log_points", "log_result", "flush", "close"])
def test_one_that_fails_is_left_out_with_one_warning(tmp_path: Path, method: str) -> None:
    bad, good, warned = ListSink(fails=method), ListSink(), list[str]()
    told = Trackers(["bad", "good"], tracked(tmp_path), warned.append, opens(bad=bad, good=good))
    for step in (1, 2):
        told.log_point(point(step))
        told.flush()
    told.log_result({}, "")
    told.close(False)
    assert good.heard == [1, "flush", 2, "flush", {}, "", False]
    assert warned == [
        "tracking: bad has failed and is left out from here on (ConnectionError: the server has "
        "gone); training goes on"
    ]


def test_one_that_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    warned = list[str]()
    told = Trackers(["absent"], tracked(tmp_path), warned.append, opens())
    told.log_point(point(1))
    told.flush()
    told.close(True)
    assert len(warned) == 1 and "KeyError: 'absent'" in warned[0]


def test_one_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    gate, warned = threading.Event(), list[str]()
    hung = ListSink(gate=gate)
    told = Trackers(["hung"], tracked(tmp_path), warned.append, opens(hung=hung))
    told.log_point(point(1))  # would wait for ever, were it not for the thread
    told.close(True, seconds=0.05)
    assert warned == ["tracking: hung was not done 0s after the run; left"]
    gate.set()


def test_a_warning_of_a_tracker_reaches_whoever_watches_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://nowhere")
    run, said = RunDirectory(tmp_path), list[str]()
    run.metrics_path.write_bytes(to_line(start_row(0)))
    with ProgressPrinter(run, say=said.append):
        recorder = MetricLogger(run, 0, ["mlflow"])
        recorder.log_start(step=0, total_steps=10)
        recorder.close()
    (warning,) = [line for line in said if line.startswith("tracking: ")]
    assert warning.startswith("tracking: mlflow has failed and is left out") and "\n" not in warning
    (row,) = run.metric_rows("warning")
    assert row["text"] == warning


def test_a_missing_package_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trackers(["tensorboard", "mlflow", "wandb"])
    monkeypatch.setitem(trackers.EXTRAS, "not_installed", "mlflow")
    with pytest.raises(
        TrackerError,
        match=r'^tracking: not_installed is not .*; pip install "bertha-ray\[mlflow\]"',
    ):
        check_trackers(["not_installed"])


def test_a_recipe_names_trackers_that_are_known() -> None:
    recipe = recipes.load_recipe("csv", ["tracking=[mlflow,wandb]", "data.source=x.csv"])
    assert recipe.tracking == ("mlflow", "wandb")
    assert recipes.load_recipe("csv", ["data.source=x.csv"]).tracking == ("tensorboard",)
    with pytest.raises(recipes.SettingsError, match=r"tracking.*'neptune'"):
        recipes.load_recipe("csv", ["tracking=[neptune]", "data.source=x.csv"])


def test_settings_and_figures_are_flat() -> None:
    flat = flatten_settings({"model": {"name": "x", "layers": [0, 2]}, "seed": 0, "filter": {}})
    assert flat == {"model.name": "x", "model.layers": [0, 2], "seed": 0, "filter": {}}
    result = {
        "steps": 40,
        "best_step": 30,
        "stopped_early": True,
        "validation": {"f1": 0.5, "loss": float("nan")},
        "test": {"f1": 0.25, "rows": 35, "confusion": [[1]]},
        "verdict": {"baselines": {"majority": {"f1": 0.125, "name": "the most frequent"}}},
    }
    assert final_figures(result) == {
        "run/steps": 40.0,
        "run/best_step": 30.0,
        "best/f1": 0.5,
        "test/f1": 0.25,
        "test/rows": 35.0,
        "baseline/majority/f1": 0.125,
    }
    assert final_figures({}) == {}


def test_a_trial_is_named_after_its_search(tmp_path: Path) -> None:
    trial = tracked(tmp_path / "search" / "trials" / "0003")
    assert (trial.name, trial.group) == ("search 0003", "search")
    assert trial.local_home == tmp_path / "search"
    alone = tracked(tmp_path / "mine")
    assert (alone.name, alone.group, alone.local_home) == ("mine", "", tmp_path / "mine")
