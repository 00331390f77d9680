"""What a run leaves behind, and what a person sees of it meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.metric_rows import DAMAGED_LINES, start_row, step_row, to_line
from trainers.config import recipe as recipes
from trainers.tracking import progress
from trainers.tracking.metric_logger import MetricLogger
from trainers.tracking.progress import (
    MetricTail,
    ProgressPrinter,
    count_printer,
    format_duration,
    format_start,
    format_steps,
    summarize_run,
)
from trainers.tracking.run_directory import Row, RunDirectory, RunError
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


@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=DAMAGED_LINES)
class TestDamagedMetrics:
    """Rows 1, 2, a damaged line, and row 4."""

    @pytest.fixture
    def run(self, tmp_path: Path, line: bytes) -> RunDirectory:
        run = RunDirectory(tmp_path)
        before = to_line(start_row()) + to_line(step_row(1)) + to_line(step_row(2))
        run.metrics_path.write_bytes(before + line + to_line(step_row(4)))
        return run

    def test_a_reader_skips_it_with_one_warning(self, run: RunDirectory) -> None:
        with pytest.warns(UserWarning, match=r"skipping line 4 of .*metrics.jsonl") as told:
            steps = [row["step"] for row in run.metric_rows("step")]
        assert steps == [1, 2, 4] and len(told) == 1

    def test_whoever_follows_the_run_goes_on(self, run: RunDirectory, tmp_path: Path) -> None:
        said: list[str] = []
        followed = RunDirectory(tmp_path / "followed")
        printer = ProgressPrinter(followed, say=said.append)
        with printer:
            followed.path.mkdir()
            run.metrics_path.replace(followed.metrics_path)
        assert said[-1].startswith("step 4/10  loss 0.5000")

    def test_a_restart_leaves_it_out_and_keeps_a_copy(self, run: RunDirectory) -> None:
        before = run.metrics_path.read_bytes()
        with pytest.warns(UserWarning, match="skipping damaged lines"):
            recorder = MetricLogger(run, 2)
        recorder.close()
        assert recorder.lost_steps == 2
        assert [row["step"] for row in run.metric_rows()] == [0, 1, 2]
        (copy,) = run.path.glob("metrics-damaged-*.jsonl")
        assert copy.read_bytes() == before


def test_many_damaged_lines_are_one_warning(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.write_bytes(b"?\n" * 1234 + to_line(step_row(1)))
    with pytest.warns(UserWarning, match="skipping line 1 and 1,233 others of") as told:
        assert len(list(run.metric_rows())) == 1
    assert len(told) == 1


def test_a_row_of_a_later_version_survives(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.write_bytes(to_line({"kind": "energy", "step": 1, "joules": 5}))
    said: list[str] = []
    MetricLogger(run, 1).close()
    with ProgressPrinter(run, say=said.append), run.metrics_path.open("ab") as file:
        file.write(to_line({"kind": "energy", "step": 2, "joules": 6}))
    assert [row["joules"] for row in run.metric_rows("energy")] == [5, 6] and said == []


def test_a_tail_reads_what_is_new_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a million steps has hundreds of megabytes of metrics, read twice a second."""
    run = RunDirectory(tmp_path)
    line = to_line(step_row(1, time=1.0))
    run.metrics_path.write_bytes(line * 1000)
    tail, read = MetricTail(run), list[int]()
    assert len(tail.read_rows()) == 1000
    parse = progress.parse_rows

    def count(data: bytes, *given: Any) -> Iterator[Row]:
        read.append(len(data))
        return parse(data, *given)

    monkeypatch.setattr(progress, "parse_rows", count)
    with run.metrics_path.open("ab") as file:
        file.write(line)
    assert len(tail.read_rows()) == 1 and read == [len(line)]


DAMAGED_FILES = {
    "empty": b"",
    "cut": b'{"steps": 3, "best',
    "bytes": bytes(range(128, 256)),
    "a list": b"[]",
    "a word": b'"done"',
    "too deep": b"[" * 1_000_000,
}


@pytest.mark.parametrize("content", DAMAGED_FILES.values(), ids=DAMAGED_FILES)
@pytest.mark.parametrize("name", ["result.json", "record.json"])
def test_a_file_that_is_written_again_is_skipped_with_a_warning(
    tmp_path: Path, name: str, content: bytes
) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"skipping {tmp_path}/{name}: it is damaged"):
        assert (run.read_result() if name == "result.json" else run.read_record()) in (None, {})
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
    "changes", [{"steps": "3"}, {"best_step": None}, {"test": 5}, {"test": None, "steps": True}]
)
def test_a_result_of_other_types_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = {"steps": 3, "best_step": 2, "stopped_early": False, "validation": {}, "test": None}
    run = RunDirectory(tmp_path)
    run.result_path.write_text(json.dumps(result))
    assert run.read_result() == result
    run.result_path.write_text(json.dumps(result | changes))
    with pytest.warns(UserWarning, match="result.json: it is damaged"):
        assert run.read_result() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"task: [",
        b"- 1",
        b"\x00\x01",
        bytes(range(128, 256)),
        b"seed: 2024-13-45",
        b"[" * 5000,
    ],
    ids=["empty", "cut", "a list", "nulls", "bytes", "no such day", "too deep"],
)
def test_a_damaged_recipe_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    run, recipe = RunDirectory(tmp_path), recipes.load_recipe("reviews")
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RunError) as refused:
        run.acquire(recipe, resume=True)
    said = str(refused.value)
    assert said.startswith(f"cannot resume {tmp_path}: ") and "put back the recipe.yaml" in said
    assert "\n" not in said
    assert (tmp_path / "recipe.yaml").read_bytes() == content


@pytest.mark.parametrize("left", ["record.json", "metrics.jsonl", "result.json"])
def test_what_is_left_of_a_run_is_not_given_another_recipe(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("")
    with pytest.raises(RunError, match=f"holds {left} of a run, but not its recipe.yaml; put"):
        RunDirectory(tmp_path).acquire(recipes.load_recipe("reviews"), resume=True)
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["recipe.yaml", "result.json", "error.txt", "metrics.jsonl"])
@pytest.mark.parametrize("is_link", [False, True], ids=["a directory", "a dangling link"])
def test_what_lies_in_the_place_of_a_file_is_named(
    tmp_path: Path, name: str, is_link: bool
) -> None:
    path = tmp_path / name
    path.symlink_to(tmp_path / "gone") if is_link else path.mkdir()
    with pytest.raises(RunError, match=f"{path}: is no file, as it is in a run; move it away"):
        RunDirectory(tmp_path).acquire(recipes.load_recipe("reviews"), resume=True)


@pytest.mark.parametrize("name", ["checkpoints", "bundle", "plots", "tensorboard"])
def test_what_lies_in_the_place_of_a_directory_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(RunError, match=f"{tmp_path / name}: is no directory, as it is in a run"):
        RunDirectory(tmp_path).acquire(recipes.load_recipe("reviews"), resume=True)


def test_a_directory_that_cannot_be_written_is_one_sentence() -> None:
    with pytest.raises(RunError, match=r"/proc/self/run/recipe.yaml: cannot be written: .*--run"):
        RunDirectory(Path("/proc/self/run")).acquire(recipes.load_recipe("reviews"), resume=False)
