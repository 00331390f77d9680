"""Cluster files: read as `ray up` reads them, our keys under metadata."""

import os
from pathlib import Path

import pytest
import yaml

from cluster import spec
from cluster.settings import SettingsError, read_yaml
from cluster.yaml_schema import dump_yaml


def test_the_default_is_this_machine() -> None:
    cluster = spec.load_cluster_spec("local.yaml")
    assert cluster.is_this_machine
    assert cluster.num_workers == 2
    assert cluster.cache_dir == Path("~/.cache/bertha").expanduser()


def written(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, **settings}))
    return path


def test_workers_are_nodes_times_devices(tmp_path: Path) -> None:
    onprem = written(
        tmp_path / "a.yaml",
        provider={"type": "local", "head_ip": "a", "worker_ips": ["b", "c"]},
        metadata={"accelerator": "cuda", "devices_per_node": 4},
    )
    assert spec.load_cluster_spec(onprem).num_workers == 12
    cloud = written(
        tmp_path / "b.yaml",
        provider={"type": "aws"},
        head_node_type="head",
        available_node_types={"head": {}, "gpu": {"min_workers": 2}, "spot": {"min_workers": 1}},
        metadata={"accelerator": "cuda", "devices_per_node": 8},
    )
    assert spec.load_cluster_spec(cloud).num_workers == 24
    assert not spec.load_cluster_spec(cloud).is_this_machine


def test_what_the_workers_are_rented_as_is_read(tmp_path: Path) -> None:
    assert spec.load_cluster_spec("aws-gpu").instance_types == (
        "g6e.12xlarge",
    )  # the others are off
    trainium = spec.load_cluster_spec("aws-trainium")
    assert (trainium.instance_types, trainium.region) == (("trn2.48xlarge",), "us-east-2")
    assert (
        spec.load_cluster_spec("local").instance_types
        == spec.load_cluster_spec("onprem").instance_types
        == ()
    )
    kinds: dict[str, dict[str, object]] = {
        "head": {"node_config": {"InstanceType": "m7i.2xlarge"}, "max_workers": 0}
    }
    rented = {"provider": {"type": "aws", "region": "eu-west-1"}, "head_node_type": "head"}
    alone = spec.load_cluster_spec(
        written(tmp_path / "a.yaml", **rented, available_node_types=kinds)
    )
    assert (alone.instance_types, alone.region) == (("m7i.2xlarge",), "eu-west-1")
    kinds["more"] = {"node_config": {"InstanceType": "g5.xlarge"}, "max_workers": 4}
    kinds["off"] = {"node_config": {"InstanceType": "p5.48xlarge"}, "max_workers": 0}
    kinds["there"] = {"node_config": {"InstanceType": "g6.xlarge"}, "min_workers": 1}
    several = spec.load_cluster_spec(
        written(tmp_path / "b.yaml", **rented, available_node_types=kinds)
    )
    assert several.instance_types == ("g6.xlarge", "g5.xlarge")


@pytest.mark.parametrize(
    "types",
    [3, {"head": 3}, {"head": {}, "a": 3, "b": {"node_config": 3}, "c": {"node_config": {}}}],
)
def test_of_what_is_no_cluster_file_nothing_is_rented(types: object) -> None:
    assert (
        spec.worker_instance_types({"head_node_type": "head", "available_node_types": types}) == ()
    )


def test_device_memory_is_given_or_a_share_of_this_machine(tmp_path: Path) -> None:
    given = written(tmp_path / "a.yaml", metadata={"accelerator": "cuda", "device_memory_gib": 1.5})
    assert spec.load_cluster_spec(given).device_memory_bytes == 1.5 * 2**30
    unknown = written(tmp_path / "b.yaml", metadata={"accelerator": "cuda"})
    assert spec.load_cluster_spec(unknown).device_memory_bytes is None
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert spec.load_cluster_spec("local").device_memory_bytes == machine / 2


def test_a_run_may_go_on_with_fewer_workers(tmp_path: Path) -> None:
    metadata = {"devices_per_node": 4, "min_workers": 2}
    elastic = spec.load_cluster_spec(written(tmp_path / "a.yaml", metadata=metadata))
    assert elastic.is_elastic and list(elastic.worker_counts) == [2, 3, 4]
    fewer = elastic.with_workers(3)
    assert (fewer.num_workers, fewer.num_nodes, fewer.metadata) == (3, 1, elastic.metadata)
    fixed = spec.load_cluster_spec(written(tmp_path / "b.yaml", metadata={"devices_per_node": 4}))
    assert not fixed.is_elastic and list(fixed.worker_counts) == [4]


def test_a_tpu_slice_is_named(tmp_path: Path) -> None:
    metadata = {"accelerator": "tpu", "devices_per_node": 4}
    known = {**metadata, "tpu_type": "TPU-V6E", "tpu_topology": "2x2"}
    assert spec.load_cluster_spec(written(tmp_path / "a.yaml", metadata=known)).num_workers == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"metadata": {"device_memory_gib": 0}},
            "device_memory_gib = 0: .*greater than 0.*memory of a device",
        ),
        ({"metadata": {"accelerator": "gpu"}}, "metadata:\n  accelerator = 'gpu': .*'cuda'"),
        ({"metadata": {"devices": 2}}, "devices: no such setting; did you mean devices_per_node"),
        (
            {"metadata": {"devices_per_node": -1}},
            "devices_per_node = -1: .*training workers a node",
        ),
        (
            {"metadata": {"devices_per_node": 2, "min_workers": 3}},
            r"metadata.min_workers = 3: the cluster has 2 worker\(s\)",
        ),
        (
            {"metadata": {"accelerator": "tpu", "devices_per_node": 4}},
            "'tpu': .* set tpu_type and tpu_topology",
        ),
        ({"provider": {}}, "provider.type: missing"),
        (
            {
                "provider": {"type": "aws"},
                "head_node_type": "haed",
                "available_node_types": {"head": {}},
            },
            "head_node_type = 'haed' .*did you mean head",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        spec.load_cluster_spec(written(tmp_path / "c.yaml", **settings))


def test_a_missing_file_lists_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no cluster file .*one of aws-gpu, .*, local, onprem"):
        spec.load_cluster_spec(tmp_path / "none.yaml")


def test_a_rented_cluster_says_who_may_log_in_and_which_bucket_is_its() -> None:
    metadata = spec.load_cluster_spec("aws-gpu").metadata
    assert metadata.ssh_from == "auto" and metadata.bucket == "bertha-{account}-{region}"


def test_settings_are_written_as_they_are_read(tmp_path: Path) -> None:
    settings = read_yaml(spec.find_cluster_file("aws-gpu"))
    (tmp_path / "c.yaml").write_text(dump_yaml(settings))
    assert read_yaml(tmp_path / "c.yaml") == settings
    assert "&id" not in dump_yaml(settings) and next(iter(settings)) == "cluster_name"
