"""int8's ranges, kernels and signal-to-noise ratios, computed by hand beside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import export
import vggkeras
from export import activations, quantize, samples, to_saved_model
from vggkeras import layers as layers_module
from vggkeras import models
from vggkeras.card import ModelCard
from vggkeras.runtimes.keras import keras_predictor

pytestmark = pytest.mark.integration


def pairs_of(kernel: np.ndarray, start: int) -> np.ndarray:
    """Sums of adjacent weights of one sign, in the order in which a filter's products are added."""
    rows = kernel.astype(int).reshape(-1, kernel.shape[-1])[start:]
    rows = rows[: len(rows) // 2 * 2].reshape(-1, 2, kernel.shape[-1])
    return np.where(rows[:, 0] * rows[:, 1] > 0, np.abs(rows.sum(axis=1)), 0)


def test_no_two_adjacent_weights_of_the_onnx_file_can_saturate(precise_exports):
    """255 (a + b) fits in 16 bits: the sums are the same on processors that add in 16 and in 32."""
    whole = onnx.load(precise_exports / "model.int8.onnx")
    kernels = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in whole.graph.initializer
        if tensor.name.endswith(".kernel.int8")
    }
    assert len(kernels) == 11
    for name, kernel in kernels.items():
        # [out, in, h, w] -> h, w, in, out, as ONNX Runtime multiplies
        rows = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel
        for start in (0, 1) if kernel.ndim == 4 and kernel.shape[1] % 2 else (0,):
            assert 255 * pairs_of(rows, start).max() <= 2**15 - 1, name


@settings(max_examples=50, deadline=None)
@given(
    shape=st.sampled_from([(3, 3, 3, 5), (1, 1, 4, 3), (3, 3, 6, 2), (17, 4), (2, 1), (1, 3)]),
    seed=st.integers(0, 2**31 - 1),
    spread=st.floats(0.0, 8.0),
)
def test_paired_kernels_are_the_nearest_that_do_not_saturate(shape, seed, spread):
    """They keep the limit, whatever the weights, and are never further off than 7 bits are."""
    rng = np.random.default_rng(seed)
    kernel = (rng.choice([-1, 1], shape) * rng.uniform(0.1, 1, shape) ** spread).astype(np.float32)
    whole, scales, _ = quantize.quantize_kernel(
        kernel, np.zeros(shape[-1], np.float32), 0.1, pairs=True
    )
    starts = (0, 1) if len(shape) == 4 and shape[2] % 2 else (0,)
    for start in starts:
        assert pairs_of(whole, start).max(initial=0) <= 128
    seven = np.abs(kernel).reshape(-1, shape[-1]).max(axis=0) / 63.5
    rounded = np.square(np.rint(kernel / seven) * seven - kernel).sum()
    # The scale is chosen by the expected error of rounding, which a few weights may miss by chance.
    assert np.square(whole * scales - kernel).sum() <= 2 * rounded + 1e-6


def graph_of(run):
    return to_saved_model.inference_model(models.load_model(run.path / "model.keras")[0])


def test_ranges_hold_zero_exactly_and_kernels_reach_127():
    for low, high in ((-3, 5), (0, 7.5), (2, 9), (-4, -1), (0, 0)):
        ends = quantize.Quantization.of_range(low, high)
        assert ends.round(0.0) == 0
        values = np.linspace(min(low, 0), max(high, 0), 1000, dtype=np.float32)
        assert np.abs(ends.round(values) - values).max() <= ends.scale * 1.01
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 4, 6)).astype(np.float32) * np.array(
        [1e-6, 1, 10, 0, 1, 1], np.float32
    )
    bias = np.array([1, 2, 3, 0, -1, 1e4], np.float32)
    whole, scales, biases = quantize.quantize_kernel(kernel, bias, 0.05)
    assert np.abs(whole).reshape(-1, 6).max(axis=0)[[1, 2, 4]].tolist() == [127, 127, 127]
    np.testing.assert_allclose(
        biases * scales.astype(np.float64) * 0.05, bias, rtol=1e-2, atol=1e-3
    )
    np.testing.assert_allclose(whole * scales, kernel, atol=float(scales.max()))


def test_ranges_end_where_the_squared_error_is_least(run):
    """The histogram's choice is as good as every candidate tried on the very values, within 10%."""
    graph = graph_of(run)
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    images[7] = 255 * (images[7] > 127)  # a late batch with larger values than those before
    plan = quantize.calibrate(graph, images, 1)
    outputs = activations.activations(graph, images)
    for layer in ("block1_conv1", "lrn", "block4_conv2", "fc1"):
        values = outputs[layer]
        errors = [
            np.square(
                quantize.Quantization.of_range(0, values.max() * share).round(values) - values
            ).sum()
            for share in quantize.FRACTIONS
        ]
        chosen = np.square(plan.activations[layer].round(values) - values).sum()
        assert chosen <= 1.1 * min(errors), layer
    # Every byte less any mean is within the first range.
    mean = np.array(layers_module.mean_rgb(graph))
    for byte in (0, 255):
        np.testing.assert_allclose(
            plan.activations["mean_rgb"].round(byte - mean), byte - mean, atol=0.6
        )


def test_signal_to_noise_is_what_rounding_makes_it(run):
    """By hand, for the first layer: the same convolution of rounded pixels and kernel, in NumPy."""
    graph = graph_of(run)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    plan = quantize.calibrate(graph, images, 1)
    found = quantize.signal_to_noise(graph, plan, images)
    assert list(found) == list(plan.weighted)
    kernel, bias = graph.get_layer("block1_conv1").get_weights()
    x = images - np.float32(layers_module.mean_rgb(graph))

    def convolved(x, kernel, bias):
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)
        )
        return np.maximum(np.einsum("nyxchw,hwcf->nyxf", windows, kernel) + bias, 0)

    signal = convolved(x, kernel, bias)
    whole, scales, _ = quantize.quantize_kernel(
        kernel, bias, plan.activations["mean_rgb"].scale, pairs=True
    )
    step = plan.activations["block1_conv1"].scale
    centered = plan.activations["mean_rgb"]
    x = (
        np.clip(np.rint(x / centered.scale) + centered.zero_point, 0, 255) - centered.zero_point
    ) * centered.scale
    rough = convolved(x, whole * scales, bias)
    noise = signal - np.clip(np.rint(rough / step), 0, 255) * step
    assert found["block1_conv1"] == pytest.approx(
        10 * np.log10((signal**2).sum() / (noise**2).sum()), abs=1
    )


def test_a_handful_of_images_is_enough_to_calibrate_on_and_is_counted(tmp_path, photos, capsys):
    count = 2
    vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8, seed=0).save(tmp_path / "m.keras")
    entries = export.export_model(
        tmp_path / "m.keras", "onnx", "int8", data=str(photos), calibration=count
    )
    assert entries["model.int8.onnx"]["calibration"]["images"] == count
    assert f"int8: ranges from {count} training images of 2 classes" in capsys.readouterr().out


def test_calibration_takes_as_many_of_each_class_from_records_and_files(photos):
    from rich.console import Console

    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    reference = keras_predictor(model, ModelCard(("cat", "dog")))
    data = vggkeras.load_data(str(photos))
    for count, expected in ((2, [1, 1]), (5, [3, 2]), (100, [8, 8])):
        crops, labels = samples.calibration_images(reference, data, count, Console())
        assert np.bincount(labels).tolist() == expected
        assert crops.shape == (sum(expected), 32, 32, 3)
