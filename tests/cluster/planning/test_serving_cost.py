"""Serving is priced at the largest batch within the latency target."""

import math

import pytest

from cluster.costmodel.model_shape import ModelShape
from cluster.hardware import catalog
from cluster.planning.serving_cost import (
    SERVED,
    UTILISATION,
    predict_batch_seconds,
    price_serving,
)
from serving.engine.backends.registry import BACKENDS

KNOWN = catalog.load_catalog()
CLASSES = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)


def test_serving_takes_the_largest_batch_within_the_target() -> None:
    g6 = KNOWN.get_machine("g6.12xlarge")
    found = price_serving(CLASSES, 128, g6, 0.05, 5000.0)
    assert found is not None
    assert found.p95_seconds <= 0.05
    assert 2 * predict_batch_seconds(CLASSES, 128, 2 * found.batch, g6.accelerator) > 0.05
    assert found.replicas == math.ceil(5000 / found.texts_per_second)
    assert found.machines == math.ceil(found.replicas / 4)
    seconds = predict_batch_seconds(CLASSES, 128, found.batch, g6.accelerator)
    assert found.texts_per_second == pytest.approx(UTILISATION * found.batch / seconds)
    assert found.dollars_per_million == pytest.approx(found.machines * 4.6016 / (5000 * 3600) * 1e6)
    assert price_serving(CLASSES, 128, g6, 1e-5, 1.0) is None


def test_only_what_serving_has_engines_for_is_offered() -> None:
    assert set(SERVED) <= {spec.device for spec in BACKENDS.values()}
    offered = {
        machine.accelerator.kind
        for machine in KNOWN.machines
        if not machine.accelerator.missing
        and price_serving(CLASSES, 128, machine, 0.05, 5000.0) is not None
    }
    assert offered == {"cuda"} and "neuron" in {each.accelerator.kind for each in KNOWN.machines}
