"""The report's curves and Grad-CAM."""

from __future__ import annotations

import csv
import dataclasses
import re

import keras
import numpy as np

import vggkeras
from vggkeras.report.figures import curves
from vggkeras.report.grad_cam import grad_cam
from vggkeras.report.sources import read_source


def test_the_curves_mark_drops_and_the_best_epoch(run):
    history = [
        {
            "epoch": e,
            "loss": 1,
            "accuracy": 0.5,
            "val_loss": 1,
            "val_accuracy": a,
            "learning_rate": rate,
        }
        for e, a, rate in ((1, 0.5, 0.1), (2, 0.6, 0.1), (3, 0.6, 0.01), (4, 0.4, 0.001))
    ]
    source = dataclasses.replace(read_source(run.path), history=history)
    assert source.drops == [3, 4]
    assert source.best is history[1]
    assert source.card.recipe
    for row, cross_entropy in zip(history, (1.0, 0.9, 0.8, 0.85), strict=True):
        row["val_cross_entropy"] = cross_entropy
    recipe = dataclasses.replace(source.card.recipe, schedule="cosine", monitor="val_cross_entropy")
    other = dataclasses.replace(source, card=dataclasses.replace(source.card, recipe=recipe))
    assert other.best is history[2]
    assert other.drops == []  # a cosine falls in every epoch
    loss, accuracy, rate = (curve.svg for curve in curves(source))
    for svg in (loss, accuracy, rate):
        assert svg.count("stroke-dasharray: 0.8,1.6") == 2  # the drops
        assert "<style" not in svg
        assert "http" not in svg
        assert "#0101" not in svg  # no stand-in is left
    assert "0.001" in rate
    ids = re.findall(r'id="([^"]*)"', loss + accuracy + rate)
    assert len(set(ids)) == len(ids)
    with open(run.path / "history.csv") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert read_source(run.path).history == rows
    assert read_source(run.path).best["epoch"] == run.metadata["best_epoch"]


def test_grad_cam_weighs_the_maps_by_the_gradient_of_the_score():
    """By hand in float64, back through three layers and to each pooling window's largest value."""
    network = vggkeras.build("A", (64, 64, 3), 5, batch_norm=True, width=0.05, fc_units=12, seed=1)
    rng = np.random.default_rng(0)
    for weight in network.weights:  # no bias is 0, as after some training
        if "bias" in weight.name or "beta" in weight.name:
            weight.assign(rng.normal(0, 0.1, weight.shape))
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    last = network.get_layer("block5_pool").input
    (a,) = np.asarray(keras.Model(network.input, last)(image[None], training=False))  # [4, 4, C]
    a = a.astype(np.float64)
    (k1, b1), (k2, b2), (k3, _) = (
        [np.asarray(w, np.float64) for w in network.get_layer(name).weights]
        for name in ("fc1", "fc2", "predictions")
    )
    pooled = a.reshape(2, 2, 2, 2, -1).max(axis=(1, 3)).reshape(-1)
    first = pooled @ k1 + b1
    second = np.maximum(first, 0) @ k2 + b2
    gradient = k1 @ ((first > 0)[:, None] * (k2 @ ((second > 0)[:, None] * k3)))  # [4 * C, 5]
    weights = gradient.reshape(4, -1, 5).sum(axis=0) / 16  # a map has 4 x 4 cells
    maps = grad_cam(network, np.stack([image] * 5), range(5))
    assert maps.shape == (5, 4, 4)
    assert maps.dtype == np.float32
    expected = np.maximum(a @ weights, 0).transpose(2, 0, 1)  # [5, 4, 4]
    assert (expected > 0).any(axis=(1, 2)).sum() >= 2
    np.testing.assert_allclose(maps, expected, atol=1e-5 * expected.max())


def test_grad_cam_adds_to_a_network_once():
    """A page that answers for days would otherwise grow with every picture."""
    network = vggkeras.build("A", (32, 32, 3), 5, width=0.05, fc_units=12, seed=1)
    nodes = []
    for _ in range(3):
        grad_cam(network, np.zeros((1, 32, 32, 3), np.uint8), [0])
        nodes.append([len(layer._inbound_nodes) for layer in network.layers])
    assert nodes[0] == nodes[1] == nodes[2]
