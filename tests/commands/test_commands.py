"""The command lines: what they print, what they refuse, and how little they load."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import photo
from PIL import Image

from export.__main__ import cli as export_cli
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard

IMPORTED = """
import sys
sys.argv = [sys.argv[1], *sys.argv[2:]]
import runpy
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"tensorflow", "keras", "jax", "sklearn", "onnxruntime", "scipy", "ai_edge_litert", "onnx", "matplotlib", "jinja2"}
heavy &= set(sys.modules)
print("HEAVY", sorted(heavy))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["vggkeras", "--help"],
        ["vggkeras", "train", "--help"],
        ["vggkeras", "evaluate", "--help"],
        ["vggkeras", "report", "--help"],
        ["vggkeras", "predict", "--help"],
        ["vggkeras", "features", "--help"],
        ["vggkeras", "convert", "--help"],
        ["vggkeras", "info"],
        ["export", "--help"],
        ["export.verify", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    child = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "HEAVY []"


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
    for model in (
        run.path,
        exports / "model.onnx",
        exports / "model.tflite",
        exports / "saved_model",
    ):
        code, out, _ = command(cli, "predict", tmp_path, "--model", model, "--top", "3", "--json")
        assert code == 0
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert [line["image"] for line in lines] == [
            str(tmp_path / "0.png"),
            str(tmp_path / "1.png"),
        ]
        answers.append([[c["class"] for c in line["classes"]] for line in lines])
        p = [c["probability"] for c in lines[0]["classes"]]
        assert p == sorted(p, reverse=True)
        assert len(p) == 3
    assert all(answer == answers[0] for answer in answers)
    code, out, _ = command(cli, "predict", tmp_path / "0.png", "--model", exports / "model.onnx")
    assert code == 0
    assert "probability" in out


def test_doctor_says_what_loads(command):
    code, out, _ = command(cli, "doctor")
    assert code == 0
    for text in (
        "onnxruntime",
        "CPUExecutionProvider",
        "litert",
        "tensorflow",
        "keras",
        "processor: ",
    ):
        assert text in out


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_every_mistake_is_one_line_and_exit_code_2(command, tmp_path, photos, run, exports):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.keras").write_bytes(b"junk")
    (tmp_path / "text.jpg").write_text("text")
    np.save(tmp_path / "file", np.zeros(1))
    train = ["train", "--width", "0.05", "--fc-units", "8", "--out", "out", "--data"]
    cases = [
        (
            cli,
            [*train, "digits", "--arch", "F"],
            "Unknown configuration 'F': expected one of A, A-LRN, B, C, D, E",
        ),
        (cli, [*train, "nowhere"], "Unknown data 'nowhere': expected digits, tfds:NAME"),
        (cli, [*train, "empty"], "has no images"),
        (cli, [*train, ""], "Unknown data ''"),
        (cli, [*train, "digits", "--image-size", "31"], "image_size must be 32 or more"),
        (
            cli,
            [*train, "digits", "--learning-rate", "0"],
            "learning_rate must be a positive number",
        ),
        (cli, [*train, photos, "--image-size", "32", "--out", "file.npy/run"], "file.npy"),
        (
            cli,
            [*train, "digits", "--scale", "64:37"],
            "a range from the smaller side to the larger, 37:64",
        ),
        (
            cli,
            [*train, "digits", "--scale", "36", "--image-size", "37"],
            "at least the side of the crop, 37 px",
        ),
        (cli, [*train, photos, "--scale", "128"], "at least the side of the crop, 224 px"),
        (
            cli,
            [*train, "digits", "--init-from", "empty"],
            "expected a run's folder with model.keras in it",
        ),
        (
            cli,
            [*train, "digits", "--init-from", run.path, "--arch", "A"],
            "is vgg_a_lrn with a layer",
        ),
        (
            cli,
            [*train, "digits", "--precision", "float16"],
            "float32, mixed_bfloat16, mixed_float16",
        ),
        (cli, [*train, "digits", "--out", run.path], "go on with it with --resume"),
        (cli, [*train, "digits", "--out", run.path, "--resume"], "arch was 'A-LRN' and is 'D'"),
        (cli, ["info", "G"], "Unknown configuration 'G'"),
        (cli, [], "Expected one of {info, train, benchmark"),
        (cli, ["train", "--bogus", "1"], "Unrecognized options: --bogus"),
        (cli, ["train", "--epochs", "two"], "Error parsing --epochs"),
        (cli, ["evaluate", "--data", "digits"], "--model"),
        (export_cli, ["--formt", "onnx"], "Unrecognized options: --formt"),
        (cli, ["info", "A", "--image-size", "16"], "at least 32 px"),
        (cli, ["evaluate", "--model", "runs/none", "--data", "digits"], "No model at runs/none"),
        (
            cli,
            ["evaluate", "--model", exports / "model.onnx", "--data", photos],
            "10 classes and the data 2",
        ),
        (
            cli,
            ["evaluate", "--model", exports / "model.onnx", "--data", "digits", "--split", "test"],
            "no split 'test'",
        ),
        (
            cli,
            ["evaluate", "--model", exports / "model.onnx", "--data", "digits", "--protocol", "x"],
            "Unknown protocol",
        ),
        (
            cli,
            ["evaluate", "--model", exports / "model.onnx", "--data", "digits", "--scales", "16"],
            "Scale 16 is below",
        ),
        (
            cli,
            ["predict", "text.jpg", "--model", exports / "model.onnx"],
            "text.jpg cannot be read",
        ),
        (cli, ["predict", "none.jpg", "--model", exports / "model.onnx"], "No image at none.jpg"),
        (cli, ["predict", "empty", "--model", exports / "model.onnx"], "has no images"),
        (export_cli, [], "No trained model at runs/latest"),
        (export_cli, ["--model", "junk.keras"], "junk.keras is not a .keras file"),
        (
            export_cli,
            ["--model", exports / "model.onnx"],
            "Expected a run's folder or a .keras file",
        ),
        (
            export_cli,
            ["--model", run.path, "--format", "coreml"],
            "invalid choice 'coreml' for argument '--format'",
        ),
        (
            export_cli,
            ["--model", run.path, "--precision", "int4"],
            "invalid choice 'int4' for argument",
        ),
        (export_cli, ["--model", run.path, "--opset", "9"], "opset must be 14 to 18"),
        (export_cli, ["--model", run.path, "--images", "-5"], "images must be 1 or more"),
        (export_cli, ["--model", run.path, "--data", photos], "10 classes and the data 2"),
        (export_cli, ["--model", run.path, "--out", "file.npy/out"], "file.npy"),
    ]
    before = sorted(p.name for p in tmp_path.iterdir())
    for program, arguments, message in cases:
        code, _, err = command(program, *arguments)
        assert code == 2, (arguments, err)
        assert message in one_line(err), (arguments, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == before  # nothing is left behind


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(command, tmp_path, run, monkeypatch):
    import errno

    from export import to_onnx

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(to_onnx, "_write", full)
    code, _, err = command(export_cli, "--model", run.path, "--format", "onnx", "--out", "e")
    assert code == 2
    assert "No space left on device" in one_line(err)
    assert not (tmp_path / "e").exists()


def test_evaluate_goes_on_without_unreadable_images_when_asked(command, tmp_path, photos):
    import vggkeras
    from vggkeras.models import save_model

    model = vggkeras.build("A", (32, 32, 3), 2, width=0.02, fc_units=4)
    save_model(model, tmp_path / "m.keras", ModelCard(("cat", "dog")))
    truncated = photos / "val" / "cat" / "001.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    arguments = [
        "evaluate",
        "--model",
        tmp_path / "m.keras",
        "--data",
        photos,
        "--json",
        tmp_path / "e.json",
    ]
    code, _, err = command(cli, *arguments)
    assert code == 2
    assert "val/cat/001.jpg cannot be read" in one_line(err)
    code, out, _ = command(cli, *arguments, "--skip-unreadable")
    assert code == 0
    assert "skipped 1 unreadable images" in out
    assert json.loads((tmp_path / "e.json").read_text())[0]["images"] == 7
