"""One Predictor over every runtime: what it takes, what it refuses, what it needs."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import photo
from PIL import Image
from rich.console import Console

import vggkeras
from vggkeras import doctor
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols, scoring
from vggkeras.runtimes import onnx as onnx_module
from vggkeras.runtimes import providers as providers_module
from vggkeras.runtimes.keras import keras_predictor

FILES = ("saved_model", "model.onnx", "model.tflite")


@pytest.fixture(scope="module")
def predictors(run, exports):
    return {name: vggkeras.load(exports / name) for name in FILES} | {
        "model.keras": vggkeras.load(run.path)
    }


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
        assert list(predictor.card.mean_rgb) == run.metadata["mean_rgb"]
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
        protocols.check_classes(predictors["model.onnx"], [*"012", "x", *"456789"])


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


@pytest.fixture
def pretend(monkeypatch):
    """Make ONNX Runtime seem built for GPUs: pretend(has, said, error) -> what its sessions are then asked for.

    Its sessions say `said` on stderr, then raise `error`, or run on the CPU and claim the providers of `has`.
    """
    real_session, real_bound = ort.InferenceSession, onnx_module.bound

    def pretend(has=("CPUExecutionProvider",), said="", error=None):
        asked = {"preloaded": 0, "devices": []}

        def session(model, options, providers, enable_fallback):
            asked.update(options=options, providers=providers, enable_fallback=enable_fallback)
            os.write(2, said.encode())
            print("*************** EP Error ***************")
            if error is not None:
                raise error
            made = real_session(model, providers=["CPUExecutionProvider"])
            made.get_providers = lambda: list(has)
            return made

        def preload():
            asked["preloaded"] += 1

        def bound(session, device):
            asked["devices"].append(device)
            return real_bound(session, "cpu")

        monkeypatch.setattr(
            ort, "get_available_providers", lambda: list(providers_module.ONNX_PROVIDERS.values())
        )
        monkeypatch.setattr(ort, "preload_dlls", preload)
        monkeypatch.setattr(ort, "InferenceSession", session)
        monkeypatch.setattr(onnx_module, "bound", bound)
        monkeypatch.setenv(providers_module.TF32_OVERRIDE, "0")
        return asked

    return pretend


CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
ON_CPU = (
    "This session contains nodes, but fallback to CPU EP has been explicitly disabled by the user."
)


def test_cuda_is_asked_for_strictly(pretend, monkeypatch, exports, predictors, pictures, capfd):
    asked = pretend([CUDA, "CPUExecutionProvider"])
    monkeypatch.delenv(providers_module.TF32_OVERRIDE)
    cuda = vggkeras.load(exports / "model.onnx", provider="cuda", threads=3)
    assert asked["providers"] == [(CUDA, {"use_tf32": "0"})]
    options = asked["options"]
    for entry in ("session.disable_cpu_ep_fallback", "session.disable_quant_qdq"):
        assert options.get_session_config_entry(entry) == "1"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert (asked["enable_fallback"], asked["preloaded"], asked["devices"]) == (0, 1, ["cuda"])
    assert (cuda.provider, cuda.threads, cuda.tf32) == ("cuda", 3, False)
    np.testing.assert_array_equal(cuda(pictures), predictors["model.onnx"](pictures))
    fast = vggkeras.load(exports / "model.onnx", provider="cuda", tf32=True)
    assert asked["providers"] == [(CUDA, {"use_tf32": "1"})]
    assert fast.tf32
    assert capfd.readouterr() == ("", "")


def test_a_dense_file_asks_for_what_suits_changing_sizes(pretend, dense_exports):
    asked = pretend([CUDA, "CPUExecutionProvider"])
    dense = vggkeras.load(dense_exports / "model.onnx", provider="cuda", threads=1).dense_form()
    assert asked["providers"] == [(CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})]
    assert not asked["options"].enable_mem_pattern
    assert (dense.dense, dense.provider, dense.threads) == (True, "cuda", 1)


def test_tensorrt_leaves_to_cuda_and_not_to_the_cpu(pretend, monkeypatch, exports):
    asked = pretend([TENSORRT, CUDA, "CPUExecutionProvider"])
    exact = vggkeras.load(exports / "model.onnx", provider="tensorrt")
    assert asked["providers"] == [TENSORRT, (CUDA, {"use_tf32": "0"})]
    assert asked["options"].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert (exact.provider, exact.tf32, asked["devices"]) == ("tensorrt", False, ["cuda"])
    with pytest.raises(InputError, match=r"NVIDIA_TF32_OVERRIDE=0 forbids it"):
        vggkeras.load(exports / "model.onnx", provider="tensorrt", tf32=True)
    monkeypatch.delenv(providers_module.TF32_OVERRIDE)
    with pytest.raises(
        InputError, match=r"tensorrt computes in TF32 unless .* NVIDIA_TF32_OVERRIDE=0"
    ):
        vggkeras.load(exports / "model.onnx", provider="tensorrt")
    assert vggkeras.load(exports / "model.onnx", provider="tensorrt", tf32=True).tf32


@pytest.mark.parametrize(
    ("provider", "fake", "message"),
    [
        (
            "cuda",
            {},
            r"did not load CUDAExecutionProvider: it gives no reason\. Needed: pip install 'vggkeras\[gpu\]'",
        ),
        (
            "tensorrt",
            {"has": [CUDA, "CPUExecutionProvider"]},
            "did not load TensorrtExecutionProvider.*tensorrt-cu13",
        ),
        (
            "cuda",
            {
                "said": "with error: libcublasLt.so.13: cannot open shared object file: No such",
                "error": Exception(ON_CPU),
            },
            r"CUDAExecutionProvider: libcublasLt\.so\.13 is missing\. .*python -m vggkeras doctor",
        ),
        (
            "cuda",
            {
                "said": "with error: libcuda.so.1: cannot open shared object file: No such",
                "error": Exception(ON_CPU),
            },
            r"libcuda\.so\.1 \(the NVIDIA driver\) is missing",
        ),
        (
            "cuda",
            {
                "error": RuntimeError(
                    "x.cc:9 CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; expr=y"
                )
            },
            r"CUDAExecutionProvider: CUDA failure 100: no CUDA-capable device is detected\. Needed",
        ),
        (
            "cuda",
            {"said": "Failed to create CUDAExecutionProvider. Require cuDNN 9"},
            r"Failed to create CUDAExec.*cuDNN 9",
        ),
        ("cuda", {"error": Exception(ON_CPU)}, r"a part of .*model\.onnx would run on the CPU"),
        (
            "cuda",
            {"error": Exception("bad model")},
            r"cannot be loaded by ONNX Runtime \(bad model\)",
        ),
        (
            "cpu",
            {"error": Exception("bad model")},
            r"cannot be loaded by ONNX Runtime \(bad model\)",
        ),
    ],
)
def test_a_provider_that_does_not_load_is_refused_with_the_reason(
    pretend, exports, capfd, provider, fake, message
):
    pretend(**fake)
    with pytest.raises(InputError, match=message):
        vggkeras.load(exports / "model.onnx", provider=provider)
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_cannot_be_there_is_refused(exports, run, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        InputError, match=r"CUDAExecutionProvider: this build of it has CPUExecutionProvider\."
    ):
        vggkeras.load(exports / "model.onnx", provider="cuda")
    with pytest.raises(
        InputError, match="provider must be one of cpu, cuda, tensorrt; received 'tpu'"
    ):
        vggkeras.load(exports / "model.onnx", provider="tpu")
    for name, provider in (
        ("model.tflite", "cuda"),
        ("model.tflite", "tensorrt"),
        ("saved_model", "tensorrt"),
    ):
        with pytest.raises(
            InputError, match=rf"provider {provider}: .* models run on cpu.*give the \.onnx file"
        ):
            vggkeras.load(exports / name, provider=provider)
    with pytest.raises(InputError, match=r"provider tensorrt: \.keras models run on cpu or cuda"):
        vggkeras.load(run.path, provider="tensorrt")
    import keras
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    for path in (exports / "saved_model", run.path):
        with pytest.raises(
            InputError, match=r"provider cuda: TensorFlow sees no GPU.*vggkeras\[gpu\]"
        ):
            vggkeras.load(path, provider="cuda")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for options, asked in (({"provider": "cuda"}, "provider cuda"), ({"threads": 2}, "2 threads")):
        with pytest.raises(
            InputError, match=f"{asked}: .* TensorFlow backend only, and this is jax"
        ):
            vggkeras.load(run.path, **options)


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


STARTED = """
import sys, tensorflow as tf, vggkeras
first = vggkeras.load(sys.argv[1], threads=1)
assert first.threads == tf.config.threading.get_intra_op_parallelism_threads() == 1
first(__import__("numpy").zeros((1, 32, 32, 3), "uint8"))
assert vggkeras.load(sys.argv[1]).threads == 1
try:
    vggkeras.load(sys.argv[1], threads=5)
except vggkeras.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["saved_model", "model.keras"])
def test_threads_of_tensorflow_are_set_before_it_starts_or_refused(exports, run, name):
    path = exports / name if name == "saved_model" else run.path
    child = subprocess.run([sys.executable, "-c", STARTED, path], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("5 threads: TensorFlow has started in this process with 1,")


def test_tf32_of_tensorflow_is_as_asked_and_put_back():
    import tensorflow as tf

    tf32 = tf.config.experimental.tensor_float_32_execution_enabled
    before = tf32()
    for asked in (True, False):
        with providers_module.tensorflow_device("cuda", asked):
            assert tf32() == asked
        assert tf32() == before


@pytest.fixture(scope="module")
def session(exports):
    return ort.InferenceSession(str(exports / "model.onnx"), providers=["CPUExecutionProvider"])


def test_device_memory_gives_the_same_bits(session, pictures, monkeypatch):
    made, make = [], ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda shape, *others: (made.append(shape), make(shape, *others))[1],
    )
    run = onnx_module.bound(session, "cpu")
    batches = [
        pictures[i : i + n].copy() for i, n in ((0, 4), (4, 4), (8, 4), (12, 1), (13, 7), (20, 4))
    ]
    batches.append(pictures[::3])  # not contiguous
    untouched = [batch.copy() for batch in batches]
    answers = [run(batch) for batch in batches]
    for batch, same, answer in zip(batches, untouched, answers, strict=True):
        np.testing.assert_array_equal(batch, same)
        np.testing.assert_array_equal(
            answer, session.run(None, {"images": np.ascontiguousarray(batch)})[0]
        )
    assert [shape[0] for shape in made[::2]] == [
        4,
        1,
        7,
        4,
        24,
    ]  # input and output, when the shape changes


def test_device_memory_follows_the_sizes_of_a_dense_file(dense_exports):
    session = ort.InferenceSession(
        str(dense_exports / "model.dense.onnx"), providers=["CPUExecutionProvider"]
    )
    run, rng = onnx_module.bound(session, "cpu"), np.random.default_rng(0)
    for shape in ((2, 32, 32, 3), (2, 40, 33, 3), (1, 40, 33, 3), (2, 32, 32, 3)):
        images = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(run(images), session.run(None, {"images": images})[0])


def test_device_memory_is_one_callers_at_a_time(session, pictures):
    run = onnx_module.bound(session, "cpu")
    batches = [pictures[i : i + 2] for i in range(0, 70, 2)] * 4
    with ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(run, batches), strict=True):
            np.testing.assert_array_equal(answer, session.run(None, {"images": batch})[0])


@pytest.mark.parametrize("name", [*FILES, "model.keras"])
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


@pytest.fixture(scope="module")
def int8(precise_exports):
    return precise_exports / "model.int8.onnx"


def test_int8_leaves_nothing_that_cuda_has_no_kernel_for(pretend, int8, tmp_path):
    """CUDA's DequantizeLinear takes int8 and uint8, and the biases are int32."""

    def dequantized(options):
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        real(str(int8), options, providers=["CPUExecutionProvider"])
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "optimized.onnx")).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        return {kinds[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear"}

    real = ort.InferenceSession
    assert onnx.TensorProto.INT32 in dequantized(ort.SessionOptions())
    asked = pretend([CUDA, "CPUExecutionProvider"])
    onnx_module.onnx_session(str(int8), "cuda")
    options = ort.SessionOptions()
    entry = "session.disable_quant_qdq"
    options.add_session_config_entry(entry, asked["options"].get_session_config_entry(entry))
    assert dequantized(options) == {onnx.TensorProto.UINT8}


@pytest.fixture
def loads(exports):
    """Skip a test here, by its name, where a provider does not load: loads(provider)."""

    def loads(provider):
        _, reason = onnx_module.onnx_session(str(exports / "model.onnx"), provider)
        if reason:
            pytest.skip(f"{provider} does not load here: {reason}")

    return loads


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["model.onnx", "model.dense.onnx", "int8"])
def test_every_operation_runs_where_it_was_asked_for(
    loads, dense_exports, int8, pictures, monkeypatch, provider, kind
):
    loads(provider)
    sessions = []

    class Profiled(ort.InferenceSession):
        def __init__(self, model, options, **others):
            options.enable_profiling = True
            super().__init__(model, options, **others)
            sessions.append(self)

    monkeypatch.setattr(ort, "InferenceSession", Profiled)
    path = int8 if kind == "int8" else dense_exports / kind
    predictor = vggkeras.load(path, provider=provider)
    predictor(pictures[:2])
    with open(sessions[0].end_profiling(), encoding="utf-8") as file:
        ran = [event["args"] for event in json.load(file) if event["cat"] == "Node"]
    assert {args["provider"] for args in ran if args.get("provider")} == {
        providers_module.ONNX_PROVIDERS[provider]
    }


@pytest.mark.parametrize("name", ["model.onnx", "model.dense.onnx"])
def test_cuda_gives_the_cpus_answers(loads, dense_exports, pictures, name):
    loads("cuda")
    path = dense_exports / name
    cpu, cuda = vggkeras.load(path), vggkeras.load(path, provider="cuda")
    sizes = (
        [pictures]
        if name == "model.onnx"
        else [pictures, np.tile(pictures[:9], (1, 2, 3, 1))[:, :47, :81]]
    )
    for images in sizes:
        np.testing.assert_allclose(cuda(images), cpu(images), atol=1e-5)
        parts = [images[i : i + 4] for i in range(0, len(images), 4)]
        np.testing.assert_allclose(np.concatenate(list(cuda.stream(parts))), cpu(images), atol=1e-5)


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


def test_doctor_says_why_a_provider_does_not_load(pretend):
    pretend(said="with error: libnvinfer.so.10: cannot open shared object file: No such")
    told = Console(file=io.StringIO(), width=250)
    assert doctor.examine(told) == 0
    told = told.file.getvalue()
    assert told.count("no: libnvinfer.so.10 is missing") == 2
    assert "tensorrt (TensorrtExecutionProvider)" in told
    assert "'vggkeras[gpu]' 'tensorrt-cu13<11'" in told


def test_commands_take_provider_and_threads(command, exports, monkeypatch, tmp_path):
    monkeypatch.setenv(providers_module.TF32_OVERRIDE, "0")
    monkeypatch.delenv(
        providers_module.TF32_OVERRIDE
    )  # what the commands set is taken back after the test
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    Image.fromarray(photo(1)).save(tmp_path / "a.png")
    predict = ["predict", tmp_path / "a.png", "--model", exports / "model.onnx"]
    evaluation = ["evaluate", "--data", "digits", "--model", exports / "model.onnx"]
    for given in (predict, evaluation):
        code, _, err = command(cli, *given, "--provider", "tensorrt")
        assert (code, err.count("\n")) == (2, 1)
        assert "did not load TensorrtExecutionProvider" in err
        assert os.environ.pop(providers_module.TF32_OVERRIDE) == "0"
        code, _, err = command(cli, *given, "--threads", "0")
        assert (code, err) == (2, "error: threads must be 1 or more; received 0.\n")
    code, out, _ = command(cli, *evaluation, "--threads", "1")
    assert code == 0
    assert "model.onnx in onnxruntime" in out
    assert ", cpu, threads: 1" in out


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
    child = subprocess.run(
        [sys.executable, "-c", ALONE, exports / name], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    problems, probabilities = json.loads(child.stdout.splitlines()[-1])
    assert problems == []
    np.testing.assert_allclose(probabilities, predictors["model.keras"](pictures[:5]), atol=1e-5)


BARE = """
import json, sys
allowed = {"numpy", "PIL", "vggkeras", "onnxruntime", "ai_edge_litert", "flatbuffers", "ml_dtypes", "backports"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed | sys.stdlib_module_names:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
import numpy as np, vggkeras.configs, vggkeras.errors, vggkeras.files, vggkeras.runtimes
p = vggkeras.load(sys.argv[1])
vggkeras.files.sha256(p.path)
x = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
print(json.dumps(p(x).tolist()))
"""


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_loaded_with_numpy_and_its_runtime_alone(predictors, exports, pictures, name):
    child = subprocess.run(
        [sys.executable, "-c", BARE, exports / name], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    probabilities = json.loads(child.stdout.splitlines()[-1])
    np.testing.assert_allclose(probabilities, predictors["model.keras"](pictures[:5]), atol=1e-5)
