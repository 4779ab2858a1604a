"""Features by a second road, their files, and data without labels."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import photo, write_photos
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols
from vggkeras.features import extraction
from vggkeras.features.extraction import describe, load_images

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def below_fc1(run) -> Callable[[np.ndarray], np.ndarray]:
    """The trained network up to block 5's pool: uint8 [N, H, W, 3] -> [N, h, w, C]."""
    layers = itertools.takewhile(lambda layer: layer.name != "flatten", run.model.layers[1:])

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def maps(images):
        return functools.reduce(lambda x, layer: layer(x, training=False), layers, images)

    return lambda images: maps(images).numpy()


def second_road(network, below_fc1: Callable, image: np.ndarray, scale: int) -> np.ndarray:
    """fc2's activations averaged over space, float64 [2, units]: an image's and its mirror's.

    The FC layers are matrices here, over every cell of the last map: 32 px are one cell.
    """
    h, w = image.shape[:2]
    size = (scale, round(h * scale / w)) if w <= h else (round(w * scale / h), scale)
    rescaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    maps = below_fc1(np.stack([rescaled, np.fliplr(rescaled)])).astype(np.float64)
    activations = maps.reshape(2, -1, maps.shape[-1])  # [2, cells, C]
    for name in ("fc1", "fc2"):
        kernel, bias = network.get_layer(name).get_weights()
        activations = np.maximum(activations @ kernel + bias, 0)
    return activations.mean(axis=1)


def of_length_1(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.square(rows).sum(axis=-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(50,), (32, 75)])
def test_features_agree_with_a_second_road(run, form, below_fc1, scales):
    images = [
        photo(i, *shape)
        for i, shape in enumerate([(48, 40), (32, 32), (40, 151), (150, 60), (48, 40)])
    ]
    views = np.array(
        [[second_road(run.model, below_fc1, image, q) for q in scales] for image in images]
    )
    for mirrors in (True, False):
        parts = of_length_1(
            views.mean(axis=2) if mirrors else views[:, :, 0]
        )  # [images, scales, units]
        for aggregate in ("average", "stack"):
            expected = (
                parts.mean(axis=1) if aggregate == "average" else np.hstack([*parts.swapaxes(0, 1)])
            )
            rows = vggkeras.extract_features(form, images, scales, aggregate, mirrors=mirrors)
            assert rows.dtype == np.float32
            np.testing.assert_allclose(
                rows, of_length_1(expected), atol=2e-6, err_msg=f"{aggregate} {mirrors}"
            )
    # Another image and the mirror do change something.
    assert np.abs(rows[0] - rows[4]).max() > 1e-2
    assert np.abs(rows - vggkeras.extract_features(form, images, scales, "stack")).max() > 1e-3


@settings(max_examples=4, deadline=None)
@example(height=1, width=1, scale=32, seed=0)
@example(height=130, width=17, scale=33, seed=1)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    scale=st.integers(32, 70),
    seed=st.integers(0, 9),
)
def test_images_of_any_shape_have_features_of_length_1(
    run, form, below_fc1, height, width, scale, seed
):
    image = photo(seed, height, width)
    if max(height, width) > 8 * min(height, width):  # the other side would be thousands of pixels
        image = image[: 8 * width, : 8 * height]
    (row,) = vggkeras.extract_features(form, [image], (scale,))
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        row, of_length_1(second_road(run.model, below_fc1, image, scale).mean(axis=0)), atol=2e-6
    )


def test_the_default_scale_is_the_models_and_no_images_have_no_rows(predictor, form, photos):
    paths = sorted(photos.rglob("*.jpg"))[:3]
    rows = vggkeras.extract_features(form, paths, (predictor.scale,))
    np.testing.assert_array_equal(vggkeras.extract_features(predictor, paths), rows)
    np.testing.assert_array_equal(vggkeras.extract_features(form, paths), rows)
    assert vggkeras.extract_features(form, [], (32, 40), "stack").shape == (0, 2 * rows.shape[1])


def test_rows_of_zeros_stay_zeros(form):
    dead = replace(form, run=lambda images: np.zeros((len(images), form.features), np.float32))
    for aggregate in ("average", "stack"):
        assert not vggkeras.extract_features(dead, [photo(0), photo(1)], (32, 40), aggregate).any()
    # Dead at one scale alone: the other is all there is.
    half = replace(form, run=lambda images: form.run(images) * (images.shape[1] > 40))
    one, two = (vggkeras.extract_features(half, [photo(0)], scales) for scales in ((40,), (32, 40)))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_memory_holds_a_window_of_images(form):
    given = 0
    ahead = protocols.WINDOW + 8 * (os.cpu_count() or 1) + 1
    waiting = []

    def run(images: np.ndarray) -> np.ndarray:
        waiting.append(given)
        return np.ones((len(images), form.features), np.float32)

    def images() -> Iterator[np.ndarray]:
        nonlocal given
        for given in range(1, ahead + 100):  # noqa: B007
            yield photo(0, 32, 32)

    rows = vggkeras.extract_features(replace(form, run=run), images(), (32,))
    assert len(rows) == ahead + 99
    assert waiting[0] <= ahead


def test_both_kinds_of_file_hold_the_same(run, form, photos, command, tmp_path):
    (photos / "train" / "cat" / "other.bmp").write_bytes(b"BM")
    arguments = ["--model", run.path, "--data", photos, "--scales", 32, 48, "--aggregate", "stack"]
    arguments += ["--skip-unreadable", "--out", "f.npz", "--json", "f.json"]
    code, out, err = command(cli, "features", *arguments)
    assert code == 0, err
    assert "skipped 1 unreadable images" in out
    with np.load("f.npz") as archive:
        npz = dict(archive)
    paths = [path for split in ("train", "val") for path in sorted((photos / split).rglob("*.jpg"))]
    assert npz["names"].tolist() == [str(path.relative_to(photos)) for path in paths]
    assert npz["features"].dtype == np.float32
    np.testing.assert_allclose(
        npz["features"], vggkeras.extract_features(form, paths, (32, 48), "stack"), atol=1e-6
    )
    assert npz["class_names"].tolist() == ["cat", "dog"]
    assert npz["labels"].dtype == np.int64
    assert npz["labels"].tolist() == [0] * 8 + [1] * 8 + [0] * 4 + [1] * 4
    assert npz["split"].tolist() == ["train"] * 16 + ["validation"] * 8
    about = json.loads(str(npz["about"]))
    assert about["model"] == str(run.path / "model.keras")
    assert len(about["sha256"]) == 64
    expected = {
        "scales": [32, 48],
        "aggregate": "stack",
        "mirrors": True,
        "runtime": "keras",
        "splits": ["train", "validation"],
    }
    assert expected.items() <= about.items()
    record = json.loads(Path("f.json").read_text())
    assert about.items() <= record.items()
    assert [Path(name).name for name in record["skipped"]] == ["other.bmp"]

    data = load_images(str(photos), skip_unreadable=True)
    described = describe(form, data, (), (32, 48), "stack", skipped=[])
    extraction.write(described, Path("f.parquet"))
    extraction.check_out(Path("f.parquet"))
    table = parquet.read_table("f.parquet")
    assert table["image"].to_pylist() == npz["names"].tolist()
    assert table["split"].to_pylist() == npz["split"].tolist()
    assert table["label"].to_pylist() == npz["labels"].tolist()
    assert table["class"].to_pylist() == npz["class_names"][npz["labels"]].tolist()
    dimensions = npz["features"].shape[1]
    assert str(table["features"].type) == f"fixed_size_list<element: float>[{dimensions}]"
    np.testing.assert_allclose(np.stack(table["features"].to_numpy()), npz["features"], atol=1e-6)
    assert json.loads(table.schema.metadata[b"vggkeras"]) == {**about, "model": str(form.path)}


def test_splits_are_chosen_and_digits_never_mirrored(form, described):
    chosen = describe(form, load_images("digits"), ("val", "validation"), (32,))
    rows = described.splits == "validation"
    np.testing.assert_allclose(chosen.features, described.features[rows], atol=1e-6)
    assert chosen.name(0) == "validation[0]"
    assert chosen.about.splits == ("validation",)
    assert chosen.about.mirrors is False


def test_data_that_flatter_are_named(described, form, tmp_path):
    learned = "was trained on digits: it learned these very classes"
    assert f"{learned}, and has seen training images among these" in described.flatters
    validation = describe(form, load_images("digits"), ("validation",), (32,))
    assert f"{learned}, which flatters" in validation.flatters
    write_photos(tmp_path / "loose", 2)
    assert describe(form, load_images(str(tmp_path / "loose"))).flatters is None


def test_a_folder_of_images_alone_has_no_labels(form, tmp_path):
    write_photos(tmp_path / "loose", 5)
    described = describe(form, load_images(str(tmp_path / "loose")))
    extraction.write(described, tmp_path / "f.parquet")
    extraction.write(described, tmp_path / "f.npz")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["image"].to_pylist() == [f"{i:03d}.jpg" for i in range(5)]
    assert table["label"].to_pylist() == [-1] * 5
    assert table["class"].to_pylist() == [None] * 5
    with np.load(tmp_path / "f.npz") as npz:
        assert npz["class_names"].dtype.kind == "U"
        assert npz["class_names"].shape == (0,)


def test_bad_input_is_one_line_and_nothing_is_written(run, photos, command, tmp_path):
    def error(*arguments) -> str:
        given = {"--model": run.path, "--data": photos, "--out": "f.npz", "--scales": 40}
        given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
        flat = [
            part
            for flag, value in given.items()
            for part in ([flag] if value is None else [flag, value])
        ]
        code, out, err = command(cli, "features", *flat)
        assert code == 2, out
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sorted(os.listdir()) == before
        return err

    (tmp_path / "m.keras").write_bytes(b"model")
    (tmp_path / "empty").mkdir()
    before = sorted(os.listdir())
    assert "ends in .npz or .parquet; received '.csv'" in error("--out", "f.csv")
    assert "m.keras is a model's name" in error("--out", "m.keras")
    assert "m.keras is a model's name" in error("--neighbours", "m.keras")
    assert "ends in .html; received '.htm'" in error("--neighbours", "n.htm")
    assert "m.keras is a model's name" in error("--json", "m.keras")
    assert "Class 'cat' has 12 images; asked were 30 for training" in error("--svm", None)
    assert "Class 'cat' has 4 images" in error("--svm", None, "--split", "val", "--train-images", 9)
    assert "empty has no images" in error("--data", "empty")
    assert "No model at nowhere" in error("--model", "nowhere")
    cut = photos / "val" / "dog" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    assert "001.jpg cannot be read" in error()
    assert (tmp_path / "m.keras").read_bytes() == b"model"


def test_bad_arguments_are_refused(predictor, form):
    for arguments, message in (
        (("a.jpg",), "put it into a list"),
        ((["a.jpg"],), r"No image at a\.jpg"),
        (([photo(0) / 255],), "uint8"),
        (([photo(0)], (40, 40)), "each counts once"),
        (([photo(0)], (31,)), "Scale 31 is below the model's input of 32 px"),
        (([photo(0)], (32,), "max"), "must be one of average, stack; received 'max'"),
    ):
        with pytest.raises(InputError, match=message):
            vggkeras.extract_features(form, *arguments)
    with pytest.raises(InputError, match="has no form that gives features"):
        vggkeras.extract_features(replace(predictor, make_form=None), [photo(0)])
    with pytest.raises(InputError, match="image files have 3"):
        vggkeras.extract_features(replace(predictor, input_shape=(32, 32, 4)), [photo(0)])
    with pytest.raises(InputError, match="has no split 'test'"):
        describe(form, load_images("digits"), ("test",))


def test_the_packages_name_is_the_function():
    assert vggkeras.extract_features is extraction.extract_features
    assert callable(vggkeras.train)
    with pytest.raises(AttributeError):
        _ = vggkeras.neighbours
