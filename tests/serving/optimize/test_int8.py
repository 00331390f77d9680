"""Layers of a network in int8: calibrated, ranked by sensitivity, exported and judged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serving.engine import networks
from serving.engine.backends.registry import BACKENDS, ONNX_INT8, OPENVINO_INT8
from serving.engine.engine import Engine, split_rows
from serving.optimize import int8
from serving.optimize.calibration import collect_activation_stats
from serving.optimize.optimize import build_engines
from tests.support.engine_builds import QUICK, TEXTS, needs_graphs
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.card import BundleError, read_card
from trainers.models.packed import PackedBatch

pytestmark = pytest.mark.slow


@needs_graphs
@pytest.mark.parametrize("kind", [ONNX_INT8, OPENVINO_INT8])
def test_int8_is_calibrated_and_judged(
    tmp_path: Path, tiny_bert: Path, corpus: Path, kind: str
) -> None:
    if BACKENDS[kind].missing_requirement(to_build=True):
        pytest.skip(str(BACKENDS[kind].missing_requirement(to_build=True)))
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
    found = build_engines(place, candidates=[kind], threshold=1.01, **QUICK)
    assert found[1].reason == "refused: under 101.0%" and not found[1].chosen
    assert len(found[1].trials) > 2, "every way was tried"
    best = max(trial["agreement"] for trial in found[1].trials)
    assert found[1].agreement == best > 0.5
    with pytest.raises(BundleError, match=r"int8' was refused at .*--allow"):
        Engine.load(place, kind)
    found = build_engines(place, candidates=[kind], threshold=1.01, allow=[kind], **QUICK)
    assert found[1].reason == ""
    assert Engine.load(place, kind).predict(TEXTS)
    found = build_engines(place, candidates=[kind], threshold=0.5, **QUICK)
    assert len(found[1].trials) == 1, "the first that is faithful is kept"


def test_the_inputs_of_layers_are_seen_and_shared(tmp_path: Path, tiny_bert: Path) -> None:
    network, batches, names = network_of(tmp_path, tiny_bert)
    found = collect_activation_stats(network, names, batches)
    assert sorted(name for sharing, _ in found for name in sharing) == sorted(names)
    sharing = [[name.rpartition(".")[2] for name in group] for group, _ in found]
    assert sharing[0] == ["query", "key", "value"] and ["query"] in sharing, "of [CLS] alone"
    assert all(seen.sample.shape[1] == len(seen.low) for _, seen in found)


def test_the_layer_that_rounding_hurts_comes_first(tmp_path: Path, tiny_bert: Path) -> None:
    network, batches, _ = network_of(tmp_path, tiny_bert)
    products = int8.quantize_linear_layers(network, batches, 127)
    hurt = "net.bert.encoder.layer.0.output.dense"
    coarse = replace(products[hurt], quantizer=replace(products[hurt].quantizer, scale=8.0))
    names = int8.rank_by_sensitivity(network, batches, products | {hurt: coarse})
    assert names[0] == hurt and set(names) == set(products)


def test_from_all_layers_to_half_of_them(tmp_path: Path, tiny_bert: Path) -> None:
    network, batches, names = network_of(tmp_path, tiny_bert)
    ways = list(int8.layer_subsets(int8.quantize_linear_layers(network, batches, 127)))
    assert [len(products) for _, products in ways][:: len(ways) - 1] == [
        len(names),
        len(names) // 2,
    ]


def network_of(
    tmp_path: Path, tiny_bert: Path
) -> tuple[torch.nn.Module, list[PackedBatch], list[str]]:
    place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    network, engine = networks.load_network(place, read_card(place)), Engine.load(place)
    batches = [engine.pack_rows([row]) for row in split_rows(engine.encode(TEXTS)[0])]
    names = [n for n, m in network.named_modules() if type(m) is torch.nn.Linear and "encoder" in n]
    return network, batches, names
