"""float16 and int8: what is in the files, what they cost, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import json
import platform
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import export
import vggkeras
from export import golden, quantize, verify
from vggkeras import models, processor
from vggkeras.evaluation import protocols
from vggkeras.runtimes import onnx as onnx_module

pytestmark = pytest.mark.integration

PRECISE = [
    f"model.{precision}.{kind}" for precision in ("float16", "int8") for kind in ("onnx", "tflite")
]


@pytest.fixture(scope="module")
def validation(run):
    """(crops, labels, Keras' answers) of the digits' validation split."""
    predictor = vggkeras.load(run.path)
    crops, labels = protocols.central_crops(
        predictor, vggkeras.load_data("digits").split("validation")
    )
    return crops, labels, predictor(crops)


@pytest.mark.parametrize("name", PRECISE)
def test_each_takes_bytes_and_gives_float32_probabilities_as_accurate_as_keras(
    name, precise_exports, validation
):
    crops, labels, expected = validation
    predictor = vggkeras.load(precise_exports / name)
    p = predictor(crops)
    assert (predictor.input_name, predictor.output_name) == ("images", "probabilities")
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-3)
    lost = (expected.argmax(axis=1) == labels).sum() - (p.argmax(axis=1) == labels).sum()
    assert lost <= 0.005 * len(labels)
    assert np.abs(p - expected).max() > 1e-6  # it is not float32 under another name
    if "float16" in name:
        assert np.abs(p - expected).max() < 1e-2
    entry = json.loads((precise_exports / "certificate.json").read_text())[name]
    assert entry["passed"]
    assert (entry["precision"], entry["most_lost"]) == (name.split(".")[1], 0.005)
    assert (
        entry["accuracy_interval"][0] < entry["accuracy_artifact"] < entry["accuracy_interval"][1]
    )
    assert entry["accuracy_artifact"] == pytest.approx((p.argmax(axis=1) == labels).mean())


EMULATED = """
import sys

import numpy as np
from vggkeras import runtimes
from vggkeras.runtimes import onnx

folder = sys.argv[1]
with np.load(f"{folder}/golden.npz") as golden:
    images = golden["images"]
np.savez(
    sys.argv[2],
    optimized=runtimes.load(f"{folder}/model.int8.onnx", threads=1)(images),
    unoptimized=onnx.load_unoptimized(f"{folder}/model.int8.onnx")(images),
    tflite=runtimes.load(f"{folder}/model.int8.tflite", threads=1)(images),
)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 here (qemu-user)")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates an x86-64 by itself alone")
def test_int8_is_right_on_a_processor_of_the_other_kind(precise_exports, tmp_path):
    """Where there is VNNI, on a Haswell, whose AVX2 adds in 16 bits; else on a Nehalem: 32."""
    here = processor.this_processor()
    other = "Haswell" if any("VNNI" in name for name in here.instruction_sets) else "Nehalem"
    python = [shutil.which("qemu-x86_64"), "-cpu", other, sys.executable]
    answers = tmp_path / "answers.npz"
    child = [*python, "-c", EMULATED, precise_exports, answers]
    subprocess.run(child, check=True, capture_output=True)
    beside = golden.load_golden(precise_exports)
    images, expected = beside.images, beside.answers
    with np.load(answers) as there:
        for name, path in (("optimized", "model.int8.onnx"), ("tflite", "model.int8.tflite")):
            p = vggkeras.load(precise_exports / path)(images)
            rounding = np.sqrt(np.square(p - expected).mean())
            apart = np.sqrt(np.square(there[name] - p).mean())
            assert apart <= np.sqrt(2) * rounding, (name, other)
            assert (there[name].argmax(axis=1) == p.argmax(axis=1)).mean() >= 0.97
        apart = np.sqrt(np.square(there["optimized"] - there["unoptimized"]).mean())
        assert apart <= np.sqrt(2) * np.sqrt(np.square(there["unoptimized"] - expected).mean())


def test_both_formats_have_the_same_scales_and_zero_points(precise_exports):
    """One plan of the activations; TFLite's integers are -128 to 127."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(precise_exports / "model.int8.tflite"))
    theirs = {
        tensor["name"]: tensor["quantization"]
        for tensor in interpreter.get_tensor_details()
        if tensor["dtype"] == np.int8 and not tensor["name"].endswith(".kernel")
    }
    whole = onnx.load(precise_exports / "model.int8.onnx")
    ours = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    layers = [f"block{block}_conv1" for block in range(2, 6)] + ["fc1"]
    for layer in layers:
        assert theirs[layer] == (float(ours[f"{layer}.scale"]), int(ours[f"{layer}.zero"]) - 128)


def test_optimized_integers_are_what_the_same_file_computes_in_float(precise_exports, validation):
    crops, _, expected = validation
    path = precise_exports / "model.int8.onnx"
    entry = json.loads((path.parent / "certificate.json").read_text())[path.name]
    raw = onnx_module.load_unoptimized(path)(crops)
    optimized = vggkeras.load(path)(crops)
    apart = np.sqrt(np.square(optimized - raw).mean())
    assert apart <= np.sqrt(2) * np.sqrt(np.square(raw - expected).mean())
    assert 0 <= entry["unoptimized_difference"] <= np.abs(optimized - raw).max() + 1e-6


def test_the_onnx_files(precise_exports):
    half = onnx.load(precise_exports / "model.float16.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert {
        kinds[f"{layer}.{part}"] for layer in ("block1_conv1", "fc1") for part in ("kernel", "bias")
    } == {onnx.TensorProto.FLOAT16}
    assert (
        kinds["mean_rgb.mean"] == onnx.TensorProto.FLOAT
    )  # what leaves float16's range or needs its digits stays
    whole = onnx.load(precise_exports / "model.int8.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    for layer in ("block1_conv1", "block5_conv2", "fc1", "predictions"):
        kernel, scale = tensors[f"{layer}.kernel.int8"], tensors[f"{layer}.kernel.scale"]
        assert kernel.dtype == np.int8
        assert len(scale) == kernel.shape[0 if kernel.ndim == 4 else 1]  # one a filter
        assert tensors[f"{layer}.bias.int32"].dtype == np.int32
    assert not [
        name for name, array in tensors.items() if array.dtype == np.float32 and array.size > 256
    ]
    assert [i.type.tensor_type.elem_type for i in whole.graph.input] == [onnx.TensorProto.UINT8]
    about = json.loads({p.key: p.value for p in whole.metadata_props}["vggkeras"])
    assert about["precision"] == "int8"
    assert about["calibration"] == {"images": 100, "classes": 10, "data": "digits train"}
    assert about["left_in_float"] == []
    assert set(about["signal_to_noise_db"]) == {"fc1", "fc2", "predictions"} | {
        t.removesuffix(".kernel.int8") for t in tensors if t.endswith(".kernel.int8")
    }


def test_onnx_runtime_computes_the_int8_file_in_int8(precise_exports, tmp_path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(
        precise_exports / "model.int8.onnx", options, providers=["CPUExecutionProvider"]
    )
    kinds = collections.Counter(
        node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node
    )
    assert (kinds["QLinearConv"], kinds["QGemm"]) == (
        8,
        3,
    )  # A's eight convolutions and three FC layers
    assert not {"Conv", "Gemm", "MatMul", "FusedConv"} & set(kinds)


def test_the_tflite_file_has_int8_tensors_between_float_ends(precise_exports):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(precise_exports / "model.int8.tflite"))
    tensors = {tensor["name"]: tensor for tensor in interpreter.get_tensor_details()}
    assert tensors["images"]["dtype"] == np.uint8
    assert tensors["probabilities"]["dtype"] == tensors["predictions"]["dtype"] == np.float32
    for layer in ("block1_conv1", "block5_conv2", "fc1"):
        assert tensors[layer]["dtype"] == tensors[f"{layer}.kernel"]["dtype"] == np.int8
        scales = tensors[f"{layer}.kernel"]["quantization_parameters"]["scales"]
        assert len(scales) == tensors[f"{layer}.kernel"]["shape"][0]
    assert tensors["lrn"]["dtype"] == np.float32
    kinds = {op["op_name"] for op in interpreter._get_ops_details()}
    assert not {name for name in kinds if name.startswith("Flex")}


@pytest.fixture(scope="module")
def hard_for_int8(run, workplace):
    """The same function, with one channel of a layer 3,000 times as large as the others."""
    model, card = models.load_model(run.path / "model.keras")
    first, norm, second = (
        model.get_layer(n) for n in ("block3_conv1", "block3_bn1", "block3_conv2")
    )
    gamma, beta, *moments = norm.get_weights()
    kernel, bias = second.get_weights()
    for array, factor in ((gamma, 3000), (beta, 3000)):
        array[0] *= factor
    kernel[:, :, 0] /= 3000
    norm.set_weights([gamma, beta, *moments])
    second.set_weights([kernel, bias])
    assert first.name
    models.save_model(model, workplace / "hard.keras", card)
    return workplace / "hard.keras"


@pytest.mark.slow
def test_the_layers_that_int8_hurts_are_kept_in_float32_and_named(hard_for_int8, tmp_path, capsys):
    entries = export.export_model(hard_for_int8, "onnx", "int8", out=tmp_path / "e")
    entry = entries["model.int8.onnx"]
    assert entry["passed"]
    # The outlier is one layer's output and the next one's input: the fewest that fix it.
    assert 1 <= len(entry["left_in_float"]) <= 2
    assert set(entry["left_in_float"]) <= {"block3_conv1", "block3_conv2"}
    assert "kept in float32, as int8 hurts them most: block3_conv" in " ".join(
        capsys.readouterr().out.split()
    )
    tensors = {
        t.name: t.data_type for t in onnx.load(tmp_path / "e" / "model.int8.onnx").graph.initializer
    }
    for layer in entry["left_in_float"]:
        assert tensors[f"{layer}.kernel"] == onnx.TensorProto.FLOAT
    assert "block4_conv1.kernel.int8" in tensors


def test_an_int8_file_that_loses_too_much_is_rejected(hard_for_int8, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        quantize, "signal_to_noise", lambda *_: {"fc1": 1.0, "fc2": 2.0}
    )  # misleading
    entries = export.export_model(hard_for_int8, "tflite", "int8", out=tmp_path / "e")
    entry = entries["model.int8.tflite"]
    assert not entry["passed"]
    assert any("0.5% at most" in failure for failure in entry["failures"])
    assert any("97% at least" in failure for failure in entry["failures"])
    assert (tmp_path / "e" / "model.int8.tflite.rejected").exists()
    assert not (tmp_path / "e" / "model.int8.tflite").exists()
    assert "in float32 do not fix it" in " ".join(capsys.readouterr().out.split())


def planted(run, tmp_path, layer, change):
    model, card = models.load_model(run.path / "model.keras")
    target = model.get_layer(layer)
    weights = target.get_weights()
    change(weights)
    target.set_weights(weights)
    models.save_model(model, tmp_path / "planted.keras", card)
    return tmp_path / "planted.keras"


@pytest.mark.slow
def test_numbers_that_no_file_can_hold_are_refused_by_layer(run, tmp_path, command):
    from export.__main__ import cli

    def put(place, value):
        def change(weights):
            weights[place].flat[5] = value

        return change

    def enlarged(weights):
        weights[1][:] += 1e6

    def endless(weights):
        weights[1][:] = 3e38

    for layer, change, arguments, message in (
        (
            "block2_conv1",
            put(0, np.nan),
            ("--format", "tflite"),
            "Layer block2_conv1 has NaN or infinite",
        ),
        ("fc1", put(1, np.inf), ("--format", "onnx"), "Layer fc1 has NaN or infinite"),
        (
            "fc1",
            put(0, 1e5),
            ("--precision", "float16"),
            "Layer fc1 does not fit float16: expected weights",
        ),
        (
            "fc2",
            put(1, 1e5),
            ("--precision", "float16"),
            "Layer fc2 does not fit float16: expected weights",
        ),
        (
            "block2_bn1",
            enlarged,
            ("--precision", "all", "--format", "onnx"),
            "Layer block2_conv1 does not fit float16",
        ),
        (
            "block3_bn1",
            endless,
            ("--precision", "int8", "--format", "onnx"),
            "gives NaN or infinite numbers",
        ),
    ):
        model = planted(run, tmp_path, layer, change)
        where = ("--model", model, "--out", tmp_path / "e", "--images", 20)
        code, _, err = command(cli, *where, *arguments)
        assert code == 2, (layer, err)
        assert message in err
        assert not (tmp_path / "e").exists()


def test_bad_input(run, tmp_path, photos, command):
    from export.__main__ import cli

    vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8).save(tmp_path / "bare.keras")
    for arguments, message in (
        (
            ("--model", tmp_path / "bare.keras", "--precision", "int8"),
            "give --data digits, tfds:NAME, a folder or a list",
        ),
        (
            ("--precision", "int8", "--data", "random"),
            "give --data digits, tfds:NAME, a folder or a list",
        ),
        (
            ("--precision", "int8", "--calibration", 9),
            "one image for each of 10 classes; received 9: give --calibration 10",
        ),
        (("--calibration", 20), "--calibration is of int8"),
        (
            ("--precision", "int4"),
            "invalid choice 'int4' for argument '--precision'",
        ),
        (("--precision", "int8", "--format", "saved_model"), "saved_model has no precision 'int8'"),
        (("--precision", "int8", "--opset", 13), "opset must be 14 to 18"),
    ):
        code, _, err = command(
            cli,
            "--out",
            tmp_path / "e",
            *(() if "--model" in arguments else ("--model", run.path)),
            *arguments,
        )
        assert code == 2, arguments
        assert message in err
        assert not (tmp_path / "e").exists()


def test_a_file_that_fails_once_while_it_is_sealed_is_never_proven(run, tmp_path, monkeypatch):
    real, failed = vggkeras.runtimes.load, []

    def load(path, *arguments, **options):
        found = real(path, *arguments, **options)

        def once(images):
            if not failed:
                failed.append(1)
                raise RuntimeError("out of memory, this once")
            return found.run(images)

        return dataclasses.replace(found, run=once)

    monkeypatch.setattr(vggkeras.runtimes, "load", load)
    entry = export.export_model(run.path, "onnx", images=20, out=tmp_path / "e")["model.onnx"]
    assert not entry["passed"]
    assert "out of memory, this once" in entry["failures"][0]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", pytest.param("features", marks=pytest.mark.full)])
def test_every_form_has_every_precision_and_finds_the_others(form, run, precise_exports, tmp_path):
    folder = shutil.copytree(precise_exports, tmp_path / "export")
    options = {form: True, "precision": "all", "images": 100, "out": folder}
    entries = export.export_model(run.path, **options)
    assert len(entries) == 7
    for name, entry in entries.items():
        assert entry["passed"], (name, entry["failures"])
        assert verify.verify(folder / name) == []
        bounds = {"float32": 1e-5, "float16": 1e-2, "int8": None}
        assert entry["tolerance"] == bounds[entry["precision"]]
    for precision in ("", ".float16", ".int8"):
        for kind in ("onnx", "tflite"):
            classifier = vggkeras.load(folder / f"model{precision}.{kind}")
            found = classifier.dense_form() if form == "dense" else classifier.features_form()
            assert found.path.name == f"model{precision}.{form}.{kind}"
    if form == "features":
        cosine = entries["model.int8.features.onnx"]["smallest_cosine"]
        assert 0.98 <= cosine < entries["model.float16.features.onnx"]["smallest_cosine"]


@pytest.mark.slow
def test_the_oldest_opset_has_every_precision(run, tmp_path):
    entries = export.export_model(run.path, "onnx", "all", out=tmp_path / "e", opset=14, images=100)
    assert [entry["passed"] for entry in entries.values()] == [True] * 3


@pytest.mark.parametrize(
    ("arch", "shape", "width"),
    [("C", (64, 96, 1), 0.06), pytest.param("A", (32, 32, 3), 0.01, marks=pytest.mark.full)],
)
def test_other_configurations_keep_their_answers(arch, shape, width, tmp_path, photos):
    """1 x 1 convolutions, grey, not square; one filter a layer: near Keras at every precision."""
    vggkeras.build(arch, shape, 2, width=width, fc_units=12, seed=0).save(tmp_path / "m.keras")
    entries = export.export_model(
        tmp_path / "m.keras", precision="all", data=str(photos), calibration=16
    )
    assert len(entries) == 7
    for name, entry in entries.items():
        assert entry["passed"], (name, entry["failures"])
        assert entry["max_abs_error"] < 0.05
