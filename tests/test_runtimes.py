"""One Predictor over every runtime: what it takes, what it refuses, what it needs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import photo
from PIL import Image

import vggkeras
from vggkeras import evaluate
from vggkeras.errors import InputError

FILES = ("saved_model", "model.onnx", "model.tflite")


@pytest.fixture(scope="module")
def predictors(run, exports):
    return {name: vggkeras.load(exports / name) for name in FILES} | {"model.keras": vggkeras.load(run.path)}


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


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
        assert predictor.about["mean_rgb"] == run.metadata["mean_rgb"]
        assert predictor.provider == "cpu"
        assert predictor.version[0].isdigit()


@pytest.mark.parametrize("name", [*FILES, "model.keras"])
@pytest.mark.parametrize("count", [0, 1, 3, 70])
def test_any_number_of_images_gives_the_same_probabilities(predictors, pictures, name, count):
    p = predictors[name](pictures[:count])
    assert p.shape == (count, 10)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p, predictors["model.keras"](pictures)[:count], atol=1e-5)


@pytest.mark.parametrize("name", [*FILES, "model.keras"])
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
    (result,) = evaluate.evaluate(predictors["model.onnx"], split, data.class_names)
    crops, labels = evaluate.central_crops(predictors["model.onnx"], split)
    p = predictors["model.keras"](crops)
    assert result.images == 100
    assert result.correct == (p.argmax(axis=1) == labels).sum()
    assert result.correct5 == sum(label in np.argsort(-row)[:5] for row, label in zip(p, labels, strict=True))


def test_data_of_other_classes_is_refused(predictors, photos):
    data = vggkeras.load_data(str(photos))
    with pytest.raises(InputError, match="has 10 classes and the data 2"):
        evaluate.evaluate(predictors["model.onnx"], data.split("val"), data.class_names)
    with pytest.raises(InputError, match="name class 3 differently, '3' and 'x'"):
        evaluate.check_classes(predictors["model.onnx"], [*"012", "x", *"456789"])


def test_a_model_of_one_channel_sees_grey(photos):
    model = vggkeras.build("A", (32, 32, 1), 2, width=0.02, fc_units=4)
    predictor = vggkeras.runtimes.keras_predictor(model, {})
    crops, _ = evaluate.central_crops(predictor, vggkeras.load_data(str(photos)).split("val"))
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
    with pytest.raises(InputError, match="cannot be loaded by ONNX Runtime"):
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


def test_cuda_is_given_or_refused_never_replaced(exports):
    import onnxruntime as ort

    probe = vggkeras.load(exports / "model.onnx")
    try:
        cuda = vggkeras.load(exports / "model.onnx", provider="cuda")
    except InputError as error:
        assert "did not load CUDAExecutionProvider" in str(error)  # noqa: PT017
        assert "doctor" in str(error)  # noqa: PT017
    else:
        assert cuda.provider == "cuda"
        assert "CUDAExecutionProvider" in ort.get_available_providers()
    with pytest.raises(InputError, match="provider must be one of cpu, cuda"):
        vggkeras.load(exports / "model.onnx", provider="tpu")
    with pytest.raises(InputError, match=r"\.tflite files run on the CPU"):
        vggkeras.load(exports / "model.tflite", provider="cuda")
    assert probe.provider == "cpu"


ALONE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "tensorflow", "jax", "onnx", "tf2onnx"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
import numpy as np, vggkeras
from export.verify import verify
p = vggkeras.load(sys.argv[1])
x = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
print(json.dumps([verify(p.path), p(x).tolist()]))
"""


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_loaded_and_verified_without_keras_or_tensorflow(predictors, exports, pictures, name):
    child = subprocess.run([sys.executable, "-c", ALONE, exports / name], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    problems, probabilities = json.loads(child.stdout.splitlines()[-1])
    assert problems == []
    np.testing.assert_allclose(probabilities, predictors["model.keras"](pictures[:5]), atol=1e-5)
