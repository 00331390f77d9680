"""The shipped onprem.yaml on three hosts and a laptop, from `up` to `down`: `make test-cluster`.

The tests are one story and run in their order; nothing is faked but the machines (hosts.py). The
name keeps it out of `make test`: it needs root, a few minutes and the whole machine.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
import yaml

from tests.e2e.hosts import lan
from tests.e2e.hosts.hosts import STATE, Host
from tests.e2e.hosts.training import (
    TOLERANCE,
    metric_rows,
    recipe_arguments,
    step_losses,
    train_alone,
)
from tests.e2e.hosts.user import User, submit_job, wait_until
from tests.support.paths import ROOT

HEAD, W1, W2 = Host("head", "10.77.7.10"), Host("w1", "10.77.7.11"), Host("w2", "10.77.7.12")
LAPTOP = Host("laptop", "10.77.7.2", login="")
NODES = [HEAD, W1, W2]
ALL = [*NODES, LAPTOP]
FILE = "onprem.yaml"
METRICS = STATE / "shared" / "runs" / "reviews" / "metrics.jsonl"
USER = User(LAPTOP)
STEPS, CUT_AFTER, SAVED_EVERY = 60, 24, 8
RECIPE = recipe_arguments(STEPS, 30, SAVED_EVERY)


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[None]:
    lacking = lan.missing_requirements()
    if lacking:
        pytest.skip(f"hosts cannot be made here: {lacking}")
    with lan.host_network(ALL):
        USER.clone_checkout()
        USER.write_cluster_file(FILE, cluster_file())
        yield
    assert lan.leftovers() == []


def cluster_file() -> dict[str, Any]:
    """The shipped file with what it says is to be filled in."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / FILE).read_text())
    settings["provider"] |= {"head_ip": HEAD.address, "worker_ips": [W1.address, W2.address]}
    settings["auth"]["ssh_user"] = "root"
    # No GPUs here; and a run goes on with who is left.
    settings["metadata"] |= {"accelerator": "cpu", "min_workers": 1, "resize_seconds": 5}
    return settings


def read_metrics() -> str:
    return METRICS.read_text() if METRICS.is_file() else ""


@pytest.fixture(scope="module")
def tunnel(machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The dashboard on the laptop, as docs/clusters.md has it."""
    with USER.start_command(f"ray dashboard {FILE}", tmp_path_factory.mktemp("tunnel") / "log"):
        yield


class TestOnPrem:
    def test_up(self) -> None:
        USER.check_command(f"python -m cluster check {FILE}")
        print(USER.check_command(f"python -m cluster up {FILE} --yes"))

    def test_all_nodes_join(self, tunnel: None) -> None:
        USER.wait_for_nodes({host.address for host in NODES}, FILE)
        # The autoscaler counts nodes some seconds after they have joined.
        wait_until(lambda: "3 local.cluster.node" in USER.ray_status(FILE), 60, "no three nodes")

    def test_who_has_no_token_is_refused(self) -> None:
        assert USER.is_refused_without_token()

    def test_the_doctor_finds_nothing(self) -> None:
        found, told = USER.run_doctor(FILE)
        assert found == 0 and "fit to train" in told, told

    def test_a_run_outlives_a_host_and_loses_nothing(self, tmp_path: Path) -> None:
        words = f"trainers {' '.join(map(quote, RECIPE))} --cluster {FILE}"
        log = tmp_path / "job.log"
        with USER.start_command(
            submit_job(f"{words} --run /mnt/shared/runs/reviews"), log
        ) as running:
            wait_until(lambda: has_trained_or_ended(running, CUT_AFTER), 600, "it did not train")
            assert running.poll() is None, log.read_text()[-8000:]
            W2.cut_power()
            cut = time.time()
            assert running.wait(600) == 0, log.read_text()[-8000:]
        starts = metric_rows(read_metrics(), "start")
        assert starts[-1]["time"] > cut and starts[-1]["step"] >= CUT_AFTER - SAVED_EVERY
        later = starts[-1]["time"] - cut
        print(f"went on {later:.0f} s after the cut, with {starts[-1]['workers']} workers")
        assert len({row["step"] for row in metric_rows(read_metrics(), "step")}) == STEPS
        assert step_losses(read_metrics()) == pytest.approx(
            train_alone(RECIPE, tmp_path), abs=TOLERANCE
        )

    def test_the_doctor_misses_the_host(self) -> None:
        found, told = USER.run_doctor(FILE)
        assert found == 1 and f"nodes: {W2.address}" in told, told

    def test_a_host_that_is_back_joins_by_itself(self) -> None:
        W2.power_on(lan.etc_hosts(ALL))
        wait_until(
            lambda: bool(W2.matching_processes("raylet/raylet")), 300, "Ray did not start there"
        )
        wait_until(
            lambda: "3 local.cluster.node" in USER.ray_status(FILE), 300, "the host did not join"
        )

    def test_the_bundle_is_served_to_the_laptop(self) -> None:
        words = "serving deploy /mnt/shared/runs/reviews/bundle --registry /mnt/shared/registry"
        # More replicas than one host takes, so that some are not on the head.
        USER.check_command(
            submit_job(f"{words} --address auto --host 0.0.0.0 --as reviews --replicas 3")
        )
        body = json.dumps({"inputs": "A warm and funny film."})
        answer = USER.check_command(f"curl -s -m 60 http://head:8000/predict -d {quote(body)}")
        labels = json.loads(answer)
        assert {each["label"] for each in labels} == {"negative", "positive"}, answer

    def test_the_doctor_names_the_slow_host(self) -> None:
        W1.slow_down("100mbit")
        try:
            found, told = USER.run_doctor(FILE)
        finally:
            W1.speed_up()
        assert found == 1 and "w1 is in all slow pairs" in told, told

    def test_the_doctor_names_who_lacks_the_storage(self) -> None:
        # Lazily: a replica there holds its registry.
        assert W1.run("umount", "--lazy", "/mnt/shared").returncode == 0
        found, told = USER.run_doctor(FILE)
        assert found == 1 and "storage: w1: cannot write to /mnt/shared/runs" in told, told
        assert "storage: head" not in told and "storage: w2" not in told, told

    def test_down_leaves_nothing(self) -> None:
        USER.check_command(f"python -m cluster down {FILE} --yes")
        left = {
            host.name: host.matching_processes("raylet|gcs_server|ray::|log_monitor")
            for host in NODES
        }
        assert left == {host.name: [] for host in NODES}


def has_trained_or_ended(running: subprocess.Popen[bytes], step: int) -> bool:
    """Whether the run has come to `step`, or ended."""
    there = any(row["step"] >= step for row in metric_rows(read_metrics(), "step"))
    return there or running.poll() is not None
