"""Boxes are scored, predicted and drawn in the image's own pixels, as a second reading has them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from helpers import photo
from PIL import Image

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.evaluation import paper
from vggkeras.evaluation.statistics import wilson
from vggkeras.localization import geometry, merging
from vggkeras.localization.evaluation import evaluate_boxes
from vggkeras.localization.votes import locate
from vggkeras.models import to_dense

CLASSES, CROP, SCALE = ("cat", "dog", "elk"), 64, 96


@pytest.fixture(scope="module")
def split(folder):
    return vggkeras.load_data(str(folder / "data"), boxes=True, whole=True).split("all")


def rescaled(path):
    """Return an image, its size, and it rescaled, in a second reading."""
    image = Image.open(path)
    side = min(image.size)
    size = tuple(max(SCALE, round(x * SCALE / side)) for x in image.size)
    return image.size, np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def in_pixels(box, left, top, size, pixels):
    """Return (center, extent) in a crop of a rescaled image as corners in the image's px."""
    x, y, w, h = (float(v) * CROP for v in box)
    corners = (left + x - w / 2, top + y - h / 2, left + x + w / 2, top + y + h / 2)
    ratios = size[0] / pixels.shape[1], size[1] / pixels.shape[0]
    return [c * ratios[i % 2] for i, c in enumerate(corners)]


def test_the_central_crop_gives_the_box_of_the_given_class(folder, split):
    model = vggkeras.load(folder / "pcr.keras")
    (row,) = evaluate_boxes(model, split, CLASSES)
    for i, (index, path, label) in enumerate(split.sourced()):
        size, pixels = rescaled(path)
        top, left = ((side - CROP) // 2 for side in pixels.shape[:2])
        crop = pixels[top : top + CROP, left : left + CROP]
        outputs = model(crop[None]).reshape(3, 4)[label]
        expected = in_pixels(outputs, left, top, size, pixels)
        np.testing.assert_allclose(row.boxes[i], expected, atol=1e-3)
        best = max(geometry.iou(row.boxes[i], true) for true in split.boxes.corners[index])
        assert row.given_class[i] == row.overlaps[i] == pytest.approx(best, abs=1e-9)
    assert row.box_errors == int((row.overlaps <= 0.5).sum()) == row.images - row.correct
    assert 0 < row.box_errors < row.images
    assert "class error, %" not in row.cells()


@pytest.mark.parametrize("kind", ["scr", "pcr"])
def test_every_place_votes_with_what_the_classifier_says_there(folder, split, kind):
    model, classifier = (vggkeras.load(folder / f"{n}.keras") for n in (kind, "classes"))
    dense = to_dense(vggkeras.models.load_model(folder / f"{kind}.keras")[0])
    scores = to_dense(vggkeras.models.load_model(folder / "classes.keras")[0])
    (row,) = evaluate_boxes(model, split, CLASSES, "dense", classifier=classifier)
    for i, (_, path, label) in enumerate(split.sourced()):
        size, pixels = rescaled(path)
        outputs, p = (np.asarray(net(pixels[None]))[0] for net in (dense, scores))
        votes = {c: ([], []) for c in range(3)}
        for y, x in np.ndindex(*outputs.shape[:2]):
            for c in range(3):
                box = outputs[y, x].reshape(-1, 4)[c if kind == "pcr" else 0]
                votes[c][0].append(in_pixels(box, 32 * x, 32 * y, size, pixels))
                votes[c][1].append([p[y, x, c]])
        c = int(np.argmax(p.mean((0, 1))))
        assert row.predictions[i] == c
        for number, got in ((c, row.overlaps[i]), (label, row.given_class[i])):
            merged, sums = merging.merge(*map(np.array, votes[number]))
            box = merged[np.argmax(sums)]
            true = split.boxes.corners[split.indices()[i]]
            assert got == pytest.approx(geometry.iou(box, true).max(), abs=1e-4)
    assert len(votes[0][0]) > 1
    assert row.correct == int(((row.predictions == row.labels) & (row.overlaps > 0.5)).sum())


def test_crops_of_a_grid_networks_and_scales_vote_together(folder, split):
    models = [vggkeras.load(folder / f"{n}.keras") for n in ("scr", "pcr")]
    classifier = vggkeras.load(folder / "classes.keras")
    protocols = ("center", "dense", "multicrop")
    rows = evaluate_boxes(
        models, split, CLASSES, protocols, (64, 96), classifier=classifier, fuse=True
    )
    assert len(rows) == 3 * 3 * 3
    assert {row.scales for row in rows} == {(64,), (96,), (64, 96)}
    at_64 = [row for row in rows if row.scales == (64,) and len(row.models) == 1]
    # At a smallest side of 64 px a square would have one place; these images are longer.
    assert all(row.images == 12 and 0 <= row.accuracy <= 1 for row in at_64)
    assert {row.in5.sum() for row in rows if row.box_errors == 12} <= {0}
    for row in rows:  # of three classes all are among the five
        assert row.correct5 == row.images - row.box_errors


def test_the_command_prints_and_writes_what_it_scores(folder, command, tmp_path):
    figures, answers = tmp_path / "e.json", tmp_path / "rows.csv"
    models = [folder / "scr.keras", folder / "pcr.keras"]
    arguments = ["--data", folder / "data", "--json", figures, "--per-image", answers]
    for _ in range(2):  # the second time it overwrites its own files
        code, out, err = command(cli, "localize", "--model", *models, *arguments)
        assert code == 0, err
    assert "the class given" in out
    first, second = json.loads(figures.read_text())
    wrong = first["images"] - first["correct"]
    assert first["box_error"] == first["top1_error"] == pytest.approx(wrong / 12)
    assert first["top1_error_interval"] == list(wilson(wrong, 12))
    assert second["against"][0]["mcnemar_p"] <= 1
    with open(answers, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    of_first = [row for row in rows if row["model"] == str(models[0])]
    assert sum(float(row["overlap"]) > 0.5 for row in of_first) == first["correct"]
    # `predict` has the same boxes, from the files.
    files = sorted((folder / "data").glob("*/*.png"))
    drawn = tmp_path / "drawn"
    code, out, err = command(
        cli, "predict", *files, "--model", models[0], "--draw", drawn, "--json"
    )
    assert code == 0, err
    by_image = {row["image"]: row for row in of_first}
    for line, file in zip(out.splitlines(), files, strict=True):
        found = json.loads(line)
        row = by_image[found["image"]]
        box = [float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")]
        np.testing.assert_allclose(found["boxes"][0]["box"], box, atol=0.006)
        picture = Image.open(drawn / file.parent.name / f"{file.stem}.jpg")
        assert picture.size == Image.open(file).size
        changed = np.abs(np.asarray(picture, int) - np.asarray(Image.open(file), int)).max(-1)
        x, top, bottom = (round(box[i]) for i in (0, 1, 3))
        if 2 < x < picture.width - 2:  # its left edge is drawn over, and what is far from it is not
            edge = changed[max(top, 0) + 5 : bottom - 5, x - 1 : x + 2]
            assert edge.max(1).mean() > 40 > 4 * np.median(changed)


def test_predict_says_the_class_where_there_is_a_classifier(folder, command, tmp_path):
    model, files = folder / "pcr.keras", sorted((folder / "data" / "cat").glob("*.png"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    arguments = ["--model", model, "--classifier", folder / "classes.keras", "--top", 2]
    out = tmp_path / "boxes.jsonl"
    code, text, _ = command(
        cli, "predict", *files, tmp_path / "broken.png", *arguments, "--out", out
    )
    assert code == 1
    assert "1 of 5 images could not be read" in text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    predictors = [vggkeras.load(folder / f"{n}.keras") for n in ("pcr", "classes")]
    found = locate(predictors[0], files, predictors[1], top=3)
    assert [row["class"] for row in rows] == [*(f.classes[0] for f in found), None]
    assert found[0].boxes.shape == (3, 4)
    assert sum(found[0].probabilities) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(rows[0]["xmin"], found[0].boxes[0, 0], atol=0.006)
    arrays = [np.asarray(Image.open(file)) for file in files]
    again = vggkeras.locate(predictors[0], arrays, predictors[1], top=3)
    np.testing.assert_array_equal(again[1].boxes, found[1].boxes)


def test_where_no_image_can_be_read_each_is_said(folder, command, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, out, err = command(
        cli, "predict", tmp_path / "broken.png", "--model", folder / "scr.keras"
    )
    assert (code, "1 of 1 images could not be read" in out, err) == (1, True, "")


WRONG = {
    "a classifier": ("localize", "classes", [], "gives no boxes"),
    "no class for a box a class": ("predict", "pcr", [], "needs to know the class"),
    "no classifier for many places": ("localize", "scr", ["--protocol", "dense"], "--classifier"),
    "boxes for a classifier": ("localize", "scr", ["--classifier", "pcr"], "not probabilities"),
    "other classes": ("localize", "scr", ["--classifier", "others"], "name class 2 differently"),
    "reduced decoding": ("predict", "scr", ["--fast-decode"], "--fast-decode is of classifiers"),
    "a drawing of a class": ("predict", "classes", ["--draw", "x"], "are of networks of boxes"),
    "boxes to evaluate": ("evaluate", "scr", [], "gives boxes, not probabilities"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_suit_is_refused(folder, command, case, tmp_path, monkeypatch):
    name, model, more, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    more = [folder / f"{x}.keras" if (folder / f"{x}.keras").exists() else x for x in more]
    data = [folder / "data" / "cat"] if name == "predict" else ["--data", folder / "data"]
    code, out, err = command(cli, name, *data, "--model", folder / f"{model}.keras", *more)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "x").exists()


def test_data_without_boxes_say_what_is_missing(folder, command):
    arguments = ["localize", "--model", folder / "scr.keras", "--data", "digits"]
    code, _, err = command(cli, *arguments)
    assert code == 2
    assert "has no boxes: expected a folder with boxes.csv" in err
    split = vggkeras.load_data("digits").split("validation")
    with pytest.raises(InputError, match="load the data with boxes=True"):
        evaluate_boxes(vggkeras.load(folder / "scr.keras"), split, CLASSES)


def test_drawing_spares_what_it_did_not_draw(folder, command, tmp_path):
    file = tmp_path / "a.jpg"
    Image.fromarray(photo(1, 120, 100)).save(file)
    before = file.read_bytes()
    arguments = ["predict", file, "--model", folder / "scr.keras", "--draw"]
    code, _, err = command(cli, *arguments, tmp_path)
    assert code == 2
    assert "a.jpg" in err
    assert file.read_bytes() == before
    for _ in range(2):
        assert command(cli, *arguments, tmp_path / "drawn")[0] == 0


def test_the_papers_figures_stand_beside_their_own_rows(folder, split):
    (row,) = evaluate_boxes(vggkeras.load(folder / "scr.keras"), split, CLASSES)
    assert paper.paper_localization([vggkeras.load(folder / "scr.keras")], row, True) is None
    assert paper.TABLE_8["pcr", "all"].top1 == 33.1
    assert paper.TABLE_9["384", (352, 384)].top5 == 27.5
