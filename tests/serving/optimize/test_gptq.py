"""SmoothQuant and GPTQ on one layer, apart from any network."""

from dataclasses import replace

import numpy as np
import pytest

from serving.optimize import gptq, smoothquant
from serving.optimize.calibration import ActivationStats


@pytest.fixture
def layer() -> tuple[np.ndarray, ActivationStats]:
    """A weight, and inputs with channels far from zero and one with outliers."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(4000, 8)) @ draw.normal(size=(8, 64))  # 8 things vary, not 64
    inputs[:, :8] += 20
    inputs[::20, 30] += 100
    seen = ActivationStats.from_inputs(inputs.astype(np.float32), 4000)
    return draw.normal(size=(64, 32)).astype(np.float32), seen


def test_rounding_spreads_an_outlier_over_the_weights(
    layer: tuple[np.ndarray, ActivationStats],
) -> None:
    weight, seen = layer
    found = smoothquant.choose_quantizer(seen, [weight], 127)
    step = (seen.high.max() - seen.low.min()) / 255
    plain = np.rint(seen.sample / step) * step @ weight - seen.sample @ weight
    levels, scale = smoothquant.round_to_nearest(weight, found, 127)
    ours = smoothquant.output_error(weight, found, (levels, scale), seen.sample)
    assert levels.dtype == np.int8 and np.abs(levels).max() == 127
    assert smoothquant.error_variance(ours) < 0.1 * smoothquant.error_variance(plain)


def test_channels_far_from_zero_are_moved(layer: tuple[np.ndarray, ActivationStats]) -> None:
    weight, seen = layer
    found = smoothquant.choose_quantizer(seen, [weight], 127)
    unmoved = replace(found, shift=np.zeros_like(found.shift))
    assert np.abs(found.fake_quantize(seen.sample)).max() < np.abs(seen.sample * found.factor).max()
    assert (
        np.abs(unmoved.fake_quantize(seen.sample)).max() == found.fake_quantize(seen.sample).max()
    ), "cut"


def test_errors_of_weights_make_up_for_one_another(
    layer: tuple[np.ndarray, ActivationStats],
) -> None:
    weight, seen = layer
    found = smoothquant.choose_quantizer(seen, [weight], 15)
    made, judged = seen.sample[:2000], seen.sample[2000:]
    plain = smoothquant.round_to_nearest(weight, found, 15)
    better = gptq.round_with_compensation(weight, found, made, 15)
    errors = [smoothquant.output_error(weight, found, each, judged) for each in (plain, better)]
    assert smoothquant.error_variance(errors[1]) < 0.5 * smoothquant.error_variance(errors[0])
    (product,) = gptq.quantize_layers([weight], seen, 15)
    difference = product.compute_outputs(seen.sample) - seen.sample @ weight
    assert np.abs(difference.mean(axis=0)).max() < 1e-3, "the mean is made up for"
