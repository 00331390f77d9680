"""Searches through the front door: Ray Tune, tiny models, kills, resumption."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serving.optimize import optimize
from serving.registry.registry import Registry
from trainers.models import card
from trainers.tracking.run_directory import RunDirectory
from tuning.__main__ import main

pytestmark = pytest.mark.ray

SETTINGS = {
    "batch": {"global_size": 16, "max_length": 32, "token_budget": 128},
    "optimizer": {"learning_rate": 5e-4},
    "stopping": {"epochs": 4},
    "precision": "fp32",
    "tune": {"optimizer.learning_rate": "log 1e-4..3e-2", "batch.global_size": [8, 16, 32]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, corpus: Path) -> Path:
    """A directory with a recipe, and clusters of this machine with one device and with two."""
    directory = tmp_path_factory.mktemp("place")
    own = {"model": {"name": str(tiny_bert)}, "data": {"source": str(corpus)}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS | own))
    for devices in (1, 2):
        metadata = {"devices_per_node": devices, "cache": str(directory / "cache")}
        text = yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata})
        (directory / f"cluster-{devices}.yaml").write_text(text)
    return directory


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def words(place: Path, run: Path, devices: int, *more: str) -> list[str]:
    cluster = place / f"cluster-{devices}.yaml"
    return [str(place / "recipe.yaml"), "--cluster", str(cluster), "--run", str(run), *more]


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def trial(run: Path, number: int) -> RunDirectory:
    return RunDirectory(run / "trials" / f"{number:04d}")


def steps(directory: RunDirectory) -> list[int]:
    return [row["step"] for row in directory.metric_rows("step")]


def until(happened: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def told(run: Path) -> list[tuple[Any, ...]]:
    """What does not depend on the clock."""
    return [
        (t["number"], t["settings"], t["seed"], t["state"], t["repeats"], t["curve"])
        for t in result(run)["trials"]
    ]


def test_a_search_ends_with_a_bundle_and_looks_at_the_test_rows_once(
    place: Path, tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "search"
    chosen_by = "evaluation.metric=mcc"
    assert main(words(place, run, 2, "--trials", "5", "--seeds", "2", chosen_by)) == 0
    said, found = capsys.readouterr().out, result(run)
    own = [t for t in found["trials"] if t["repeats"] is None]
    assert [t["number"] for t in own] == [0, 1, 2, 3, 4]
    assert all(t["state"] in ("complete", "stopped") for t in own)
    assert own[0]["settings"] == {"optimizer.learning_rate": 5e-4, "batch.global_size": 16}
    judged = {number for number in range(len(found["trials"])) if has_seen_the_test(run, number)}
    assert judged == {0, found["winner"]} and set(found["test"]) == set(map(str, judged))
    assert card.read_card(run / "bundle").metrics == found["test"][str(found["winner"])]
    assert found["verdict"] in said and "spent" in said
    assert "an even chance of something better: " in said
    for number in range(len(found["trials"])):
        looks = [
            [row["tokens"], row["metrics"]["mcc"]]
            for row in trial(run, number).metric_rows("evaluation")
        ]
        assert found["trials"][number]["curve"] == looks
    assert (run / "report.html").is_file() and found["repeat"] in (run / "report.md").read_text()
    for number, each in enumerate(found["trials"]):
        assert compared_by(run, number) == {"_hparams_/experiment"} | {
            f"_hparams_/session_{moment}_info" for moment in ("start", "end")
        }, each
    assert main(["resume", str(run)]) == 0
    assert result(run)["trials"] == found["trials"], "an ended search is not repeated"


def compared_by(run: Path, number: int) -> set[str]:
    """What TensorBoard's HParams finds of a trial."""
    events = EventAccumulator(str(trial(run, number).path / "tensorboard")).Reload()
    return set(events.PluginTagToContent("hparams"))


def test_what_could_be_deployed_is_measured_and_the_winner_registered(
    place: Path, tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The engines are built and measured in earnest, but few and not for long.
    few = functools.partial(optimize.build_engines, candidates=["onnxruntime fp32"], rounds=1)
    monkeypatch.setattr(optimize, "build_engines", few)
    run, registry = tmp_path / "search", tmp_path / "registry"
    only = ["tune.optimizer.learning_rate=null", "tune.batch.global_size=null"]
    models = ["tune.model.layers=[null, [0]]", "--sampler", "grid", "--trials", "2"]
    where = ["--deployment", "--register", "tiny", "--registry", str(registry), "--seeds", "1"]
    assert main(words(place, run, 2, *only, *models, *where)) == 0
    found = result(run)
    assert [t["settings"]["model.layers"] for t in found["trials"]] == [None, "[0]"]
    assert [t["state"] for t in found["trials"]] == ["complete", "complete"]
    by_trial = {each["trial"]: each for each in found["variants"] if not each["refused"]}
    assert set(by_trial) == {0, 1} and set(found["test"]) == {"0", "1"}
    for each in found["variants"]:
        assert 0 <= each["metric"] <= 1 and each["p95_seconds"] > 0 and each["cpu_seconds"] > 0
    assert found["registered"] == "tiny:1"
    state = Registry.open(str(registry)).read_state("tiny")
    bundle = Registry.open(str(registry)).fetch_bundle(
        "tiny", state.aliases["best"], tmp_path / "cache"
    )
    measured = {each.name for each in card.read_card(bundle).engines}
    assert measured == {e["engine"] for e in found["variants"] if e["trial"] == found["winner"]}
    page = (run / "report.html").read_text()
    assert "For deployment" in page and "tiny:1" in page
    assert main(["resume", str(run)]) == 0, "which registers nothing again"
    assert list(Registry.open(str(registry)).read_state("tiny").versions) == ["1"]


def has_seen_the_test(run: Path, number: int) -> bool:
    return (trial(run, number).path / "bundle").exists()


def test_a_killed_trial_goes_on_from_its_checkpoint(
    place: Path, tmp_path: Path, ray_here: None
) -> None:
    run = tmp_path / "search"
    killed: list[int] = []

    def kill() -> None:
        until(lambda: len(steps(trial(run, 1))) > 20)
        killed.append(next(trial(run, 1).metric_rows("start"))["pid"])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    none = ["--scheduler", "none", "--seeds", "1", "--trials", "3", "--sampler", "random"]
    status = main(words(place, run, 1, *none))
    killer.join()
    assert status == 0 and [t["state"] for t in result(run)["trials"]] == ["complete"] * 3
    starts = list(trial(run, 1).metric_rows("start"))
    assert starts[-1]["step"] > 0 and starts[-1]["pid"] != killed[0]
    for number in range(3):
        done = steps(trial(run, number))
        assert done == list(range(1, len(done) + 1))


@pytest.fixture(scope="module")
def undisturbed(place: Path, ray_here: None) -> Path:
    run = place / "undisturbed"
    assert main(words(place, run, 1, "--trials", "3", "--seeds", "2")) == 0
    return run


@pytest.mark.parametrize("moment", ["in the first trial", "in the third", "in a repetition"])
def test_a_search_whose_driver_is_killed_ends_the_same(
    place: Path, tmp_path: Path, undisturbed: Path, moment: str
) -> None:
    run = tmp_path / "search"
    number = {"in the first trial": 0, "in the third": 2, "in a repetition": 3}[moment]
    command = [sys.executable, "-m", "tuning", *words(place, run, 1, "--trials", "3")]
    process = subprocess.Popen([*command, "--seeds", "2"], stdout=subprocess.DEVNULL)
    until(lambda: len(steps(trial(run, number))) > 6)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (run / "result.json").exists()
    finished = {done: list(trial(run, done).metric_rows("step")) for done in range(number)}
    assert main(["resume", str(run)]) == 0
    assert told(run) == told(undisturbed)
    for done, rows in finished.items():
        assert list(trial(run, done).metric_rows("step")) == rows, (
            "not one step, by the clock, is new"
        )
    for t in result(run)["trials"]:
        taken = steps(trial(run, t["number"]))
        assert taken == list(range(1, len(taken) + 1)) == steps(trial(undisturbed, t["number"]))
    resumed = list(trial(run, number).metric_rows("start"))[1]
    looks = [row["step"] for row in trial(run, number).metric_rows("evaluation")]
    assert resumed["step"] in (0, *looks) and resumed["lost_steps"] <= looks[0]


def test_a_search_that_was_taken_over_stops_with_one_sentence(
    place: Path, tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run, written = tmp_path / "search", list[bytes]()

    def take_over() -> None:
        until(lambda: len(steps(trial(run, 0))) > 6)
        (run / "lease" / "holder").write_text("another machine's")
        written.append((run / "study.journal").read_bytes())

    taker = threading.Thread(target=take_over)
    taker.start()
    status = main(words(place, run, 1, "--trials", "2", "--seeds", "1"))
    taker.join()
    assert status == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith(f"error: {run}: another process has taken")
    # A line that was on its way when the other came may stand there; none that came later.
    after = (run / "study.journal").read_bytes()
    assert after.startswith(written[0]) and after.count(b"\n") <= written[0].count(b"\n") + 1


def test_a_stopped_trial_of_two_workers_leaves_none_behind(
    place: Path, tmp_path: Path, ray_here: None
) -> None:
    run = tmp_path / "search"
    good = ["layout.tp=2", "optimizer.learning_rate=3e-3", "tune.batch.global_size=null"]
    poor = ["tune.optimizer.learning_rate=log 1e-6..2e-6", "--trials", "2", "--seeds", "1"]
    poor += ["stopping.epochs=8"]  # the good one is better from the seventh evaluation on
    assert main(words(place, run, 2, *good, *poor)) == 0
    assert trial(run, 0).read_record()["workers"] == 2
    assert [t["state"] for t in result(run)["trials"]] == ["complete", "stopped"]
    pids = {row["pid"] for number in (0, 1) for row in trial(run, number).metric_rows("start")}
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 60)
    until(lambda: not workers(), 60)


def test_a_population_trains_in_rounds(place: Path, tmp_path: Path, ray_here: None) -> None:
    run = tmp_path / "search"
    asked = ["--sampler", "pbt", "--trials", "5", "--seeds", "1", "tune.batch.global_size=null"]
    assert main(words(place, run, 2, *asked)) == 0
    found = result(run)["trials"]
    assert len(found) == 1 + 4 * 4
    for t in found[5:]:
        parent, tokens = t["parent"]
        assert found[parent]["tokens"] == tokens < t["tokens"]
        first, before = steps(trial(run, t["number"]))[0], steps(trial(run, parent))[-1]
        assert first == before + 1, "it goes on where its parent ended"
    changed = [t for t in found[5:] if t["settings"] != found[t["parent"][0]]["settings"]]
    assert len(changed) == 3, "one of four in each round"
    assert card.read_card(run / "bundle").metrics


def workers() -> list[str]:
    """Train workers that are alive under this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "RayTrainWorker" in title:
            found.append(title)
    return found
