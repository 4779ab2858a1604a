"""Data of Python: arrays and tf.data.Datasets train, resume, export and report as files do."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from helpers import cut_at, photo, tiny
from PIL import Image

import vggkeras
from export import export_model
from vggkeras.data.in_memory import PREFIX
from vggkeras.errors import InputError
from vggkeras.report.page import report
from vggkeras.training.train import train

IMAGES = np.stack([photo(i, 40, 44) for i in range(60)])
LABELS = np.arange(60) % 3
NAMES = ["ant", "bee", "cow"]


def folder_of_arrays(root):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        place = root / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}", "PNG")
    return root


def test_arrays_are_kept_as_they_are():
    data = vggkeras.Data.from_arrays(IMAGES, LABELS, NAMES, test=(IMAGES[:6], LABELS[:6]))
    assert data.class_names == NAMES
    assert data.native_size == 40
    assert data.split("test").count == 6
    assert data.split("train").count + data.split("validation").count == 60
    from vggkeras.data import decoding

    for (_, content, label), image in zip(data.split("test").examples(), IMAGES, strict=False):
        np.testing.assert_array_equal(decoding.decode(content), image)
        assert NAMES[label] in data.class_names
    again = vggkeras.Data.from_arrays(IMAGES, LABELS, NAMES, test=(IMAGES[:6], LABELS[:6]))
    other = vggkeras.Data.from_arrays(IMAGES, LABELS[::-1], NAMES)
    assert again.spec == data.spec != other.spec
    assert data.spec.startswith(PREFIX)
    assert vggkeras.load_data(data) is data
    with pytest.raises(InputError, match="arrays of a Python program"):
        vggkeras.load_data(data.spec)


def test_gray_and_uneven_images_are_taken():
    gray = vggkeras.Data.from_arrays(
        IMAGES[..., 0], LABELS, NAMES, validation=(IMAGES[:9], LABELS[:9])
    )
    assert gray.split("validation").count == 9
    uneven = [photo(i, 30 + i, 50) for i in range(60)]
    assert vggkeras.Data.from_arrays(uneven, LABELS, NAMES).native_size == 32


def test_arrays_as_libraries_give_them():
    expected = vggkeras.Data.from_arrays(IMAGES, LABELS, NAMES)
    column = vggkeras.Data.from_arrays(IMAGES, LABELS[:, None], np.array(NAMES))
    assert column.spec == expected.spec
    numbered = vggkeras.Data.from_arrays(IMAGES, LABELS, [0, 1, 2], validation=[IMAGES, LABELS])
    assert numbered.class_names == ["0", "1", "2"]
    still = vggkeras.Data.from_arrays(IMAGES, LABELS, NAMES, mirrors=False)
    assert still.spec != expected.spec
    with pytest.raises(InputError, match="a fraction in"):
        vggkeras.load_data("digits", validation="0.3")


def test_a_tf_dataset_gives_the_data_of_its_arrays():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    data = vggkeras.Data.from_tf_data(dataset, NAMES)
    assert data.spec == vggkeras.Data.from_arrays(IMAGES, LABELS, NAMES).spec
    encoded = dataset.map(lambda image, label: (tf.io.encode_jpeg(image), label))
    split = vggkeras.Data.from_tf_data(encoded, NAMES, validation=dataset.take(6)).split("train")
    assert next(split.examples())[1].startswith(b"\xff\xd8")


def test_what_is_wrong_with_arrays_is_said():
    import tensorflow as tf

    make, labels = vggkeras.Data.from_arrays, LABELS
    for arguments, message in {
        (0, "float"): r"expected uint8 \[H, W, 3\].*float64.*255 \* images",
        (1, "ints"): "expected uint8 .* received int64 of shape",
        (2, "channels"): r"received uint8 of shape \[40, 44, 4\]",
        (3, "one image"): "expected a label an image; received 40 images and 60 labels",
        (4, "one-hot"): r"labels.argmax\(axis=1\)",
        (5, "float labels"): "labels must be whole numbers",
        (6, "negative"): "0 or more",
        (7, "names"): "below 2, the number of class_names",
        (8, "fraction"): "a fraction in",
        (9, "no images"): "received none",
        (10, "same names"): "differ",
    }.items():
        calls = [
            lambda: make(IMAGES / 255, labels),
            lambda: make(IMAGES.astype(np.int64), labels),
            lambda: make(np.concatenate([IMAGES, IMAGES[..., :1]], 3), labels),
            lambda: make(IMAGES[0], labels),
            lambda: make(IMAGES, np.eye(3)[labels]),
            lambda: make(IMAGES, labels / 1),
            lambda: make(IMAGES, labels - 1),
            lambda: make(IMAGES, labels, NAMES[:2]),
            lambda: make(IMAGES, labels, validation=0.9),
            lambda: make(IMAGES[:0], labels[:0]),
            lambda: make(IMAGES, labels, ["a", "a", "b"]),
        ]
        with pytest.raises(InputError, match=message[1] if isinstance(message, tuple) else message):
            calls[arguments[0]]()
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, labels))
    for wrong, message in (
        (dataset.batch(4), "batched"),
        (dataset.repeat(), "an end"),
        (dataset.take(0), "empty"),
        (dataset.map(lambda image, label: image), "image, label"),
        (dataset.map(lambda image, label: (tf.cast(image, tf.float32), label)), "float32"),
        (IMAGES, "tf.data.Dataset"),
    ):
        with pytest.raises(InputError, match=message):
            vggkeras.Data.from_tf_data(wrong)


@pytest.mark.slow
@pytest.mark.integration
def test_arrays_train_resume_export_and_report(tmp_path):
    data = vggkeras.Data.from_arrays(IMAGES, LABELS, NAMES)

    plain = {"batch_norm": False}
    whole = train(tiny(tmp_path / "whole", **plain), data=data)
    cut_at(tiny(tmp_path / "cut", **plain), 13, data)  # in the second epoch
    other = vggkeras.Data.from_arrays(IMAGES[::-1], LABELS, NAMES)
    with pytest.raises(InputError, match="other arrays"):
        train(tiny(tmp_path / "cut", **plain), data=other, resume=True)
    resumed = train(tiny(tmp_path / "cut", **plain), data=data, resume=True)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="arrays of a Python program"):
        export_model(whole.path, "onnx")
    for precision in ("float32", "int8"):
        entries = export_model(whole.path, "onnx", precision, data=data, out=tmp_path / precision)
        assert all(entry["passed"] for entry in entries.values()) or precision == "int8"
    page = report(whole.path, data)
    assert NAMES[1] in page.read_text()
    with pytest.raises(InputError, match="leave it out of the recipe"):
        train(tiny(tmp_path / "x", validation=0.3), data=data)


def test_names_given_to_build_travel_with_the_model(tmp_path):
    model = vggkeras.build("A", (32, 32, 3), class_names=NAMES, width=0.05, fc_units=8)
    assert model.output_shape == (None, 3)
    assert model.class_names == tuple(NAMES)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(
        IMAGES[:, :32, :32],
        LABELS,
        epochs=1,
        verbose=0,
        callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "kept.keras"))],
    )
    model.save(tmp_path / "saved.keras")
    for name in ("kept.keras", "saved.keras"):
        assert vggkeras.load(tmp_path / name).class_names == NAMES
        loaded = keras.saving.load_model(tmp_path / name)  # still a file of Keras
        np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    data = vggkeras.Data.from_arrays(IMAGES, LABELS, ["x", "y", "z"])
    with pytest.raises(InputError, match="name class 0 differently, 'ant' and 'x'"):
        export_model(tmp_path / "saved.keras", "onnx", data=data)
    for names, classes in ((["a", "a"], None), (["a", "b"], 3), ("ab", None), ([1, 2], None)):
        with pytest.raises(InputError, match="class_names must be"):
            vggkeras.build("A", (32, 32, 3), classes, class_names=names)
    assert json.loads(json.dumps(model.get_config()))["name"] == "vgg_a"
