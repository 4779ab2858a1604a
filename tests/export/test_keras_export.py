"""Keras' own exporters: what they take, what is refused, and the files in three formats."""

from __future__ import annotations

import hashlib
import json
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from keras_models import CARD, classifier, lively, photos, pooled, prepared

import vggkeras
from export import keras_export, subjects, to_saved_model
from vggkeras import models
from vggkeras.errors import InputError
from vggkeras.runtimes import stderr

pytestmark = pytest.mark.integration

BATCHES = (1, 2, 7)


def nested() -> tuple[keras.Model, str]:
    base = vggkeras.build("A", (32, 32, 3), 4, width=0.125, fc_units=8, batch_norm=True, seed=0)
    base = keras.Model(base.input, base.get_layer("block4_pool").output, name="base")
    base.trainable = False
    parts = [keras.Input((32, 32, 3)), layers.Rescaling(255.0), base, layers.Flatten()]
    parts.insert(2, layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 0.9, 1.1]))
    return keras.Sequential([*parts, layers.Dropout(0.5), layers.Dense(5)], name="nested"), "0-1"


def mobile() -> tuple[keras.Model, str]:
    network = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=5
    )
    return network, "-1-1"


def resnet() -> tuple[keras.Model, str]:
    return keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=5), "caffe"


def efficient() -> tuple[keras.Model, str]:
    network = keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=5)
    return network, "0-255"


def by_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[0]) == ("images", "tensor(uint8)", "batch")
    assert (given.name, given.type, given.shape) == ("probabilities", "tensor(float)", ["batch", 5])
    return session.run(None, {"images": images})[0]


def by_tflite(path: Path, images: np.ndarray) -> np.ndarray:
    with stderr.quiet_stderr():
        interpreter = Interpreter(str(path))
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert (taken["name"], taken["dtype"]) == ("images", np.uint8)
        assert (given["name"], given["dtype"]) == ("probabilities", np.float32)
        interpreter.resize_tensor_input(taken["index"], images.shape)
        runner = interpreter.get_signature_runner("serving_default")
        return runner(images=images)["probabilities"]


def by_saved_model(path: Path, images: np.ndarray) -> np.ndarray:
    answer = tf.saved_model.load(str(path)).signatures["serving_default"]
    return answer(images=tf.constant(images))["probabilities"].numpy()


WRITERS = {
    "model.onnx": (keras_export.write_onnx, by_onnx),
    "model.tflite": (keras_export.write_tflite, by_tflite),
    "saved_model": (to_saved_model.write, by_saved_model),
}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(pooled, marks=pytest.mark.full),
        pytest.param(nested, marks=pytest.mark.slow),
        pytest.param(mobile, marks=pytest.mark.full),
        pytest.param(resnet, marks=pytest.mark.full),
        pytest.param(efficient, marks=pytest.mark.full),
    ],
)
def test_three_formats_give_kerass_own_answers(make, tmp_path, capfd):
    keras.utils.set_random_seed(0)
    network, pixels = make()
    lively(network, pixels)
    tolerance = subjects.rounding_tolerance(network)
    keras_export.check_classifier(network)
    wrapper = keras_export.inference_model(network, pixels)
    assert {id(w) for w in wrapper.weights} == {id(w) for w in network.weights}
    images = photos(10, *network.inputs[0].shape[1:3])
    expected = np.asarray(wrapper(images, training=False)["probabilities"])
    assert expected.std(axis=0).max() > 5e-3, "one answer for all images proves little"
    alone = network(prepared(images, pixels), training=False)
    alone = keras.ops.softmax(alone) if keras_export.ends_in_scores(network) else alone
    np.testing.assert_allclose(expected, alone, atol=1e-5)
    keras_export.check_answers(expected, scores=False)
    capfd.readouterr()
    for name, (write, ask) in WRITERS.items():
        write(wrapper, tmp_path / name, CARD)
        if name != "saved_model":
            assert capfd.readouterr() == ("", ""), name
        for batch in BATCHES:
            answers = ask(tmp_path / name, images[:batch])
            np.testing.assert_allclose(answers, expected[:batch], atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_files_describe_themselves_and_are_the_same_bytes_again(tmp_path):
    wrapper = keras_export.inference_model(*pooled())
    files = [tmp_path / "model.onnx", tmp_path / "model.tflite"]
    digests = []
    for _ in range(2):
        keras_export.write_onnx(wrapper, files[0], CARD, 16)
        keras_export.write_tflite(wrapper, files[1], CARD)
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert digests[0] == digests[1]
    proto = onnx.load(files[0])
    assert (proto.producer_name, proto.producer_version) == ("vggkeras", "test")
    assert max(i.version for i in proto.opset_import if not i.domain) == 16
    properties = {p.key: json.loads(p.value) for p in proto.metadata_props}
    assert properties == {"labels": list("abcde"), "vggkeras": CARD.to_description()}
    with zipfile.ZipFile(files[1]) as archive:
        assert archive.read("labels.txt").decode().split() == list("abcde")
        assert json.loads(archive.read("vggkeras.json")) == CARD.to_description()


@pytest.mark.parametrize("pixels", keras_export.SCALINGS)
def test_every_preprocessing_is_that_of_keras_applications(pixels):
    images = keras.Input((8, 6, 3))
    network = keras.Model(images, layers.Flatten()(images), name="pixels")
    shown = photos(3, 8, 6)
    wrapper = keras_export.inference_model(network, pixels, logits=False)
    expected = prepared(shown, pixels).reshape(3, -1)
    np.testing.assert_allclose(wrapper(shown)["probabilities"], expected, rtol=1e-6, atol=2e-5)


def head(end) -> keras.Model:
    images = keras.Input((8, 8, 3))
    return keras.Model(images, end(layers.Flatten()(images)))


def test_class_scores_are_known_by_the_last_activation():
    def scores(*parts: layers.Layer) -> bool:
        return keras_export.ends_in_scores(head(keras.Sequential([*parts])))

    assert scores(layers.Dense(5))
    assert scores(layers.Dense(10), layers.Dropout(0.1), layers.Reshape((10,)))
    assert scores(layers.Dense(5), layers.Rescaling(0.5))
    assert scores(layers.Dense(5), layers.Activation("linear"))
    assert not scores(layers.Dense(5, "softmax"))
    assert not scores(layers.Dense(5, "softmax"), layers.Rescaling(1.0))
    assert not scores(layers.Dense(5, "sigmoid"))
    assert not scores(layers.Dense(5), layers.Softmax())
    assert not scores(layers.Dense(5), layers.Activation("softmax"))
    # The mean of two networks' probabilities, and of their scores.
    for activation, expected in ((None, True), ("softmax", False)):
        mean = head(
            lambda x, a=activation: layers.average([layers.Dense(5, a)(x), layers.Dense(5, a)(x)])
        )
        assert keras_export.ends_in_scores(mean) == expected
    assert not keras_export.ends_in_scores(head(lambda x: keras.ops.softmax(layers.Dense(5)(x))))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A classifier by inheritance, whose call takes no `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flat, self.dense = layers.Flatten(), layers.Dense(5, "softmax")

    def call(self, images):
        return self.dense(self.flat(images / 255))


def test_a_subclassed_model_that_was_built_is_taken(tmp_path):
    network = Subclassed(name="subclassed")
    with pytest.raises(InputError, match=r"never built: expected a built one; call it once"):
        keras_export.check_classifier(network)
    images = photos(7, 8)
    network(images.astype(np.float32))
    network.save("subclassed.keras")
    network = models.load_model(Path("subclassed.keras"))[0]
    keras_export.check_classifier(network)
    wrapper = keras_export.inference_model(network)
    expected = np.asarray(network(images.astype(np.float32)))
    for name, (write, ask) in WRITERS.items():
        write(wrapper, tmp_path / name, CARD)
        np.testing.assert_allclose(ask(tmp_path / name, images), expected, atol=1e-5)


def channels_first() -> keras.Model:
    pooling = layers.GlobalAveragePooling2D(data_format="channels_first")
    return keras.Sequential([keras.Input((3, 8, 8)), pooling, layers.Dense(5)], name="network")


def of_two(inputs: int, outputs: int) -> keras.Model:
    taken = [keras.Input((8, 8, 3)) for _ in range(inputs)]
    x = layers.Flatten()(layers.add(taken) if inputs > 1 else taken[0])
    return keras.Model(taken, [layers.Dense(5)(x) for _ in range(outputs)], name="network")


def quantized() -> keras.Model:
    model = classifier()
    model.quantize("int8")
    return model


def any_size() -> keras.Model:
    parts = [layers.GlobalAveragePooling2D(), layers.Dense(5, "softmax")]
    return keras.Sequential([keras.Input((None, None, 3)), *parts], name="network")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_two(2, 1), "has 2 inputs: expected images alone; leave out the others"),
        (lambda: of_two(1, 2), "has 2 outputs: expected one; export a model of that one"),
        (lambda: classifier((8,)), "takes [batch, 8]: expected images [batch, H, W, C]; give"),
        (
            channels_first,
            "takes [batch, 3, 8, 8], channels first: expected [batch, H, W, C]; build",
        ),
        (any_size, "takes [batch, any, any, 3], images of any size: expected one size; build it"),
        (lambda: classifier(units=1), "gives [batch, 1]: expected [batch, classes], 2 classes or"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Dense(5)], name="network"),
            "gives [batch, 8, 8, 5]: expected [batch, classes], 2 classes or more; end it in",
        ),
        (lambda: classifier(dtype="mixed_float16"), "computes in float16: expected float32; build"),
        (quantized, "computes in int8: expected float32; build it under"),
        (lambda: keras.Sequential([layers.Dense(5)], name="network"), "was never built: expected"),
    ],
)
def test_what_is_no_image_classifier_is_refused(make, message):
    with pytest.raises(InputError) as error:
        keras_export.check_classifier(make())
    assert message in str(error.value)
    assert str(error.value).startswith("The model 'network' ")
    assert "\n" not in str(error.value)


def test_preprocessing_that_a_model_cannot_have_is_refused():
    with pytest.raises(InputError, match=r"has 1 channels: expected 3 with --input caffe; give 0-"):
        keras_export.inference_model(classifier((8, 8, 1)), "caffe")
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Dense(5, "softmax")(layers.Flatten()(layers.Rescaling(1 / 255)(images)))
    whole = keras.Model(images, x, name="network")
    with pytest.raises(InputError, match="takes uint8: expected float32 with --input 0-1; leave"):
        keras_export.inference_model(whole, "0-1")
    shown = photos(2, 8)
    given = keras_export.inference_model(whole)(shown)["probabilities"]
    np.testing.assert_allclose(given, whole(shown), atol=1e-6)


@pytest.mark.parametrize(
    ("answers", "scores", "message"),
    [
        ([[3.0, -1.0]], False, r"in \[-1, 3\] and sum to 2 to 2: .* class scores, give --logits"),
        (
            [[0.9, 0.8], [0.1, 0.0]],
            False,
            r"in \[0, 0.9\] and sum to 0.1 to 1.7: .*sigmoids of sev",
        ),
        ([[3.0, -1.0]], True, "the soft-max is not over classes"),
        ([[np.nan, 1.0], [0.5, 0.5]], False, "NaN or infinite answers to 1 of 2 images: expected"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(answers, scores, message):
    with pytest.raises(InputError, match=message):
        keras_export.check_answers(np.array(answers, np.float32), scores)


def test_what_does_not_fit_into_memory_is_refused_first(tmp_path, monkeypatch):
    wrapper = keras_export.inference_model(classifier())
    memory = types.SimpleNamespace(available=4e8)
    monkeypatch.setattr(keras_export.psutil, "virtual_memory", lambda: memory)
    for kind, others in (("onnx", "saved_model or tflite"), ("tflite", "saved_model")):
        write = getattr(keras_export, f"write_{kind}")
        expected = f"needs about 0.5 GB of memory, and 0.4 GB is .* --format {others}, which needs"
        with pytest.raises(InputError, match=expected):
            write(wrapper, tmp_path / f"model.{kind}", CARD)
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize("operation", ["Tan", "Erfinv"])
def test_operations_that_a_format_has_not_are_named(operation, tmp_path):
    """Tan is one of TensorFlow's operators outside of TFLite's own; Erfinv is not even that."""
    function = {"Tan": keras.ops.tan, "Erfinv": keras.ops.erfinv}[operation]
    wrapper = keras_export.inference_model(
        head(lambda x: layers.Dense(5, "softmax")(function(x / 256)))
    )
    file = tmp_path / "model.tflite"
    needs = "needs Tan: expected TFLite's built-in operators alone; export --format onnx or"
    message = needs if operation == "Tan" else "cannot be written as TFLite .*Erfinv"
    with pytest.raises(InputError, match=message):
        keras_export.write_tflite(wrapper, file, CARD)
    assert not file.exists()
    if operation == "Erfinv":
        with pytest.raises(InputError, match=r"cannot be written as ONNX by Keras .*Erfinv"):
            keras_export.write_onnx(wrapper, tmp_path / "model.onnx", CARD)
    to_saved_model.write(wrapper, tmp_path / "saved_model", CARD)
    expected = np.asarray(wrapper(photos(2, 8))["probabilities"])
    np.testing.assert_allclose(
        by_saved_model(tmp_path / "saved_model", photos(2, 8)), expected, atol=1e-5
    )


def test_a_tensor_that_a_layer_holds_would_be_an_input_of_the_onnx_file(tmp_path):
    class Shift(layers.Layer):
        def __init__(self):
            super().__init__()
            self.by = tf.constant(np.arange(192, dtype=np.float32))

        def call(self, x):
            return x + self.by

    wrapper = keras_export.inference_model(
        head(lambda x: layers.Dense(5, "softmax")(Shift()(x / 256)))
    )
    with pytest.raises(InputError, match=r"holds a tensor as an attribute, .*: expected a weight"):
        keras_export.write_onnx(wrapper, tmp_path / "model.onnx", CARD)
