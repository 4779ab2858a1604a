"""The benchmark's JSON adds up, and what cannot be measured is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import vggkeras
from export import benchmark, golden, loadgen, serving
from export.loadgen import Lengths, Speed
from vggkeras import files
from vggkeras.data.splits import stratified
from vggkeras.errors import InputError
from vggkeras.evaluation.scoring import evaluate
from vggkeras.evaluation.statistics import wilson
from vggkeras.evaluation.tables import with_interval
from vggkeras.runtimes.providers import Options

pytestmark = pytest.mark.integration

pytest.importorskip(
    "mlperf_loadgen", reason="mlcommons-loadgen is not installed: pip install 'vggkeras[benchmark]'"
)
SHORT = ("--rounds", 2, "--seconds", 0.05, "--batch", 4, "--threads", 1)


@pytest.fixture(scope="module")
def figures(exports, tmp_path_factory) -> dict:
    """The JSON of three small files; the second is a copy of the first without golden images."""
    alone = tmp_path_factory.mktemp("alone") / "model.onnx"
    shutil.copy(exports / "model.onnx", alone)
    measured = benchmark.benchmark(
        [exports / "model.onnx", alone, exports / "model.tflite"],
        threads=1,
        batch=4,
        rounds=2,
        seconds=0.05,
    )
    return json.loads(json.dumps(measured))


def test_every_file_has_a_row_of_what_it_is(figures, exports):
    onnx, alone, tflite = figures["rows"]
    for row, name, runtime in (
        (onnx, "model.onnx", "onnxruntime"),
        (tflite, "model.tflite", "litert"),
    ):
        assert row["file"] == str(exports / name)
        assert (row["runtime"], row["provider"], row["threads"]) == (runtime, "cpu", 1)
        assert (row["precision"], row["input_shape"]) == ("float32", [32, 32, 3])
        assert row["bytes"] == files.size(exports / name)
        assert row["images"] == f"{len(golden.load_golden(exports).images)} golden images"
    assert alone["images"] == f"{serving.IMAGES} random images"
    for row in figures["rows"]:
        assert row["tf32"] is False  # of a GPU's products
        assert row["cold_start_s"] > 0
        # More than a bare Python and NumPy; this process, with TensorFlow in it, is no part of it.
        assert 20 < row["peak_memory_mib"] < psutil.Process().memory_info().rss / 2**20
    settings = figures["settings"]
    assert settings["interleaved"] is True
    assert settings["official"] is False
    assert (settings["rounds"], settings["seconds"], settings["batch"]) == (2, 0.05, 4)
    assert settings["loadgen"][0].isdigit()


def test_counts_percentiles_and_ratios_add_up(figures):
    first = figures["rows"][0]
    for row in figures["rows"]:
        single, offline = row["single_stream"], row["offline"]
        assert len(single["rounds"]) == len(offline["rounds"]) == 2
        assert (
            single["queries"]
            == sum(turn["queries"] for turn in single["rounds"])
            >= loadgen.QUERIES
        )
        assert 0 < single["p50_ms"] <= single["p90_ms"] <= single["p99_ms"]
        medians = [turn["p50_ms"] for turn in single["rounds"]]
        # LoadGen takes the query above a percentile, NumPy the one below it.
        assert 0.9 * min(medians) <= single["p50_ms"] <= 1.1 * max(medians)
        assert all(
            turn["images"] == turn["min_queries"] and turn["images"] % 4 == 0
            for turn in offline["rounds"]
        )
        assert offline["images"] == sum(turn["images"] for turn in offline["rounds"])
        assert offline["images_per_second"] == pytest.approx(offline["images"] / offline["seconds"])
        for part, name in (("single_stream", "p50_ms"), ("offline", "images_per_second")):
            pairs = zip(row[part]["rounds"], first[part]["rounds"], strict=True)
            ratios = [ours[name] / theirs[name] for ours, theirs in pairs]
            assert row[part]["ratio"] == pytest.approx(np.median(ratios))
            assert row[part]["ratio_range"] == pytest.approx([min(ratios), max(ratios)])
    for part in ("single_stream", "offline"):
        assert first[part]["ratio"] == 1
        assert first[part]["ratio_range"] == [1, 1]


@pytest.mark.slow
def test_accuracy_stands_beside_latency(exports, command):
    """The same images as `evaluate` scores, in the same table and JSON."""
    names = ["model.onnx", "model.tflite"]
    paths = [exports / name for name in names]
    arguments = [*SHORT, "--data", "digits", "--images", 120, "--json", "speed.json"]
    code, out, err = command(benchmark.cli, *paths, *arguments)
    assert code == 0, err
    split = stratified(vggkeras.load_data("digits").split("validation"), 120)
    classes = [str(digit) for digit in range(10)]
    expected = evaluate([vggkeras.load(path) for path in paths], split, classes)
    figures = json.loads(Path("speed.json").read_text())
    for row, same in zip(figures["rows"], expected, strict=True):
        assert row["accuracy"] == {
            "evidence": "120 images of digits/validation",
            "images": 120,
            "correct": same.correct,
            "accuracy": same.correct / 120,
            "interval": list(wilson(same.correct, 120)),
        }
        assert with_interval(same.correct, 120) in out
    assert "top-1 with its Wilson interval on 120 images of digits/validation" in out


def test_pooled_latencies_are_those_loadgen_counted(exports, tmp_path):
    """Every query's latency is in the trace, and they give LoadGen's own figures."""
    from vggkeras import runtimes

    predictor = runtimes.load(exports / "model.tflite", threads=1)
    images = golden.load_golden(exports).images
    lengths = Lengths(batch=4, rounds=2, seconds=0.05, official=False)
    speed = loadgen.warmed(predictor, images, lengths)
    test = loadgen.tested(predictor, images, loadgen.SINGLE, lengths, speed, tmp_path)
    latencies = np.sort(test.latencies_ns) / 1e6
    assert len(latencies) == test.queries
    for percentile, value in ((50, test.p50_ms), (90, test.p90_ms), (99, test.p99_ms)):
        below = np.searchsorted(latencies, value) / len(latencies)
        assert below == pytest.approx(percentile / 100, abs=1.01 / len(latencies))


def test_the_official_lengths_are_loadgens_own(exports, tmp_path, monkeypatch):
    """What is asked of LoadGen, without the ten minutes."""
    import mlperf_loadgen

    from vggkeras import runtimes

    class Asked(Exception):
        pass

    def start(system, library, settings, *_):
        raise Asked(
            settings.min_duration_ms, settings.min_query_count, settings.offline_expected_qps
        )

    monkeypatch.setattr(mlperf_loadgen, "StartTestWithLogSettings", start)
    predictor = runtimes.load(exports / "model.tflite")
    images = golden.load_golden(exports).images
    lengths, speed = Lengths(4, 1, 1, official=True), Speed(1, 100)
    for scenario, least in ((loadgen.SINGLE, 64), (loadgen.OFFLINE, 24_576)):
        with pytest.raises(Asked) as raised:
            loadgen.tested(predictor, images, scenario, lengths, speed, tmp_path)
        milliseconds, count, expected = raised.value.args
        assert milliseconds == 600_000
        assert count >= least
        assert expected > 100  # else LoadGen would draw up a test that may be over too soon


def test_the_command_prints_and_writes_the_same(exports, command):
    arguments = ["--rounds", 1, "--seconds", 0.05, "--json", "a/speed.json"]
    code, out, err = command(benchmark.cli, exports / "model.tflite", *arguments)
    assert code == 0, err
    files.check_file(Path("a/speed.json"), benchmark.FIGURES)  # the same command may overwrite it
    figures = json.loads(Path("a/speed.json").read_text())
    (row,) = figures["rows"]
    (turn,) = row["single_stream"]["rounds"]
    assert {
        name: row["single_stream"][name] for name in ("p50_ms", "p90_ms", "p99_ms")
    }.items() <= turn.items()
    assert figures["settings"]["interleaved"] is False
    assert f"{row['single_stream']['p50_ms']:.2f}" in out
    assert f"{row['offline']['images_per_second']:.1f}" in out
    assert f"{row['bytes']:,}" in out
    assert "rounds in turn: 1" in out


def test_every_mistake_is_one_line_and_exit_code_2(exports, command, tmp_path, monkeypatch):
    tflite = exports / "model.tflite"
    (tmp_path / "a.onnx").write_bytes(b"junk" * 100)
    (tmp_path / "a.h5").touch()
    (tmp_path / "bad").mkdir()
    shutil.copy(tflite, tmp_path / "bad")
    (tmp_path / "bad" / "golden.npz").write_bytes(b"junk")
    cases = [
        ([], "one file or more"),
        (["none.onnx"], "No model at none.onnx"),
        (["a.h5"], "expected a suffix of .keras, .onnx, .tflite"),
        (["a.onnx"], "a.onnx cannot be loaded by ONNX Runtime"),
        ([tflite, "bad/model.tflite", *SHORT], "golden.npz cannot be read"),
        ([tflite, "--provider", "cuda"], "provider cuda: "),
        ([tflite, "--provider", "tpu"], "invalid choice 'tpu' for argument '--provider'"),
        ([tflite, "--rounds", 0], "rounds must be 1 or more; received 0"),
        ([tflite, "--threads", 0], "threads must be 1 or more; received 0"),
        ([tflite, "--batch", 65], "batch must be 1 to 64; received 65"),
        ([tflite, "--seconds", 0], "seconds must be more than 0"),
        ([tflite, "--seconds", "nan"], "seconds must be more than 0"),
        ([tflite, "--images", 3], "and of --data; received 3"),
        ([tflite, "--data", "digits", "--images", -1], "images must be 1 or more"),
        ([tflite, "--data", "nowhere"], "nowhere"),
        ([exports / "model.onnx", "--batch-sizes", 8], "batch sizes prepare a GPU"),
        ([tflite, "--official", "--rounds", 3], "--official has lengths of its own"),
        ([tflite, "--json", "bad"], "bad is a folder"),
        ([tflite, "--json", tflite], "no model is overwritten"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        code, _, err = command(benchmark.cli, *arguments)
        assert code == 2, (arguments, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert message in err, (arguments, err)
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    code, _, err = command(benchmark.cli, tflite)
    assert code == 2
    assert "pip install 'vggkeras[benchmark]'" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_that_dies_is_told(exports, tmp_path):
    with serving.started(exports / "model.tflite", Options("cpu", 1), tmp_path) as server:
        assert server.loaded.runtime == "litert"
        (child,) = psutil.Process().children()
        child.kill()
        with pytest.raises(InputError, match="its process ended with code -9"):
            server.peak_memory_mib()


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.full)]
)
def test_the_processes_end_with_the_command(exports, tmp_path, end):
    """Even in the middle of a long test of LoadGen, in which they answer nothing."""
    paths = [str(exports / name) for name in ("model.onnx", "model.tflite")]
    command = [sys.executable, "-m", "export.benchmark", *paths, "--rounds", "2"]
    command += ["--seconds", "600"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    parent = subprocess.Popen(command, env=environment, **quiet)
    try:
        # It is under way, or has ended: however slow the machine is.
        while not list(tmp_path.glob("vggkeras-benchmark-*/0/mlperf_log_detail.txt")):
            assert parent.poll() is None
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        parent.send_signal(end)
        assert parent.wait() == (-end if end == signal.SIGKILL else 130)
        _, left = psutil.wait_procs(children)
        assert left == []
        assert end == signal.SIGKILL or list(tmp_path.glob("vggkeras-benchmark-*")) == []
    finally:
        parent.kill()
