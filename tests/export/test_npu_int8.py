"""The int8 file for NPUs: int8 images in, int8 probabilities out, and integers all the way."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
from helpers import CARD, trained_looking

import export
import vggkeras
from export import (
    benchmark,
    preprocessing,
    publish,
    quantize,
    stages,
    to_saved_model,
    to_tflite,
    verify,
)
from vggkeras import certificate
from vggkeras.errors import InputError

pytestmark = pytest.mark.integration

NAME = "model.int8.npu.tflite"
SHAPE = (48, 32, 3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, *SHAPE), np.uint8)


def operators(path: Path) -> list[tuple[str, set[str]]]:
    """Return every operator with the types of the tensors that it takes and gives."""
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (graph,) = model.subgraphs
    return [
        (
            names[model.operatorCodes[operator.opcodeIndex].builtinCode],
            {types[graph.tensors[i].type] for i in (*operator.inputs, *operator.outputs)},
        )
        for operator in graph.operators
    ]


def ends(path: Path) -> tuple[dict, dict]:
    """Return what LiteRT says of a file's images and of its answers."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (image,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    return image, answer


def by_hand(path: Path, images: np.ndarray) -> np.ndarray:
    """Return a file's answers to uint8 images, one at a time, as an app would get them."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    image, answer = ends(path)
    answers = []
    for one in images:
        # 0-255 to -128-127: the bit of the sign, in two's complement.
        interpreter.set_tensor(image["index"], (one ^ 0x80).view(np.int8)[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(answer["index"])[0])
    return (np.array(answers, np.float32) + 128) / 256


@pytest.fixture(scope="module")
def network():
    """A network without LRN that looks trained, and its plan."""
    model = trained_looking("A", SHAPE, False, width=0.06, fc_units=12)
    graph = to_saved_model.inference_model(model, "classifier")
    plan = quantize.calibrate(graph, IMAGES, 1)
    return graph, quantize.with_scores(graph, plan, IMAGES)


def written(graph, plan, path: Path) -> Path:
    card = replace(CARD, precision="int8", target="npu", input_shape=SHAPE)
    to_tflite.write(graph, path, card, None, plan)
    return path


@pytest.fixture(scope="module")
def folder(run, workplace) -> Path:
    """A folder with the digits network's model.int8.tflite and model.int8.npu.tflite, both proven.

    It has LRN, which TFLite has in float32 alone.
    """
    out = workplace / "npu"
    for io in (None, "int8"):
        entries = export.export_model(run.path, "tflite", "int8", out=out, io=io)
        assert all(entry["passed"] for entry in entries.values()), entries
    return out


def test_no_operator_computes_in_float(network, tmp_path):
    path = written(*network, tmp_path / NAME)
    found = operators(path)
    assert {kind for kind, _ in found} == {
        *("SUB", "CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX")
    }
    assert set().union(*(types for _, types in found)) == {"INT8", "INT32"}  # INT32: biases, shapes
    image, answer = ends(path)
    assert image["dtype"] == answer["dtype"] == np.int8
    assert image["quantization"] == (1.0, -128)
    assert answer["quantization"] == (1 / 256, -128)
    assert list(image["shape_signature"]) == [1, *SHAPE]  # NPUs take no shape that changes


def test_it_is_as_near_to_keras_as_int8_with_float_ends_but_for_256_values(network, tmp_path):
    graph, plan = network
    expected = np.asarray(graph(IMAGES, training=False)["probabilities"])
    answers = by_hand(written(graph, plan, tmp_path / NAME), IMAGES)
    card = replace(CARD, precision="int8", input_shape=SHAPE)
    floats = tmp_path / "model.int8.tflite"
    to_tflite.write(graph, floats, card, None, replace(plan, scores=None))
    interpreter = Interpreter(str(floats))
    interpreter.resize_tensor_input(ends(floats)[0]["index"], IMAGES.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(ends(floats)[0]["index"], IMAGES)
    interpreter.invoke()
    others = interpreter.get_tensor(ends(floats)[1]["index"])
    # Besides: the mean is rounded, at most half of its scale; the scores, half of theirs, which
    # changes a probability p by p(1 - p) of twice that at most; and p itself, half of 1/256.
    extra = 2 * plan.scores.scale / 2 * 0.25 + 0.5 / 256
    root_mean_square = [float(np.sqrt(np.square(y - expected).mean())) for y in (others, answers)]
    assert root_mean_square[1] <= 2 * root_mean_square[0] + extra
    assert np.corrcoef(answers.ravel(), expected.ravel())[0, 1] > 0.9


def test_a_last_layer_in_float32_is_quantized_at_the_end(network, tmp_path):
    graph, plan = network
    path = written(graph, plan.keeping(["predictions"]), tmp_path / NAME)
    kinds = [kind for kind, _ in operators(path)]
    assert kinds[-4:] == ["DEQUANTIZE", "FULLY_CONNECTED", "SOFTMAX", "QUANTIZE"]
    assert ends(path)[1]["quantization"] == (1 / 256, -128)
    expected = np.asarray(graph(IMAGES, training=False)["probabilities"])
    assert np.corrcoef(by_hand(path, IMAGES).ravel(), expected.ravel())[0, 1] > 0.9


def test_it_is_proven_by_its_own_scale_and_zero_point(folder, run):
    entry = json.loads((folder / "certificate.json").read_text())[NAME]
    assert entry["passed"]
    assert (entry["precision"], entry["target"]) == ("int8", "npu")
    assert (entry["input"]["type"], entry["output"]["type"]) == ("int8", "int8")
    assert (entry["input"]["shape"][0], entry["output"]["shape"][0]) == (1, 1)
    assert entry["top1_agreement"] >= 0.97
    assert entry["accuracy_artifact"] >= entry["accuracy_reference"] - 0.005
    predictor = vggkeras.load(folder / NAME)
    assert predictor.sealed == "yes"
    some = verify.artifact.read(folder / NAME).golden.images
    answers = predictor(some)
    assert answers.dtype == np.float32
    np.testing.assert_array_equal(answers, by_hand(folder / NAME, some))
    with pytest.raises(InputError, match="is for NPUs and has no dense form"):
        predictor.dense_form()


def test_its_card_says_what_an_app_gives_and_gets(folder, tmp_path):
    pytest.importorskip("huggingface_hub", reason="--card needs the extra hub")

    def text_of(name: str, model: Path) -> str:
        text = (publish.write_card(tmp_path / name, model) / "README.md").read_text("utf-8")
        return text.replace("\u00d7", "x").replace("\u2013", "-")

    text = text_of("npu", folder / NAME)
    assert "`images`, int8 1 x 32 x 32 x 3, RGB, 0-255 minus 128." in text
    assert "`probabilities`, int8 1 x 10: 256 times the probability, minus 128." in text
    entries = certificate.read(folder)
    assert list(entries)[-1] == NAME
    first = {name: entries[name] for name in (NAME, "model.int8.tflite")}
    shutil.copytree(folder, tmp_path / "first")
    (tmp_path / "first" / "certificate.json").write_text(certificate.text_of(first))
    text = text_of("card", tmp_path / "first")
    assert "`images`, uint8 batch x 32 x 32 x 3, RGB, 0-255. " in text
    assert "hf:USER/card:model.int8.tflite" in text


def test_of_a_network_with_lrn_that_alone_is_float(folder):
    floats = [kind for kind, types in operators(folder / NAME) if "FLOAT32" in types]
    assert floats == ["DEQUANTIZE", "LOCAL_RESPONSE_NORMALIZATION", "QUANTIZE"]


@pytest.mark.full
def test_verify_explain_and_benchmark_take_it(folder, capsys):
    assert verify.verify(folder / NAME) == []
    assert all(stage.passed for stage in stages.stages(folder / NAME))
    rows = benchmark.benchmark([folder / NAME, folder / "model.int8.tflite"], rounds=1)
    assert [row["file"] for row in rows["rows"]]


def test_ones_own_preprocessing_is_judged_by_the_int8_that_it_takes(folder):
    image = verify.artifact.read(folder / NAME).golden.images[0]
    signed = (image ^ 0x80).view(np.int8)
    cases = (
        (signed, None, ""),
        (signed[None], None, ""),
        (image, "normalize", "128 is not subtracted: give 0-255 minus 128"),
        (image / 255, "normalize", "pixels are scaled to 0-1: give 0-255 minus 128"),
        (signed.astype(np.float32), "type", "float32: the file takes int8"),
    )
    for array, stage, note in cases:
        found = preprocessing.preprocessing(folder / NAME, array)
        assert [one.name for one in found if not one.passed] == [stage] * (stage is not None)
        assert any(one.note.startswith(note) for one in found if one.name == stage) or not stage
        if stage == "normalize":  # the answers are of what the file would get of this array
            off, after = re.findall(r"off by ([\d.e+-]+)", "".join(one.note for one in found))
            assert float(off) > float(after)
    (unsigned,) = (
        one
        for one in preprocessing.preprocessing(folder / "model.int8.tflite", signed)
        if not one.passed
    )
    assert unsigned.note.startswith("128 is subtracted, as for signed bytes: give 0-255 (")


def test_litert_s_compiled_model_gives_the_same(folder):
    """The calls of docs/deploy.md's Kotlin, in LiteRT's Python package."""
    some = verify.artifact.read(folder / NAME).golden.images
    for name, flip in ((NAME, 0x80), ("model.int8.tflite", 0)):
        expected = vggkeras.load(folder / name)(some[:1])[0]
        model = CompiledModel.from_file(str(folder / name))
        inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
        inputs[0].write((some[0] ^ flip).view(np.int8))
        model.run_by_index(0, inputs, outputs)
        if flip:
            probabilities = (outputs[0].read(10, np.int8).astype(np.float32) + 128) / 256
        else:
            probabilities = outputs[0].read(10, np.float32)
        np.testing.assert_array_equal(probabilities, expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"format": "onnx", "precision": "int8"},
        {"format": "all", "precision": "int8"},
        {"format": "tflite", "precision": "float16"},
        {"format": "tflite", "precision": "all"},
        {"format": "tflite", "precision": "int8", "dense": True},
        {"format": "tflite", "precision": "int8", "features": True},
    ],
)
def test_it_is_refused_for_everything_else(asked, run, tmp_path):
    with pytest.raises(InputError, match="--io int8 is of a classifier in TFLite") as refused:
        export.export_model(run.path, out=tmp_path / "out", io="int8", **asked)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_another_io_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="Unknown io 'int16': expected int8, or none"):
        export.export_model(run.path, "tflite", "int8", out=tmp_path, io="int16")
