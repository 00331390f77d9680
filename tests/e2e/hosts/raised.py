"""What is true of every shipped file for EC2 once it is raised, and when it is down: one story.

What EC2 would not forgive and moto does is read back here, or enforced by what answers (aws/).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.e2e.hosts.account import AwsClient, parse_form_list
from tests.e2e.hosts.machines import AWS, LAPTOP, NUMBER, Ec2Hosts
from tests.e2e.hosts.user import User, wait_until
from tests.support.paths import ROOT

IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
USER = User(LAPTOP)


def cluster_file(name: str) -> dict[str, Any]:
    """A shipped file as it can be raised here."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / name).read_text())
    settings["max_workers"] = 3
    for kind, node in settings["available_node_types"].items():
        node["node_config"]["ImageId"] = f"resolve:ssm:{IMAGE}"
        if kind != settings["head_node_type"]:
            node["resources"]["CPU"] = 1
            node["max_workers"] += bool(node["max_workers"])
    return settings


def bucket_permissions(bucket: str) -> dict[tuple[str, str], Any]:
    """What every node may do in S3."""
    place = f"arn:aws:s3:::{bucket}"
    files = ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload")
    return {("s3:ListBucket", place): {}, **{(f"s3:{each}", f"{place}/*"): {} for each in files}}


def head_permissions(region: str, cluster: str) -> dict[tuple[str, str], Any]:
    """What a head may do beside it."""
    machines, roles = f"arn:aws:ec2:{region}:{NUMBER}", f"arn:aws:iam::{NUMBER}:role"
    mine = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": cluster}}
    spot = "spot.amazonaws.com"
    return {
        ("ec2:Describe*", "*"): {},
        ("ec2:RunInstances", "*"): {"StringEquals": {"aws:RequestedRegion": region}},
        ("ec2:CreateTags", f"{machines}:*/*"): {
            "StringEquals": {"ec2:CreateAction": "RunInstances"}
        },
        ("ec2:CreateTags", f"{machines}:instance/*"): mine,
        ("ec2:TerminateInstances", f"{machines}:instance/*"): mine,
        ("iam:PassRole", f"{roles}/bertha/bertha-worker"): {
            "StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}
        },
        (
            "iam:CreateServiceLinkedRole",
            f"arn:aws:iam::*:role/aws-service-role/{spot}/*",
        ): {"StringLike": {"iam:AWSServiceName": spot}},
        ("ssm:GetParameters", f"arn:aws:ssm:{region}::parameter/aws/service/*"): {},
    }


class LaunchedCluster:
    """What is the same for every shipped file. interfaces: of EFA, that a worker has."""

    file: str
    cluster: str
    region: str
    kind: str
    interfaces: int

    @property
    def resolved_file(self) -> str:
        return f"{self.cluster}.up.yaml"

    @property
    def bucket(self) -> str:
        return f"bertha-{NUMBER}-{self.region}"

    @property
    def owner(self) -> AwsClient:
        return AwsClient(LAPTOP, self.region)

    @pytest.fixture(scope="class")
    @classmethod
    def tunnel(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """The dashboard on the laptop, as docs/clusters.md has it."""
        log = tmp_path_factory.mktemp("tunnel") / "log"
        with USER.start_command(f"ray dashboard {cls.cluster}.up.yaml", log):
            yield

    def test_up(self) -> None:
        USER.write_cluster_file(self.file, cluster_file(self.file))
        USER.check_command(f"python -m cluster check {self.file}")
        print(USER.check_command(f"python -m cluster up {self.file} --yes", seconds=900))

    def test_all_nodes_join(self, cloud: Ec2Hosts, tunnel: None) -> None:
        machines = {each["address"] for each in cloud.running_instances()}
        assert len(machines) == 3
        USER.wait_for_nodes(machines, self.resolved_file)

    def test_who_has_no_token_is_refused(self) -> None:
        assert USER.is_refused_without_token()

    def test_the_network_is_closed(self) -> None:
        members = ("-1", None, None, "members")
        into, out = self.owner.security_rules(self.cluster)
        assert into == {members, ("tcp", 22, 22, f"{LAPTOP.address}/32")}
        assert out == {members, ("-1", None, None, "0.0.0.0/0")}

    def test_machines_are_what_the_file_asks_for(self, cloud: Ec2Hosts) -> None:
        asked = {each["instances"][0]: each["asked"] for each in cloud.state["launches"]}
        for name, machine in self.owner.running_instances().items():
            form = asked[name]
            is_head = machine["InstanceType"] != self.kind
            cards = parse_form_list(form, "NetworkInterface")
            assert [each["InterfaceType"] for each in cards] == [
                "efa" for _ in range(0 if is_head else self.interfaces)
            ]
            assert [int(each["NetworkCardIndex"]) for each in cards] == list(range(len(cards)))
            assert {each["DeviceIndex"] for each in cards} <= {"0", "1"}
            assert form.get("Placement.GroupName") == (None if is_head else self.cluster)
            assert (machine.get("InstanceLifecycle") == "spot") is not is_head
            assert machine["IamInstanceProfile"]["Arn"].endswith(
                "/bertha-head" if is_head else "/bertha-worker"
            )
            metadata = machine["MetadataOptions"]
            assert (metadata["HttpTokens"], metadata["HttpPutResponseHopLimit"]) == ("required", 1)
            volumes = [each["Ebs"]["VolumeId"] for each in machine["BlockDeviceMappings"]]
            disks = self.owner.call("ec2", "describe_volumes", VolumeIds=volumes)["Volumes"]
            assert disks and all(each["Encrypted"] for each in disks)

    def test_roles_are_as_small_as_they_can_be(self) -> None:
        mine = bucket_permissions(self.bucket)
        assert self.owner.role_permissions("bertha-worker", self.cluster) == mine
        head = self.owner.role_permissions("bertha-head", self.cluster)
        assert head == mine | head_permissions(self.region, self.cluster)
        assert self.owner.policy_names("bertha-worker") == [self.cluster]
        assert self.owner.policy_names("bertha-head") == [self.cluster]

    def test_the_bucket_is_private_and_encrypted(self) -> None:
        shut = self.owner.call("s3", "get_public_access_block", Bucket=self.bucket)
        assert set(shut["PublicAccessBlockConfiguration"].values()) == {True}
        rules = self.owner.call("s3", "get_bucket_encryption", Bucket=self.bucket)
        (rule,) = rules["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        plainly = AwsClient(LAPTOP, self.region, f"http://{AWS.address}")
        listing = {"Bucket": self.bucket}
        assert plainly.call("s3", "list_objects_v2", **listing) == {"refused": "AccessDenied"}
        assert "refused" not in self.owner.call("s3", "list_objects_v2", **listing)

    def check_tear_down(self, cloud: Ec2Hosts) -> None:
        """The end, after whatever a story has of its own."""
        USER.check_command(f"python -m cluster down {self.file} --yes")
        assert cloud.running_instances() == [] and self.owner.running_instances() == {}
        wait_until(lambda: not cloud.all_hosts(), 60, "hosts without instances")
        gateways = self.owner.call("ec2", "describe_nat_gateways")["NatGateways"]
        assert all(each["State"] in ("deleting", "deleted") for each in gateways)
        assert (
            self.owner.policy_names("bertha-head") == self.owner.policy_names("bertha-worker") == []
        )
        assert not (USER.checkout / self.resolved_file).exists()
