"""docs/deploy.md, run as a stranger would: without Keras, TensorFlow or this package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browsers import npm_install
from helpers import DOCS, REFUSING_OURS, REPOSITORY, photo
from PIL import Image

import vggkeras

pytestmark = pytest.mark.integration

EACH_PICTURE = f"""{REFUSING_OURS}
script, *pictures = sys.argv[1:]
for picture in pictures:
    sys.argv = [script, picture]
    runpy.run_path(script, run_name="__main__")
"""


def page() -> str:
    return (DOCS / "deploy.md").read_text(encoding="utf-8")


def shell(word: str) -> list[str]:
    """The lines of the page's one shell block that has the word."""
    (block,) = (
        block
        for block in re.findall(r"^```sh\n(.*?)^```$", page(), re.MULTILINE | re.DOTALL)
        if word in block
    )
    return block.splitlines()


@pytest.fixture
def stranger(exports, tmp_path) -> Path:
    """A folder with the two files and every snippet that begins with its file's name."""
    for name in ("model.onnx", "model.tflite"):
        shutil.copy(exports / name, tmp_path)
    for name, code in re.findall(
        r"^```\w+\n(?:#|//) ([\w.]+)\n(.*?)^```$", page(), re.MULTILINE | re.DOTALL
    ):
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


@pytest.fixture
def pictures(stranger) -> list[Path]:
    """Pictures that are reduced, by much and by little, enlarged, left as they are, or gray.

    They are pale, so that no answer is certain, and grained, so that the filter matters.
    """
    sizes = [(333, 250), (70, 61), (20, 29), (37, 37), (50, 150), (101, 38), (90, 80)]
    grain = np.random.default_rng(0)
    arrays = [
        photo(i, *size) // 3 + grain.integers(0, 60, (*size, 3), np.uint8)
        for i, size in enumerate(sizes)
    ]
    images = [Image.fromarray(array) for array in arrays]
    images[-1] = images[-1].convert("L")
    paths = [stranger / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def check(lines: list[str], expected: np.ndarray, tolerance: float) -> None:
    """Compare five lines "0.1234 label", the most probable first, with probabilities `[10]`."""
    rows = [line.split() for line in lines]
    printed = np.array([float(p) for p, _ in rows])
    labels = [int(label) for _, label in rows]
    assert len(labels) == len(set(labels)) == 5
    np.testing.assert_allclose(printed, np.sort(expected)[::-1][:5], atol=tolerance)
    np.testing.assert_allclose(printed, expected[labels], atol=tolerance)


@pytest.mark.parametrize(
    ("script", "file"), [("with_onnxruntime.py", "model.onnx"), ("with_litert.py", "model.tflite")]
)
def test_python_needs_the_runtime_alone(stranger, pictures, script, file):
    expected = vggkeras.posteriors(vggkeras.load(stranger / file), pictures)
    assert expected.max(axis=1).min() < 0.9  # not so sure that any crop would do
    names = [picture.name for picture in pictures]
    arguments = [sys.executable, "-c", EACH_PICTURE, script, *names]
    child = subprocess.run(arguments, cwd=stranger, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 5 * len(pictures)
    for i, probabilities in enumerate(expected):
        check(lines[5 * i : 5 * i + 5], probabilities, 1e-4)


def test_the_versions_are_the_tested_ones():
    (line,) = shell("pip install numpy")
    pins = re.findall(r"\S+==\S+", line)
    assert len(pins) == 4
    assert set(pins) <= set((REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def node_modules() -> Iterator[Path]:
    """What the page's npm line installs, in a folder that goes with the tests: it is large."""
    if node := shutil.which("node"):
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
        if int(said.stdout[1:].split(".")[0]) < 20:
            pytest.skip(f"JavaScript: node is {said.stdout.strip()}; docs/deploy.md asks for 20")
    install = next(line for line in shell("onnxruntime-node") if line.startswith("npm"))
    with tempfile.TemporaryDirectory() as folder:
        yield npm_install(install, Path(folder))


@pytest.mark.slow
def test_javascript_gives_the_same_answers(stranger, pictures, node_modules):
    (stranger / "node_modules").symlink_to(node_modules)
    _, labels, run = shell("onnxruntime-node")
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(labels, shell=True, cwd=stranger, env=os.environ | {"PATH": python}, check=True)
    expected = vggkeras.posteriors(vggkeras.load(stranger / "model.onnx"), pictures)
    for picture, probabilities in zip(pictures, expected, strict=True):
        command = run.replace("photo.jpg", picture.name)
        child = subprocess.run(command, shell=True, cwd=stranger, capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        check(
            child.stdout.splitlines(), probabilities, 0.005
        )  # now and then a value is rounded the other way
