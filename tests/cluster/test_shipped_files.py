"""The shipped cluster files: Ray takes them, they are closed, and they install what we are."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import spec
from cluster.launch import aws, iam, nat, provision
from cluster.launch.aws import AwsAccount
from cluster.settings import read_yaml
from cluster.validation.instance import catalog_row
from tests.support.emulated_aws import FakeServices, emulated_aws
from tests.support.paths import ROOT

RENTED = ["aws-gpu", "aws-trainium"]
RAISED = ["onprem", *RENTED]
# A parameter of moto's own, in place of one that it does not have.
AMAZON_LINUX = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"


def shipped(name: str) -> dict[str, Any]:
    return read_yaml(spec.SHIPPED_DIR / f"{name}.yaml")


def nodes(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each kind's node_config."""
    return {name: kind["node_config"] for name, kind in settings["available_node_types"].items()}


@pytest.mark.parametrize("name", ["local", *RAISED])
def test_ray_accepts_the_shape_of_a_shipped_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    settings = yaml.safe_load((spec.SHIPPED_DIR / f"{name}.yaml").read_text())
    validate_config(prepare_config(settings))
    assert spec.load_cluster_spec(name).name == settings["cluster_name"]


@pytest.mark.parametrize("name", RAISED)
def test_nodes_install_what_this_project_wants(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["train"], *extras["tune"], *extras["serve"]}
    wanted |= {*extras["explain"], *(extras["aws"] if name in RENTED else ())}
    # Ray's extras are installed together, and the node has Bertha's code by --working-dir.
    wanted = {each for each in wanted if not each.startswith(("ray[", "bertha-ray"))}
    wanted.add("ray[train,tune,serve]==2.60.0")
    (install,) = (each for each in shipped(name)["setup_commands"] if "pip install" in each)
    words = shlex.split(install.split("pip install --quiet")[1].split("&&")[0])
    assert set(words) == wanted


@pytest.mark.parametrize("name", RAISED)
def test_who_has_no_token_gets_nothing_from_a_node(name: str) -> None:
    settings = shipped(name)
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert settings[field][0] == "ray stop"
        assert "export RAY_AUTH_MODE=token" in settings[field][1]
    assert settings["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in settings["head_start_ray_commands"][1]


@pytest.mark.parametrize("name", RAISED)
def test_every_command_is_one_that_a_shell_reads(name: str) -> None:
    settings = shipped(name)
    fields = [field for field in settings if field.endswith("_commands")]
    assert len(fields) >= 3
    for field in fields:
        for command in settings[field]:
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize("name", RENTED)
def test_rented_nodes_are_encrypted_and_end_for_good(name: str) -> None:
    settings = shipped(name)
    assert settings["provider"]["cache_stopped_nodes"] is False
    for kind, node in nodes(settings).items():
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert (
            node["IamInstanceProfile"]["Name"] == f"bertha-{'head' if kind == 'head' else 'worker'}"
        )
        assert node["ImageId"].startswith("resolve:ssm:/aws/service/")
        spot = "InstanceMarketOptions" in node
        assert spot == kind.endswith("-spot")
        assert spot or node["InstanceInitiatedShutdownBehavior"] == "terminate"
        if kind != "head":
            assert node["Placement"] == {"GroupName": settings["cluster_name"]}


@pytest.mark.parametrize("name", RENTED)
def test_each_spot_kind_has_one_on_demand_to_fall_back_on(name: str) -> None:
    kinds = shipped(name)["available_node_types"]
    spots = [kind for kind in kinds if kind.endswith("-spot")]
    assert spots
    for spot in spots:
        twin = kinds[spot.removesuffix("-spot")]
        assert twin["node_config"]["InstanceType"] == kinds[spot]["node_config"]["InstanceType"]
        assert (twin["min_workers"], twin["max_workers"]) == (0, kinds[spot]["max_workers"])
        assert kinds[spot]["priority"] > twin.get("priority", 0)


def test_the_variants_are_there() -> None:
    kinds = {node["InstanceType"] for node in nodes(shipped("aws-gpu")).values()}
    assert kinds == {"m7i.2xlarge", "g6e.12xlarge", "g5.12xlarge", "p4d.24xlarge", "p5.48xlarge"}
    trainium = shipped("aws-trainium")
    assert {n["InstanceType"] for n in nodes(trainium).values()} == {"m7i.2xlarge", "trn2.48xlarge"}
    for kind in ("trn2", "trn2-spot"):
        assert trainium["available_node_types"][kind]["resources"]["neuron_cores"] == 64
    for instance in kinds - {"m7i.2xlarge"}:
        assert catalog_row(instance) is not None


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServices]:
    with (
        emulated_aws(str(tmp_path_factory.mktemp("home"))) as lacking,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(iam, "SETTLE_SECONDS", 0.0)
        (Path.home() / ".ray").mkdir()
        (Path.home() / ".ray/auth_token").write_text("0" * 64)
        yield lacking


def in_the_emulation(name: str) -> dict[str, Any]:
    """A shipped file with the image replaced, which the emulation has no parameter for."""
    settings = shipped(name)
    for node in nodes(settings).values():
        node["ImageId"] = f"resolve:ssm:{AMAZON_LINUX}"
    settings["metadata"]["ssh_from"] = "203.0.113.7/32"
    return settings


def bootstrapped(settings: dict[str, Any]) -> dict[str, Any]:
    """What Ray's launcher makes of a file before it launches anything."""
    from ray.autoscaler._private.commands import _bootstrap_config

    made: dict[str, Any] = _bootstrap_config(settings, no_config_cache=True)
    return made


def raised(name: str, account: AwsAccount, **changes: Any) -> dict[str, Any]:
    """The file as `up` resolves it. changes: of max_workers, by kind."""
    settings = in_the_emulation(name)
    for kind, most in changes.items():
        settings["available_node_types"][kind]["max_workers"] = most
    laid = provision.provision_resources(settings, account, lambda line: None)
    return provision.resolve_ids(settings, laid)


@pytest.mark.slow
@pytest.mark.parametrize("name", RENTED)
def test_ray_bootstraps_a_shipped_file_as_it_is(cloud: FakeServices, name: str) -> None:
    made = bootstrapped(yaml.safe_load((spec.SHIPPED_DIR / f"{name}.yaml").read_text()))
    for node in nodes(made).values():
        assert node["SubnetIds"] and node["SecurityGroupIds"] and node["KeyName"]
    if name == "aws-gpu":
        assert made["available_node_types"]["p4d"]["resources"]["GPU"] == 8


@pytest.fixture(scope="module")
def resolved(cloud: FakeServices) -> dict[str, dict[str, Any]]:
    """Both files as `up` resolves them and Ray bootstraps that, p4d and p5 turned on."""
    gpu = raised("aws-gpu", AwsAccount("us-east-1"), p4d=2, p5=2)
    trainium = raised("aws-trainium", AwsAccount("us-east-2"))
    return {"aws-gpu": bootstrapped(gpu), "aws-trainium": bootstrapped(trainium)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("aws-gpu", "g6e-spot"), ("aws-gpu", "p5"), ("aws-trainium", "trn2-spot")]
)
def test_a_node_is_launched_with_all_that_was_asked_for(
    resolved: dict[str, dict[str, Any]], name: str, kind: str
) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    made = resolved[name]
    account = AwsAccount(made["provider"]["region"])
    provider = AWSNodeProvider(made["provider"], made["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-user-node-type": kind, "ray-node-name": "w"}
    (launched,) = provider.create_node(nodes(made)[kind], tags, 1)
    client = account.client("ec2")
    (found,) = client.describe_instances(InstanceIds=[launched])["Reservations"]
    (instance,) = found["Instances"]
    # moto keeps one interface a device index, where EC2 has one a card and index.
    cards = nodes(made)[kind]["NetworkInterfaces"]
    assert len(instance["NetworkInterfaces"]) == len({card["DeviceIndex"] for card in cards})
    assert {each["SubnetId"] for each in instance["NetworkInterfaces"]} == {cards[0]["SubnetId"]}
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["IamInstanceProfile"]["Arn"].endswith("/bertha-worker")
    assert (instance.get("InstanceLifecycle") == "spot") == kind.endswith("-spot")
    volumes = [each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"]]
    assert all(each["Encrypted"] for each in client.describe_volumes(VolumeIds=volumes)["Volumes"])
    there = {
        each.instance_id: each for each in aws.running_instances(account, made["cluster_name"])
    }
    assert there[launched].node_type == kind and there[launched].is_spot == kind.endswith("-spot")
    provider.terminate_node(launched)


@pytest.mark.slow
def test_efa_interfaces_stand_on_a_card_each(resolved: dict[str, dict[str, Any]]) -> None:
    gpu, trainium = nodes(resolved["aws-gpu"]), nodes(resolved["aws-trainium"])
    for node, count in ((gpu["p4d"], 4), (gpu["p5"], 32), (trainium["trn2"], 16)):
        cards = node["NetworkInterfaces"]
        assert [card["NetworkCardIndex"] for card in cards] == list(range(count))
        assert [card["DeviceIndex"] for card in cards] == [0] + [1] * (count - 1)
        assert {card["InterfaceType"] for card in cards} == {"efa"}
        assert not any("AssociatePublicIpAddress" in card for card in cards)
    (alone,) = gpu["g6e"]["NetworkInterfaces"]
    assert alone["AssociatePublicIpAddress"] is True
    behind = gpu["p5"]["NetworkInterfaces"][0]["SubnetId"]
    assert alone["SubnetId"] != behind, "several interfaces: behind NAT"
    assert "NetworkInterfaces" not in gpu["head"]
    assert gpu["head"]["SubnetIds"] == [alone["SubnetId"]]


@pytest.mark.slow
def test_the_security_group_is_one_that_efa_works_with(
    resolved: dict[str, dict[str, Any]],
) -> None:
    account = AwsAccount("us-east-1")
    group = nodes(resolved["aws-gpu"])["head"]["SecurityGroupIds"][0]
    client = account.client("ec2")

    def rules() -> tuple[list[Any], list[Any]]:
        (found,) = client.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        return found["IpPermissions"], found["IpPermissionsEgress"]

    inward, outward = rules()
    for direction in (inward, outward):
        (mine,) = (r for r in direction if r["UserIdGroupPairs"])
        assert mine["IpProtocol"] == "-1" and mine["UserIdGroupPairs"][0]["GroupId"] == group
    (ssh,) = (rule for rule in inward if not rule["UserIdGroupPairs"])
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpProtocol"]) == (22, 22, "tcp")
    assert [each["CidrIp"] for each in ssh["IpRanges"]] == ["203.0.113.7/32"]
    # Raised again from elsewhere: the old address no longer gets in, and nothing is there twice.
    settings = in_the_emulation("aws-gpu")
    settings["metadata"]["ssh_from"] = "198.51.100.9/32"
    provision.provision_resources(settings, account, lambda line: None)
    inward, _ = rules()
    assert len(inward) == 2
    (ssh,) = (rule for rule in inward if not rule["UserIdGroupPairs"])
    assert [each["CidrIp"] for each in ssh["IpRanges"]] == ["198.51.100.9/32"]


@pytest.mark.slow
def test_roles_let_nodes_do_what_they_need_and_no_more(
    resolved: dict[str, dict[str, Any]],
) -> None:
    account = AwsAccount("us-east-1")
    client = account.client("iam")

    def statements(role: str) -> list[dict[str, Any]]:
        document = client.get_role_policy(RoleName=role, PolicyName="bertha-gpu")["PolicyDocument"]
        found: list[dict[str, Any]] = document["Statement"]
        return found

    bucket = f"bertha-{account.account_id()}-us-east-1"
    worker = statements("bertha-worker")
    assert {action for each in worker for action in each["Action"]} == {
        "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }  # fmt: skip
    assert all(each["Resource"].startswith(f"arn:aws:s3:::{bucket}") for each in worker)
    head = {action: each for each in statements("bertha-head") for action in each["Action"]}
    assert head["iam:PassRole"]["Resource"].endswith(":role/bertha/bertha-worker")
    tagged = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "bertha-gpu"}}
    assert head["ec2:TerminateInstances"]["Condition"] == tagged
    assert not any(action in head for action in ("*", "ec2:*", "iam:*", "s3:*"))
    role = client.get_role(RoleName="bertha-worker")["Role"]
    assert "ec2.amazonaws.com" in json.dumps(role["AssumeRolePolicyDocument"])
    profile = client.get_instance_profile(InstanceProfileName="bertha-worker")["InstanceProfile"]
    assert [each["RoleName"] for each in profile["Roles"]] == ["bertha-worker"]


@pytest.mark.slow
def test_the_way_out_of_many_interfaces_is_made_once_and_taken_away(
    resolved: dict[str, dict[str, Any]],
) -> None:
    account = AwsAccount("us-east-2")
    client = account.client("ec2")
    behind = nodes(resolved["aws-trainium"])["trn2"]["NetworkInterfaces"][0]["SubnetId"]
    again = raised("aws-trainium", account)
    assert nodes(again)["trn2"]["NetworkInterfaces"][0]["SubnetId"] == behind
    assert len(client.describe_nat_gateways()["NatGateways"]) == 1
    filters = [{"Name": "association.subnet-id", "Values": [behind]}]
    (table,) = client.describe_route_tables(Filters=filters)["RouteTables"]
    (out,) = (r for r in table["Routes"] if r["DestinationCidrBlock"] == "0.0.0.0/0")
    (gateway,) = client.describe_nat_gateways(NatGatewayIds=[out["NatGatewayId"]])["NatGateways"]
    assert gateway["State"] == "available" and gateway["SubnetId"] != behind
    assert nat.delete_gateway(account, "bertha-trainium")
    assert not nat.delete_gateway(account, "bertha-trainium")
    assert client.describe_addresses()["Addresses"] == []
    again = raised("aws-trainium", account)
    assert nodes(again)["trn2"]["NetworkInterfaces"][0]["SubnetId"] == behind
    assert nat.delete_gateway(account, "bertha-trainium")


@pytest.mark.slow
def test_ones_own_profile_is_left_alone(cloud: FakeServices) -> None:
    account = AwsAccount("us-west-2")
    client = account.client("iam")
    client.create_instance_profile(InstanceProfileName="my-own", Path="/mine/")
    settings = in_the_emulation("aws-gpu")
    settings["provider"]["region"] = "us-west-2"
    for kind, node in nodes(settings).items():
        if kind != "head":
            node["IamInstanceProfile"] = {"Name": "my-own"}
    provision.provision_resources(settings, account, lambda line: None)
    found = client.get_instance_profile(InstanceProfileName="my-own")["InstanceProfile"]
    assert found["Roles"] == []


def test_the_pattern_of_parameters_is_that_of_amazon() -> None:
    images = {node["ImageId"] for name in RENTED for node in nodes(shipped(name)).values()}
    assert len(images) == 3
    assert all(re.fullmatch(r"resolve:ssm:/aws/service/[\w./-]+", image) for image in images)
