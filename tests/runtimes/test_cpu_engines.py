"""MNN and OpenVINO answer as ONNX Runtime does, from the same file, and refuse what they cannot."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_threads import stress

import vggkeras
from export.formats import ROUNDING, tolerance_of
from export.serving import with_provider
from export.verify import cli, verify
from vggkeras import doctor, files
from vggkeras.errors import InputError
from vggkeras.runtimes import ENGINES, mnn
from vggkeras.runtimes.providers import Options
from vggkeras.runtimes.stderr import quiet_stderr

pytestmark = pytest.mark.integration

PROVIDERS = tuple(ENGINES)


@pytest.fixture(params=PROVIDERS)
def provider(request) -> str:
    package = ENGINES[request.param].package
    pytest.importorskip(package, reason=f"the extra {request.param} is not installed")
    return request.param


@pytest.fixture
def with_mnn(monkeypatch, tmp_path) -> Path:
    """MNN, and an empty cache of its own: the folder that it keeps files in."""
    pytest.importorskip("MNN", reason="the extra mnn is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vggkeras" / "mnn"


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_engine_answers_as_onnx_runtime(provider, precise_exports, pictures, precision):
    name = {"float32": "model.onnx"}.get(precision, f"model.{precision}.onnx")
    reference = vggkeras.load(precise_exports / name)
    engine = vggkeras.load(precise_exports / name, provider=provider, threads=1)
    assert (engine.runtime, engine.provider, engine.threads) == (provider, provider, 1)
    assert (engine.sealed, engine.card) == ("yes", reference.card)
    names = ("input_shape", "outputs", "input_name", "output_name", "form", "class_names")
    assert [getattr(engine, n) for n in names] == [getattr(reference, n) for n in names]
    # int8: one sum that lies between two integers may be rounded the other way.
    tolerance = tolerance_of(precision, provider) or 2e-2
    for batch in (1, 3, 64, 65, 1):
        answers = engine(pictures[:batch])
        assert (answers.shape, answers.dtype) == ((batch, 10), np.float32)
        np.testing.assert_allclose(answers, reference(pictures[:batch]), atol=tolerance)


def test_an_engine_computes_int8_in_integers(provider, precise_exports, pictures):
    """Its answers are ONNX Runtime's integers', and not those of the weights in float32."""
    reference = vggkeras.load(precise_exports / "model.int8.onnx")(pictures)
    float32 = vggkeras.load(precise_exports / "model.onnx")(pictures)
    answers = vggkeras.load(precise_exports / "model.int8.onnx", provider=provider)(pictures)

    def rms(difference: np.ndarray) -> float:
        return float(np.sqrt(np.square(difference).mean()))

    assert rms(answers - reference) < rms(reference - float32) / 3


@pytest.fixture(scope="module")
def any_size(run, onnx_files, tmp_path_factory) -> list[Path]:
    """Files that take images of any size: the dense form, and features in int8."""
    from export import export_model

    folder = tmp_path_factory.mktemp("features")
    export_model(run.path, "onnx", "int8", features=True, images=20, out=folder)
    return [onnx_files / "model.dense.onnx", folder / "model.int8.features.onnx"]


@pytest.mark.slow
def test_an_engine_takes_every_form_at_any_size(provider, any_size):
    engines = [vggkeras.load(path, provider=provider) for path in any_size]
    for engine in engines:
        assert engine.dense
        reference = vggkeras.load(engine.path)
        for shape in ((2, 40, 57, 3), (1, 32, 32, 3), (3, 40, 57, 3)):
            images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
            expected = reference(images)
            np.testing.assert_allclose(engine(images), expected, atol=2e-2 * expected.max())


def test_every_thread_gets_the_answers_to_its_own_images(provider, exports):
    stress(vggkeras.load(exports / "model.onnx", provider=provider), calls=10)


def test_files_are_verified_in_an_engine(provider, precise_exports, command):
    paths = [precise_exports / f"model{p}.onnx" for p in ("", ".float16", ".int8")]
    code, out, _ = command(cli, *paths, "--provider", provider)
    assert (code, out.count(": passed")) == (0, 3)


def test_the_tolerance_of_mnn_is_that_of_its_winograd_matrices():
    from benchmarks.winograd_error import MNN, amplification, matrices, rms

    rng = np.random.default_rng(0)
    for points in MNN:
        at, g, bt = matrices(points)
        row, taps = rng.standard_normal(bt.shape[1]), rng.standard_normal(3)
        np.testing.assert_allclose(at @ ((g @ taps) * (bt @ row)), np.correlate(row, taps))
    assert rms(amplification(MNN[-1])) == pytest.approx(ROUNDING["mnn", "float32"], abs=0.1)


def test_wrong_answers_fail_in_an_engine(provider, exports, monkeypatch):
    module = importlib.import_module(f"vggkeras.runtimes.{provider}")
    real = module.taking_turns
    monkeypatch.setattr(
        module, "taking_turns", lambda run: real(lambda images: run(images) * np.float32(1.02))
    )
    assert "values: largest error" in verify(exports / "model.onnx", provider)[0]


def test_a_changed_file_is_refused_before_an_engine_sees_it(provider, exports, tmp_path):
    content = bytearray((exports / "model.onnx").read_bytes())
    content[len(content) // 3] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="was changed or cut short since vggkeras wrote it"):
        vggkeras.load(tmp_path / "model.onnx", provider=provider)


def test_an_engine_takes_onnx_files_alone(provider, exports, tmp_path):
    with pytest.raises(InputError, match=rf"provider {provider}: \.tflite models run on cpu"):
        vggkeras.load(exports / "model.tflite", provider=provider)
    (tmp_path / "other.onnx").write_bytes(b"\x08\x08\x12\x03abc")
    with pytest.raises(InputError, match=r"other\.onnx .*provider cpu"):
        vggkeras.load(tmp_path / "other.onnx", provider=provider)
    with pytest.raises(InputError, match=r"provider must be one of cpu, .*; received 'ncnn'"):
        vggkeras.load(exports / "model.onnx", provider="ncnn")


@pytest.mark.parametrize("missing", PROVIDERS)
def test_a_missing_engine_is_named_with_its_extra(missing, exports, monkeypatch):
    real = importlib.util.find_spec
    package = ENGINES[missing].package
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == package else real(name)
    )
    with pytest.raises(InputError, match=rf"pip install 'vggkeras\[{missing}\]', or use .* cpu"):
        vggkeras.load(exports / "model.onnx", provider=missing)
    printed = io.StringIO()
    assert doctor.examine(Console(width=200, file=printed)) == 0
    assert f"pip install 'vggkeras[{missing}]'" in printed.getvalue()


QUIET = """
import json, sys
import numpy as np, vggkeras
clf = vggkeras.load(sys.argv[1], provider=sys.argv[2])
clf(np.zeros((1, 32, 32, 3), np.uint8))
both = vggkeras.load(sys.argv[1])(np.zeros((1, 32, 32, 3), np.uint8))  # ONNX Runtime beside it
print(json.dumps([m for m in sys.modules if m.startswith("openvino_telemetry") or "aliyun" in m]))
"""


def test_an_engine_prints_nothing_and_tells_nobody(provider, exports, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", QUIET, exports / "model.onnx", provider],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert json.loads(child.stdout) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


LOADED_TWICE = """
import signal, sys, vggkeras
first, second = (vggkeras.load(sys.argv[1], provider=sys.argv[2]) for _ in range(2))
del first, second  # in the order they were made
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_heard_after_an_engine_is_dropped(provider, exports):
    """Engines register a stack for signals; one that is freed by then would end the process."""
    child = [sys.executable, "-c", LOADED_TWICE, exports / "model.onnx", provider]
    assert subprocess.run(child, capture_output=True, text=True).stdout == "heard\n"


def test_mnn_converts_a_file_once(with_mnn, exports, pictures, monkeypatch):
    first = vggkeras.load(exports / "model.onnx", provider="mnn")(pictures)
    (entry,) = with_mnn.iterdir()
    assert entry.name.startswith(files.sha256(exports / "model.onnx"))
    with monkeypatch.context() as patch:
        patch.setattr(mnn.subprocess, "run", lambda *_, **__: pytest.fail("converted again"))
        again = vggkeras.load(exports / "model.onnx", provider="mnn")(pictures)
    np.testing.assert_array_equal(first, again)

    content = entry.read_bytes()
    for damaged in (content[:1000] + b"?" + content[1001:], b"0" * 64):
        entry.write_bytes(damaged)
        again = vggkeras.load(exports / "model.onnx", provider="mnn")(pictures)
        np.testing.assert_array_equal(first, again)
        assert entry.read_bytes()[-64:].decode() == files.sha256(entry, entry.stat().st_size - 64)


def test_an_entry_that_is_no_file_of_this_user_is_replaced(
    with_mnn, exports, tmp_path, monkeypatch
):
    vggkeras.load(exports / "model.onnx", provider="mnn")
    (entry,) = with_mnn.iterdir()
    assert mnn._is_whole(entry)
    monkeypatch.setattr(os, "getuid", lambda: entry.stat().st_uid + 1)
    assert not mnn._is_whole(entry)


def test_threads_and_processes_may_convert_at_once(with_mnn, exports, pictures):
    with ThreadPoolExecutor(2) as pool:
        loads = [
            pool.submit(vggkeras.load, exports / "model.onnx", provider="mnn") for _ in range(2)
        ]
    first, second = (load.result()(pictures) for load in loads)
    np.testing.assert_array_equal(first, second)
    assert len(list(with_mnn.iterdir())) == 1


def test_the_cache_is_bounded(with_mnn, precise_exports, monkeypatch):
    monkeypatch.setattr(mnn, "KEPT_BYTES", 1)
    for name in ("model.onnx", "model.int8.onnx"):
        vggkeras.load(precise_exports / name, provider="mnn")
        (kept,) = with_mnn.iterdir()
        assert kept.name.startswith(files.sha256(precise_exports / name))


def test_mnn_is_given_no_file_that_may_end_the_process(with_mnn, exports, tmp_path):
    from onnx import load, save

    model = load(exports / "model.onnx")
    del model.metadata_props[:]
    model.producer_name = "somebody"
    save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="was not written by vggkeras"):
        vggkeras.load(tmp_path / "model.onnx", provider="mnn")


def test_a_file_that_mnn_cannot_convert_is_refused_in_one_line(with_mnn, exports, tmp_path):
    """Its converter, or its run, ends the process: not this one."""
    from onnx import load, save

    model = load(exports / "model.onnx")
    model.graph.node[0].op_type = "Loop"
    save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"cannot be converted by MNN .* use provider cpu") as told:
        vggkeras.load(tmp_path / "model.onnx", provider="mnn", verify=False)
    assert "\n" not in str(told.value)
    assert list(with_mnn.iterdir()) == []


def test_a_file_of_a_benchmark_may_name_its_provider(tmp_path):
    asked = Options("cpu", 2)
    path = tmp_path / "model.onnx"
    assert with_provider(path, asked) == (path, asked)
    assert with_provider(tmp_path / "model.onnx@mnn", asked) == (path, Options("mnn", 2))
    for name in ("model.onnx@ncnn", "@mnn", "model.onnx@openvino"):
        (tmp_path / "model.onnx@openvino").touch()  # a file of that name is that file
        assert with_provider(tmp_path / name, asked) == (tmp_path / name, asked)


def test_stdout_is_kept_back_too(capfd):
    with quiet_stderr(and_stdout=True) as printed:
        subprocess.run(["echo", "kept back"], check=True)
        os.write(2, b"and this\n")
    print("shown")
    assert sorted(printed[0].split("\n")) == ["", "and this", "kept back"]
    assert capfd.readouterr() == ("shown\n", "")
