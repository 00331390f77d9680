"""Cluster files: read as `ray up` reads them, our keys under metadata."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import spec
from cluster.settings import SettingsError

SHIPPED = sorted(path.name for path in spec.SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_one_that_ray_up_accepts(name: str) -> None:
    settings = yaml.safe_load((spec.SHIPPED / name).read_text())
    validate_config(prepare_config(settings))
    assert spec.load(name).name == settings["cluster_name"]


def test_the_default_is_this_machine() -> None:
    cluster = spec.load("local.yaml")
    assert cluster.is_this_machine
    assert cluster.num_workers == 2
    assert cluster.cache == Path("~/.cache/bertha").expanduser()


def written(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, **settings}))
    return path


def test_workers_are_nodes_times_devices(tmp_path: Path) -> None:
    onprem = written(
        tmp_path / "a.yaml",
        provider={"type": "local", "head_ip": "a", "worker_ips": ["b", "c"]},
        metadata={"accelerator": "cuda", "devices_per_node": 4},
    )
    assert spec.load(onprem).num_workers == 12
    cloud = written(
        tmp_path / "b.yaml",
        provider={"type": "aws"},
        head_node_type="head",
        available_node_types={"head": {}, "gpu": {"min_workers": 2}, "spot": {"min_workers": 1}},
        metadata={"accelerator": "cuda", "devices_per_node": 8},
    )
    assert spec.load(cloud).num_workers == 24
    assert not spec.load(cloud).is_this_machine


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metadata": {"accelerator": "gpu"}}, "metadata:\n  accelerator = 'gpu': .*'cuda'"),
        ({"metadata": {"devices": 2}}, "devices: no such setting; did you mean devices_per_node"),
        (
            {"metadata": {"devices_per_node": -1}},
            "devices_per_node = -1: .*training workers a node",
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
        spec.load(written(tmp_path / "c.yaml", **settings))


def test_a_missing_file_lists_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no cluster file .*one of local"):
        spec.load(tmp_path / "none.yaml")
