"""What a run leaves behind, and what a person sees of it meanwhile."""

import json
from pathlib import Path

import pytest

from trainers.config import recipe as recipes
from trainers.tracking.metric_logger import MetricLogger
from trainers.tracking.progress import (
    MetricTail,
    count_printer,
    format_duration,
    format_start,
    format_steps,
    summarize_run,
)
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training.events import EvalEvent, StepEvent


def step(number: int, seconds: float = 0.5) -> StepEvent:
    return StepEvent(number, 0, 0.7 - number / 100, 1e-4, 1.0, 8, 80, 100, 2, seconds)


def recorded(run: RunDirectory, first: int, last: int) -> None:
    recorder = MetricLogger(run, first - 1)
    recorder.log_start(step=first - 1, total_steps=10)
    for number in range(first, last + 1):
        recorder.log_event(step(number))
    recorder.close()


def test_a_restart_drops_the_rows_of_a_lost_future(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    recorded(run, 1, 5)
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "step", "st')  # what a kill leaves
    recorded(run, 4, 6)
    assert [row["step"] for row in run.metric_rows("step")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in run.metric_rows("start")] == [0, 3]
    assert next(run.metric_rows("step"))["padding_share"] == pytest.approx(0.2)
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_recorder_knows_what_was_lost(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    recorded(run, 1, 5)
    for resumed_at, lost in ((5, 0), (3, 2), (3, 0)):  # what was lost is told once
        recorder = MetricLogger(run, resumed_at)
        assert recorder.lost_steps == lost
        assert recorder.lost_seconds == sum(step(4).seconds for _ in range(lost))
        recorder.close()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"step": 4, "workers": 3, "lost_steps": 2, "lost_seconds": 90},
            "from step 4 with 3 workers (2 steps lost, 1m30s of training or $0.50)",
        ),
        (
            {"step": 4, "workers": 1, "lost_steps": 1, "lost_seconds": 2},
            "from step 4 with 1 worker (1 step lost, 2s of training or $0.01)",
        ),
        ({"step": 4, "workers": 2, "lost_steps": 0}, "from step 4 with 2 workers"),
        ({"step": 4}, "from step 4"),
    ],
)
def test_a_start_that_goes_on_says_from_where(row: dict[str, int], line: str) -> None:
    assert format_start(row, 20.0) == f"resuming {line}"


def test_a_tail_reads_what_is_new_and_survives_a_restart(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    tail = MetricTail(run)
    assert tail.read_rows() == []
    recorded(run, 1, 3)
    assert [row["step"] for row in tail.read_rows()] == [0, 1, 2, 3]
    assert tail.read_rows() == []
    with run.metrics_path.open("a") as file:
        file.write(json.dumps({"kind": "step", "step": 4})[:-5])
        file.flush()
        assert tail.read_rows() == [], "half a line is not read"
    recorded(run, 3, 4)
    assert [(row["kind"], row["step"]) for row in tail.read_rows()] == [
        ("start", 2),
        ("step", 3),
        ("step", 4),
    ]


def test_a_line_of_progress_says_all() -> None:
    rows = [
        {"step": n, "loss": 0.5, "learning_rate": 2e-5, "tokens": 90, "computed_tokens": 100}
        | {"seconds": 0.5}
        for n in (1, 2)
    ]
    assert format_steps(rows, 10) == (
        "step 2/10  loss 0.5000  learning rate 2.00e-05  180 tokens/s  padding 10.0%  4s left"
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (59.4, "59s"), (200, "3m20s"), (7500, "2h05m")]
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_encoding_is_told_now_and_then() -> None:
    said: list[str] = []
    tell = count_printer("encoding texts", said.append, every_seconds=0.0)
    tell(1000, 25000)
    assert said == ["encoding texts: 1,000 of 25,000"]
    quiet = count_printer("encoding texts", said.append, every_seconds=60.0)
    quiet(2000, 25000)
    assert len(said) == 1


def test_a_directory_is_claimed_once(tmp_path: Path) -> None:
    recipe, other = (
        recipes.load_recipe("reviews"),
        recipes.load_recipe("reviews", ["optimizer.eps=1e-6"]),
    )
    run = RunDirectory(tmp_path / "run")
    run.acquire(recipe, resume=True)
    run.acquire(recipe, resume=True)
    with pytest.raises(RunError, match="holds a run already"):
        run.acquire(recipe, resume=False)
    with pytest.raises(RunError, match=r"its recipe differs in optimizer\.eps"):
        run.acquire(other, resume=True)
    (run.path / "recipe.yaml").write_text("task: [")
    with pytest.raises(RunError, match="not readable as YAML"):
        run.acquire(recipe, resume=True)


def test_the_outcome_in_words() -> None:
    per_class = {"good": {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 12}}
    result = {
        "steps": 40,
        "best_step": 30,
        "stopped_early": True,
        "test": {"rows": 12, "accuracy": 0.8, "f1": 0.85, "per_class": per_class},
    }
    said = summarize_run(result, 61, "runs/x")
    assert said[0] == "40 steps in 1m01s, stopped early; best at 30"
    assert "held out, 12 rows never trained on:" in said
    assert "  accuracy  0.8000" in said
    assert said[-2].split() == ["good", "0.9000", "0.8000", "0.8500", "12"]
    assert said[-1] == "bundle: runs/x/bundle"


def test_an_evaluation_is_a_row(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    recorder = MetricLogger(run, 0)
    recorder.log_event(EvalEvent(7, 0, {"f1": 0.5, "confusion": [[1, 2], [3, 4]]}, True, 1.0))
    recorder.close()
    (row,) = run.metric_rows("evaluation")
    assert row["metrics"]["confusion"] == [[1, 2], [3, 4]] and row["best"]
