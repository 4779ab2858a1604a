"""The command lines: what they print, what they refuse, and how little they load."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import typing

import numpy as np
import onnxruntime as ort
import pytest
from helpers import photo
from PIL import Image

import vggkeras
from export import to_onnx
from export.__main__ import cli as export_cli
from vggkeras import configs, files
from vggkeras.__main__ import COMMANDS, cli
from vggkeras.card import ModelCard
from vggkeras.commands import benchmark, common, evaluate, features, predict, predictions
from vggkeras.commands.convert import convert
from vggkeras.evaluation import protocols
from vggkeras.features import extraction
from vggkeras.models import save_model
from vggkeras.runtimes import providers

pytestmark = pytest.mark.integration

# Runs commands in one process, and prints what heavy packages they imported.
IMPORTS = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        assert not stop.code, stop.code
heavy = "tensorflow keras jax sklearn onnxruntime scipy ai_edge_litert onnx matplotlib jinja2 numpy"
print("HEAVY", sorted(set(heavy.split()) & set(sys.modules)))
"""


def test_help_loads_nothing_heavy():
    commands = [["vggkeras", "--help"], ["vggkeras", "info"]]
    commands += [["vggkeras", command, "--help"] for command in COMMANDS]
    child = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(commands)], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "HEAVY []"
    for choices in (
        "{cpu,cuda,tensorrt,mnn,openvino}",
        "{center,dense,multicrop,both}",
        "{average,stack}",
    ):
        assert choices in child.stdout
    assert "{None}" not in child.stdout
    commands = [["export", "--help"], ["export.verify", "--help"]]
    child = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(commands)], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] in ("HEAVY []", "HEAVY ['numpy']")


def test_choices_are_the_librarys():
    def choices(command, field):
        return set(typing.get_args(typing.get_type_hints(command)[field]))

    assert choices(common.Compute, "provider") == set(providers.PROVIDERS)
    assert choices(benchmark.Benchmark, "precision") == set(configs.PRECISIONS)
    assert choices(features.Features, "aggregate") == set(extraction.AGGREGATES)
    (protocol, _) = typing.get_args(typing.get_type_hints(evaluate.Evaluate)["protocol"])
    assert set(typing.get_args(protocol)) == set(protocols.PROTOCOLS)


def test_info_prints_the_papers_tables(command):
    code, out, _ = command(cli, "info")
    assert code == 0
    for number in ("133,047,848", "138,357,544", "143,667,240", "15.47 G", "3-512", "LRN", "VGG19"):
        assert number in out
    code, out, _ = command(cli, "info", "vgg16")
    assert code == 0
    for text in ("block5_conv3", "14 x 14 x 512", "102,764,544", "15,470,264,320", "138,357,544"):
        assert text in out


def test_evaluate_scores_every_runtime_alike(run, exports, command, tmp_path):
    models = [run.path, exports / "model.onnx", exports / "model.tflite", exports / "saved_model"]
    code, out, _ = command(
        cli, "evaluate", "--model", *models, "--data", "digits", "--json", tmp_path / "e.json"
    )
    assert code == 0
    files.check_file(tmp_path / "e.json", evaluate.FIGURES)  # the same command may overwrite it
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [row["runtime"] for row in rows] == ["keras", "onnxruntime", "litert", "tensorflow"]
    assert {row["images"] for row in rows} == {360}
    assert len({row["correct"] for row in rows}) == 1
    assert rows[0]["correct"] / 360 == pytest.approx(
        run.metadata["metrics"]["val_accuracy"], abs=1e-6
    )
    assert "top-1 error" in out


def test_predict_names_classes(run, exports, command, tmp_path):
    for i in range(2):
        Image.fromarray(photo(i)).save(tmp_path / f"{i}.png")
    answers = []
    files = [exports / name for name in ("model.onnx", "model.tflite", "saved_model")]
    for model in (run.path, *files):
        code, out, _ = command(cli, "predict", tmp_path, "--model", model, "--top", "3", "--json")
        assert code == 0
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert [line["image"] for line in lines] == [str(tmp_path / f"{i}.png") for i in range(2)]
        answers.append([[c["class"] for c in line["classes"]] for line in lines])
        p = [c["probability"] for c in lines[0]["classes"]]
        assert p == sorted(p, reverse=True)
        assert len(p) == 3
    assert all(answer == answers[0] for answer in answers)
    code, out, _ = command(cli, "predict", tmp_path / "0.png", "--model", exports / "model.onnx")
    assert code == 0
    assert out.startswith(f"{tmp_path / '0.png'}: {answers[1][0][0]} ")


def test_doctor_says_what_loads(command):
    code, out, _ = command(cli, "doctor")
    assert code == 0
    for text in ("onnxruntime", "CPUExecutionProvider", "litert", "tensorflow", "processor: "):
        assert text in out


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


TRAIN = "train --width 0.05 --fc-units 8 --out out --data"
SCORE = "evaluate --model {onnx} --data"
FEATURES = "features --model {onnx} --data digits --out"
MISTAKES = (
    (TRAIN + " digits --arch F", "'F': expected one of A, A-LRN, B, C, D, E"),
    (TRAIN + " nowhere", "Unknown data 'nowhere': expected digits, tfds:NAME"),
    (TRAIN + " empty", "has no images"),
    (TRAIN + " ''", "Expected a value after --data; received an empty string"),
    ("train --out ''", "Expected a value after --out"),
    ("train --out=", "Expected a value after --out"),
    ("train --data digits --out ' '", "Expected a value after --out"),
    (TRAIN + " digits --image-size 31", "image_size must be 32 or more"),
    (TRAIN + " digits --learning-rate 0", "learning_rate must be a positive number"),
    (TRAIN + " {photos} --image-size 32 --out file.npy/run", "file.npy"),
    (TRAIN + " digits --scale 64:37", "from the smaller side to the larger, 37:64"),
    (TRAIN + " digits --scale 36 --image-size 37", "at least the side of the crop, 37 px"),
    (TRAIN + " {photos} --scale 128", "at least the side of the crop, 224 px"),
    (TRAIN + " digits --init-from empty", "expected a run's folder with model.keras in it"),
    (TRAIN + " digits --init-from {run} --arch A", "is vgg_a_lrn with a layer"),
    (TRAIN + " digits --precision float16", "'float32', 'mixed_bfloat16', 'mixed_float16'"),
    (TRAIN + " digits --out {run}", "go on with it with --resume"),
    (TRAIN + " digits --out {run} --resume", "arch was 'A-LRN' and is 'D'"),
    ("train --bogus 1", "Unrecognized options: --bogus"),
    ("train --epochs two", "Error parsing --epochs"),
    ("info G", "Unknown configuration 'G'"),
    ("info A --image-size 16", "at least 32 px"),
    ("", "Expected one of {info, train, benchmark"),
    ("evaluate --data digits", "--model"),
    ("evaluate --model runs/none --data digits", "No model at runs/none"),
    (SCORE + " {photos}", "10 classes and the data 2"),
    (SCORE + " digits --split test", "no split 'test'"),
    (SCORE + " digits --protocol x", "invalid choice 'x' for argument '--protocol'"),
    (SCORE + " digits --scales 16", "Scale 16 is below"),
    ("predict none.jpg --model {onnx}", "No image at none.jpg"),
    ("predict empty --model {onnx}", "has no images"),
    ("predict ''", "Expected a value after predict"),
    ("predict text.jpg --model {onnx} --top -1", "--top must be 1 or more, or 0 for all classes"),
    ("predict text.jpg --model {onnx} --out rows.txt", "ends in .csv, .jsonl or .parquet"),
    (SCORE + " digits --per-image {run}/history.csv", "is not a file of `vggkeras evaluate`"),
    ("predict text.jpg --model ''", "Expected a value after --model"),
    (SCORE + " digits --json {run}/run.json", "is not of `vggkeras evaluate`: only such a file"),
    (SCORE + " digits --json {run}", "is a folder"),
    (SCORE + " digits --json /dev/null", "is there already"),
    ("benchmark --json {run}/run.json", "is not of `vggkeras benchmark`"),
    (FEATURES + " file.npz --json {run}/run.json", "is not of `vggkeras features`"),
    (FEATURES + " other.npz", "other.npz is there already and is not a file of features"),
    (FEATURES + " {run}/resume/000000001.npz", "is no place for other files"),
    (FEATURES + " {run}/export/saved_model/a.npz", "is no place for other files"),
    (FEATURES + " a.npz --neighbours page.html", "is not a page of neighbours"),
    ("report {run} --out page.html", "is not a report"),
    ("report {run} --out {run}/history.csv", "is not a report"),
)
EXPORT_MISTAKES = (
    ("--formt onnx", "Unrecognized options: --formt"),
    ("", "No trained model at runs/latest"),
    ("--model junk.keras", "junk.keras is not a .keras file"),
    ("--model {onnx}", "Expected a run's folder or a .keras file"),
    ("--model {run} --format coreml", "invalid choice 'coreml' for argument '--format'"),
    ("--model {run} --precision int4", "invalid choice 'int4' for argument"),
    ("--model {run} --opset 9", "opset must be 14 to 18"),
    ("--model {run} --images -5", "images must be 1 or more"),
    ("--model {run} --data {photos}", "10 classes and the data 2"),
    ("--model {run} --out file.npy/out", "file.npy"),
    ("--model {run} --out ''", "Expected a value after --out"),
)


def test_every_mistake_is_one_line_and_exit_code_2(command, tmp_path, photos, run, exports):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.keras").write_bytes(b"junk")
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "page.html").write_text("<title>My holidays</title>")
    np.save(tmp_path / "file", np.zeros(1))
    np.savez(tmp_path / "other", np.zeros(1))
    before = sorted(p.name for p in tmp_path.iterdir())
    paths = {"onnx": exports / "model.onnx", "photos": photos, "run": run.path}
    for program, mistakes in ((cli, MISTAKES), (export_cli, EXPORT_MISTAKES)):
        for line, message in mistakes:
            code, _, err = command(program, *shlex.split(line.format(**paths)))
            assert code == 2, (line, err)
            assert message in one_line(err), (line, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == before  # nothing is left behind


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(command, tmp_path, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(to_onnx, "_write", full)
    code, _, err = command(export_cli, "--model", run.path, "--format", "onnx", "--out", "e")
    assert code == 2
    assert "No space left on device" in one_line(err)
    assert not (tmp_path / "e").exists()


def test_evaluate_goes_on_without_unreadable_images_when_asked(command, tmp_path, photos):
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    truncated = photos / "val" / "cat" / "001.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    arguments = ["evaluate", "--model", "m.keras", "--data", photos, "--json", "e.json"]
    code, _, err = command(cli, *arguments)
    assert code == 2
    assert "val/cat/001.jpg cannot be read" in one_line(err)
    code, out, _ = command(cli, *arguments, "--skip-unreadable")
    assert code == 0
    assert "skipped 1 unreadable images" in out
    assert json.loads((tmp_path / "e.json").read_text())[0]["images"] == 7


def test_commands_take_provider_and_threads(command, exports, monkeypatch, tmp_path):
    monkeypatch.setenv(providers.TF32_OVERRIDE, "0")
    monkeypatch.delenv(
        providers.TF32_OVERRIDE
    )  # what the commands set is taken back after the test
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    Image.fromarray(photo(1)).save(tmp_path / "a.png")
    predict = ["predict", tmp_path / "a.png", "--model", exports / "model.onnx"]
    evaluation = ["evaluate", "--data", "digits", "--model", exports / "model.onnx"]
    for given in (predict, evaluation):
        code, _, err = command(cli, *given, "--provider", "tensorrt")
        assert (code, err.count("\n")) == (2, 1)
        assert "did not load TensorrtExecutionProvider" in err
        assert os.environ.pop(providers.TF32_OVERRIDE) == "0"
        code, _, err = command(cli, *given, "--threads", "0")
        assert (code, err) == (2, "error: threads must be 1 or more; received 0.\n")
    code, out, _ = command(cli, *evaluation, "--threads", "1")
    assert code == 0
    assert "model.onnx in onnxruntime" in out
    assert ", cpu, threads: 1" in out


def test_what_a_notebook_calls_gives_what_the_command_prints(exports, tmp_path, command):
    Image.fromarray(photo(1)).save(tmp_path / "a.png")
    model = vggkeras.load(exports / "model.onnx")
    (prediction,) = predict.classify(model, predict.image_files([tmp_path]), top=3)
    _, out, _ = command(cli, "predict", "a.png", "--model", model.path, "--top", "3", "--json")
    printed = json.loads(out.splitlines()[-1])
    assert printed["classes"] == prediction.to_json()["classes"]
    table = predictions.predictions_table([prediction])
    assert [list(column.cells) for column in table.columns][1] == list(prediction.classes)


def test_a_conversion_says_what_it_wrote(tmp_path):
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4, batch_norm=True)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    conversion = convert(str(tmp_path / "m.keras"), "torchvision:t.safetensors")
    assert conversion.parameters == model.count_params()
    assert conversion.table().row_count == len(conversion.source.tensors) > 0
    assert "batch normalization at 32 px" in conversion.summary()
    assert "its reader takes RGB, 0-1, minus (" in conversion.summary()
    with pytest.raises(vggkeras.InputError, match="is there already, and no model is overwritten"):
        convert(str(tmp_path / "m.keras"), "torchvision:t.safetensors")


def test_a_command_whose_reader_goes_away_ends_without_a_message():
    code = (
        "from vggkeras.errors import run_command\n"
        "raise SystemExit(run_command(lambda: [print('x' * 100) for _ in range(10_000)] and 0))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "x" * 100 + "\n"
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141
