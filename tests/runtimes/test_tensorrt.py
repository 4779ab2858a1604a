"""The exact options that ONNX Runtime is given for a card; none is at hand: one is made up."""

from __future__ import annotations

import ctypes
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from rich.console import Console

import vggkeras
from vggkeras import caches, doctor, files, nvidia
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import onnx as onnx_runtime
from vggkeras.runtimes import tensorrt
from vggkeras.runtimes.providers import ONNX_PROVIDERS, TF32_OVERRIDE, Options
from vggkeras.terminal import plain

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
CARD = ModelCard(input_shape=(224, 224, 3), outputs=10)
CLASSIFIER = "model.onnx"


@pytest.fixture
def card(monkeypatch, tmp_path):
    """Pretend that there is a card, TensorRT, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(TF32_OVERRIDE, "0")
    monkeypatch.setattr(nvidia, "this_card", lambda: nvidia.Card("NVIDIA H200", "9.0"))
    monkeypatch.setattr(nvidia, "tensorrt_version", lambda: "10.13.3")
    monkeypatch.setattr(ort, "__version__", "1.31.1")


@pytest.fixture
def asked(monkeypatch, card):
    """What ONNX Runtime is asked for: `providers`, `settings`; its sessions run on the CPU."""
    real_session, real_bound = ort.InferenceSession, onnx_runtime.bound
    asked = SimpleNamespace(providers=None, settings=None, batches=[])

    def session(model, settings, providers, enable_fallback):
        assert enable_fallback == 0
        asked.providers, asked.settings = providers, settings
        made = real_session(model, providers=["CPUExecutionProvider"])
        made.get_providers = lambda: [TENSORRT, CUDA, "CPUExecutionProvider"]
        return made

    def bound(session, device):
        run = real_bound(session, "cpu")
        return lambda images: (asked.batches.append(len(images)), run(images))[1]

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(ONNX_PROVIDERS.values()))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(onnx_runtime, "bound", bound)
    return asked


def profile(least: int, best: int, most: int, sides: str = "224x224x3") -> dict[str, str]:
    names = zip(("min", "opt", "max"), (least, best, most), strict=True)
    return {f"trt_profile_{name}_shapes": f"images:{size}x{sides}" for name, size in names}


@pytest.mark.parametrize(
    ("precision", "sizes", "expected"),
    [
        ("float32", (), {}),
        ("float32", (1, 8, 64), profile(1, 8, 64)),
        ("float32", (64, 1, 8), profile(1, 8, 64)),
        ("float32", (1, 64), profile(1, 64, 64)),
        ("float16", (8,), {"trt_fp16_enable": "True", "trt_cuda_graph_enable": "True"}),
        ("int8", (), {"trt_int8_enable": "True"}),
    ],
)
def test_one_profile_from_smallest_to_largest_batch(precision, sizes, expected):
    card = ModelCard(input_shape=(224, 224, 3), precision=precision, target="tensorrt")
    fixed = profile(sizes[0], sizes[0], sizes[0]) if len(sizes) == 1 else {}
    assert tensorrt.shape_options(card, sizes) == expected | fixed


def test_engines_are_kept_by_graph_card_versions_and_settings(card, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    path = tmp_path / "model.onnx"
    options = tensorrt.engine_options(path, CARD, Options("tensorrt", batch_sizes=(1, 8)))
    kept = tmp_path / "cache/vggkeras/tensorrt/NVIDIA-H200-sm9.0-tensorrt10.13.3-onnxruntime1.31.1"
    engines = kept / f"{files.sha256(path)}-float32-batch1x8"
    assert options == profile(1, 8, 8) | {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_engine_cache_prefix": "vggkeras",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(kept),
    }
    assert engines.is_dir()

    def folder_of(options: Options) -> str:
        return tensorrt.engine_options(path, CARD, options)["trt_engine_cache_path"]

    others = [Options("tensorrt"), Options("tensorrt", tf32=True), Options("tensorrt")]
    assert len({str(engines), *map(folder_of, others)}) == 3
    path.write_bytes(b"another graph")
    assert folder_of(Options("tensorrt", batch_sizes=(1, 8))) != str(engines)


def test_nothing_is_made_without_a_card(monkeypatch, card, tmp_path):
    (tmp_path / "model.onnx").touch()
    monkeypatch.setattr(nvidia, "this_card", lambda: None)
    assert tensorrt.engine_options(tmp_path / "model.onnx", CARD, Options("tensorrt")) == {}
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(nvidia, "this_card", lambda: nvidia.Card("GPU", "9.0"))
    monkeypatch.setattr(caches, "folder", lambda name: None)
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to a folder"):
        tensorrt.engine_options(tmp_path / "model.onnx", CARD, Options("tensorrt"))


def test_every_option_is_one_that_this_onnx_runtime_knows():
    """Without a card it parses none; but its libraries hold the names, and which take True."""
    folder = Path(ort.__file__).parent / "capi"
    library = folder / "libonnxruntime_providers_tensorrt.so"
    if not library.exists():
        pytest.skip("this ONNX Runtime is built without TensorRT")
    (binding,) = folder.glob("onnxruntime_pybind11_state*.so")
    names, parser = library.read_bytes(), binding.read_bytes()
    options = tensorrt.cache_options("a", "b")
    for precision in ("float16", "int8"):
        card = ModelCard(input_shape=(32, 32, 3), precision=precision)
        options |= tensorrt.shape_options(card, (8,))
    assert len(options) == 11
    for name, value in options.items():
        assert f"\0{name}\0".encode() in names, name
        flag = f"'{name}' should be 'True' or 'False'".encode()
        assert (flag in parser) == (value == "True"), name
    cuda = (folder / "libonnxruntime_providers_cuda.so").read_bytes()
    for name in onnx_runtime.cuda_options(Options("cuda", batch_sizes=(8,)), any_size=True):
        assert f"\0{name}\0".encode() in cuda, name


@pytest.mark.integration
def test_tensorrt_is_given_its_engine_and_cuda_for_the_rest(asked, exports, pictures, predictors):
    sizes = (8, 1)
    loaded = vggkeras.load(exports / CLASSIFIER, provider="tensorrt", batch_sizes=sizes)
    (name, engine), rest = asked.providers
    assert (name, rest) == (TENSORRT, (CUDA, {"use_tf32": "0"}))
    assert engine == tensorrt.engine_options(
        exports / CLASSIFIER, loaded.card, Options("tensorrt", batch_sizes=sizes)
    )
    assert profile(1, 8, 8, "32x32x3").items() <= engine.items()
    # It takes the graph as it was written, and no part of it goes to the CPU.
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert asked.settings.graph_optimization_level == level
    entry = asked.settings.get_session_config_entry("session.disable_cpu_ep_fallback")
    assert entry == "1"
    # 70 images are 64 and 6: eight batches of 8, then one of 6 that is filled up to 8.
    answers = loaded(pictures)
    assert asked.batches == [8] * 9
    np.testing.assert_allclose(answers, predictors[CLASSIFIER](pictures), atol=1e-6)
    loaded(pictures[:1])
    assert asked.batches[-1] == 1


@pytest.mark.integration
def test_one_batch_size_is_a_cuda_graph(asked, exports, pictures, predictors):
    """The graph holds addresses: every batch has the same shape, so `bound` keeps its memory."""
    loaded = vggkeras.load(exports / CLASSIFIER, provider="cuda", batch_sizes=[4])
    assert asked.providers == [(CUDA, {"use_tf32": "0", "enable_cuda_graph": "1"})]
    answers = loaded(pictures[:6])
    assert asked.batches == [4, 4]
    np.testing.assert_allclose(answers, predictors[CLASSIFIER](pictures[:6]), atol=1e-6)
    vggkeras.load(exports / CLASSIFIER, provider="cuda", batch_sizes=[4, 8])
    assert asked.providers == [(CUDA, {"use_tf32": "0"})]


@pytest.mark.integration
def test_batch_sizes_that_cannot_be_are_refused(asked, exports, onnx_files, run):
    for options, message in (
        ({"batch_sizes": [8]}, "batch sizes prepare a GPU: expected provider cuda or tensorrt"),
        ({"provider": "cuda", "batch_sizes": [0]}, "batch sizes must be 1 to 64; received 0"),
        ({"provider": "cuda", "batch_sizes": [65, 1]}, "must be 1 to 64; received 65, 1"),
        ({"provider": "cuda", "batch_sizes": [8, 8]}, "must differ from each other; received 8"),
    ):
        with pytest.raises(InputError, match=message):
            vggkeras.load(exports / CLASSIFIER, **options)
    asks = {"provider": "tensorrt", "batch_sizes": [8]}
    with pytest.raises(InputError, match="takes images of any size: leave them out"):
        vggkeras.load(onnx_files / "model.dense.onnx", **asks)
    with pytest.raises(InputError, match=r"batch sizes are of \.onnx files"):
        vggkeras.load(run.path, provider="cuda", batch_sizes=[8])
    with pytest.raises(InputError, match=r"only symmetric int8.* --target tensorrt"):
        vggkeras.load(onnx_files / "model.int8.onnx", provider="tensorrt")
    onnx_runtime.check_batch_sizes(Path("a.onnx"), CARD, Options())
    unknown = ModelCard(form=Form.CLASSIFIER)
    with pytest.raises(InputError, match="does not say what it takes"):
        onnx_runtime.check_batch_sizes(Path("a.onnx"), unknown, Options("cuda", batch_sizes=(1,)))


class Driver:
    """CUDA's driver as far as it is asked, with one H200."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    def __getattr__(self, function: str):
        def call(*arguments) -> int:
            if function == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA H200"
            if function == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 9, 76: 0}[arguments[1]]
            return 100 if function == self.failing else 0

        return call


def test_the_driver_says_which_card_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert nvidia.this_card() == nvidia.Card("NVIDIA H200", "9.0")
    for function in ("cuInit", "cuDeviceGet"):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, function=function: Driver(function))
        assert nvidia.this_card() is None
    nvinfer = SimpleNamespace(getInferLibVersion=lambda: 101303)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvinfer)
    assert nvidia.tensorrt_version() == "10.13.3"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that distributions own libraries: installed({name: [file, ...]})."""

    def installed(owned: dict[str, list[str]]) -> None:
        distributions = [
            SimpleNamespace(
                metadata={"Name": name},
                version="9.1",
                files=[Path(file) for file in names],
                locate_file=lambda file: tmp_path / file,
            )
            for name, names in owned.items()
        ]
        monkeypatch.setattr(nvidia.importlib.metadata, "distributions", lambda: distributions)
        maps = tmp_path / "maps"
        loaded = tmp_path.resolve() / "nvidia/cudnn/lib/libcudnn.so.9"
        maps.write_text(f"7f0-7f1 r-xp 0 08:01 12  {loaded}\n7f1-7f2 rw-p 0 00:00 0 [heap]\n")
        monkeypatch.setattr(nvidia, "MAPS", maps)

    return installed


def test_who_owns_the_library_that_is_loaded(installed, tmp_path):
    cudnn, cublas = "nvidia/cudnn/lib/libcudnn.so.9", "nvidia/cu13/lib/libcublas.so.13"
    installed(
        {
            "nvidia-cudnn-cu12": [cudnn, "nvidia/cudnn/include/cudnn.h"],
            "nvidia-cudnn-cu13": [cudnn],
            "nvidia-cublas": [cublas],
            "numpy": ["nvidia/cudnn/lib/libcudnn.so.9"],
        }
    )
    assert nvidia.libraries() == [
        nvidia.Library(tmp_path.resolve() / cublas, ("nvidia-cublas 9.1",), False),
        nvidia.Library(
            tmp_path.resolve() / cudnn, ("nvidia-cudnn-cu12 9.1", "nvidia-cudnn-cu13 9.1"), True
        ),
    ]
    output = io.StringIO()
    plain(Console(file=output, width=500)).print(doctor._owners(nvidia.libraries()))
    text = output.getvalue()
    assert "nvidia-cudnn-cu12 9.1 and nvidia-cudnn-cu13 9.1" in text
    assert text.count("make an environment for vggkeras[gpu-train]") == 1
    installed({})
    (library,) = nvidia.libraries()
    assert (library.owners, library.is_loaded) == ((), True)
