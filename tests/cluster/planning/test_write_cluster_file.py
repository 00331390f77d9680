"""A cluster file from a row of a plan: Ray takes it, `check` finds nothing, the machines are it."""

from pathlib import Path

import pytest

from cluster import __main__, spec
from cluster.hardware import catalog
from cluster.hardware.catalog import Catalog
from cluster.hardware.types import Topology
from cluster.planning import devices, plan, write_cluster_file
from cluster.planning.plan import Offer, make_offers
from cluster.settings import SettingsError, read_yaml
from cluster.validation import check
from trainers.planning.workload import load_workload

KNOWN, LARGE = catalog.load_catalog(), load_workload("bert-large-pretrain")
OWN = """machines:
  - {instance: My Box, accelerator: RTX 4090, count: 4, network_gbps: 10, nodes: 4,
     owned: {purchase_usd: 12000}}
"""


def offer(name: str, nodes: int, known: Catalog = KNOWN, region: str = "") -> Offer:
    machine = known.get_machine(name, region)
    return next(each for each in make_offers(machine, LARGE) if each.nodes == nodes)


@pytest.mark.parametrize(
    ("name", "region", "workers"),
    [("g6e.12xlarge", "us-east-1", 8), ("p4d.24xlarge", "us-east-1", 16),
     ("p5.48xlarge", "us-east-1", 16), ("g5.xlarge", "us-east-1", 2),
     ("p5en.48xlarge", "us-east-1", 16),
     ("p6-b200.48xlarge", "us-east-1", 16), ("trn2.48xlarge", "us-east-2", 128)],
)  # fmt: skip
def test_rented_machines(tmp_path: Path, name: str, region: str, workers: int) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    found, path = offer(name, 2, region=region), tmp_path / "mine.yaml"
    write_cluster_file.write_cluster_file(found, "bert-large-pretrain", path)
    cluster = check.check_cluster_file(path)
    assert (cluster.num_nodes, cluster.num_workers) == (2, workers)
    assert cluster.metadata.accelerator_name == found.machine.accelerator.name
    assert found.layout.world_size == found.devices == workers
    assert devices.devices_of_cluster(cluster).topology == Topology.from_machine(
        found.machine, 2
    )  # where the plan weighed it
    settings = read_yaml(path)
    validate_config(prepare_config(settings))
    assert settings["provider"]["region"] == region
    kinds = {
        kind: node for kind, node in settings["available_node_types"].items() if kind != "head"
    }
    assert {kind["node_config"]["InstanceType"] for kind in kinds.values()} == {name}
    cores = {kind["resources"].get("neuron_cores") for kind in kinds.values()}
    assert cores == ({workers // 2} if name.startswith("trn") else {None})
    assert (f"{name}-spot" in kinds) == (found.machine.spot is not None)
    assert sum(kind["min_workers"] for kind in kinds.values()) == 2
    assert "as `bertha plan bert-large-pretrain` quoted it" in path.read_text()


def test_owned_machines_get_addresses_to_fill_in(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    known, path = catalog.load_catalog(tmp_path / "own.yaml"), tmp_path / "mine.yaml"
    write_cluster_file.write_cluster_file(offer("My Box", 4, known), "imdb", path)
    cluster = spec.load_cluster_spec(path)
    assert (cluster.name, cluster.num_nodes, cluster.num_workers) == ("bertha-my-box", 4, 16)
    with pytest.raises(SettingsError) as raised:
        check.check_cluster_file(path)
    assert str(raised.value).count("fill in your machine's address") == 4


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="is there already"):
        write_cluster_file.write_cluster_file(offer("g5.xlarge", 1), "imdb", path)
    assert path.read_text() == "mine"


def test_what_ray_up_does_not_raise_says_so(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "machines: [{instance: slice, region: us-central1, accelerator: TPU v5e, count: 4}]\n"
    )
    known = catalog.load_catalog(tmp_path / "own.yaml")
    with pytest.raises(SettingsError, match="no cluster file is made for TPU v5e"):
        write_cluster_file.write_cluster_file(
            offer("slice", 1, known), "imdb", tmp_path / "mine.yaml"
        )
    (tmp_path / "own.yaml").write_text(
        "machines: [{instance: a-100, region: us-central1, accelerator: L4, count: 1}]\n"
    )
    known = catalog.load_catalog(tmp_path / "own.yaml")
    with pytest.raises(SettingsError, match="a-100: is no instance of EC2; give it `owned:`"):
        write_cluster_file.write_cluster_file(
            offer("a-100", 1, known), "imdb", tmp_path / "mine.yaml"
        )


def test_the_command_writes_the_row_that_was_picked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    assert __main__.main(["plan", "imdb", "--pick", "2", "--write", str(path)]) == 0
    second = plan.plan_hardware(load_workload("imdb"), KNOWN).best[1]
    cluster = check.check_cluster_file(path)
    assert cluster.num_workers == second.devices
    assert f"bertha check {path}" in capsys.readouterr().err
    assert __main__.main(["plan", "imdb", "--write", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err
