"""The shipped onprem.yaml on three hosts and a laptop, from `up` to `down`: `make test-cluster`.

The tests are one story and run in their order; nothing is faked but the machines (hosts.py). The
name keeps it out of `make test`: it needs root, a few minutes and the whole machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import hosts
import pytest
import yaml
from hosts import ROOT, STATE, Host

HEAD, W1, W2 = Host("head", 10), Host("w1", 11), Host("w2", 12)
LAPTOP = Host("laptop", 2, login=False)
NODES = [HEAD, W1, W2]
ALL = [*NODES, LAPTOP]
RUN = STATE / "shared" / "runs" / "reviews"
STEPS, CUT_AFTER = 60, 24
RECIPE = [
    "reviews.yaml",
    "model.layers=[0]",
    "model.attention_dropout=0.1",
    "batch.token_budget=256",
    "precision=fp32",
    f"stopping.max_steps={STEPS}",
    "stopping.patience=null",
    "evaluation.every_steps=30",
    "checkpoints.every_steps=8",
]
DASHBOARD = "http://127.0.0.1:8265"
USER = f"cd ~/bertha && export RAY_AUTH_MODE=token RAY_ADDRESS={DASHBOARD} && "
CODE = ("cluster", "trainers", "tuning", "serving", "pyproject.toml", "README.md")


@pytest.fixture(scope="module", autouse=True)
def lan() -> Iterator[None]:
    lacking = hosts.missing()
    if lacking:
        pytest.skip(f"hosts cannot be made here: {lacking}")
    with hosts.network(ALL):
        home = STATE / LAPTOP.name / "home" / "bertha"
        ignored = shutil.ignore_patterns("__pycache__")
        for name in CODE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, home / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, home / name)
        (home / "onprem.yaml").write_text(yaml.safe_dump(cluster_file(), sort_keys=False))
        yield
    assert hosts.leftovers(ALL) == []


def cluster_file() -> dict[str, Any]:
    """The shipped file with what it says is to be filled in."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text())
    settings["provider"] |= {"head_ip": HEAD.address, "worker_ips": [W1.address, W2.address]}
    settings["auth"]["ssh_user"] = "root"
    # No GPUs here; and a run goes on with who is left.
    settings["metadata"] |= {"accelerator": "cpu", "min_workers": 1, "resize_seconds": 5}
    return settings


def laptop(command: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """What a user types, in the checkout."""
    return LAPTOP.run("bash", "-c", USER + command, seconds=seconds)


def job(words: str) -> str:
    return f"ray job submit --working-dir . -- python -m {words}"


def succeeds(command: str, seconds: float = 300) -> str:
    done = laptop(command, seconds)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def wait(condition: Callable[[], bool], seconds: float, why: str) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{why} within {seconds:g} s"
        time.sleep(0.5)


def alive() -> set[str]:
    """Addresses of nodes that Ray holds for alive."""
    token = "Authorization: Bearer $(cat ~/.ray/auth_token)"
    asked = laptop(f'curl -s -m 5 -H "{token}" "{DASHBOARD}/nodes?view=summary"')
    try:
        summary = json.loads(asked.stdout)["data"]["summary"]
    except (ValueError, KeyError):
        return set()
    raylets = [node["raylet"] for node in summary]
    return {each["nodeManagerAddress"] for each in raylets if each.get("state") == "ALIVE"}


def status() -> str:
    """What Ray's own command says of the nodes."""
    return succeeds("ray exec onprem.yaml 'ray status'")


def doctor() -> tuple[int, str]:
    """Its exit status, and what it says."""
    done = laptop(job("cluster doctor onprem.yaml"), seconds=400)
    return done.returncode, done.stdout + done.stderr


def rows(kind: str) -> list[dict[str, Any]]:
    path = RUN / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def tunnel(lan: None) -> Iterator[None]:
    """The dashboard on the laptop, as docs/path.md has it."""
    forwarding = subprocess.Popen(
        LAPTOP.command("bash", "-c", "cd ~/bertha && ray dashboard onprem.yaml"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield
    forwarding.kill()
    forwarding.wait()


class TestCluster:
    def test_up(self) -> None:
        succeeds("python -m cluster check onprem.yaml")
        print(succeeds("python -m cluster up onprem.yaml --yes"))

    def test_all_nodes_join(self, tunnel: None) -> None:
        everyone = {host.address for host in NODES}
        wait(lambda: alive() == everyone, 120, "not all nodes joined")
        assert "3 local.cluster.node" in status()

    def test_who_has_no_token_is_refused(self) -> None:
        asked = f"curl -s -o /dev/null -w '%{{http_code}}' {DASHBOARD}/api/jobs/"
        assert succeeds(asked) in ("401", "403")

    def test_the_doctor_finds_nothing(self) -> None:
        found, told = doctor()
        assert found == 0 and "fit to train" in told, told

    def test_a_run_outlives_a_host_and_loses_nothing(self, tmp_path: Path) -> None:
        words = f"trainers {' '.join(map(quote, RECIPE))} --cluster onprem.yaml"
        command = job(f"{words} --run /mnt/shared/runs/reviews")
        with (tmp_path / "job.log").open("w+") as log:
            running = subprocess.Popen(
                LAPTOP.command("bash", "-c", USER + command), stdout=log, stderr=subprocess.STDOUT
            )
            try:
                wait(lambda: trained(running, CUT_AFTER), 300, "it did not train")
                assert running.poll() is None, (tmp_path / "job.log").read_text()[-8000:]
                W2.cut_power()
                cut = time.time()
                assert running.wait(300) == 0, (tmp_path / "job.log").read_text()[-8000:]
            finally:
                running.kill()
                running.wait()
        starts = rows("start")
        assert starts[-1]["time"] > cut and starts[-1]["step"] >= CUT_AFTER - 8
        later = starts[-1]["time"] - cut
        print(f"went on {later:.0f} s after the cut, with {starts[-1]['workers']} workers")
        assert len({row["step"] for row in rows("step")}) == STEPS
        assert losses(RUN) == pytest.approx(undisturbed(tmp_path), abs=2e-5)

    def test_the_doctor_misses_the_host(self) -> None:
        found, told = doctor()
        assert found == 1 and f"nodes: {W2.address}" in told, told

    def test_a_host_that_is_back_joins_by_itself(self) -> None:
        W2.power_on(hosts.names(ALL))
        wait(lambda: bool(W2.processes("raylet/raylet")), 180, "Ray did not start there")
        wait(lambda: "3 local.cluster.node" in status(), 120, "the host did not join")

    def test_the_bundle_is_served_to_the_laptop(self) -> None:
        words = "serving deploy /mnt/shared/runs/reviews/bundle --registry /mnt/shared/registry"
        # More replicas than one host takes, so that some are not on the head.
        succeeds(job(f"{words} --address auto --host 0.0.0.0 --as reviews --replicas 3"))
        body = json.dumps({"inputs": "A warm and funny film."})
        answer = succeeds(f"curl -s -m 60 http://head:8000/predict -d {quote(body)}")
        labels = json.loads(answer)
        assert {each["label"] for each in labels} == {"negative", "positive"}, answer

    def test_the_doctor_names_the_slow_host(self) -> None:
        W1.slow_down("100mbit")
        try:
            found, told = doctor()
        finally:
            W1.speed_up()
        assert found == 1 and "w1 is in all slow pairs" in told, told

    def test_the_doctor_names_who_lacks_the_storage(self) -> None:
        # Lazily: a replica there holds its registry.
        assert W1.run("umount", "--lazy", "/mnt/shared").returncode == 0
        found, told = doctor()
        assert found == 1 and "storage: w1: cannot write to /mnt/shared/runs" in told, told
        assert "storage: head" not in told and "storage: w2" not in told, told

    def test_down_leaves_nothing(self) -> None:
        succeeds("python -m cluster down onprem.yaml --yes")
        left = {host.name: host.processes("raylet|gcs_server|ray::|log_monitor") for host in NODES}
        assert left == {host.name: [] for host in NODES}


def undisturbed(place: Path) -> list[float]:
    """The losses of the same recipe in one process on this machine."""
    alone = cluster_file()
    alone["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    alone["metadata"] = {"devices_per_node": 0, "cache": str(place / "cache")}
    (place / "alone.yaml").write_text(yaml.safe_dump(alone))
    where = ["--cluster", str(place / "alone.yaml"), "--run", str(place / "alone")]
    subprocess.run(
        [sys.executable, "-m", "trainers", *RECIPE, *where],
        check=True,
        capture_output=True,
        cwd=ROOT,
        timeout=300,
    )
    return losses(place / "alone")


def losses(run: Path) -> list[float]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in found if row["kind"] == "step"]


def trained(running: subprocess.Popen[bytes], step: int) -> bool:
    """Whether the run has come to `step`, or ended."""
    return any(row["step"] >= step for row in rows("step")) or running.poll() is not None
