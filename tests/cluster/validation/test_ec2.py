"""Rented machines: what is right, and problems at the edges."""

import copy
from typing import Any

import pytest

from cluster import spec
from cluster.settings import read_yaml
from cluster.validation.ec2 import check_ec2

TYPES = "available_node_types"


@pytest.fixture(params=["aws-gpu", "aws-trainium"])
def shipped(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read_yaml(spec.SHIPPED_DIR / f"{request.param}.yaml")


@pytest.fixture
def gpu() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(spec.SHIPPED_DIR / "aws-gpu.yaml"))


def find(settings: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in check_ec2(settings)]


def test_the_shipped_files_are_right(shipped: dict[str, Any]) -> None:
    assert find(shipped) == []


def test_a_file_without_node_types_stops_there(gpu: dict[str, Any]) -> None:
    del gpu["provider"]["region"], gpu[TYPES]
    assert find(gpu) == [
        "provider.region: missing; as us-east-1",
        f"{TYPES}: missing; the node types, head and workers",
    ]


@pytest.mark.parametrize("region", ["us-gov-west-1", "eu-central-1", "ap-southeast-2"])
def test_regions_of_every_kind_are_known(gpu: dict[str, Any], region: str) -> None:
    gpu["provider"] |= {"region": region, "availability_zone": f"{region}a, {region}b"}
    assert find(gpu) == []
    gpu["provider"]["availability_zone"] = f"{region}a,us-east-9b"
    (problem,) = find(gpu)
    assert problem.startswith("provider.availability_zone = 'us-east-9b': is not in")


def test_a_rule_for_ones_own_address_is_right(gpu: dict[str, Any]) -> None:
    ranges = [{"CidrIp": "203.0.113.7/32"}]
    rule = {"FromPort": 22, "IpRanges": ranges}
    gpu["provider"]["security_group"] = {"GroupName": "g", "IpPermissions": [rule]}
    assert find(gpu) == []
    ranges.append({"CidrIp": "0.0.0.0/0"})
    (problem,) = find(gpu)
    assert "opens port 22 to everybody; give your own address, as 203.0.113.7/32" in problem


@pytest.mark.parametrize(("instance", "cores"), [("trn1.32xlarge", 0), ("trn2.48xlarge", 64)])
def test_cores_must_be_named_where_ray_does_not_know_them(instance: str, cores: int) -> None:
    settings = copy.deepcopy(read_yaml(spec.SHIPPED_DIR / "aws-trainium.yaml"))
    kind = next(kind for name, kind in settings[TYPES].items() if name.startswith("trn2"))
    kind["node_config"]["InstanceType"], kind["resources"] = instance, {}
    found = [problem for problem in find(settings) if ".neuron_cores" in problem]
    assert len(found) == (cores > 0)
    assert all(f"write neuron_cores: {cores}" in problem for problem in found)


def test_without_max_workers_ray_allows_two(gpu: dict[str, Any]) -> None:
    name = next(name for name, kind in gpu[TYPES].items() if kind.get("min_workers"))
    gpu[TYPES][name] |= {"min_workers": 3, "max_workers": 3}
    gpu["max_workers"] = 3
    assert find(gpu) == []
    del gpu["max_workers"]
    (problem,) = find(gpu)
    assert problem == (
        "max_workers = 2: min_workers of all node types sum to 3, which Ray rejects: raise "
        "max_workers"
    )


def test_storage_must_be_in_the_bucket_that_nodes_may_use(gpu: dict[str, Any]) -> None:
    gpu["metadata"] |= {"bucket": "runs-{account}", "storage": "s3://runs-{account}/a/b"}
    assert find(gpu) == []
    gpu["metadata"]["storage"] = "s3://runs/a"
    (problem,) = find(gpu)
    assert problem.endswith("but nodes may use metadata.bucket only; name the same bucket")


def test_the_wrong_kind_of_device_hides_its_number(gpu: dict[str, Any]) -> None:
    """The number would be wrong too, but follows from the kind."""
    gpu["metadata"] |= {"accelerator": "tpu", "devices_per_node": 77}
    assert {problem.split(" = ")[0] for problem in find(gpu)} == {"metadata.accelerator"}
