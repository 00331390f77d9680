"""Layouts: what they come to, and every wrong one refused in words that show the way out."""

import re
from typing import Any

import pytest

from cluster.costmodel.layout import Layout, LayoutError, check_layout
from cluster.costmodel.model_shape import ModelShape
from cluster.settings import SettingsError, validate_settings

BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)
ODD = ModelShape(768, 12, 12, 3070, 30522, 512, 2, 768, "classification", 2)
LINEAR = ModelShape.for_linear(3, 1)


def test_replicas_are_what_the_other_degrees_leave() -> None:
    layout = Layout(dp_shard=2, pp=2, tp=2, stages_per_rank=3).resolve_for(16)
    assert layout.dp_replicate == 2
    assert (layout.world_size, layout.dp, layout.num_stages) == (16, 4, 6)
    assert layout.resolve_for(16) == layout
    assert Layout().resolve_for(1) == Layout(dp_replicate=1)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout(), "dp_replicate auto"),
        (Layout(dp_replicate=1), "dp_replicate 1"),
        (
            Layout(dp_replicate=2, dp_shard=4, pp=2, tp=2),
            "dp_replicate 2 x dp_shard 4 x pp 2 x tp 2",
        ),
        (
            Layout(dp_replicate=1, tp=2, sequence_parallel=True, recompute="full"),
            "tp 2, sequence_parallel, recompute full",
        ),
    ],
)
def test_a_layout_reads_as_its_degrees(layout: Layout, text: str) -> None:
    assert str(layout) == text


@pytest.mark.parametrize(
    ("layout", "devices", "per_node", "batch"),
    [
        (Layout(), 1, 1, 1),
        (Layout(), 1, 0, 1),
        (Layout(tp=4, sequence_parallel=True), 8, 8, 2),
        (Layout(pp=2, stages_per_rank=6), 2, 1, 1),
        (Layout(dp_replicate=2, dp_shard=2, pp=2, tp=2, recompute="selective"), 16, 4, 64),
    ],
)
def test_a_good_layout_passes(layout: Layout, devices: int, per_node: int, batch: int) -> None:
    check_layout(layout, BASE, devices, per_node, batch)


WRONG: list[tuple[dict[str, Any], ModelShape, int, int, int, str]] = [
    ({"dp_replicate": 0}, BASE, 8, 8, 64, "dp_replicate = 0: a count of at least 1"),
    ({"dp_shard": 0}, BASE, 8, 8, 64, "dp_shard = 0: a count"),
    ({"pp": -1}, BASE, 8, 8, 64, "pp = -1: a count"),
    ({"tp": 0}, BASE, 8, 8, 64, "tp = 0: a count of at least 1; 1 turns it off"),
    ({"stages_per_rank": 0, "pp": 2}, BASE, 8, 8, 64, "stages_per_rank = 0: a count"),
    ({"tp": 3}, BASE, 8, 8, 64, "= 3 does not divide the 8 devices; .*a cluster of 9 devices"),
    ({"pp": 16}, BASE, 8, 8, 64, "pp 16 x tp 1 = 16 does not divide the 8 devices"),
    ({"dp_shard": 5}, BASE, 8, 8, 64, "dp_shard 5 x .* does not divide"),
    ({"dp_replicate": 4}, BASE, 8, 8, 64, "= 4 ranks, but .* 8 devices; set dp_replicate to 8"),
    ({"dp_replicate": 4, "tp": 4}, BASE, 8, 8, 64, "= 16 ranks, .*set dp_replicate to 2"),
    ({"tp": 8}, BASE, 8, 8, 64, "tp = 8 does not divide num_heads 12; set tp to one of 1, 2, 3"),
    ({"tp": 4}, ODD, 8, 8, 64, "tp = 4 does not divide intermediate_size 3070; .*one of 1, 2$"),
    (
        {"tp": 4},
        ModelShape(6, 1, 4, 8, 100, 8, 0, 6, "masked-lm"),
        4,
        4,
        64,
        "does not divide hidden_size 6",
    ),
    (
        {"tp": 4},
        ModelShape(8, 1, 4, 8, 3, 8, 0, 8, "masked-lm"),
        4,
        4,
        64,
        "more ranks than the 3 words",
    ),
    ({"tp": 4}, BASE, 8, 2, 64, "tp = 4: leaves the node, which has 2 devices; set tp to at most"),
    ({"tp": 4}, BASE, 12, 6, 64, "tp = 4 does not divide the 6 devices of a node"),
    ({"tp": 2}, BASE, 2, 0, 64, "leaves the node, which has 1 devices"),
    ({"sequence_parallel": True}, BASE, 8, 8, 64, "tp is 1; set tp above 1, or remove it"),
    ({"stages_per_rank": 2}, BASE, 8, 8, 64, "pp is 1; set pp above 1, or stages_per_rank to 1"),
    ({"pp": 16}, BASE, 16, 8, 64, "= 16 stages, but the model has 12 layers"),
    ({"pp": 4, "stages_per_rank": 4}, BASE, 4, 8, 64, "pp 4 x stages_per_rank 4 = 16 stages"),
    ({}, BASE, 8, 8, 4, "8 data-parallel ranks .* batch.global_size is 4: .* to 8"),
    ({"dp_shard": 4, "tp": 2}, BASE, 8, 8, 3, "4 data-parallel ranks"),
    ({"dp_shard": 2}, LINEAR, 2, 2, 64, "dp_shard: a linear model is only replicated"),
    ({"recompute": "full", "pp": 2}, LINEAR, 2, 2, 64, "pp, recompute: a linear model"),
]


@pytest.mark.parametrize(("degrees", "shape", "devices", "per_node", "batch", "said"), WRONG)
def test_a_wrong_layout_is_refused(
    degrees: dict[str, Any], shape: ModelShape, devices: int, per_node: int, batch: int, said: str
) -> None:
    with pytest.raises(LayoutError) as refused:
        check_layout(Layout(**degrees), shape, devices, per_node, batch)
    assert re.search(said, str(refused.value), re.MULTILINE), str(refused.value)


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(LayoutError) as refused:
        check_layout(Layout(tp=5, stages_per_rank=2, sequence_parallel=False), BASE, 8, 8, 64)
    assert len(str(refused.value).splitlines()) == 1 + 6, str(refused.value)


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_a_world_that_does_not_come_out_is_refused(world_size: int) -> None:
    with pytest.raises(LayoutError, match="does not divide"):
        Layout(tp=2).resolve_for(world_size)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recompute": "all"}, "recompute = 'all': .*'selective'"),
        ({"tensor_parallel": 2}, "tensor_parallel: no such setting"),
        ({"tp": "two"}, "tp = 'two': .*integer"),
    ],
)
def test_settings_that_are_no_layout_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        validate_settings(Layout, settings, "layout")
