"""Runs that live in S3: the same losses, whatever is killed, from any machine's empty disk."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.metric_rows import DAMAGED_LINES
from tests.support.results import without_place
from tests.support.s3 import emulated_s3
from tests.support.worker_processes import run_workers, with_disk, worker_config
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.models import card
from trainers.runtime import fit
from trainers.storage import lease
from trainers.storage.store import S3Store, Store, open_store
from trainers.tracking.progress import MetricTail
from trainers.tracking.run_directory import RunDirectory, RunError

s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.ray

SETTINGS = [
    "batch.global_size=13",
    "batch.max_length=32",
    "batch.token_budget=96",
    "optimizer.learning_rate=2e-3",
    "model.attention_dropout=0.1",
    "stopping.max_steps=14",
    "stopping.patience=null",
    "evaluation.every_steps=4",
    "checkpoints.every_steps=2",
    "precision=fp32",
]

# A process that is killed when a file of a checkpoint is half uploaded.
DIE_UPLOADING = """
import os, signal, sys
from trainers.storage.store import S3Store
whole = S3Store.put_file
def half(store, source, path):
    if path == sys.argv[1]:
        store.write_bytes(path, source.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(store, source, path)
S3Store.put_file = half
from trainers.__main__ import main
main(sys.argv[2:])
"""

# A process that stops, as a laptop that is shut, when the index of a checkpoint is next.
PAUSE_SAVING = """
import os, signal, sys
from trainers.checkpoint import sharded_tensors
whole = sharded_tensors.write_index
def pause(directory, index):
    if directory.name == "step-00000006":
        os.kill(os.getpid(), signal.SIGSTOP)
    whole(directory, index)
sharded_tensors.write_index = pause
from trainers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with emulated_s3("runs") as address:
        yield address


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, corpus: Path) -> list[str]:
    return [f"model.name={tiny_bert}", f"data.source={corpus}", *SETTINGS]


def machine(disk: Path) -> ClusterSpec:
    """This process alone, on a machine with that disk."""
    return ClusterSpec("here", "local", 1, ClusterMetadata(devices_per_node=0, cache=str(disk)))


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run on disk."""
    place = tmp_path_factory.mktemp("undisturbed")
    fit.fit(recipes.load_recipe("csv", settings), machine(place / "cache"), place / "run")
    return RunDirectory(place / "run")


@pytest.fixture(scope="module")
def finished(bucket: str, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run in the bucket, trained to its end."""
    cluster = machine(tmp_path_factory.mktemp("disk"))
    fit.fit(recipes.load_recipe("csv", settings), cluster, f"{bucket}/finished")
    return f"{bucket}/finished"


def rows(address: str) -> list[dict[str, object]]:
    return MetricTail(RunDirectory(Path(), address)).read_rows()


def losses(address: str) -> list[object]:
    return [row["loss"] for row in rows(address) if row["kind"] == "step"]


def told(run: RunDirectory) -> list[object]:
    return [row["loss"] for row in run.metric_rows("step")]


def copied(address: str, name: str, disk: Path) -> str:
    """Another run with the files of one; its address."""
    bucket = address.rpartition("/")[0]
    open_store(address).download_directory("", disk)
    open_store(bucket).upload_directory(disk, name)
    return f"{bucket}/{name}"


def change_a_byte(store: S3Store, path: str) -> None:
    content = bytearray(store.read_bytes(path))
    content[-1] ^= 1
    store.write_bytes(path, bytes(content))


class TestOneProcess:
    def test_all_of_a_run_is_in_the_bucket(
        self, finished: str, undisturbed: RunDirectory, tmp_path: Path
    ) -> None:
        assert losses(finished) == told(undisturbed)
        store = open_store(finished)
        kept = {str(each.relative_to(undisturbed.path)) for each in undisturbed.path.rglob("*.*")}
        for some in ("plots", "bundle", "checkpoints"):
            there = {path for path in store.list_files(some)}
            assert there == {path for path in kept if path.startswith(some)} and there
        names = {path.split("/")[0] for path in store.list_files("")}
        assert names == {each.name for each in undisturbed.path.iterdir()} - {"ray"}
        stored = json.loads(store.read_bytes("result.json"))
        assert without_place(stored) == without_place(undisturbed.read_result())
        store.download_directory("bundle", tmp_path)
        assert card.read_card(tmp_path).metrics == card.read_card(undisturbed.bundle_path).metrics

    def test_it_is_not_repeated_and_not_overwritten(
        self, finished: str, settings: list[str], tmp_path: Path
    ) -> None:
        recipe, before = recipes.load_recipe("csv", settings), rows(finished)
        outcome = fit.fit(recipe, machine(tmp_path), finished, resume=True)
        assert outcome.result == json.loads(open_store(finished).read_bytes("result.json"))
        assert rows(finished) == before
        with pytest.raises(
            RunError, match="s3://runs/finished holds a run already; resume it with --resume"
        ):
            fit.fit(recipe, machine(tmp_path), finished)
        with pytest.raises(RunError, match="its recipe differs in seed"):
            other = recipes.load_recipe("csv", [*settings, "seed=5"])
            fit.fit(other, machine(tmp_path), finished, resume=True)

    @pytest.mark.parametrize("file", ["pieces-00000.safetensors", "checkpoint.json"])
    def test_killed_in_mid_upload_it_goes_on_from_an_empty_disk(
        self, bucket: str, settings: list[str], undisturbed: RunDirectory, tmp_path: Path, file: str
    ) -> None:
        run = f"{bucket}/killed-{file}"
        cluster = tmp_path / "cluster.yaml"
        metadata = {"devices_per_node": 0, "cache": str(tmp_path / "first")}
        cluster.write_text(json.dumps({"provider": {"type": "local"}, "metadata": metadata}))
        command = [sys.executable, "-c", DIE_UPLOADING, f"checkpoints/step-00000006/{file}"]
        command += ["csv", *settings, "--cluster", str(cluster), "--run", run]
        died = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
        assert died.returncode == -signal.SIGKILL and f"run: {run}" in died.stdout
        assert len(losses(run)) == 6, "no checkpoint knows more than the rows beside it"
        with pytest.warns(UserWarning, match=f"skipping {run}/.*step-00000006: checkpoint.json"):
            fit.fit(
                recipes.load_recipe("csv", settings), machine(tmp_path / "second"), run, resume=True
            )
        assert losses(run) == told(undisturbed)
        assert [row["step"] for row in rows(run) if row["kind"] == "start"] == [0, 4]

    @pytest.mark.parametrize("file", ["pieces-00000.safetensors", "index.json"])
    def test_an_altered_object_is_skipped(
        self,
        finished: str,
        settings: list[str],
        undisturbed: RunDirectory,
        tmp_path: Path,
        file: str,
    ) -> None:
        run = copied(finished, f"altered-{file}", tmp_path / "copy")
        open_store(run).remove("result.json")
        change_a_byte(open_store(run), f"checkpoints/step-00000014/{file}")
        with pytest.warns(UserWarning, match=f"skipping {run}.*step-00000014: {file} is not the"):
            fit.fit(recipes.load_recipe("csv", settings), machine(tmp_path), run, resume=True)
        assert losses(run) == told(undisturbed)
        assert [row["step"] for row in rows(run) if row["kind"] == "start"] == [0, 12]

    def test_what_only_a_user_can_mend_comes_back_from_the_bucket(
        self, bucket: str, settings: list[str], tmp_path: Path
    ) -> None:
        hopeless = ["optimizer.name=sgd", "optimizer.learning_rate=1e30", "schedule.warmup=0"]
        recipe = recipes.load_recipe("csv", [*settings, *hopeless, "optimizer.max_grad_norm=null"])
        with pytest.raises(fit.TrainingError, match="the loss of step"):
            fit.fit(recipe, machine(tmp_path), f"{bucket}/hopeless")
        assert b"the loss of step" in open_store(f"{bucket}/hopeless").read_bytes("error.txt")

    @pytest.mark.parametrize(
        ("damage", "told_of"),
        [
            (lambda store: store.write_bytes("result.json", b'{"steps'), "result.json: it is dam"),
            (lambda store: store.write_bytes("record.json", b"[]"), "record.json: it is damaged"),
            (lambda store: store.remove("bundle/config.json"), "bundle: config.json is missing"),
            (lambda store: store.remove("bundle"), "no bundle is there"),
            (lambda store: store.write_bytes("bundle/bundle.json", b"\xff"), "bundle is not JSON"),
        ],
        ids=["half a result", "a record that is none", "a file less", "no bundle", "no card"],
    )
    def test_what_can_be_written_again_is(
        self,
        finished: str,
        settings: list[str],
        undisturbed: RunDirectory,
        tmp_path: Path,
        request: pytest.FixtureRequest,
        damage: Callable[[Store], None],
        told_of: str,
    ) -> None:
        run = copied(finished, request.node.callspec.id.replace(" ", "-"), tmp_path / "copy")
        store = open_store(run)
        damage(store)
        if "record" in told_of:
            store.remove("result.json")
        with pytest.warns(UserWarning, match=told_of):
            fit.fit(recipes.load_recipe("csv", settings), machine(tmp_path), run, resume=True)
        assert losses(run) == told(undisturbed)
        stored = json.loads(store.read_bytes("result.json"))
        assert without_place(stored) == without_place(undisturbed.read_result())
        assert json.loads(store.read_bytes("record.json"))["data_fingerprint"]
        store.download_directory("bundle", tmp_path / "bundle")
        assert card.read_card(tmp_path / "bundle").metrics

    def test_damaged_rows_are_left_out_and_kept_aside(
        self, finished: str, settings: list[str], undisturbed: RunDirectory, tmp_path: Path
    ) -> None:
        run = copied(finished, "rows", tmp_path / "copy")
        store = open_store(run)
        store.remove("result.json")
        damaged = store.read_bytes("metrics.jsonl") + b"".join(DAMAGED_LINES.values())
        store.write_bytes("metrics.jsonl", damaged)
        with pytest.warns(UserWarning, match="skipping damaged lines of"):
            fit.fit(recipes.load_recipe("csv", settings), machine(tmp_path), run, resume=True)
        assert losses(run) == told(undisturbed)
        (kept,) = [name for name in store.list_files("") if name.startswith("metrics-damaged-")]
        assert store.read_bytes(kept) == damaged

    def test_a_driver_that_was_only_paused_writes_nothing_after_another_went_on(
        self,
        bucket: str,
        settings: list[str],
        undisturbed: RunDirectory,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """On another machine, which cannot see whether it lives, but for its silence."""
        run, cluster = f"{bucket}/paused", tmp_path / "cluster.yaml"
        metadata = {"devices_per_node": 0, "cache": str(tmp_path / "first")}
        cluster.write_text(json.dumps({"provider": {"type": "local"}, "metadata": metadata}))
        command = [sys.executable, "-c", PAUSE_SAVING, "csv", *settings]
        first = subprocess.Popen(
            [*command, "--cluster", str(cluster), "--run", run], stderr=subprocess.PIPE, text=True
        )
        try:
            os.waitid(os.P_PID, first.pid, os.WSTOPPED)
            monkeypatch.setattr(lease, "TERM_SECONDS", 1.0)
            with pytest.warns(UserWarning, match="step-00000006: checkpoint.json is missing"):
                fit.fit(recipes.load_recipe("csv", settings), machine(tmp_path), run, resume=True)
            said = capsys.readouterr().out
            assert f"{run}: waiting 1s for a sign of life of" in said
            assert f"process {first.pid}, since" in said
            assert losses(run) == told(undisturbed)
            store = open_store(run)
            before = {path: store.read_bytes(path) for path in store.list_files("")}
            first.send_signal(signal.SIGCONT)
            _, errors = first.communicate(timeout=120)
        finally:
            first.kill()
            first.communicate()
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert first.returncode == 2 and len(lines) == 1 and "Traceback" not in errors
        assert f"{run}: " in lines[0] and "has taken it over from this process" in lines[0]
        assert {path: store.read_bytes(path) for path in store.list_files("")} == before


class TestMachinesThatShareNothing:
    """Ranks in gloo processes, each with a disk of its own."""

    def test_two_write_and_any_layout_goes_on(
        self, bucket: str, settings: list[str], undisturbed: RunDirectory, tmp_path: Path
    ) -> None:
        """FSDP on two, left, resumed on fresh disks, then TP on two, then one process."""
        run = f"{bucket}/apart"
        for number, (degrees, leave) in enumerate(
            [({"dp_shard": 2}, 1), ({"dp_shard": 2}, 1), ({"tp": 2}, 1)]
        ):
            layout = [f"layout.{name}={degree}" for name, degree in degrees.items()]
            recipe, disks = recipes.load_recipe("csv", [*settings, *layout]), tmp_path / str(number)
            assignment = replace(
                worker_config(recipe, tmp_path, tmp_path, **degrees),
                run=RunDirectory.from_address(run, disks / "driver"),
            )
            assignment.run.acquire(recipe, resume=True)
            run_workers([(assignment, leave)], 2, disks)
            if number == 1:
                second = with_disk(assignment, disks / "1").run.path / "checkpoints"
                assert {path.name for path in second.glob("*/pieces-*")} == {
                    "pieces-00001.safetensors"
                }, "a rank fetches what it reads, and no more"
        fit.fit(recipes.load_recipe("csv", settings), machine(tmp_path / "last"), run, resume=True)
        assert losses(run) == pytest.approx(told(undisturbed), abs=2e-5)
        starts = [(row["step"], row["workers"]) for row in rows(run) if row["kind"] == "start"]
        assert starts == [(0, 2), (4, 2), (8, 2), (12, 1)]

    def test_a_piece_that_one_of_them_cannot_read_is_no_checkpoint(
        self, bucket: str, settings: list[str], tmp_path: Path
    ) -> None:
        """The second rank's piece is altered; both go back to the checkpoint before."""
        run, recipe = f"{bucket}/torn", recipes.load_recipe("csv", [*settings, "layout.dp_shard=2"])
        assignment = replace(
            worker_config(recipe, tmp_path, tmp_path, dp_shard=2),
            run=RunDirectory.from_address(run, tmp_path / "driver"),
        )
        assignment.run.acquire(recipe, resume=True)
        run_workers([(assignment, 1)], 2, tmp_path / "first")
        change_a_byte(open_store(run), "checkpoints/step-00000004/pieces-00001.safetensors")
        run_workers([(assignment, 1)], 2, tmp_path / "second")
        assert [row["step"] for row in rows(run) if row["kind"] == "start"] == [0, 2]


@pytest.fixture
def ray_here(bucket: str) -> Iterator[None]:
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_ray_workers_one_killed_under_the_storage_of_a_cluster(
    bucket: str,
    ray_here: None,
    settings: list[str],
    undisturbed: RunDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = tmp_path / "cluster.yaml"
    metadata = {"devices_per_node": 2, "storage": f"{bucket}/many/", "max_failures": 2}
    metadata["cache"] = str(tmp_path / "cache")
    cluster.write_text(json.dumps({"provider": {"type": "local"}, "metadata": metadata}))
    killed: list[int] = []
    over = threading.Event()

    def kill_a_worker() -> None:
        while not over.wait(0.05):
            of_runs = {path.split("/")[1] for path in open_store(bucket).list_files("many")}
            seen = [row for run in of_runs for row in rows(f"{bucket}/many/{run}")]
            if len([row for row in seen if row["kind"] == "step"]) >= 4:
                killed.append(int(str(seen[0]["pid"])))
                os.kill(killed[0], signal.SIGKILL)
                return

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    try:
        assert main(["csv", *settings, "--cluster", str(cluster)]) == 0
    finally:
        over.set()
        killer.join()
    said = capsys.readouterr().out
    run = said.split("run: ")[1].split("\n")[0]
    assert re.fullmatch(r"s3://runs/many/csv-\d{8}-\d{6}", run)
    assert killed and losses(run) == pytest.approx(told(undisturbed), abs=2e-5)
    last = [row for row in rows(run) if row["kind"] == "start"][-1]
    assert last["step"] != 0 and last["pid"] != killed[0]
    assert f"resuming from step {last['step']} with 2 workers" in said
    assert "tokens/s" in said and "validation: " in said and f"bundle: {run}/bundle" in said
