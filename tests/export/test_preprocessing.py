"""--original and --inputs: what is wrong with a user's own preprocessing."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from helpers import EXPORTED, edit_golden_answers, textured
from PIL import Image

import vggkeras
from export import artifact, preprocessing, verify
from export import golden as golden_module
from export.image_changes import rescaled
from vggkeras import configs
from vggkeras.data import augment
from vggkeras.errors import InputError
from vggkeras.runtimes import predictor as predictor_module

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def way(exported) -> tuple[Image.Image, Callable]:
    """(the golden photograph, what a filter makes of it: uint8 [64, 64, 3])."""
    image = Image.open(io.BytesIO(artifact.read(exported / "model.onnx").golden.original))
    image.load()

    def crop(kind: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
        return next(augment.grid_crops(np.asarray(image.resize((100, 73), kind)), (64, 64), 1))

    return image, crop


def two_taps(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Rescale as OpenCV does, and TensorFlow without antialiasing."""
    plain = rescaled(np.asarray(image)[None], size, "bilinear without antialiasing")
    return np.rint(plain[0]).astype(np.uint8)


MEAN = np.array(configs.IMAGENET_MEAN_RGB)
TORCH_MEAN, TORCH_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FAULTS = {
    "BGR": (lambda image, crop: crop()[..., ::-1], "decode (order): channels are BGR: give RGB"),
    "0-1": (
        lambda image, crop: crop() / np.float32(255),
        "normalize: pixels are scaled to 0-1: give 0-255",
    ),
    "signed bytes": (
        lambda image, crop: (crop() - 128.0).astype(np.int8),
        "normalize: 128 is subtracted",
    ),
    "-1-1": (
        lambda image, crop: crop() / 127.5 - 1,
        "normalize: pixels are scaled to -1-1: give 0-255",
    ),
    "mean subtracted": (
        lambda image, crop: crop() - MEAN,
        "normalize: the mean is subtracted already",
    ),
    "torchvision's": (
        lambda image, crop: (crop() / 255 - TORCH_MEAN) / TORCH_STD,
        "normalize: pixels are normalized by ImageNet's mean and deviation",
    ),
    "channels first": (
        lambda image, crop: crop().transpose(2, 0, 1),
        "layout: channels come first",
    ),
    "height and width swapped": (
        lambda image, crop: crop().transpose(1, 0, 2),
        "layout: height and width are swapped",
    ),
    "nearest": (
        lambda image, crop: crop(Image.Resampling.NEAREST),
        "resize: the filter is nearest",
    ),
    "bicubic": (
        lambda image, crop: crop(Image.Resampling.BICUBIC),
        "resize: the filter is bicubic",
    ),
    "two taps": (
        lambda image, crop: next(augment.grid_crops(two_taps(image, (73, 100)), (64, 64), 1)),
        "resize: bilinear without antialiasing",
    ),
    "squeezed": (
        lambda image, crop: np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)),
        "resize: the whole image is squeezed into the crop",
    ),
    "rescaled to the crop": (
        lambda image, crop: augment.center_crop(np.asarray(image), 64, (64, 64)),
        "resize: the smallest side is rescaled to 64 px",
    ),
    "one pixel off": (
        lambda image, crop: np.roll(crop(), 1, axis=1),
        "resize: not the pixels of smallest side to 73",
    ),
    "another photograph": (
        lambda image, crop: augment.center_crop(
            textured(500), 73, (64, 64)
        ),  # a little nearer as BGR, by chance
        "resize: not the pixels of smallest side to 73",
    ),
    "mirrored": (
        lambda image, crop: crop()[:, ::-1],
        "resize: not the pixels of smallest side to 73",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_preprocessing_is_named(fault, exported, way, tmp_path, command):
    spoil, message = FAULTS[fault]
    np.save(tmp_path / "mine.npy", spoil(*way))
    code, out, err = command(verify.cli, "--inputs", tmp_path / "mine.npy", exported / "model.onnx")
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].strip().startswith(f"first difference: {message}")
    assert sum("DIFFERS" in line for line in out.splitlines()) == 1


def test_several_faults_at_once_are_each_named(exported, way):
    mine = (way[1]()[..., ::-1] / 255).transpose(2, 0, 1)
    found = {
        stage.name: stage for stage in preprocessing.preprocessing(exported / "model.tflite", mine)
    }
    assert [name for name, stage in found.items() if not stage.passed] == [
        "decode (order)",
        "layout",
        "normalize",
    ]
    assert "BGR" in found["decode (order)"].note
    assert "channels come first" in found["layout"].note
    assert "0-1" in found["normalize"].note
    assert (
        "the network refuses its shape; with this undone, answers are off by"
        in found["layout"].note
    )


@pytest.mark.parametrize("name", EXPORTED)
def test_right_preprocessing_passes_in_every_file(name, exported, way):
    assert all(stage.passed for stage in preprocessing.preprocessing(exported / name, way[1]()))


@pytest.mark.parametrize(
    "right",
    [
        lambda crop: crop[None],
        lambda crop: (
            crop.astype(np.float32) + np.random.default_rng(0).uniform(-0.5, 0.5, crop.shape)
        ),
        lambda crop: crop - (np.random.default_rng(0).random(crop.shape) < 0.6),
        lambda crop: crop.astype(np.int64),
    ],
    ids=["a batch of one", "floats not rounded", "rounded down", "other integers"],
)
def test_right_preprocessing_passes_in_every_type(right, exported, way):
    image = right(way[1]())
    *stages, kind = preprocessing.preprocessing(exported / "model.onnx", image)
    assert all(stage.passed for stage in stages)
    # The runtime takes bytes alone.
    assert kind.name == "type"
    assert kind.passed == (image.dtype == np.uint8)
    assert kind.passed or "astype('uint8')" in kind.note


def test_what_posteriors_does_is_right(exported, tmp_path, command, monkeypatch):
    """The photograph is written, put through the package's own preprocessing, and found right."""
    path = exported / "model.onnx"
    code, out, _ = command(verify.cli, "--original", tmp_path / "photo.jpg", path)
    assert code == 0
    assert "--inputs mine.npy" in out
    assert command(verify.cli, "--original", tmp_path / "photo.jpg", path)[0] == 0
    (tmp_path / "mine.jpg").write_bytes(b"another")
    code, _, err = command(verify.cli, "--original", tmp_path / "mine.jpg", path)
    assert code == 2
    assert "is not this photograph: only such a file is overwritten" in err
    golden = artifact.read(path).golden
    decoded = np.asarray(Image.open(tmp_path / "photo.jpg"))
    assert decoded.shape == (96, 132, 3)
    np.testing.assert_array_equal(augment.center_crop(decoded, 73, (64, 64)), golden.images[0])

    seen = []
    predictor = vggkeras.load(path)
    p = vggkeras.posteriors(predictor, [tmp_path / "photo.jpg"])
    np.testing.assert_allclose(p, golden.probabilities[:1], atol=1e-5)
    monkeypatch.setattr(
        predictor_module.Predictor,
        "__call__",
        lambda self, images: seen.append(images) or p[: len(images)],
    )
    vggkeras.posteriors(predictor, [tmp_path / "photo.jpg"])
    monkeypatch.undo()
    np.save(tmp_path / "mine.npy", seen[0])
    code, out, _ = command(verify.cli, "--inputs", tmp_path / "mine.npy", path)
    assert code == 0
    assert out.splitlines()[-1].strip() == "no difference"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((65, 64, 3), np.uint8),
            r"of 64 x 64 px and 3 channels; received uint8 of shape \[65, 64, 3\]",
        ),
        (np.zeros((64, 64), np.uint8), r"received uint8 of shape \[64, 64\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"received uint8 of shape \[2, 64, 64, 3\]"),
        (np.zeros((64, 3, 64), np.uint8), r"received uint8 of shape \[64, 3, 64\]"),
        (np.zeros((), np.uint8), r"received uint8 of shape \[\]"),
        (np.full((64, 64, 3), np.nan), "not all of it finite"),
        (np.zeros((64, 64, 3), complex), "received complex128"),
        (np.full((64, 64, 3), "x"), "received <U1"),
    ],
)
def test_what_is_no_image_of_that_size_is_refused(array, message, exported):
    with pytest.raises(InputError, match=message):
        preprocessing.preprocessing(exported / "model.onnx", array)


def test_a_file_that_holds_no_array_is_bad_input(exported, tmp_path, command):
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "zip.npy").write_bytes(b"PK\3\4junk")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    for name in ("several.npz", "text.npy", "zip.npy", "empty.npy", "objects.npy", "none.npy", "."):
        code, _, err = command(verify.cli, "--inputs", tmp_path / name, exported / "model.onnx")
        assert code == 2, name
        assert "expected an array that numpy.save wrote" in err
    code, _, err = command(
        verify.cli,
        "--inputs",
        tmp_path / "x.npy",
        exported / "model.onnx",
        exported / "model.tflite",
    )
    assert code == 2
    assert "go with one file; received 2" in err
    assert (
        command(verify.cli, "--explain", "--inputs", tmp_path / "x.npy", exported / "model.onnx")[0]
        == 2
    )


def test_preprocessing_is_not_judged_by_golden_images_that_were_altered(alone, command, tmp_path):
    path = alone("model.onnx")
    edit_golden_answers(path)
    np.save(tmp_path / "mine.npy", np.zeros((64, 64, 3), np.uint8))
    for question in (["--original", tmp_path / "photo.jpg"], ["--inputs", tmp_path / "mine.npy"]):
        code, out, _ = command(verify.cli, *question, path)
        assert code == 1
        assert "golden answers: not what it was" in out
    assert not (tmp_path / "photo.jpg").exists()


def test_a_photograph_too_large_to_travel_is_made_smaller():
    def jpeg(height: int, width: int) -> bytes:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        return buffer.getvalue()

    small, large, wide = jpeg(50, 60), jpeg(400, 500), jpeg(120, 1000)
    assert golden_module.small_original(small, 73, False) is small
    for encoded, size in ((large, (182, 146)), (wide, (1000, 120))):  # never larger than it was
        assert len(encoded) > golden_module.ORIGINAL_BYTES
        again = golden_module.small_original(encoded, 73, False)
        assert len(again) < golden_module.ORIGINAL_BYTES
        assert Image.open(io.BytesIO(again)).size == size


@pytest.mark.parametrize("name", ["photo.onnx", "model.tflite", "photo.png", "photo", "."])
def test_the_photograph_takes_no_models_place_nor_another_kinds_name(
    exported, tmp_path, command, name
):
    shutil.copy(exported / "model.onnx", tmp_path)
    code, _, err = command(verify.cli, "--original", tmp_path / name, tmp_path / "model.onnx")
    assert code == 2
    assert (
        "no model is overwritten"
        if name.endswith((".onnx", ".tflite"))
        else "is a folder"
        if name == "."
        else "give a name ending in .j"
    ) in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_one_number_everywhere_is_no_photograph(exported, tmp_path, command):
    np.save(tmp_path / "mine.npy", np.zeros((64, 64, 3), np.uint8))
    code, _, err = command(verify.cli, "--inputs", tmp_path / "mine.npy", exported / "model.onnx")
    assert code == 2
    assert "every number 0" in err
