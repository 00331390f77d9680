"""The layout nobody had to choose: the cheapest that fits, and the way out when none does."""

from dataclasses import replace

import pytest

from cluster import spec
from cluster.costmodel.job import TrainingJob
from cluster.costmodel.layout import Layout, LayoutError, check_layout
from cluster.costmodel.layout_search import (
    FREE_MEMORY_SHARE,
    GIB,
    LayoutChoice,
    choose_layout,
    data_parallel_layouts,
    model_parallel_layouts,
    rank_candidates,
)
from cluster.costmodel.memory import peak_memory
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.step_time import predict_step
from cluster.hardware import catalog
from cluster.hardware.types import Topology
from cluster.planning import devices
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.config import recipe as recipes
from trainers.planning.layout import resolve_layout

BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)
LARGE = ModelShape(1024, 24, 16, 4096, 30522, 512, 2, 1024, "masked-lm")
HUGE = ModelShape(4096, 48, 32, 16384, 30522, 512, 2, 4096, "masked-lm")
KNOWN = catalog.load_catalog()
A100 = KNOWN.get_accelerator("A100-SXM4-80GB")
SMALL = TrainingJob(BASE, Topology(A100, 8, 1, 50e9), 8, 80 * GIB, 256, 128, 32768, "bf16")
BIG = replace(
    SMALL, shape=LARGE, topology=Topology(A100, 8, 2, 50e9), num_devices=16, global_batch_size=4096,
    max_length=512,
)  # fmt: skip


def spec_of(metadata: ClusterMetadata, *instances: str) -> ClusterSpec:
    return ClusterSpec("here", "local", 3, metadata, instance_types=instances)


def room(job: TrainingJob, gib: float) -> TrainingJob:
    return replace(job, device_memory=gib * GIB)


def test_what_fits_is_only_replicated() -> None:
    choice = choose_layout(SMALL)
    assert choice.layout == Layout(dp_replicate=8)
    assert choice.token_budget == 32768
    assert "the fastest layout, dp_replicate 8, needs" in choice.reason
    assert choice.considered[0] == choice.chosen


@pytest.mark.parametrize(
    ("gib", "divided", "sharded", "recompute"),
    [(80, False, False, "none"), (37, False, False, "selective"), (26, False, True, "selective")],
)
def test_less_memory_costs_more(gib: float, divided: bool, sharded: bool, recompute: str) -> None:
    layout = choose_layout(replace(room(BIG, gib), may_lower_budget=False)).layout
    assert (layout.tp > 1 or layout.pp > 1) == divided
    assert (layout.dp_shard > 1) == sharded
    assert layout.recompute == recompute


def test_a_step_only_grows_as_memory_shrinks() -> None:
    weights = [choose_layout(room(BIG, gib)).chosen.penalized_seconds for gib in (80, 40, 20, 10)]
    assert weights == sorted(weights)


def test_shards_stay_inside_a_node_where_they_can() -> None:
    layout = choose_layout(replace(room(BIG, 26), may_lower_budget=False)).layout
    assert 1 < layout.dp_shard <= 8
    assert layout.dp == 16


def test_layers_are_divided_only_where_nothing_else_fits() -> None:
    tight = replace(BIG, shape=HUGE, global_batch_size=16, token_budget=512)
    roomy = choose_layout(room(tight, 80))
    assert {candidate.layout.tp * candidate.layout.pp for candidate in roomy.considered} == {1}
    least = min(candidate.memory for candidate in roomy.considered)
    narrow = replace(tight, device_memory=0.99 * least / (1 - FREE_MEMORY_SHARE))
    layout = choose_layout(narrow).layout
    assert layout.tp > 1 or layout.pp > 1
    considered = rank_candidates(narrow)
    assert max(candidate.layout.pp for candidate in considered if candidate.layout.tp == 1) == 16


@pytest.mark.parametrize("gib", [80, 16, 8, 4])
def test_the_chosen_fits_and_so_says_its_own_arithmetic(gib: float) -> None:
    job = room(BIG, gib)
    choice = choose_layout(job)
    needed = peak_memory(
        job.shape, choice.layout, job.training_setup(choice.layout, choice.token_budget)
    )
    assert needed == choice.chosen.memory <= gib * GIB * (1 - FREE_MEMORY_SHARE)
    check_layout(choice.layout, job.shape, 16, 8, 4096)
    assert choice.layout.world_size == 16


def test_a_smaller_token_budget_may_make_it_fit_unless_the_recipe_fixed_it() -> None:
    job = replace(SMALL, topology=Topology(A100, 1, 1, None), num_devices=1, device_memory=4 * GIB)
    choice = choose_layout(job)
    assert choice.token_budget < job.token_budget
    assert choice.token_budget >= job.max_length
    assert f"micro-batches of {choice.token_budget:,} tokens" in choice.reason
    with pytest.raises(LayoutError, match=r"lower batch.token_budget \(32,768\)"):
        choose_layout(replace(job, may_lower_budget=False))


def test_nothing_fits_and_the_way_out_is_said() -> None:
    job = replace(BIG, shape=HUGE, topology=Topology(A100, 1, 1, None), num_devices=1)
    with pytest.raises(LayoutError) as refused:
        choose_layout(job)
    said = str(refused.value)
    assert "no layout of 1 devices with 80.00 GiB each fits; the smallest need is" in said
    assert "recompute full with micro-batches of 512 tokens" in said
    assert "give devices of" in said and "use more devices" in said
    need = float(said.split("give devices of ")[1].split(" GiB")[0])
    assert choose_layout(room(job, need + 0.01)).layout.recompute == "full"


def test_too_few_samples_for_the_devices_is_said() -> None:
    with pytest.raises(LayoutError, match=r"batch.global_size is 1: .*raise batch.global_size"):
        choose_layout(
            replace(
                SMALL, topology=Topology(A100, 13, 1, None), num_devices=13, global_batch_size=1
            )
        )


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (replace(SMALL, device_memory=None), "the memory of a device is unknown"),
        (replace(SMALL, shape=ModelShape.for_linear(1, 1)), "a linear model is only replicated"),
    ],
)
def test_what_cannot_be_weighed_is_replicated(job: TrainingJob, said: str) -> None:
    choice = choose_layout(job)
    assert isinstance(choice, LayoutChoice)
    assert choice.layout == Layout(dp_replicate=8)
    assert said in choice.reason


@pytest.mark.parametrize("devices", [1, 6, 16, 4096])
def test_every_layout_that_is_weighed_can_run(devices: int) -> None:
    job = replace(BIG, num_devices=devices, global_batch_size=8192)
    found = [*data_parallel_layouts(job), *model_parallel_layouts(job)]
    assert len(found) == len(set(map(str, found))) >= 3
    for layout in found:
        check_layout(layout, LARGE, devices, 8, 8192)
        assert layout.world_size == devices


def test_a_step_is_that_of_the_cost_model() -> None:
    layout = Layout(dp_replicate=8)
    first = choose_layout(SMALL).considered[0]
    assert (
        first.step
        == predict_step(SMALL.step_work(32768), layout, SMALL.topology)
        == SMALL.predict_step(layout, 32768)
    )
    assert SMALL.step_work(32768).micro_batch == 256


def test_a_pipeline_waits_while_it_fills() -> None:
    few = replace(BIG, num_devices=4, global_batch_size=64)
    piped = Layout(dp_replicate=1, pp=4)
    whole_batch, pieces = few.predict_step(piped, 32768), few.predict_step(piped, 512)
    assert whole_batch.bubble == pytest.approx(
        3
        / 4
        * (whole_batch.total - whole_batch.waiting - whole_batch.optimizer - whole_batch.exchanges),
        rel=0.01,
    )
    assert pieces.bubble < whole_batch.bubble / 4


@pytest.mark.parametrize(
    ("metadata", "name", "told"),
    [
        (ClusterMetadata(accelerator="cuda", devices_per_node=4), "A100-SXM4-40GB", "assumed"),
        (ClusterMetadata(accelerator="cuda", accelerator_name="L4"), "L4", "as on L4"),
        (
            ClusterMetadata(accelerator="neuron", devices_per_node=64),
            "a core of Trainium2",
            "assumed",
        ),
        (ClusterMetadata(accelerator="tpu"), "TPU v5e", "assumed"),
        (ClusterMetadata(devices_per_node=2), "a core of a processor", "assumed"),
    ],
)
def test_devices_of_a_cluster(metadata: ClusterMetadata, name: str, told: str) -> None:
    found = devices.devices_of_cluster(spec_of(metadata))
    assert found.topology.accelerator.name == name and told in found.description
    assert (found.topology.nodes, found.topology.devices_per_node) == (3, metadata.devices_per_node)
    assert found.topology.network
    assert found.memory == (24e9 if name == "L4" else None)


@pytest.mark.parametrize("settings", [{}, {"accelerator_name": "Trainium2"}])
def test_a_neuron_worker_has_a_core_of_a_chip(settings: dict[str, str]) -> None:
    metadata = ClusterMetadata(accelerator="neuron", devices_per_node=64, **settings)  # type: ignore[arg-type]
    core, chip = (
        devices.devices_of_cluster(spec_of(metadata)).topology.accelerator,
        KNOWN.get_accelerator("Trainium2"),
    )
    assert core.memory == 24e9 and chip.memory == 4 * core.memory
    assert 4 * (core.peak_flops("bf16") or 0) == chip.peak_flops("bf16") == 667e12
    assert 4 * (core.memory_rate or 0) == chip.memory_rate
    assert 4 * (core.link_rate or 0) == chip.link_rate


def test_what_is_rented_tells_its_devices() -> None:
    metadata = ClusterMetadata(accelerator="cuda", devices_per_node=8)
    found = devices.devices_of_cluster(spec_of(metadata, "p5.48xlarge"))
    assert found.description == "as on H100-SXM5-80GB of p5.48xlarge" and found.memory == 80e9
    assert found.topology == Topology.from_machine(KNOWN.get_machine("p5.48xlarge"), 3)
    for instance in (
        "z9.huge",
        "p6-b300.48xlarge",
        "trn2.48xlarge",
    ):  # of which too little is known
        assert "assumed" in devices.devices_of_cluster(spec_of(metadata, instance)).description


def test_the_shipped_trainium_cluster_is_laid_out_over_its_cores() -> None:
    cluster = spec.load_cluster_spec("aws-trainium")
    recipe = recipes.load_recipe("bert-large-pretrain")
    made = resolve_layout(recipe, LARGE, cluster)
    assert made.layout.world_size == cluster.num_workers == 64 * 2
    assert made.job.device_memory == 24e9
    assert "of 22.35 GiB a device" in made.lines[0]
    assert made.lines[-1].endswith("as on a core of Trainium2 of trn2.48xlarge")
    check_layout(made.layout, LARGE, 128, 64, recipe.global_batch_size)


def test_a_device_that_nobody_knows_is_refused() -> None:
    metadata = ClusterMetadata(accelerator="cuda", accelerator_name="A100-SXM4-80G")
    with pytest.raises(catalog.CatalogError, match="A100-SXM4-80GB"):
        devices.devices_of_cluster(spec_of(metadata))
