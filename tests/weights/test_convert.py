"""The command convert, and what its model does on ImageNet's classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import photo
from networks import narrow_keras_twin, photographs, save_legacy, write
from PIL import Image
from safetensors.numpy import load_file

import vggkeras
from vggkeras import runtimes
from vggkeras.__main__ import cli
from vggkeras.data import imagenet, sources
from vggkeras.weights import identify


def test_convert_writes_a_model_that_predict_reads(command, state):
    spec = write("net.safetensors", state)
    code, out, err = command(cli, "convert", spec, "net.keras")
    assert code == 0, err
    assert "block1_conv1" in out
    assert "features.0.weight, features.0.bias" in out
    parameters = sum(value.size for value in state.values())
    assert f"configuration A at 64 px, {parameters:,} parameters, 10 classes" in out
    images = photographs(64)
    expected = vggkeras.pretrained(spec).predict(images, verbose=0)
    clf = vggkeras.load("net.keras")
    np.testing.assert_allclose(clf(images), expected, atol=1e-6)
    assert clf.card.pretrained == spec
    assert clf.card.arch == "A"
    again = identify.open_source("net.keras")  # and on from it
    assert again.card.pretrained == spec
    content = Path("net.keras").read_bytes()
    code, _, err = command(cli, "convert", spec, "net.keras")
    assert (code, Path("net.keras").read_bytes()) == (2, content)
    assert "no model is overwritten" in err
    code, out, err = command(cli, "convert", "net.keras", "torchvision:back.safetensors")
    assert code == 0, err
    back = load_file("back.safetensors")
    for key, value in state.items():
        np.testing.assert_allclose(back[key], value, rtol=1e-6 if key == "features.0.weight" else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keras:none.h5", "x.keras"], "there is no file none.h5"),
        (["keras:none.h5", "x.onnx"], "expected FILE.keras"),
        (["keras:none.h5", "caffe:x"], "expected FILE.keras"),
    ],
)
def test_convert_refuses_in_one_line(command, arguments, message):
    code, _, err = command(cli, "convert", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_an_imagenet_folder_shows_the_papers_errors_beside_ours(command):
    """A thousand class folders of one image; D, dense, Q = 384: the paper's 25.6 / 8.1."""
    image = Path("image.jpg")
    Image.fromarray(photo(0, 32, 32)).save(image)
    for split in ("train", "val"):
        for i, wnid in enumerate(imagenet.wnids()):
            folder = Path("imagenet") / split / wnid
            folder.mkdir(parents=True)
            if split == "train" or i % 100 == 0:
                shutil.copy(image, folder)
    save_legacy(narrow_keras_twin(side=32, classes=1000), Path("net.h5"))
    assert command(cli, "convert", "keras:net.h5", "net.keras")[0] == 0
    clf = runtimes.load("net.keras")
    assert clf.class_names == sources.load_data("imagenet").class_names == imagenet.class_names()
    flags = ["--data", "imagenet", "--protocol", "dense", "--scales", "384", "--json", "found.json"]
    code, out, err = command(cli, "evaluate", "--model", "net.keras", *flags)
    assert code == 0, err
    assert "25.6" in out
    assert "8.1" in out
    assert json.loads(Path("found.json").read_text())
