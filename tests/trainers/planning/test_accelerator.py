"""What `accelerator: auto` means on machines with GPUs and without; torch.cuda is pretended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster import spec
from cluster.planning import this_machine
from cluster.planning.this_machine import describe_this_machine, read_gpu_models
from cluster.settings import SettingsError
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.config import recipe as recipes
from trainers.planning import accelerator, dry_run
from trainers.planning.accelerator import check_accelerator, resolve_accelerator
from trainers.planning.workload import load_workload
from trainers.runtime import early_checks, fit

H200 = ("NVIDIA H200", 140 * 2**30)


def pretend(monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, int]) -> None:
    """Let torch.cuda have `gpus`, each a name and bytes of memory."""
    properties = [SimpleNamespace(total_memory=memory) for _, memory in gpus]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: gpus[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])


def here(nodes: int = 1, **metadata: Any) -> ClusterSpec:
    return ClusterSpec("here", "local", nodes, ClusterMetadata(**metadata))


def test_auto_is_the_default_and_the_shipped_file_says_it() -> None:
    assert ClusterMetadata().accelerator == "auto"
    assert spec.load_cluster_spec("local").metadata.accelerator == "auto"
    assert spec.load_cluster_spec("local").device_kind == "cpu", "until somebody has looked"


def test_a_machine_with_gpus_trains_on_them_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, H200, ("NVIDIA H200", 139 * 2**30))
    choice = resolve_accelerator(spec.load_cluster_spec("local"))
    metadata = choice.cluster.metadata
    assert (choice.cluster.device_kind, choice.cluster.num_workers) == ("cuda", 2)
    assert (metadata.accelerator_name, metadata.device_memory_gib) == ("H200-SXM-141GB", 139)
    assert choice.line == (
        "device    2 x NVIDIA H200: training on cuda; metadata.accelerator: cpu would not"
    )
    again = resolve_accelerator(choice.cluster)
    assert again.cluster == choice.cluster and not again.line, "it is said once"
    alone = resolve_accelerator(here(devices_per_node=0, device_memory_gib=9.0)).cluster
    assert alone.num_workers == 0 and alone.device_memory_bytes == 9 * 2**30


def test_a_machine_without_one_trains_on_its_cores_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(accelerator, "read_gpu_models", list)
    choice = resolve_accelerator(spec.load_cluster_spec("local"))
    assert choice.cluster.metadata.accelerator == "cpu" and not choice.line
    assert choice.cluster.num_workers == 2
    monkeypatch.setattr(accelerator, "read_gpu_models", lambda: ["NVIDIA H200"])
    unusable = resolve_accelerator(spec.load_cluster_spec("local"))
    assert unusable.cluster.device_kind == "cpu"
    assert "can use no GPU of this machine, which has NVIDIA H200: this torch" in unusable.line


def test_what_the_file_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, H200, ("Some other GPU", 8 * 2**30))
    cpu = here(accelerator="cpu", devices_per_node=2)
    assert resolve_accelerator(cpu).cluster == cpu
    named = resolve_accelerator(here(accelerator="cuda", devices_per_node=1))
    assert named.cluster.num_workers == 1 and not named.line
    assert named.cluster.metadata.accelerator_name is None, "the two are not alike"
    assert named.cluster.metadata.device_memory_gib == 8
    several = resolve_accelerator(here(3, devices_per_node=4)).cluster
    assert (several.device_kind, several.num_workers) == ("cuda", 12), "the head stands for all"
    with pytest.raises(SettingsError, match=r"min_workers = 3: the cluster has 2 worker"):
        resolve_accelerator(here(devices_per_node=4, min_workers=3))


def test_rented_machines_have_their_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, H200)
    for instance, kind in (("g6e.12xlarge", "cuda"), ("trn2.48xlarge", "neuron")):
        rented = ClusterSpec("r", "aws", 1, ClusterMetadata(), instance_types=(instance,))
        assert resolve_accelerator(rented).cluster.device_kind == kind
    unknown = ClusterSpec("r", "aws", 1, ClusterMetadata(), instance_types=("m7i.large",))
    assert resolve_accelerator(unknown).cluster.device_kind == "cpu"


@pytest.mark.parametrize(
    ("gpus", "cuda", "reason"),
    [
        ([], None, "no NVIDIA driver is loaded"),
        (["NVIDIA H200"], None, "NVIDIA H200: this torch was built without CUDA, install one"),
        (["NVIDIA H200"], "13.0", "NVIDIA H200: is it hidden by CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: list[str], cuda: str, reason: str
) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(accelerator, "read_gpu_models", lambda: gpus)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    asked = here(accelerator="cuda", storage=str(tmp_path))
    with pytest.raises(SettingsError, match=f"'cuda': torch .*{reason}.*auto or cpu"):
        fit.fit(recipes.load_recipe("reviews"), asked, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    check_accelerator(here(2, accelerator="cuda"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_accelerator(asked)


def test_a_dry_run_says_what_a_run_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, H200)
    lines = dry_run.describe_run(recipes.load_recipe("reviews"), spec.load_cluster_spec("local"))
    assert next(lines).startswith("device    1 x NVIDIA H200: training on cuda")
    assert next(lines) == "cluster   bertha-local: 1 node(s), 1 worker(s) on cuda"


def test_a_layout_is_checked_early_only_where_the_devices_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(early_checks, "check_layout", lambda *given: seen.append(given[2]))
    asked = recipes.load_recipe("imdb", ["layout={tp: 4}"])
    for gpus in ([], ["NVIDIA H200"] * 4):
        monkeypatch.setattr(early_checks, "read_gpu_models", lambda gpus=gpus: gpus)
        early_checks.check_settings(asked, spec.load_cluster_spec("local"))
    assert seen == [2], "the driver knows of GPUs: a run counts them"


def test_the_driver_names_gpus_without_a_library(tmp_path: Path) -> None:
    assert read_gpu_models(tmp_path) == []
    for number, model in enumerate(("NVIDIA H200", "Tesla T4")):
        (tmp_path / f"0000:{number}").mkdir()
        text = f"Model: \t\t {model}\nIRQ:   \t\t 11\nBus Type: \t PCIe\n"
        (tmp_path / f"0000:{number}" / "information").write_text(text)
    (tmp_path / "0000:9").mkdir()
    assert read_gpu_models(tmp_path) == ["NVIDIA H200", "Tesla T4"]


def test_a_plan_begins_with_the_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    work = load_workload("imdb", rows=4000, tokens=128)
    monkeypatch.setattr(this_machine, "read_gpu_models", lambda: ["NVIDIA H200"])
    line = describe_this_machine(work, "bertha train imdb")
    assert line is not None and "as on H200-SXM-141GB" in line
    monkeypatch.setattr(this_machine, "read_gpu_models", lambda: ["NVIDIA Unheard Of"])
    assert describe_this_machine(work, "bertha train imdb") is None
