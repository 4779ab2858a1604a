"""ONNX Runtime computes wholly on the provider that was asked for, or says why it cannot."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.console import Console

import vggkeras
from vggkeras import doctor
from vggkeras.errors import InputError
from vggkeras.runtimes import onnx as onnx_runtime
from vggkeras.runtimes.providers import ONNX_PROVIDERS, TF32_OVERRIDE, Options

pytestmark = pytest.mark.integration

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
ON_CPU = (
    "This session contains nodes, but fallback to CPU EP has been explicitly disabled by the user."
)


@pytest.fixture
def pretend(monkeypatch):
    """Make ONNX Runtime seem built for GPUs: pretend(loaded, printed, error) -> what it was asked.

    Its sessions print `printed` to stderr, then raise `error`, or run on the CPU and claim to have
    the providers `loaded`.
    """
    real_session, real_bound = ort.InferenceSession, onnx_runtime.bound

    def pretend(loaded=("CPUExecutionProvider",), printed="", error=None):
        asked = {"preloaded": 0, "devices": []}

        def session(model, options, providers, enable_fallback):
            asked.update(options=options, providers=providers, enable_fallback=enable_fallback)
            os.write(2, printed.encode())
            print("*************** EP Error ***************")
            if error is not None:
                raise error
            made = real_session(model, providers=["CPUExecutionProvider"])
            made.get_providers = lambda: list(loaded)
            return made

        def preload():
            asked["preloaded"] += 1

        def bound(session, device):
            asked["devices"].append(device)
            return real_bound(session, "cpu")

        monkeypatch.setattr(ort, "get_available_providers", lambda: list(ONNX_PROVIDERS.values()))
        monkeypatch.setattr(ort, "preload_dlls", preload)
        monkeypatch.setattr(ort, "InferenceSession", session)
        monkeypatch.setattr(onnx_runtime, "bound", bound)
        monkeypatch.setenv(TF32_OVERRIDE, "0")
        return asked

    return pretend


def test_cuda_is_asked_for_strictly(pretend, monkeypatch, exports, predictors, pictures, capfd):
    asked = pretend([CUDA, "CPUExecutionProvider"])
    monkeypatch.delenv(TF32_OVERRIDE)
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


def test_a_dense_file_asks_for_what_suits_changing_sizes(pretend, onnx_files):
    asked = pretend([CUDA, "CPUExecutionProvider"])
    dense = vggkeras.load(onnx_files / "model.onnx", provider="cuda", threads=1).dense_form()
    assert asked["providers"] == [(CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})]
    assert not asked["options"].enable_mem_pattern
    assert (dense.dense, dense.provider, dense.threads) == (True, "cuda", 1)


def test_tensorrt_leaves_to_cuda_and_not_to_the_cpu(pretend, monkeypatch, exports):
    asked = pretend([TENSORRT, CUDA, "CPUExecutionProvider"])
    exact = vggkeras.load(exports / "model.onnx", provider="tensorrt")
    assert asked["providers"] == [(TENSORRT, {}), (CUDA, {"use_tf32": "0"})]
    assert asked["options"].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert (exact.provider, exact.tf32, asked["devices"]) == ("tensorrt", False, ["cuda"])
    with pytest.raises(InputError, match=r"NVIDIA_TF32_OVERRIDE=0 forbids it"):
        vggkeras.load(exports / "model.onnx", provider="tensorrt", tf32=True)
    monkeypatch.delenv(TF32_OVERRIDE)
    with pytest.raises(
        InputError, match=r"tensorrt computes in TF32 unless .* NVIDIA_TF32_OVERRIDE=0"
    ):
        vggkeras.load(exports / "model.onnx", provider="tensorrt")
    assert vggkeras.load(exports / "model.onnx", provider="tensorrt", tf32=True).tf32


MISSING = "with error: {}: cannot open shared object file: No such"
NO_DEVICE = "x.cc:9 CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; expr=y"


@pytest.mark.parametrize(
    ("provider", "loaded", "printed", "error", "message"),
    [
        (
            "cuda",
            [],
            "",
            "",
            r"did not load CUDAExec\w+: it gives no reason\. Needed: pip install '",
        ),
        ("tensorrt", [CUDA], "", "", "did not load TensorrtExecutionProvider.*tensorrt-cu13"),
        ("cuda", [], MISSING.format("libx.so.13"), ON_CPU, r"libx\.so\.13 is missing\. .* doctor"),
        ("cuda", [], MISSING.format("libcuda.so.1"), ON_CPU, r"\(the NVIDIA driver\) is missing"),
        ("cuda", [], "", NO_DEVICE, r"failure 100: no CUDA-capable device is detected\. Needed"),
        ("cuda", [], "Failed to create CUDA. Require cuDNN 9", "", "Failed to create.*cuDNN 9"),
        ("cuda", [], "", ON_CPU, r"a part of .*model\.onnx would run on the CPU"),
        ("cuda", [], "", "bad model", r"cannot be loaded by ONNX Runtime \(bad model\)"),
        ("cpu", [], "", "bad model", r"cannot be loaded by ONNX Runtime \(bad model\)"),
    ],
)
def test_a_provider_that_does_not_load_is_refused_with_the_reason(
    pretend, exports, capfd, provider, loaded, printed, error, message
):
    pretend([*loaded, "CPUExecutionProvider"], printed, Exception(error) if error else None)
    with pytest.raises(InputError, match=message):
        vggkeras.load(exports / "model.onnx", provider=provider)
    assert capfd.readouterr() == ("", "")


def test_doctor_says_why_a_provider_does_not_load(pretend):
    pretend(printed="with error: libnvinfer.so.10: cannot open shared object file: No such")
    output = io.StringIO()
    assert doctor.examine(Console(file=output, width=250)) == 0
    assert output.getvalue().count("no: libnvinfer.so.10 is missing") == 2
    assert "tensorrt (TensorrtExecutionProvider)" in output.getvalue()
    assert "'vggkeras[gpu-serve]' 'tensorrt-cu13<11'" in output.getvalue()


def test_a_provider_that_cannot_be_there_is_refused(exports, run, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        InputError, match=r"CUDAExecutionProvider: this build of it has CPUExecutionProvider\."
    ):
        vggkeras.load(exports / "model.onnx", provider="cuda")
    with pytest.raises(
        InputError,
        match="provider must be one of cpu, cuda, tensorrt, mnn, openvino; received 'tpu'",
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
            InputError, match=r"provider cuda: TensorFlow sees no GPU.*vggkeras\[gpu-train\]"
        ):
            vggkeras.load(path, provider="cuda")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    only_tensorflow = ".* TensorFlow backend only, and this is jax"
    for options, name in (({"provider": "cuda"}, "provider cuda:"), ({"threads": 2}, "2 threads:")):
        with pytest.raises(InputError, match=name + only_tensorflow):
            vggkeras.load(run.path, **options)


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
    run = onnx_runtime.bound(session, "cpu")
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
    # Input and output, when the shape changes.
    assert [shape[0] for shape in made[::2]] == [4, 1, 7, 4, 24]


def test_device_memory_follows_the_sizes_of_a_dense_file(onnx_files):
    session = ort.InferenceSession(
        str(onnx_files / "model.dense.onnx"), providers=["CPUExecutionProvider"]
    )
    run, rng = onnx_runtime.bound(session, "cpu"), np.random.default_rng(0)
    for shape in ((2, 32, 32, 3), (2, 40, 33, 3), (1, 40, 33, 3), (2, 32, 32, 3)):
        images = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(run(images), session.run(None, {"images": images})[0])


def test_device_memory_is_one_callers_at_a_time(session, pictures):
    run = onnx_runtime.bound(session, "cpu")
    batches = [pictures[i : i + 2] for i in range(0, 70, 2)] * 4
    with ThreadPoolExecutor(4) as pool:
        for batch, answer in zip(batches, pool.map(run, batches), strict=True):
            np.testing.assert_array_equal(answer, session.run(None, {"images": batch})[0])


def test_int8_leaves_nothing_that_cuda_has_no_kernel_for(pretend, onnx_files, tmp_path):
    """CUDA's DequantizeLinear takes int8 and uint8, and the biases are int32."""

    def dequantized(options):
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        real(str(int8), options, providers=["CPUExecutionProvider"])
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "optimized.onnx")).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        return {kinds[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear"}

    int8, real = onnx_files / "model.int8.onnx", ort.InferenceSession
    assert onnx.TensorProto.INT32 in dequantized(ort.SessionOptions())
    asked = pretend([CUDA, "CPUExecutionProvider"])
    onnx_runtime.onnx_session(str(int8), Options("cuda"))
    options = ort.SessionOptions()
    entry = "session.disable_quant_qdq"
    options.add_session_config_entry(entry, asked["options"].get_session_config_entry(entry))
    assert dequantized(options) == {onnx.TensorProto.UINT8}


@pytest.fixture
def loads(exports):
    """Skip a test here, by its name, where a provider does not load: loads(provider)."""

    def loads(provider):
        try:
            onnx_runtime.onnx_session(str(exports / "model.onnx"), Options(provider))
        except onnx_runtime.ProviderNotLoadedError as reason:
            pytest.skip(f"{provider} does not load here: {reason}")

    return loads


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["model.onnx", "model.dense.onnx", "model.int8.onnx"])
def test_every_operation_runs_where_it_was_asked_for(
    loads, onnx_files, pictures, monkeypatch, provider, name
):
    loads(provider)
    sessions = []

    class Profiled(ort.InferenceSession):
        def __init__(self, model, options, **others):
            options.enable_profiling = True
            super().__init__(model, options, **others)
            sessions.append(self)

    monkeypatch.setattr(ort, "InferenceSession", Profiled)
    predictor = vggkeras.load(onnx_files / name, provider=provider)
    predictor(pictures[:2])
    with open(sessions[0].end_profiling(), encoding="utf-8") as file:
        ran = [event["args"] for event in json.load(file) if event["cat"] == "Node"]
    assert {args["provider"] for args in ran if args.get("provider")} == {ONNX_PROVIDERS[provider]}


@pytest.mark.parametrize("name", ["model.onnx", "model.dense.onnx"])
def test_cuda_gives_the_cpus_answers(loads, onnx_files, pictures, name):
    loads("cuda")
    path = onnx_files / name
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
