"""The tables of hardware: whole, sourced, unknown where nobody knows; and a user's own rows."""

from pathlib import Path

import pytest
import yaml

from cluster.hardware import catalog
from cluster.hardware.catalog import CatalogError
from cluster.settings import SettingsError

NAMED = [
    "V100-SXM2-16GB", "T4", "A10G", "A100-SXM4-40GB", "A100-SXM4-80GB", "L4", "L40S", "RTX 3090",
    "RTX 4090", "RTX 5090", "H100-SXM5-80GB", "H200-SXM-141GB", "B200-SXM-180GB", "TPU v4",
    "TPU v5e", "TPU v5p", "TPU v6e", "Trainium1", "Trainium2", "Inferentia2",
]  # fmt: skip


@pytest.mark.parametrize("table", ["accelerators", "instances", "processes", "models"])
def test_every_row_has_its_source(table: str) -> None:
    rows = catalog.read_table(table)
    assert rows
    assert all(row["source"] for row in rows)
    if table in ("accelerators", "instances"):
        assert all(row["date"] for row in rows)


def test_all_hardware_asked_for_is_there_and_can_be_reckoned_with() -> None:
    known = catalog.load_catalog()
    for name in NAMED:
        assert known.get_accelerator(name).missing == (), name


def test_unknown_stays_unknown() -> None:
    known = catalog.load_catalog()
    assert known.get_accelerator("Trainium2").watts is None
    assert known.get_accelerator("A10G").watts is None
    assert known.get_accelerator("TPU v4").link_rate is None
    assert known.get_accelerator("B300-SXM-288GB").missing
    assert known.get_machine("trn2.48xlarge", "us-east-1").on_demand is None
    assert known.get_machine("trn2.48xlarge", "us-east-2").spot == pytest.approx(23.0631)
    assert known.get_machine("g5.xlarge").spot is None


def test_a_device_is_found_by_its_drivers_name(tmp_path: Path) -> None:
    known = catalog.load_catalog()
    for name, row in (
        ("NVIDIA H200", "H200-SXM-141GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("A100-SXM4-40GB", "A100-SXM4-40GB"),  # of an older driver
        ("Tesla T4", "T4"),
    ):
        found = known.find_device(name)
        assert found is not None and found.name == row
    for name in ("", "NVIDIA ", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce GTX 1080"):
        assert known.find_device(name) is None
    names = [row["driver_name"] for row in catalog.read_table("accelerators") if row["driver_name"]]
    assert len(set(names)) == len(names) == 20
    own = tmp_path / "own.yaml"
    row = {"accelerator": "Mine", "bf16_tflops": 3, "driver_name": "NVIDIA Mine"}
    own.write_text(yaml.safe_dump({"accelerators": [row]}))
    mine = catalog.load_catalog(own).find_device("NVIDIA Mine")
    assert mine is not None and mine.peak_flops("bf16") == 3e12


def test_traps_of_data_sheets_are_avoided() -> None:
    known = catalog.load_catalog()
    assert known.get_accelerator("A10G").peak_flops("bf16") == 70e12  # 125 is the A10's
    assert known.get_accelerator("RTX 4090").peak_flops("fp16") == pytest.approx(
        165.15e12
    )  # adds in fp32
    assert known.get_accelerator("L4").peak_flops("bf16") == 121e12  # 242 is with sparsity
    for old in ("V100-SXM2-32GB", "T4"):
        assert known.get_accelerator(old).peak_flops("bf16") is None
        assert known.get_accelerator(old).half_precision == "fp16"
    assert known.get_accelerator("TPU v5e").peak_flops("fp16") == known.get_accelerator(
        "TPU v5e"
    ).peak_flops("bf16")


def test_machines_carry_their_network_and_prices() -> None:
    p4d = catalog.load_catalog().get_machine("p4d.24xlarge")
    assert (p4d.count, p4d.accelerator.name, p4d.interfaces) == (8, "A100-SXM4-40GB", 4)
    assert p4d.network == 50e9
    assert p4d.on_demand == pytest.approx(21.957642)


def written(path: Path, **sections: object) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_users_own_file_overrides_and_adds(tmp_path: Path) -> None:
    mine = written(
        tmp_path / "mine.yaml",
        accelerators=[
            {"accelerator": "Trainium2", "tdp_w": 500},
            {"accelerator": "Mine", "kind": "cuda", "bf16_tflops": 100, "memory_gb": 48,
             "memory_gb_per_s": 900, "link_gb_per_s": 31},
        ],
        machines=[
            {"instance": "trn2.48xlarge", "region": "us-east-1", "on_demand_usd_h": 37.0},
            {"instance": "box", "accelerator": "Mine", "count": 4, "network_gbps": 10, "nodes": 2,
             "owned": {"purchase_usd": 12000, "usd_per_kwh": 0.3}},
        ],
    )  # fmt: skip
    known = catalog.load_catalog(mine)
    assert known.get_accelerator("Trainium2").watts == 500
    assert known.get_accelerator("Trainium2").memory == 96e9
    assert known.get_machine("trn2.48xlarge", "us-east-1").on_demand == 37.0
    box = known.get_machine("box")
    assert (box.available, box.count, box.accelerator.peak_flops("bf16")) == (2, 4, 100e12)
    assert box.ownership is not None
    assert box.ownership.purchase_usd == 12000


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"machines": [{"instance": "b", "accelerator": "A100-SXM4-80"}]}, "did you mean A100-SXM"),
        ({"machines": [{"instance": "b"}]}, "no accelerator ''"),
        ({"machine": []}, "did you mean machines"),
        ({"machines": [{"instance": "b", "on_demand": 3}]}, "on_demand"),
        ({"accelerators": [{"accelerator": "T4", "kind": "coda"}]}, "did you mean cuda"),
        ({"accelerators": [{"accelerator": "T4", "tdp_w": -1}]}, "tdp_w"),
    ],
)
def test_a_mistake_in_it_is_said(tmp_path: Path, sections: dict[str, object], said: str) -> None:
    with pytest.raises((CatalogError, SettingsError), match=said):
        catalog.load_catalog(written(tmp_path / "mine.yaml", **sections))


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    known = catalog.load_catalog()
    with pytest.raises(CatalogError, match=r"did you mean p4d\.24xlarge"):
        known.get_machine("p4d.24xl")
    with pytest.raises(CatalogError, match="did you mean us-east-1"):
        known.check_region("us-eest-1")
    with pytest.raises(CatalogError, match="did you mean H100-SXM5-80GB"):
        known.get_accelerator("h100-sxm5")
