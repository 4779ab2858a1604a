"""Exported networks of boxes: what they give, what proves it, and who takes them."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
from helpers import edit_onnx, photo, resealed
from PIL import Image
from rich.console import Console

import export
import vggkeras
from export import parity, publish, stages
from export.__main__ import cli as export_cli
from export.verify import verify
from vggkeras.__main__ import cli
from vggkeras.card import BOXES_USE, Form
from vggkeras.errors import InputError
from vggkeras.evaluation.statistics import wilson
from vggkeras.localization import geometry
from vggkeras.localization.votes import locate
from vggkeras.models import load_model, save_model, to_dense

pytestmark = pytest.mark.integration
FILES = ("saved_model.boxes", "model.boxes.onnx", "model.boxes.tflite")
HALVES = ("model.float16.boxes.onnx", "model.float16.boxes.tflite")
CROP = 64


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """All files of a network of a box a class, and their entries of certificate.json."""
    out = tmp_path_factory.mktemp("boxes") / "export"
    asked = {"data": str(folder / "data"), "out": out, "precision": "all"}
    entries = export.export_model(folder / "pcr.keras", **asked)
    return out, entries | export.export_model(folder / "pcr.keras", dense=True, **asked)


@pytest.fixture
def crops(folder):
    """The central crops of the images, uint8, with boxes of their classes in px of the crops."""
    split = vggkeras.load_data(str(folder / "data"), boxes=True, whole=True).split("all")
    shown, true = [], []
    for index, path, label in split.sourced():
        image = Image.open(path)
        ratio = 96 / min(image.size)
        w, h = (round(side * ratio) for side in image.size)
        left, top = (w - CROP) // 2, (h - CROP) // 2
        pixels = image.resize((w, h), Image.Resampling.BILINEAR)
        shown.append(np.asarray(pixels)[top : top + CROP, left : left + CROP])
        scale = np.array([w / image.width, h / image.height] * 2)
        true.append((label, split.boxes.corners[index] * scale - [left, top, left, top]))
    return np.stack(shown), true


@pytest.mark.slow
def test_every_file_gives_keras_boxes_at_every_place(folder, made):
    out, _ = made
    model = load_model(folder / "pcr.keras")[0]
    images = np.stack([photo(i, 96, 131) for i in range(3)])
    expected = {
        Form.BOXES: np.asarray(model(images[:, :CROP, :CROP])),
        Form.DENSE_BOXES: np.asarray(to_dense(model)(images)),
    }
    assert expected[Form.DENSE_BOXES].shape == (3, 2, 3, 12)
    for name in (*FILES, *HALVES):
        file = vggkeras.load(out / name)
        dense = file.dense_form()
        assert (file.form, dense.form) == (Form.BOXES, Form.DENSE_BOXES)
        assert dense.path.name == name.replace(".boxes", ".dense_boxes")
        assert (file.boxes, file.class_names, file.outputs) == ("pcr", ["cat", "dog", "elk"], 12)
        assert file.card.to_description()["output"]["use"] == BOXES_USE
        within = 1e-2 if name in HALVES else 1e-5  # of the crop
        for predictor, shown in ((file, images[:, :CROP, :CROP]), (dense, images)):
            found = predictor(shown)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[predictor.form], atol=within / 2)


def test_the_certificate_says_pixels_and_which_boxes_are_right(folder, made, crops):
    out, entries = made
    assert len(entries) == 10
    shown, true = crops
    outputs = vggkeras.load(folder / "pcr.keras")(shown).astype(np.float64)
    for name, entry in entries.items():
        assert entry["passed"]
        if ".dense_" in name:
            assert entry["output"]["shape"] == ["batch", "rows", "columns", 12]
            assert len(entry["sizes"]) == 6
            continue
        off, right = 0.0, []
        found = vggkeras.load(out / name)(shown).astype(np.float64)
        for i, (label, boxes) in enumerate(true):
            for k in range(3):
                x, y, w, h = (found[i] - outputs[i])[4 * k : 4 * k + 4] * CROP
                off = max(off, *map(abs, (x - w / 2, x + w / 2, y - h / 2, y + h / 2)))
            x, y, w, h = found[i, 4 * label : 4 * label + 4] * CROP
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            right.append(bool((geometry.iou(corners, boxes) > 0.5).any()))
        count = sum(right)
        assert 0 < count < 12
        assert entry["accuracy_artifact"] == count / 12
        assert entry["accuracy_interval"] == wilson(count, 12)
        assert entry["top1_agreement"] == 1
        # Batches of other sizes may round differently.
        assert entry["max_abs_error"] == pytest.approx(off, abs=1e-4 if "16" in name else 5e-5)
        assert entry["max_rel_error"] == entry["max_abs_error"] / CROP
        assert entry["max_abs_error"] <= (0.01 if "16" in name else 1e-5) * CROP


def test_files_prove_themselves_and_a_moved_box_is_found(made, tmp_path, command):
    out, _ = made
    for name in (*FILES, *HALVES, "model.dense_boxes.onnx", "model.dense_boxes.tflite"):
        assert verify(out / name) == []
    file = tmp_path / "model.boxes.onnx"
    shutil.copy(out / file.name, file)

    def move(path):
        def change(graph, weights):
            weights["boxes.bias"] = weights["boxes.bias"] + np.float32(0.05 / CROP)

        edit_onnx(path, change)

    resealed(file, move)
    (problem,) = verify(file)
    assert "0.075 px is 0.00117 of the crop and exceeds 1e-05" in problem  # half a width more
    from export.verify import cli as verify_cli

    code, said, _ = command(verify_cli, "--explain", file)
    assert (code, "DIFFERS boxes" in said) == (1, True)


def test_explain_judges_corners_as_the_proof_does(made, tmp_path):
    """Boxes wider by 1.5e-5 of the crop have corners that are off by half of that, within 1e-5."""
    wider = np.tile(np.float32([0, 0, 1.5e-5, 0]), 3)

    def widen(path):
        def change(graph, weights):
            weights["boxes.bias"] = weights["boxes.bias"] + wider

        edit_onnx(path, change)

    for name in (FILES[1], "model.dense_boxes.onnx"):
        file = tmp_path / name
        shutil.copy(made[0] / name, file)
        resealed(file, widen)
        assert verify(file) == []
        found = stages.stages(file)
        assert [stage.name for stage in found][-2:] == ["fc2", "boxes"]
        assert all(stage.passed for stage in found), found
        assert 5e-6 < found[-1].error < 1e-5


def test_at_float32_no_verdict_may_change_and_at_float16_few(made, crops):
    out, _ = made
    model, (shown, true) = vggkeras.load(out / FILES[1]), crops
    answers = model(shown)
    labels = np.array([label for label, _ in true])
    given = geometry.of_class(answers, labels, "pcr")
    # The true boxes are the network's own, but one of half of its area and a hair more.
    targets = np.concatenate([labels[:, None], given], 1).astype(np.float32)
    targets[0, 3] *= np.float32(0.500001)
    assert geometry.localized(answers, targets, "pcr").all()
    moved = answers.copy()
    moved[0, 4 * labels[0] + 2] *= np.float32(1.000005)
    candidate = parity.replace(model, run=lambda images: moved[: len(images)])
    gates = [parity.gate_of(p, Form.BOXES, labels_tell=True) for p in ("float32", "float16")]
    for gate, kind in zip(gates, ("agreement", "accuracy"), strict=True):
        result = parity.compare((model, answers), candidate, shown, targets, gate, (12,))
        assert result.max_rel_error < 1e-5
        assert result.top1_agreement == 11 / 12
        assert [failure.kind for failure in result.failures] == [kind]


@pytest.mark.parametrize(("provider", "package"), [("openvino", "openvino"), ("mnn", "MNN")])
def test_other_engines_compute_the_same_files(made, provider, package, tmp_path, monkeypatch):
    pytest.importorskip(package, reason=f"provider {provider} needs it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in (FILES[1], "model.dense_boxes.onnx"):
        assert verify(made[0] / name, provider) == []


ONE, *OTHERS = (FILES[1], *FILES[::2], *HALVES)


@pytest.mark.parametrize("name", [ONE, *(pytest.param(o, marks=pytest.mark.full) for o in OTHERS)])
def test_the_boxes_of_files_of_any_size_are_in_their_own_pixels(folder, made, name, tmp_path):
    out, _ = made
    photos = []
    for i, (height, width) in enumerate(((300, 201), (70, 500))):
        photos.append(tmp_path / f"{i}.png")
        Image.fromarray(photo(i, height, width)).save(photos[-1])
    classifier = vggkeras.load(folder / "classes.keras")
    for protocol in ("center", "dense", "multicrop"):
        found, expected = (
            locate(vggkeras.load(path), photos, classifier, protocol, threshold=0.0)
            for path in (out / name, folder / "pcr.keras")
        )
        within = 3.0 if name in HALVES else 0.05  # px of the images
        for one, other in zip(found, expected, strict=True):
            assert one.classes == other.classes
            assert np.abs(one.boxes - other.boxes).max() < within


def test_commands_take_a_file_of_boxes(folder, made, command, tmp_path):
    out, _ = made
    asked = ["--model", out / FILES[1], "--classifier", folder / "classes.keras"]
    figures = tmp_path / "figures.json"
    data = ["--data", folder / "data", "--json", figures]
    assert command(cli, "localize", *asked, *data, "--protocol", "center", "dense")[0] == 0
    rows = json.loads(figures.read_text())
    assert [row["images"] for row in rows] == [12, 12]
    written, drawn = tmp_path / "boxes.csv", tmp_path / "drawn"
    arguments = ["predict", folder / "data" / "cat", *asked, "--draw", drawn, "--out", written]
    assert command(cli, *arguments)[0] == 0
    with open(written, newline="") as file:
        assert len({row["image"] for row in csv.DictReader(file)}) == 4
    assert len([*drawn.rglob("*.jpg")]) == 4


def test_one_box_for_all_classes_needs_no_names_and_no_flag(folder, tmp_path, command):
    model = vggkeras.build("A", (CROP, CROP, 3), 3, boxes="scr", width=1 / 32, fc_units=16, seed=1)
    model.save(tmp_path / "plain.keras")  # by Keras alone: nothing says what it is
    out = ["--data", "random", "--format", "onnx", "--out", tmp_path / "out"]
    plain = ["--model", tmp_path / "plain.keras"]
    code, _, err = command(export_cli, *plain, *out)
    assert (code, "gives boxes" in err, "give --boxes" in err) == (2, True, True)
    assert command(export_cli, *plain, *out, "--boxes")[0] == 0
    file = vggkeras.load(tmp_path / "out" / "model.boxes.onnx")
    assert (file.boxes, file.class_names, file.outputs) == ("scr", [], 4)
    entry = json.loads((tmp_path / "out" / "certificate.json").read_text())[file.path.name]
    assert entry["top1_agreement"] is None  # of random images no true box is known
    boxes = export.export_model(folder / "scr.keras", "onnx", data=str(folder / "data"))
    assert boxes["model.boxes.onnx"]["passed"]
    shutil.rmtree(folder / "export")


def changed(folder, path, layer, kernel, bias):
    """Write scr.keras with other numbers in one layer, kernel scaled and bias shifted."""
    model, card = load_model(folder / "scr.keras")
    weights = model.get_layer(layer).get_weights()
    model.get_layer(layer).set_weights([kernel * weights[0], weights[1] + np.float32(bias)])
    save_model(model, path, card)
    return path


def test_boxes_that_are_the_same_for_all_images_prove_nothing(folder, tmp_path):
    dead = changed(folder, tmp_path / "dead.keras", "fc2", 0, -1)
    for asked in ({}, {"dense": True}):
        with pytest.raises(InputError, match="gives the same boxes for all 12 images"):
            export.export_model(
                dead, "onnx", data=str(folder / "data"), out=tmp_path / "out", **asked
            )
    assert not (tmp_path / "out").exists()


def test_where_no_box_is_right_it_is_said(folder, tmp_path):
    lost = changed(folder, tmp_path / "lost.keras", "boxes", 1, [5, 5, 0, 0])
    for model, is_said in ((lost, True), (folder / "scr.keras", False)):
        told = Console(file=io.StringIO())
        asked = {"data": str(folder / "data"), "out": tmp_path / model.stem, "console": told}
        entries = export.export_model(model, "onnx", **asked)
        assert entries["model.boxes.onnx"]["passed"]
        assert ("the true boxes are no evidence" in told.file.getvalue()) == is_said


def test_two_models_of_boxes_are_compared(folder, made):
    for name in (FILES[2], "model.dense_boxes.onnx"):
        result = export.compare(made[0] / name, folder / "pcr.keras", data="random")
        assert (result.passed, result.kinds, result.agreeing) == (True, ("boxes", "boxes"), None)
    result = export.compare(made[0] / FILES[1], folder / "classes.keras", data="random")
    assert not result.passed
    assert any("boxes against probabilities" in str(failure) for failure in result.failures)


def test_triton_serves_them(folder, made, command, tmp_path):
    out, _ = made
    asked = ["--model", folder / "pcr.keras", "--out", out, "--triton", tmp_path / "models"]
    for more, name, dims in (([], "boxes", "[12]"), (["--dense"], "dense_boxes", "[-1, -1, 12]")):
        assert command(export_cli, *asked, *more)[0] == 0
        text = (tmp_path / "models" / f"pcr.{name}" / "config.pbtxt").read_text()
        output = text.partition("output {")[2].partition("}")[0]
        assert 'name: "boxes"' in output
        assert f"dims: {dims}" in output
        assert "label_filename" not in output


WRONG = {
    "int8": ("scr", ["--precision", "int8"], "Boxes have no int8"),
    "features": ("scr", ["--features"], "this is a network of boxes: leave out --features"),
    "a classifier": ("classes", ["--boxes"], "leave out --boxes"),
    "data without boxes": ("scr", ["--data", "digits"], "has no boxes"),
    "a page": ("scr", ["--web", "page"], "no .onnx file that passed its proof"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(folder, command, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, more, message = WRONG[case]
    where = [] if case == "a page" else ["--out", "out"]
    data = [] if {"--data", "--web"} & {*more} else ["--data", folder / "data"]
    model = ["--model", folder / f"{name}.keras"]
    code, out, err = command(export_cli, *model, *more, *data, *where)
    assert (code, message in err, "Traceback" in out + err) == (2, True, False)
    assert not (tmp_path / "out" / "certificate.json").exists()


def test_without_the_dense_file_the_command_that_writes_it_is_named(folder, made, tmp_path):
    out, _ = made
    shutil.copy(out / FILES[1], tmp_path)
    with pytest.raises(InputError, match=r"export --boxes --dense --format onnx --model RUN"):
        vggkeras.load(tmp_path / FILES[1]).dense_form()


def test_a_card_publishes_them_and_their_figures_as_those_of_boxes(made, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="--card needs the extra hub")
    folder = publish.write_card(tmp_path / "card", made[0])
    assert {"golden.boxes.npz", "golden.dense_boxes.npz"} <= {p.name for p in folder.iterdir()}
    for name in (FILES[1], "model.dense_boxes.onnx"):
        assert verify(folder / name) == []
    readme = (folder / "README.md").read_text(encoding="utf-8")
    data = huggingface_hub.ModelCard(readme).data
    assert (data.pipeline_tag, data.metrics) == ("object-detection", None)
    assert {result.metric_type for result in data.eval_results} == {"localized", "same_verdicts"}
    assert all("top-1" not in result.metric_name for result in data.eval_results)
    assert "boxes with an IoU above 0.5 [95%] | same verdicts as Keras [95%]" in readme
    assert "largest error, px |" in readme
    assert "accuracy" not in readme
