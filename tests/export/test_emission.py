"""The exporters' loop against Keras and Keras' own exporters: every form and precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from helpers import CARD, trained_looking

from export import operations, parity, quantize, to_onnx, to_saved_model, to_tflite
from vggkeras import models
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import onnx as onnx_module

pytestmark = pytest.mark.integration

ARCHS = ("A", "A-LRN", "B", "C", "D", "E")
FORMS = ("classifier", "dense", "features")
SHAPE = (64, 96, 3)
SIZES = {
    "classifier": [(64, 96)],
    "dense": [(64, 96), (101, 130)],
    "features": [(64, 96), (65, 160)],
}


def card_of(form: str, precision: str = "float32") -> ModelCard:
    units = 12 if form == "features" else 5
    names = () if form == "features" else CARD.class_names
    return replace(
        CARD,
        form=Form(form),
        precision=precision,
        input_shape=SHAPE,
        outputs=units,
        class_names=names,
    )


def images_of(size: tuple[int, int], count: int = 3, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(sum(size))
    return rng.integers(0, 256, (count, *size, channels), dtype=np.uint8)


def onnx_answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnx_module.onnx_session(str(path), any_size=True)
    given = images.astype(np.float32) if "float" in session.get_inputs()[0].type else images
    return session.run(None, {session.get_inputs()[0].name: given})[0]


def tflite_answers(path: Path, images: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(str(path))
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images.astype(given["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(answer["index"])


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


FULL = pytest.mark.full  # the others have their operators


# Batch norm is in the kernels before any file is written, so half of them have it.
@pytest.mark.parametrize(
    ("arch", "batch_norm"),
    [
        *(("A-LRN", True), ("C", True), ("D", False)),
        *(pytest.param(arch, arch == "E", marks=FULL) for arch in ("A", "B", "E")),
    ],
)
def test_every_configuration_form_and_precision_is_near_keras(arch, batch_norm, tmp_path):
    model = trained_looking(arch, SHAPE, batch_norm, width=0.06, fc_units=12)
    layers = sum(bool(layer.weights) for layer in model.layers if "_bn" not in layer.name)
    # float16 rounds the weights and the outputs of every layer by half of 2^-10 at most.
    bounds = {"float32": parity.TOLERANCE, "float16": 2 * layers * 2**-11}
    for form in FORMS:
        graph = to_saved_model.inference_model(model, form)
        plan = quantize.calibrate(graph, images_of((64, 96), 8), 1)
        for precision in ("float32", "float16", "int8"):
            card = card_of(form, precision)
            to_onnx.write(graph, tmp_path / "m.onnx", card, 14, plan)
            to_tflite.write(graph, tmp_path / "m.tflite", card, None, plan)
            for size in SIZES[form]:
                x = images_of(size)
                (expected,) = (np.asarray(y) for y in graph(x, training=False).values())
                for answers in (
                    onnx_answers(tmp_path / "m.onnx", x),
                    tflite_answers(tmp_path / "m.tflite", x),
                ):
                    case = (form, precision, size)
                    if precision in bounds:
                        assert apart(answers, expected) <= bounds[precision], case
                    else:  # the same direction: rounding is all that differs
                        cosines = (answers * expected).sum(axis=1)
                        cosines /= np.linalg.norm(answers, axis=1) * np.linalg.norm(
                            expected, axis=1
                        )
                        assert cosines.min() > 0.8, case
                        assert apart(answers, expected) > 1e-6, case


def keras_own(model: keras.Model, form: str) -> keras.Model:
    """The form as a plain Keras model, which Keras' own exporter takes."""
    forms = {"dense": models.dense_classifier, "features": models.dense_features}
    return forms[form](model) if form in forms else model


def hold_against_keras_own_export(arch: str, batch_norm: bool, forms, folder: Path) -> None:
    model = trained_looking(arch, SHAPE, batch_norm, width=0.06, fc_units=12)
    for form in forms:
        graph, theirs = to_saved_model.inference_model(model, form), keras_own(model, form)
        to_onnx.write(graph, folder / "ours.onnx", card_of(form))
        to_tflite.write(graph, folder / "ours.tflite", card_of(form))
        theirs(images_of((64, 96), 1))  # Keras exports a model that was called
        theirs.export(folder / "theirs.onnx", format="onnx", verbose=False)
        theirs.export(folder / "theirs.tflite", format="litert", verbose=False)
        for size in SIZES[form]:
            x = images_of(size)
            for ask, kind in ((onnx_answers, "onnx"), (tflite_answers, "tflite")):
                answers = [ask(folder / f"{whose}.{kind}", x) for whose in ("ours", "theirs")]
                assert apart(*answers) <= parity.TOLERANCE, (form, size, kind)


@pytest.mark.slow
def test_the_loop_writes_what_keras_own_exporters_write(tmp_path):
    hold_against_keras_own_export("A-LRN", True, ("classifier",), tmp_path)


OTHERS = [pytest.param(a, True, marks=FULL) for a in ("A", "A-LRN", "B", "C", "D", "E")]


@pytest.mark.slow  # LRN is above: the others have the same operators
@pytest.mark.parametrize(("arch", "batch_norm"), [("D", False), *OTHERS])
def test_every_configuration_and_form_against_keras_own_exporters(arch, batch_norm, tmp_path):
    hold_against_keras_own_export(arch, batch_norm, FORMS, tmp_path)


def test_a_layer_that_build_does_not_make_is_an_error():
    images = keras.Input((32, 32, 3))
    odd = keras.Model(images, keras.layers.GaussianNoise(0.1)(images))
    with pytest.raises(TypeError, match="no operation for layer gaussian_noise"):
        operations.operations(odd)


def test_weights_of_more_than_two_gigabytes_are_refused(monkeypatch):
    monkeypatch.setattr(operations, "LARGEST_FILE", 10_000)
    model = trained_looking("A", (32, 32, 3), False, width=0.06, fc_units=12)
    graph = to_saved_model.inference_model(model)
    for write, kind in ((to_onnx.write, "ONNX"), (to_tflite.write, "TFLite")):
        with pytest.raises(InputError, match=f"One {kind} file holds at most 2 GB"):
            write(graph, Path("m"), card_of("classifier"))
        assert not Path("m").exists()


def test_the_files_parts_are_in_their_usual_places(tmp_path):
    """One graph field, whose tensors have raw data; tensors of the empty buffer have no content."""
    model = trained_looking("A", (32, 32, 3), False, width=0.06, fc_units=12)
    graph = to_saved_model.inference_model(model)
    to_onnx.write(graph, tmp_path / "m.onnx", card_of("classifier"))
    written = (tmp_path / "m.onnx").read_bytes()
    whole = onnx.load(tmp_path / "m.onnx")
    assert len(written) == len(whole.SerializeToString())  # nothing that is read is left out
    assert {len(t.raw_data) > 0 for t in whole.graph.initializer} == {True}
    assert [node.name for node in whole.graph.node if node.op_type == "Transpose"] == ["transpose"]
    to_tflite.write(graph, tmp_path / "m.tflite", card_of("classifier"))
    lite = schema.ModelT.InitFromPackedBuf((tmp_path / "m.tflite").read_bytes())
    (subgraph,) = lite.subgraphs
    assert lite.buffers[0].data is None
    stored = [t for t in subgraph.tensors if t.buffer]
    assert len(stored) == 2 * 11 + 2  # kernels and biases, the mean, the shape of flatten


def test_neither_keras_private_modules_nor_a_converter_is_at_work():
    """Reading the sources: nothing of keras.src; tf2onnx for models of any kind alone."""
    sources = {path.stem: path.read_text() for path in Path(to_onnx.__file__).parent.glob("*.py")}
    for name, text in sources.items():
        assert "keras.src" not in text, name
        assert "subprocess" not in text or name in ("benchmark", "serving"), name
        assert "tf2onnx" not in text or name == "keras_export", name
    for name in ("to_onnx", "to_tflite", "operations", "quantize", "activations", "metadata"):
        assert "import keras_export" not in sources[name], name
        assert "export.keras_export" not in sources[name], name
