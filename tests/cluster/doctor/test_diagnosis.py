"""The doctor: each illness of a cluster is one finding, with its fix; what is said of all that."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster.doctor import diagnosis, doctor
from cluster.doctor.diagnosis import CHECKS, Finding
from cluster.doctor.node_agent import NOT_SHARED
from cluster.doctor.node_facts import DeviceList, DiskSpace, NetworkInterface
from cluster.doctor.observations import RESOURCES, ClockReading, Observations
from cluster.settings import SettingsError
from tests.support.doctor_cases import (
    GIB,
    VERSIONS,
    expected_cluster,
    healthy_cluster,
    make_link,
    make_node,
    with_facts,
    with_links,
    without_links,
    without_node,
)
from trainers.distributed.device import DEVICES


def test_nothing_is_found_in_a_healthy_cluster() -> None:
    assert diagnosis.run_checks(expected_cluster(), healthy_cluster()) == []


# What is wrong, and what exactly is said of it: check, subject, words of the finding, of the fix.
ILL: dict[str, tuple[Callable[[Observations], Observations], str, str, str, str]] = {
    "a host lost power": (
        lambda seen: replace(without_node(seen, "w2"), dead_nodes=(make_node("w2", 2),)),
        "nodes", "10.0.0.2", "Ray has declared it dead", "bertha up lab.yaml",
    ),
    "a host never came": (
        lambda seen: without_node(seen, "w3"),
        "nodes", "10.0.0.3", "it never joined", "bertha up lab.yaml",
    ),
    "a node hangs": (
        lambda seen: replace(seen, unresponsive={"w1": "no answer within 60 s"}),
        "nodes", "w1", "no answer within 60 s", "raylet.out",
    ),
    "a node lacks the code": (
        lambda seen: replace(
            seen, unresponsive={"w1": "ModuleNotFoundError: No module named 'cluster'"}
        ),
        "nodes", "w1", "No module named 'cluster'", "--working-dir",
    ),
    "another torch": (
        lambda seen: with_facts(seen, "w1", versions={**VERSIONS, "torch": "2.12.0"}),
        "versions", "w1", "torch 2.12.0 (not 2.13.0)", "setup_commands",
    ),
    "older code of ours": (
        lambda seen: with_facts(seen, "w3", versions={**VERSIONS, "Bertha's code": "old"}),
        "versions", "w3", "Bertha's code old (not abc)", "setup_commands",
    ),
    "the driver is broken": (
        lambda seen: with_facts(
            seen, "w1", driver=DeviceList(trouble="no program nvidia-smi"), torch=DeviceList()
        ),
        "devices", "w1", "its driver 0 (no program nvidia-smi)", "fix the driver first",
    ),
    "torch is built for processors": (
        lambda seen: with_facts(seen, "w1", torch=DeviceList()),
        "devices", "w1", "by its driver 2, by torch 0, by Ray 2", "a torch that is built for cuda",
    ),
    "Ray was told fewer": (
        lambda seen: replace(
            seen, nodes=tuple(replace(n, resources={"GPU": 1}) if n.name == "w1" else n
                              for n in seen.nodes)
        ),
        "devices", "w1", "by torch 2, by Ray 1", "GPU: 2 among its resources",
    ),
    "an older card in one node": (
        lambda seen: with_facts(seen, "w2", driver=DeviceList(("A100", "V100"))),
        "devices", "w2", "V100, where most are A100", "equal devices",
    ),
    "a firewall on one node": (
        lambda seen: replace(
            seen,
            unreachable={(name, "w2"): "no answer within 5 s" for name in ("head", "w1", "w3")},
        ),
        "ports", "w2", "no other node reaches it: no answer within 5 s", "open all TCP ports",
    ),
    "a route is missing": (
        lambda seen: replace(seen, unreachable={("w1", "w2"): "No route to host"}),
        "ports", "w1 - w2", "No route to host", "open all TCP ports",
    ),
    "a variable names no card": (
        lambda seen: with_facts(
            seen, "w1", variables={"RAY_AUTH_MODE": "token", "NCCL_SOCKET_IFNAME": "ib0"}
        ),
        "cards", "w1", "NCCL_SOCKET_IFNAME = 'ib0'", "eth0",
    ),
    "traffic goes over the slow card": (
        lambda seen: with_facts(
            seen, "w2",
            cards=(
                NetworkInterface("eth0", "10.0.0.2", 1.25e8, 0),
                NetworkInterface("ib0", "", 25e9, 0),
            ),
        ),
        "cards", "w2", "over eth0 (1 Gb/s), though ib0 (200 Gb/s) is up", "NCCL_SOCKET_IFNAME",
    ),
    "a pair does not meet": (
        lambda seen: replace(
            seen,
            links=(make_link("head", "w1", seconds=None, trouble="no answer"), *seen.links[1:]),
        ),
        "links", "head - w1", "no all-reduce: no answer", "as eth0",
    ),
    "devices are busy": (
        lambda seen: replace(without_links(seen, "w1"), busy_nodes=("w1",)),
        "links", "w1", "held by others", "run the doctor again",
    ),
    "one pair is slow": (
        lambda seen: with_links(seen, {("w1", "w2"): 1e9}),
        "links", "w1 - w2", "run at 1.00 GB/s", "between the two",
    ),
    "a clock is wrong": (
        lambda seen: replace(seen, clocks={**seen.clocks, "w3": ClockReading(-61.0, 0.01)}),
        "clock", "w3", "61.0 s behind", "chrony",
    ),
    "a disk is full": (
        lambda seen: with_facts(seen, "w1", space={"cache": DiskSpace(100 * GIB, 3 * GIB)}),
        "disk", "w1", "cache: 3.0 of 100.0 GiB", "make room",
    ),
    "a container with Docker's shared memory": (
        lambda seen: with_facts(seen, "w1", space={"shared memory": DiskSpace(64 << 20, 64 << 20)}),
        "disk", "w1", "/dev/shm has 64 MiB", "--shm-size",
    ),
    "the share is not mounted": (
        lambda seen: replace(seen, write_errors={"w2": NOT_SHARED}),
        "storage", "w2", "cannot write to /mnt/shared: does not see", "mount the same",
    ),
    "a file is not seen": (
        lambda seen: replace(seen, read_errors={("w2", "w1"): "not there", ("w2", "head"): "old"}),
        "storage", "w2", "w1 (not there), head (old)", "mount the same",
    ),
    "no token": (
        lambda seen: with_facts(seen, "w2", variables={}),
        "token", "w2", "runs code there", "RAY_AUTH_MODE=token",
    ),
    "the dashboard is open": (
        lambda seen: replace(seen, open_dashboard="10.0.0.0:8265"),
        "token", "lab", "10.0.0.0:8265 answers without a token", "RAY_AUTH_MODE=token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ill", ILL)
def test_each_illness_is_one_finding_with_its_fix(ill: str) -> None:
    change, check, subject, words, fix = ILL[ill]
    (found,) = diagnosis.run_checks(expected_cluster(), change(healthy_cluster()))
    assert (found.check, found.subject) == (check, subject)
    assert words in found.found
    assert fix in found.fix


def test_a_bucket_is_not_mounted() -> None:
    lab = expected_cluster()
    metadata = lab.cluster.metadata.model_copy(update={"storage": "s3://mine/runs"})
    seen = replace(healthy_cluster(), write_errors={"w2": "Access Denied"})
    cluster = replace(lab.cluster, metadata=metadata)
    (found,) = diagnosis.run_checks(replace(lab, cluster=cluster), seen)
    assert found.found == "cannot write to s3://mine/runs: Access Denied"
    assert "by its role" in found.fix


def test_the_gpus_of_an_auto_cluster_are_examined_where_ray_counts_any() -> None:
    auto = expected_cluster(accelerator="auto")
    blind = with_facts(healthy_cluster(), "w1", torch=DeviceList())
    (found,) = diagnosis.run_checks(auto, blind)
    assert found.check == "devices" and "2 GPU in the file; seen by its driver 2" in found.found
    bare = tuple(replace(node, resources={"CPU": 8}) for node in blind.nodes)
    assert diagnosis.run_checks(auto, replace(blind, nodes=bare)) == []
    alone = expected_cluster(accelerator="auto", devices_per_node=1)
    alone = replace(alone, addresses=(), cluster=replace(alone.cluster, num_nodes=1))
    assert diagnosis.run_checks(alone, healthy_cluster()) == [], "a run takes all that are here"
    (found,) = diagnosis.run_checks(alone, blind)
    assert "2 GPU here; seen by its driver 2, by torch 0, by Ray 2" in found.found


def test_every_check_has_an_illness() -> None:
    assert {check for _, check, *_ in ILL.values()} == set(CHECKS)


class TestWhatIsNotWrong:
    """Differences that a cluster may have."""

    def test_a_rented_head_without_devices(self) -> None:
        rented = replace(expected_cluster(), addresses=())
        rented = replace(rented, cluster=replace(rented.cluster, provider="aws", num_nodes=3))
        no_driver = DeviceList(trouble="no program")
        seen = with_facts(healthy_cluster(), "head", driver=no_driver, torch=DeviceList())
        poor = replace(seen.nodes[0], resources={"CPU": 8})
        seen = replace(without_links(seen, "head"), nodes=(poor, *seen.nodes[1:]))
        assert diagnosis.run_checks(rented, seen) == []

    def test_a_rented_cluster_that_has_not_come_up_yet(self) -> None:
        rented = replace(expected_cluster(), addresses=())
        rented = replace(rented, cluster=replace(rented.cluster, provider="aws", num_nodes=6))
        (found,) = diagnosis.run_checks(rented, healthy_cluster())
        assert found.check == "nodes" and "4 of 6" in found.found

    def test_a_clock_that_could_not_be_read_closely(self) -> None:
        seen = healthy_cluster()
        seen = replace(seen, clocks={**seen.clocks, "w3": ClockReading(1.5, 0.8)})
        assert diagnosis.run_checks(expected_cluster(), seen) == []

    def test_one_machine_without_a_token(self) -> None:
        alone = healthy_cluster()
        for name in ("w1", "w2", "w3"):
            alone = without_node(alone, name)
        alone = replace(with_facts(alone, "head", variables={}), open_dashboard="127.0.0.1:8265")
        one = replace(expected_cluster(), addresses=())
        one = replace(one, cluster=replace(one.cluster, num_nodes=1))
        assert diagnosis.run_checks(one, alone) == []

    def test_an_interface_that_is_excluded_or_meant_by_its_beginning(self) -> None:
        for value in ("^docker", "eth", "=eth0"):
            seen = with_facts(
                healthy_cluster(), "w1",
                variables={"RAY_AUTH_MODE": "token", "NCCL_SOCKET_IFNAME": value},
            )  # fmt: skip
            assert diagnosis.run_checks(expected_cluster(), seen) == []


class TestCommand:
    """What the command reads and prints."""

    def test_the_file_says_who_should_be_there(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        provider = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
        path.write_text(yaml.safe_dump({"cluster_name": "mine", "provider": provider}))
        asked = doctor.load_expected(str(path))
        assert asked.addresses == ("10.0.0.1", "10.0.0.2") and asked.machine is None

    def test_the_file_says_what_is_rented(self, tmp_path: Path) -> None:
        path = tmp_path / "rented.yaml"
        types = {
            "head": {"node_config": {"InstanceType": "m7i.large"}, "max_workers": 0},
            "spot": {"node_config": {"InstanceType": "p4d.24xlarge"}, "max_workers": 2},
            "other": {"node_config": {"InstanceType": "g5.xlarge"}, "max_workers": 0},
        }
        settings = {"provider": {"type": "aws"}, "head_node_type": "head"}
        path.write_text(yaml.safe_dump({**settings, "available_node_types": types}))
        machine = doctor.load_expected(str(path)).machine
        assert machine is not None and machine.accelerator.name.startswith("A100")

    def test_no_file(self) -> None:
        with pytest.raises(SettingsError, match="no cluster file"):
            doctor.load_expected("no-such.yaml")

    def test_the_report_names_what_was_seen(self) -> None:
        found = [Finding("clock", "w1", "is late", "wind it")]
        printed = "\n".join(doctor.format_report(expected_cluster(), healthy_cluster(), found))
        for words in ("w2  10.0.0.2", "2 x A100", "head - w1: 10.00 GB/s over eth0 (nccl)",
                      "fine: nodes, versions", "clock: w1: is late\n  fix: wind it"):  # fmt: skip
            assert words in printed
        healthy = doctor.format_report(expected_cluster(), healthy_cluster(), [])
        assert "fit to train" in "\n".join(healthy)

    def test_for_programs(self) -> None:
        report = doctor.report_to_dict(expected_cluster(), healthy_cluster(), [])
        known = json.loads(json.dumps(report))
        assert known["findings"] == [] and len(known["nodes"]) == 4
        assert known["links"][0]["rate"] == pytest.approx(10e9)

    def test_resources_are_named_as_training_names_them(self) -> None:
        assert {row.kind: row.resource for row in DEVICES.values()} == RESOURCES
