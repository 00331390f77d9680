"""Run directories that were damaged, disks that are full, and two drivers on one run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.metric_rows import DAMAGED_LINES
from tests.support.results import without_place
from trainers.__main__ import main
from trainers.checkpoint import checkpoint
from trainers.models import card
from trainers.storage.atomic import file_sha256
from trainers.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.multiprocess

SETTINGS = [
    "batch.global_size=16",
    "batch.max_length=32",
    "batch.token_budget=128",
    "optimizer.learning_rate=2e-3",
    "stopping.max_steps=12",
    "stopping.patience=null",
    "evaluation.every_steps=4",
    "checkpoints.every_steps=2",
    "checkpoints.keep=3",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path) -> list[str]:
    """The command line of a run in this process, but for --run."""
    place = tmp_path_factory.mktemp("place")
    metadata = {"devices_per_node": 0, "cache": str(place / "cache")}
    text = yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata})
    (place / "cluster.yaml").write_text(text)
    own = [f"model.name={tiny_bert}", f"data.source={corpus}"]
    return ["csv", *own, *SETTINGS, "--cluster", str(place / "cluster.yaml")]


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*words, "--run", str(run)]) == 0
    return RunDirectory(run)


@pytest.fixture
def run(undisturbed: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the run that has ended."""
    shutil.copytree(undisturbed.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def unfinished(run: RunDirectory) -> RunDirectory:
    """The same as it was after 10 steps."""
    run.result_path.unlink()
    shutil.rmtree(run.bundle_path)
    shutil.rmtree(run.checkpoints.directory / "step-00000012")
    return run


def resume(words: list[str], run: RunDirectory) -> int:
    return main([*words, "--run", str(run.path), "--resume"])


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.metric_rows("step")]


def starts(run: RunDirectory) -> list[int]:
    return [row["step"] for row in run.metric_rows("start")]


def assert_same(run: RunDirectory, undisturbed: RunDirectory) -> None:
    """It ended as the run that nothing happened to."""
    assert losses(run) == losses(undisturbed)
    assert without_place(run.read_result()) == without_place(undisturbed.read_result())
    assert (
        card.read_card(run.bundle_path).metrics == card.read_card(undisturbed.bundle_path).metrics
    )


@pytest.mark.parametrize("content", [b"", b'{"steps": 12', b"[]", b'{"steps": "12"}', b"\xff\x00"])
def test_a_damaged_result_is_made_again_and_nothing_is_trained(
    words: list[str], run: RunDirectory, undisturbed: RunDirectory, content: bytes
) -> None:
    run.result_path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"result.json: it is damaged; resuming the run writes it"):
        assert resume(words, run) == 0
    assert_same(run, undisturbed)
    assert starts(run) == [0, 12]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda bundle: shutil.rmtree(bundle), "no such directory"),
        (lambda bundle: (bundle / "bundle.json").unlink(), "no bundle.json"),
        (lambda bundle: (bundle / "bundle.json").write_bytes(b"{"), "bundle.json is not JSON"),
        (lambda bundle: (bundle / "config.json").unlink(), "config.json is missing"),
        (lambda bundle: os.truncate(bundle / "model.safetensors", 99), "model.safetensors is not"),
    ],
    ids=["gone", "no card", "half a card", "a file less", "half the weights"],
)
def test_half_a_bundle_is_written_again(
    words: list[str], run: RunDirectory, undisturbed: RunDirectory, damage: Any, reason: str
) -> None:
    damage(run.bundle_path)
    with pytest.warns(UserWarning, match=f"writing the bundle again: .*{reason}"):
        assert resume(words, run) == 0
    assert_same(run, undisturbed)
    assert starts(run) == [0, 12]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"parity": 5, "teacher": null}', b"\xff\x00"])
def test_a_damaged_record_is_written_again(
    words: list[str],
    unfinished: RunDirectory,
    undisturbed: RunDirectory,
    content: bytes,
    recwarn: pytest.WarningsRecorder,
) -> None:
    unfinished.record_path.write_bytes(content)
    assert resume(words, unfinished) == 0
    told = [str(each.message) for each in recwarn if "record.json" in str(each.message)]
    assert all("it is damaged; the next start writes it again" in line for line in told)
    assert bool(told) == (content[:1] != b"{")
    assert_same(unfinished, undisturbed)
    assert unfinished.read_record().keys() == undisturbed.read_record().keys()


def test_what_is_left_of_an_error_is_no_error(
    words: list[str], unfinished: RunDirectory, undisturbed: RunDirectory
) -> None:
    unfinished.error_path.write_bytes(b"\xff an error of last week")
    assert resume(words, unfinished) == 0
    assert_same(unfinished, undisturbed)
    assert not unfinished.error_path.exists()


def test_damaged_rows_are_left_out_and_kept_aside(
    words: list[str], unfinished: RunDirectory, undisturbed: RunDirectory
) -> None:
    damaged = unfinished.metrics_path.read_bytes() + b"".join(DAMAGED_LINES.values()) + b'{"kind'
    unfinished.metrics_path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="skipping damaged lines of"):
        assert resume(words, unfinished) == 0
    assert_same(unfinished, undisturbed)
    (copy,) = unfinished.path.glob("metrics-damaged-*.jsonl")
    assert copy.read_bytes() == damaged


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: (run / "recipe.yaml").write_bytes(b""), r"recipe.yaml: holds no `key: value`"),
        (lambda run: (run / "recipe.yaml").write_bytes(b"\xff\x00"), "recipe.yaml: not readable"),
        (lambda run: (run / "recipe.yaml").write_text("a: [\n1"), "recipe.yaml: not readable"),
        (lambda run: (run / "recipe.yaml").unlink(), "but not its recipe.yaml; put that back"),
        (lambda run: be_a_file(run / "checkpoints"), "checkpoints: is no directory"),
        (lambda run: (run / "error.txt").mkdir(), "error.txt: is no file"),
        (lambda run: forge(run, "state.json", "[]"), r"step-00000010/state.json: is no JSON obj"),
        (
            lambda run: forge(run, "state.json", '{"stop": 1}'),
            r"holds {'stop': 1}, which is no pos",
        ),
        (lambda run: forge(run, "state.json", '{"step": "1"}'), r"holds {'step': '1'}, which is"),
        (lambda run: forge(run, "index.json", "{}"), "is of another model; resume with"),
        (lambda run: forge(run, "index.json", '{"a": 1}'), "index.json: is no index of tensors"),
    ],
)
def test_what_only_a_person_can_mend_is_one_sentence_and_changes_nothing(
    words: list[str],
    unfinished: RunDirectory,
    capsys: pytest.CaptureFixture[str],
    damage: Any,
    line: str,
) -> None:
    damage(unfinished.path)
    kept = {path.name for path in unfinished.path.rglob("*")}
    assert resume(words, unfinished) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and line in said
    assert kept <= {path.name for path in unfinished.path.rglob("*")}


def be_a_file(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.write_text("x")


def forge(run: Path, file: str, text: str) -> None:
    """Give the newest checkpoint another file, and a seal that vouches for it."""
    newest = max((run / "checkpoints").glob("step-*"))
    (newest / file).write_text(text)
    seal = newest / checkpoint.SEAL_FILE
    seal.write_text(json.dumps(json.loads(seal.read_text()) | {file: file_sha256(newest / file)}))


def test_a_checkpoint_that_is_a_link_is_not_loaded_and_what_it_points_to_is_kept(
    words: list[str], unfinished: RunDirectory, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    newest = unfinished.checkpoints.directory / "step-00000010"
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    before = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    with pytest.warns(UserWarning, match="skipping step-00000010 in"):
        assert resume(words, unfinished) == 0
    assert_same(unfinished, undisturbed)
    assert starts(unfinished) == [0, 8]
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == before


# A run whose disk is full from its second checkpoint on: no file may grow beyond 40 kB.
FILL_UP = """
import resource, sys
from trainers.checkpoint import checkpoint
save, calls = checkpoint.save_checkpoint, 0
def save_and_fill(*given):
    global calls
    calls += 1
    if calls == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    return save(*given)
checkpoint.save_checkpoint = save_and_fill
from trainers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_is_full_leaves_the_checkpoint_before(
    words: list[str], undisturbed: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-c", FILL_UP, *words, "--run", str(run.path)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert died.returncode == 2
    (said,) = died.stderr.splitlines()
    assert said.startswith("error: ") and said.endswith("; fix that, then go on with --resume")
    assert "File too large" in said
    names = sorted(path.name for path in run.checkpoints.directory.iterdir())
    assert names[-1] == "step-00000006" and not list(run.checkpoints.directory.glob(".*"))
    assert resume(words, run) == 0
    assert_same(run, undisturbed)
    assert starts(run) == [0, 6]


def start(words: list[str], run: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainers", *words, "--run", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_steps(run: RunDirectory, number: int) -> None:
    deadline = time.monotonic() + 180
    while len(losses(run)) < number:
        assert time.monotonic() < deadline, "it never trained"
        time.sleep(0.002)


def test_a_second_driver_is_refused_and_the_first_goes_on(
    words: list[str],
    undisturbed: RunDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDirectory(tmp_path / "run")
    first = start(words, run.path)
    try:
        wait_for_steps(run, 3)
        first.send_signal(signal.SIGSTOP)
        files = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
        assert resume(words, run) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"error: {run.path}: ") and said.endswith("ended, or end it")
        assert f"process {first.pid}, since " in said
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == files
        first.send_signal(signal.SIGCONT)
        assert first.wait(180) == 0
    finally:
        first.kill()
        first.communicate()
    assert_same(run, undisturbed)


def test_a_driver_that_was_killed_blocks_nobody(
    words: list[str], undisturbed: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    first = start(words, run.path)
    wait_for_steps(run, 3)
    first.kill()
    first.communicate()
    assert resume(words, run) == 0
    assert_same(run, undisturbed)
