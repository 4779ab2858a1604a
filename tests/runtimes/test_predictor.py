"""What a Predictor takes, refuses and answers is the same in every runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from helpers import photo
from PIL import Image

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.evaluation import checks, protocols, scoring
from vggkeras.runtimes import providers
from vggkeras.runtimes.keras import keras_predictor

pytestmark = pytest.mark.integration

NAMES = ("saved_model", "model.onnx", "model.tflite", "model.keras")


def test_every_runtime_knows_what_it_is(predictors, run):
    runtimes = {name: p.runtime for name, p in predictors.items()}
    assert runtimes == {
        "saved_model": "tensorflow",
        "model.onnx": "onnxruntime",
        "model.tflite": "litert",
        "model.keras": "keras",
    }
    for predictor in predictors.values():
        assert predictor.input_shape == (32, 32, 3)
        assert predictor.class_names == [str(i) for i in range(10)]
        assert (predictor.input_name, predictor.output_name) == ("images", "probabilities")
        assert predictor.scale == 37
        assert list(predictor.card.mean_rgb) == run.metadata["mean_rgb"]
        assert predictor.provider == "cpu"
        assert predictor.version[0].isdigit()


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_images_gives_the_same_probabilities(predictors, pictures, name):
    expected = predictors["model.keras"](pictures)
    for count in (0, 1, 3, 70):
        p = predictors[name](pictures[:count])
        assert p.shape == (count, 10)
        assert p.dtype == np.float32
        np.testing.assert_allclose(p, expected[:count], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_images_are_refused_with_advice(predictors, pictures, name):
    predictor = predictors[name]
    for images, message in (
        (pictures[0], r"received shape \[32, 32, 3\].*batch axis"),
        (pictures[:, :31], r"received shape \[70, 31, 32, 3\]"),
        (pictures[..., :1], r"received shape \[70, 32, 32, 1\]"),
        (pictures.transpose(0, 3, 1, 2), r"received shape \[70, 3, 32, 32\]"),
        (pictures / np.float32(255), r"received float32 in \[0, 1\].*before any scaling"),
        (pictures.astype(np.int64), "received int64"),
        (pictures.tolist(), "received list"),
    ):
        with pytest.raises(InputError, match=message):
            predictor(images)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_answers_batch_by_batch(predictors, pictures, name):
    drawn = []

    def batches():
        for start, size in ((0, 5), (5, 5), (10, 60)):
            drawn.append(start)
            yield pictures[start : start + size]

    stream = predictors[name].stream(batches())
    assert drawn == []
    first = next(stream)
    assert drawn == [0]
    rest = list(stream)
    assert [len(p) for p in (first, *rest)] == [5, 5, 60]
    np.testing.assert_allclose(
        np.concatenate([first, *rest]), predictors[name](pictures), atol=1e-6
    )
    with pytest.raises(InputError, match="received float64"):
        list(predictors[name].stream([pictures[:1] / 255]))


def test_posteriors_take_files_and_arrays_of_any_size(predictors, tmp_path):
    arrays = [photo(i, 40 + i, 90 - i) for i in range(3)]
    paths = []
    for i, array in enumerate(arrays):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(array).save(paths[-1])
    p = vggkeras.posteriors(predictors["model.onnx"], paths)
    np.testing.assert_array_equal(p, vggkeras.posteriors(predictors["model.onnx"], arrays))
    two = vggkeras.posteriors(predictors["model.onnx"], arrays, scales=(40, 50))
    one = [vggkeras.posteriors(predictors["model.onnx"], arrays, scales=(s,)) for s in (40, 50)]
    np.testing.assert_allclose(two, np.mean(one, axis=0), atol=1e-6)
    with pytest.raises(InputError, match="Unknown protocol 'sparse': expected one of center"):
        vggkeras.posteriors(predictors["model.onnx"], arrays, protocol="sparse")
    with pytest.raises(InputError, match="Scale 31 is below"):
        vggkeras.posteriors(predictors["model.onnx"], arrays, scales=(31,))
    with pytest.raises(InputError, match="Scale 100000 is above"):
        vggkeras.posteriors(predictors["model.onnx"], arrays, scales=(100_000,))
    with pytest.raises(InputError, match="No image at"):
        vggkeras.posteriors(predictors["model.onnx"], [tmp_path / "none.jpg"])
    with pytest.raises(InputError, match="put it into a list"):
        vggkeras.posteriors(predictors["model.onnx"], str(paths[0]))
    with pytest.raises(InputError, match="received float32"):
        vggkeras.posteriors(predictors["model.onnx"], [arrays[0] / np.float32(255)])


def test_evaluation_counts_every_image_once(predictors):
    data = vggkeras.load_data("digits")
    split = data.split("validation").without(range(100, 360))  # 100 = 3 batches and a part
    (result,) = scoring.evaluate(predictors["model.onnx"], split, data.class_names)
    crops, labels = protocols.central_crops(predictors["model.onnx"], split)
    p = predictors["model.keras"](crops)
    assert result.images == 100
    assert result.correct == (p.argmax(axis=1) == labels).sum()
    assert result.correct5 == sum(
        label in np.argsort(-row)[:5] for row, label in zip(p, labels, strict=True)
    )


def test_data_of_other_classes_is_refused(predictors, photos):
    data = vggkeras.load_data(str(photos))
    with pytest.raises(InputError, match="has 10 classes and the data 2"):
        scoring.evaluate(predictors["model.onnx"], data.split("val"), data.class_names)
    with pytest.raises(InputError, match="name class 3 differently, '3' and 'x'"):
        checks.check_classes(predictors["model.onnx"], [*"012", "x", *"456789"])


def test_a_model_of_one_channel_sees_grey(photos):
    model = vggkeras.build("A", (32, 32, 1), 2, width=0.02, fc_units=4)
    predictor = keras_predictor(model, ModelCard())
    crops, _ = protocols.central_crops(predictor, vggkeras.load_data(str(photos)).split("val"))
    assert crops.shape == (8, 32, 32, 1)
    assert vggkeras.posteriors(predictor, [photo(1)]).shape == (1, 2)


def test_what_is_no_model_is_refused(tmp_path, exports):
    for name in ("a.keras", "a.onnx", "a.tflite"):
        (tmp_path / name).write_bytes(b"junk" * 100)
        with pytest.raises(InputError, match=r"cannot be loaded|is not a \.keras file"):
            vggkeras.load(tmp_path / name)
    with pytest.raises(InputError, match=r"holds neither model\.keras nor a SavedModel"):
        vggkeras.load(exports)
    (tmp_path / "cut.onnx").write_bytes((exports / "model.onnx").read_bytes()[:-1000])
    with pytest.raises(InputError, match="changed or cut short since vggkeras wrote it"):
        vggkeras.load(tmp_path / "cut.onnx")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "saved_model.pb").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be loaded as a SavedModel"):
        vggkeras.load(tmp_path / "bad")
    with pytest.raises(InputError, match="No model at"):
        vggkeras.load(tmp_path / "none.onnx")
    (tmp_path / "a.h5").touch()
    with pytest.raises(InputError, match=r"expected a suffix of \.keras, \.onnx, \.tflite"):
        vggkeras.load(tmp_path / "a.h5")


def test_a_keras_file_that_would_run_code_is_refused(tmp_path):
    import keras

    images = keras.Input((32, 32, 3))
    keras.Model(images, keras.layers.Lambda(lambda x: x * 2)(images)).save(tmp_path / "code.keras")
    with pytest.raises(InputError, match="safe mode"):
        vggkeras.load(tmp_path / "code.keras")


def test_models_that_take_no_bytes_are_refused_in_one_line(tmp_path, photos, command):
    """As Keras' own exporters write them, and .keras files that take no images of one size."""
    import keras

    images, others = keras.Input((32, 32, 3)), keras.Input((8,))
    pooled = keras.layers.GlobalAveragePooling2D()
    probabilities = keras.layers.Dense(2, "softmax")(pooled(images))
    stock = keras.Model(images, probabilities)
    stock(np.zeros((1, 32, 32, 3)))  # Keras exports a model that was called
    stock.export(tmp_path / "stock.onnx", format="onnx", verbose=False)
    stock.export(tmp_path / "stock.tflite", format="litert", verbose=False)
    stock.export(tmp_path / "stock", verbose=False)
    joined = keras.layers.Concatenate()([probabilities, others])
    keras.Model([images, others], joined).save(tmp_path / "two.keras")
    any_size = keras.Input((None, None, 3))
    keras.Model(any_size, keras.layers.Dense(2)(pooled(any_size))).save(tmp_path / "any.keras")
    keras.Model(others, keras.layers.Dense(2)(others)).save(tmp_path / "vector.keras")
    for name, message in (
        ("stock.onnx", "not of bytes: expected uint8 images"),
        ("stock.tflite", "not of bytes: expected uint8 images"),
        ("stock", "not of bytes: expected uint8 images"),
        ("two.keras", "has 2 inputs"),
        ("any.keras", "does not say its training size"),
        ("vector.keras", "expected one, images [batch, H, W, C]"),
    ):
        code, _, err = command(
            cli, "evaluate", "--model", tmp_path / name, "--data", photos, "--split", "validation"
        )
        assert code == 2, name
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert message in line
        assert "Traceback" not in err


def test_a_package_that_is_missing_is_named(exports, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in (
        ("model.onnx", "onnxruntime"),
        ("model.tflite", "ai-edge-litert"),
        ("saved_model", "tensorflow"),
    ):
        with pytest.raises(
            InputError, match=f"{name} needs a package that is not installed: pip install {package}"
        ):
            vggkeras.load(exports / name)


def test_threads_are_those_asked_for(predictors, exports, monkeypatch):
    from ai_edge_litert import interpreter

    seen = []

    class Interpreter(interpreter.Interpreter):
        def __init__(self, path, num_threads):
            seen.append(num_threads)
            super().__init__(path, num_threads=num_threads)

    class Session(ort.InferenceSession):
        def __init__(self, model, options, **others):
            seen.append(options.intra_op_num_threads)
            super().__init__(model, options, **others)

    monkeypatch.setattr(interpreter, "Interpreter", Interpreter)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    for name in ("model.onnx", "model.tflite"):
        seen.clear()
        loaded = [
            vggkeras.load(exports / name, threads=threads).threads for threads in (1, 3, None)
        ]
        assert loaded == seen == [1, 3, os.cpu_count()]
        with pytest.raises(InputError, match="threads must be 1 or more; received 0"):
            vggkeras.load(exports / name, threads=0)
    assert not vggkeras.load(exports / "model.onnx", tf32=True).tf32


def test_tf32_of_tensorflow_is_as_asked_and_put_back():
    import tensorflow as tf

    tf32 = tf.config.experimental.tensor_float_32_execution_enabled
    before = tf32()
    for asked in (True, False):
        with providers.tensorflow_device("cuda", asked):
            assert tf32() == asked
        assert tf32() == before


# Loading a Keras model starts TensorFlow, and so does loading a SavedModel.
THREADS = """
import sys, numpy, tensorflow as tf, vggkeras
saved_model, run = sys.argv[1:]
threads = tf.config.threading.get_intra_op_parallelism_threads
read, seen = tf.saved_model.load, []

def stop(path):
    seen.append(threads())
    raise OSError("before TensorFlow starts")

tf.saved_model.load = stop
try:
    vggkeras.load(saved_model, threads=2)
except vggkeras.InputError:
    assert seen == [2]
tf.saved_model.load = read
assert vggkeras.load(run, threads=1).threads == threads() == 1
for path in (saved_model, run):
    predictor = vggkeras.load(path)
    predictor(numpy.zeros((1, 32, 32, 3), "uint8"))
    assert predictor.threads == vggkeras.load(path, threads=1).threads == 1
    try:
        vggkeras.load(path, threads=5)
    except vggkeras.InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_threads_of_tensorflow_are_set_before_it_starts_or_refused(exports, run):
    child = subprocess.run(
        [sys.executable, "-c", THREADS, exports / "saved_model", run.path],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    refusal = "5 threads: TensorFlow has started in this process with 1,"
    assert [line.startswith(refusal) for line in lines] == [True, True]


# Loads each file where only NumPy, Pillow and its own runtime can be imported.
BARE = """
import json, sys
import numpy as np
OTHERS = {"numpy", "PIL", "vggkeras", "flatbuffers", "ml_dtypes", "backports"}
allowed = set()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed | OTHERS | sys.stdlib_module_names:
            raise ModuleNotFoundError(name + " is not installed", name=name)

sys.meta_path.insert(0, Refuse())
import vggkeras
import vggkeras.configs, vggkeras.errors, vggkeras.files, vggkeras.runtimes
images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
answers = []
for runtime, file in zip(("onnxruntime", "ai_edge_litert"), sys.argv[1:], strict=True):
    allowed = {runtime}
    predictor = vggkeras.load(file)
    vggkeras.files.sha256(predictor.path)
    answers.append(predictor(images).tolist())
    for name in [name for name in sys.modules if name.split(".")[0] == runtime]:
        sys.modules[name] = None
print(json.dumps(answers))
"""


def test_files_load_with_numpy_and_their_runtime_alone(predictors, exports, pictures):
    child = subprocess.run(
        [sys.executable, "-c", BARE, exports / "model.onnx", exports / "model.tflite"],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    for answer in json.loads(child.stdout.splitlines()[-1]):
        np.testing.assert_allclose(answer, predictors["model.keras"](pictures[:5]), atol=1e-5)
