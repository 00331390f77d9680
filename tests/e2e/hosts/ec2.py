"""The shipped files for EC2, from `up` to `down`, against EC2 on this machine: `make test-cluster`.

Images are replaced, for moto's account has others, and sizes: a node has one core here, and one
more of them may come. The kinds of machines are the shipped ones; what trains on them has a file
that says cpu, since there are no devices. The tests of a class are one story and run in their
order, which begins as raised.py has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from tests.e2e.hosts import lan
from tests.e2e.hosts.account import AwsClient
from tests.e2e.hosts.hosts import STATE, Host
from tests.e2e.hosts.machines import METADATA, Ec2Hosts, emulated_ec2
from tests.e2e.hosts.raised import USER, LaunchedCluster
from tests.e2e.hosts.training import (
    TOLERANCE,
    metric_rows,
    recipe_arguments,
    step_losses,
    train_alone,
)
from tests.e2e.hosts.user import submit_job, wait_until

# That no speed matters, each step waits for a slow card until the machine is taken, and who goes on
# alone is slowed down until the next machine has joined.
STEPS, ANNOUNCED_AFTER = 300, 24
RECIPE = [*recipe_arguments(STEPS, 150, 40), "stopping.epochs=2"]
SLOW = "30mbit"
TRIED = [
    ("bertha-head", "ec2:TerminateInstances"),
    ("bertha-worker", "ec2:DescribeInstances"),
    ("bertha-head", "iam:PassRole"),
    ("bertha-head", "s3:ListBucket"),
    ("bertha-worker", "s3:ListBucket"),
]
DEMAND = """
import ray

@ray.remote(num_cpus=1)
class Busy:
    def where(self):
        return ray.get_runtime_context().get_node_id()

ray.init()
busy = [Busy.remote() for _ in range(3)]
print("nodes:", len(set(ray.get([each.where.remote() for each in busy]))))
"""


@pytest.fixture(scope="module", autouse=True)
def cloud() -> Iterator[Ec2Hosts]:
    lacking = lan.missing_requirements("openssl")
    if lacking:
        pytest.skip(f"hosts cannot be made here: {lacking}")
    with lan.host_network([]), emulated_ec2() as there:
        USER.clone_checkout()
        yield there
    assert lan.leftovers() == []


class TestTrainium(LaunchedCluster):
    file, cluster, region = "aws-trainium.yaml", "bertha-trainium", "us-east-2"
    kind, interfaces = "trn2.48xlarge", 16

    def test_cores_are_what_ray_gives_out(self) -> None:
        assert "0.0/128.0 neuron_cores" in USER.ray_status(self.resolved_file)

    def test_workers_have_a_way_out(self) -> None:
        (gateway,) = self.owner.call("ec2", "describe_nat_gateways")["NatGateways"]
        assert gateway["State"] == "available"
        asked = [{"Name": "tag:bertha-cluster", "Values": [self.cluster]}]
        (table,) = self.owner.call("ec2", "describe_route_tables", Filters=asked)["RouteTables"]
        (subnet,) = {each["SubnetId"] for each in table["Associations"]}
        ways = {each["DestinationCidrBlock"]: each.get("NatGatewayId") for each in table["Routes"]}
        assert ways["0.0.0.0/0"] == gateway["NatGatewayId"]
        behind = [
            machine["NetworkInterfaces"][0]["SubnetId"] == subnet
            for machine in self.owner.running_instances().values()
            if machine["InstanceType"] == self.kind
        ]
        assert behind == [True, True]

    def test_down_leaves_nothing(self, cloud: Ec2Hosts) -> None:
        self.check_tear_down(cloud)


class TestGpus(LaunchedCluster):
    file, cluster, region = "aws-gpu.yaml", "bertha-gpu", "us-east-1"
    kind, interfaces = "g6e.12xlarge", 1
    training = "training.yaml"

    def read_metrics(self) -> str:
        return self.owner.object_text(self.bucket, "runs/reviews/metrics.jsonl")

    def has_trained(self, step: int) -> bool:
        return any(row["step"] >= step for row in metric_rows(self.read_metrics(), "step"))

    def worker_counts(self) -> list[int]:
        """How many each start had."""
        return [row["workers"] for row in metric_rows(self.read_metrics(), "start")]

    def test_the_metadata_service_wants_a_token(self, cloud: Ec2Hosts) -> None:
        asked = f"http://{METADATA}/latest/meta-data/iam/security-credentials/bertha-worker"
        for machine in cloud.running_instances():
            got = cloud.host_of(machine["name"]).run(
                "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", asked
            )
            assert got.stdout == "401"

    def test_roles_are_held_to(self, cloud: Ec2Hosts) -> None:
        head, worker, _ = (cloud.host_of(each["name"]) for each in instances_by_role(cloud))
        other = {"InstanceIds": ["i-00000000000000000"]}  # has not the cluster's tag
        denied = {"refused": "UnauthorizedOperation"}
        assert AwsClient(head, self.region).call("ec2", "terminate_instances", **other) == denied
        assert AwsClient(worker, self.region).call("ec2", "describe_instances") == denied
        wanted = {"MinCount": 1, "MaxCount": 1, "ImageId": "ami-0"}
        profile = {"IamInstanceProfile": {"Name": "bertha-head"}}
        assert (
            AwsClient(head, self.region).call("ec2", "run_instances", **wanted, **profile) == denied
        )
        for host in (head, worker):
            account = AwsClient(host, self.region)
            listed = account.call("s3", "list_objects_v2", Bucket="of-somebody-else")
            assert listed == {"refused": "AccessDenied"}
        wait_until(
            lambda: refused_actions(cloud) == TRIED,
            30,
            f"{refused_actions(cloud)} instead of {TRIED}",
        )

    def test_the_doctor_finds_nothing(self) -> None:
        settings = USER.read_cluster_file(self.resolved_file)
        # No devices here; and a run goes on with who is left.
        settings["metadata"] |= {"accelerator": "cpu", "devices_per_node": 1}
        settings["metadata"] |= {"min_workers": 1, "resize_seconds": 5}
        del settings["metadata"]["accelerator_name"]
        USER.write_cluster_file(self.training, settings)
        found, told = USER.run_doctor(self.training)
        assert found == 0 and "fit to train" in told, told

    def test_a_run_outlives_a_machine_that_is_taken_and_loses_nothing(
        self, cloud: Ec2Hosts, tmp_path: Path
    ) -> None:
        words = f"trainers {' '.join(map(quote, RECIPE))} --cluster {self.training}"
        log = tmp_path / "job.log"
        _, stays, leaves = instances_by_role(cloud)
        with USER.start_command(
            submit_job(f"{words} --run s3://{self.bucket}/runs/reviews"), log
        ) as running:

            def wait_here(condition: Callable[[], bool], why: str) -> None:
                wait_until(lambda: condition() or running.poll() is not None, 600, why)
                assert running.poll() is None, f"{why}: {log.read_text()[-8000:]}"

            wait_here(lambda: self.has_trained(ANNOUNCED_AFTER), "it did not train")
            cloud.host_of(leaves["name"]).slow_down(SLOW)
            with cloud.boot_delayed():  # Ray asks for another machine at the notice already
                cloud.announce_interruption(leaves["name"])
                wait_here(
                    lambda: bool(metric_rows(self.read_metrics(), "notice")), "it did not notice"
                )
                taken = {"InstanceIds": [leaves["name"]]}
                self.owner.call("ec2", "terminate_instances", **taken)
                alone = cloud.host_of(stays["name"])
                wait_here(
                    lambda: recorded_worker_counts(alone)[-1:] == [1],
                    "it did not go on with one worker",
                )
            with alone.throttled("ray::.*TrainWorker"):
                wait_here(lambda: is_replaced(cloud, leaves), "the machine was not replaced")
                wait_here(lambda: len(self.worker_counts()) == 3, "it did not grow back")
            assert running.wait(900) == 0, log.read_text()[-8000:]
        assert self.worker_counts() == [2, 1, 2]
        saved = metric_rows(self.read_metrics(), "notice")[-1]["step"]
        assert metric_rows(self.read_metrics(), "start")[1]["step"] >= saved > ANNOUNCED_AFTER
        assert [row["step"] for row in metric_rows(self.read_metrics(), "step")] == list(
            range(1, STEPS + 1)
        )
        expected = train_alone(RECIPE, tmp_path)
        assert step_losses(self.read_metrics()) == pytest.approx(expected, abs=TOLERANCE)

    def test_demand_brings_another_machine(self, cloud: Ec2Hosts) -> None:
        (USER.checkout / "demand.py").write_text(DEMAND)
        told = USER.check_command("ray job submit --working-dir . -- python demand.py")
        assert "nodes: 3" in told and len(cloud.running_instances()) == 4

    def test_nothing_that_was_needed_was_refused(self, cloud: Ec2Hosts) -> None:
        assert refused_actions(cloud) == TRIED

    def test_down_leaves_nothing(self, cloud: Ec2Hosts) -> None:
        self.check_tear_down(cloud)


def recorded_worker_counts(host: Host) -> list[int]:
    """How many workers each start had that this machine recorded, before others are told."""
    found = (STATE / host.name / "homes").glob("ubuntu/.cache/bertha/runs/*/metrics.jsonl")
    return [row["workers"] for path in found for row in metric_rows(path.read_text(), "start")]


def refused_actions(cloud: Ec2Hosts) -> list[tuple[str, str]]:
    """What roles tried in vain."""
    return [(each["role"], each["did"]) for each in cloud.state["refused"] if each["role"]]


def instances_by_role(cloud: Ec2Hosts) -> list[dict[str, Any]]:
    """The head, then the workers."""
    return sorted(cloud.running_instances(), key=lambda each: each["role"] != "bertha-head")


def is_replaced(cloud: Ec2Hosts, machine: dict[str, Any]) -> bool:
    """Whether another one has come for it, and joined."""
    there = {each["name"]: each["address"] for each in cloud.running_instances()}
    return (
        machine["name"] not in there
        and len(there) == 3
        and USER.alive_addresses() == set(there.values())
    )
