"""Searches that live in S3: the same trials, whatever is killed, on whatever machine they go on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster import spec
from tests.integration.test_search import until
from tests.support.s3 import emulated_s3
from tests.support.searches import open_journal, prepared_search
from trainers.config import recipe as recipes
from trainers.models import card
from trainers.storage import lease
from trainers.storage.lease import LeaseError
from trainers.storage.store import open_store
from trainers.tracking.run_directory import RunDirectory
from tuning.__main__ import main
from tuning.execution import stop_signal
from tuning.execution.trainable import (
    TrialSpec,
    WarmStartError,
    copy_parent_checkpoint,
    train_trial,
)
from tuning.store.journal import Journal
from tuning.store.lease import hold_search, open_study_directory
from tuning.store.reader import JOURNAL

pytestmark = pytest.mark.ray

SETTINGS = {
    "batch": {"global_size": 16, "max_length": 32, "token_budget": 128},
    "optimizer": {"learning_rate": 5e-4},
    "stopping": {"epochs": 2},
    "precision": "fp32",
    "tune": {"optimizer.learning_rate": "log 1e-4..3e-2", "batch.global_size": [8, 16, 32]},
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with emulated_s3("searches") as address:
        yield address


@pytest.fixture(scope="module")
def ray_here(bucket: str) -> Iterator[None]:
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path) -> Path:
    """A directory with a recipe, and one device on each of two machines."""
    directory = tmp_path_factory.mktemp("place")
    own = {"model": {"name": str(tiny_bert)}, "data": {"source": str(corpus)}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | own))
    for name in ("first", "second"):
        metadata = {"devices_per_node": 1, "cache": str(directory / name)}
        text = yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata})
        (directory / f"{name}.yaml").write_text(text)
    return directory


def words(place: Path, run: str, *more: str) -> list[str]:
    cluster = str(place / "first.yaml")
    asked = ["--trials", "3", "--seeds", "1", "--scheduler", "none", *more]
    return [str(place / "recipe.yaml"), "--cluster", cluster, "--run", run, *asked]


def far(run: str, number: int) -> RunDirectory:
    return RunDirectory(Path("nowhere"), f"{run}/trials/{number:04d}")


def steps(run: RunDirectory) -> list[int]:
    return [row["step"] for row in run.published_rows("step")]


def told(result: bytes) -> list[tuple[Any, ...]]:
    """What does not depend on the clock."""
    return [
        (t["number"], t["settings"], t["seed"], t["state"], t["repeats"], t["curve"])
        for t in json.loads(result)["trials"]
    ]


def test_a_search_whose_driver_is_killed_goes_on_on_another_machine(
    bucket: str,
    place: Path,
    ray_here: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    near, run = tmp_path / "near", f"{bucket}/search"
    assert main(words(place, str(near))) == 0
    command = [sys.executable, "-m", "tuning", *words(place, run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: len(steps(far(run, 1))) > 6)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    store = open_store(run)
    assert "result.json" not in store.list_files("")
    first = list(far(run, 0).published_rows("step"))
    capsys.readouterr()
    assert main(["resume", run, "--cluster", str(place / "second.yaml")]) == 0
    said = capsys.readouterr().out
    assert f"bundle: {run}/bundle" in said and f"report: {run}/report.html" in said
    assert told(store.read_bytes("result.json")) == told((near / "result.json").read_bytes())
    assert list(far(run, 0).published_rows("step")) == first, "not one step, by the clock, is new"
    for number in range(3):
        assert steps(far(run, number)) == steps(RunDirectory(near / "trials" / f"{number:04d}"))
    names = {path.split("/")[0] for path in store.list_files("")}
    assert names == {each.name for each in near.iterdir()}
    store.download_directory("bundle", tmp_path / "bundle")
    winner = json.loads(store.read_bytes("result.json"))["winner"]
    assert (
        card.read_card(tmp_path / "bundle").metrics
        == json.loads(store.read_bytes("result.json"))["test"][str(winner)]
    )
    assert yaml.safe_load(store.read_bytes("plan.yaml"))["cluster"] == str(place / "second.yaml")
    before = store.read_bytes(JOURNAL).count(b"\n")
    assert main(["resume", run]) == 0
    assert told(store.read_bytes("result.json")) == told((near / "result.json").read_bytes())
    assert store.read_bytes(JOURNAL).count(b"\n") <= before + 3, "an ended search is not repeated"
    store.remove("report.html")
    assert main(["report", run]) == 0 and b"Search search" in store.read_bytes("report.html")


def test_mistakes_are_one_line(
    bucket: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked, line in (
        (["resume", f"{bucket}/none"], f"{bucket}/none: holds no search"),
        (["report", f"{bucket}/none"], f"{bucket}/none: holds no result.json"),
        (["dashboard", f"{bucket}/none"], f"aws s3 sync {bucket}/none DIR"),
        (words(place, "s3://absent/search"), "s3://absent/search/.* no such bucket"),
    ):
        assert main(asked) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("error: ") and line.split(".*")[-1] in said


@contextmanager
def opened(run: str) -> Iterator[Journal]:
    """The journal of a search, on a machine of its own."""
    with open_study_directory(run) as directory, hold_search(directory) as held:
        yield open_journal(
            directory.path,
            prepared_search(),
            before_append=held.check_held,
            after_append=held.publish_journal,
        )


class TestJournal:
    def test_each_line_is_in_the_store_before_the_search_goes_on(self, bucket: str) -> None:
        run = f"{bucket}/lines"
        with opened(run) as kept:
            kept.note_facts({"some": "fact"})
            written = open_store(run).read_bytes(JOURNAL)
            assert written.endswith(b"\n") and b'"some":"fact"' in written
        with opened(run):
            assert open_store(run).read_bytes(JOURNAL) == written, (
                "another machine goes on with the same"
            )

    def test_who_lives_holds_it(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        run = f"{bucket}/living"
        monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
        with opened(run) as early:
            with pytest.raises(LeaseError, match=f"{run}: .*process {os.getpid()}, .* goes on"):
                opened(run).__enter__()
            early.note_facts({"by": "early"})
        assert b"early" in open_store(run).read_bytes(JOURNAL)

    def test_who_was_thought_dead_writes_no_line(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = f"{bucket}/held"
        monkeypatch.setattr(lease, "BEAT_SECONDS", 1000.0)
        monkeypatch.setattr(lease, "TERM_SECONDS", 0.5)
        with opened(run) as early, opened(run) as late:
            late.note_facts({"by": "late"})
            with pytest.raises(LeaseError, match=f"{run}: .* has taken it over"):
                early.note_facts({"by": "early"})
            late.note_facts({"by": "late, again"})
        held = open_store(run).read_bytes(JOURNAL)
        assert b"late, again" in held and b"early" not in held


class TestTrial:
    """One trial in this process, as Tune would run it: no Ray."""

    @staticmethod
    def listening(run: RunDirectory, most: int) -> Callable[[Any], None]:
        heard: list[Any] = []

        def tell(facts: Any) -> None:
            heard.append(facts)
            if "tokens" in facts:
                stop_signal.write_decision(run, facts["tokens"], len(heard) < most)

        return tell

    def test_it_may_begin_with_the_checkpoint_of_another_on_another_machine(
        self, bucket: str, place: Path, tmp_path: Path
    ) -> None:
        changes = ["evaluation.every_steps=6", "stopping.patience=null", "data.label=label"]
        recipe = recipes.load_recipe(place / "recipe.yaml", changes)
        (tmp_path / "cluster.yaml").write_text(
            yaml.safe_dump(
                {
                    "provider": {"type": "local"},
                    "metadata": {"devices_per_node": 0, "cache": str(tmp_path / "second")},
                }
            )
        )
        cluster = spec.load_cluster_spec(tmp_path / "cluster.yaml")
        parent = RunDirectory.from_address(f"{bucket}/parent", tmp_path / "second")
        trial_spec = TrialSpec(0, recipe, cluster, parent)
        train_trial(trial_spec, self.listening(parent, most=1))
        assert steps(parent) == list(range(1, 7))
        tokens = next(parent.published_rows("evaluation"))["tokens"]
        child = RunDirectory.from_address(f"{bucket}/child", tmp_path / "second")
        train_trial(
            replace(trial_spec, run=child, parent=(parent, tokens)), self.listening(child, most=9)
        )
        assert steps(child) == list(range(7, 25))
        own = RunDirectory.from_address(f"{bucket}/child", tmp_path / "third")
        assert own.published_rows("evaluation") and own.checkpoints.list_names()
        own.delete_checkpoints()
        assert own.checkpoints.list_names() == []
        with pytest.raises(WarmStartError, match=f"{bucket}/parent: its checkpoint"):
            copy_parent_checkpoint(
                RunDirectory.from_address(f"{bucket}/orphan", tmp_path), parent, tokens + 1
            )
