"""The report of a network of boxes counts what `evaluate_boxes` counts, and shows pictures."""

import csv
import json
import re

import numpy as np
from helpers import write_photos

import vggkeras
from vggkeras.card import ModelCard
from vggkeras.localization.evaluation import evaluate_boxes
from vggkeras.models import save_model
from vggkeras.report.boxes import boxed
from vggkeras.report.page import report

CLASSES = ("cat", "dog")


def test_boxes_are_counted_and_shown(tmp_path):
    rng = np.random.default_rng(0)
    with open(tmp_path / "boxes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "xmin", "ymin", "xmax", "ymax"])
        for i, name in enumerate(CLASSES):
            write_photos(tmp_path / name, 40, 100 * i, ".png")  # 40 px wide, 48 high
            for j in range(40):
                low, sides = rng.uniform(0, 15, 2), rng.uniform(8, 25, 2)
                writer.writerow([f"{name}/{j:03d}.png", name, *low, *(low + sides)])
    run, data = tmp_path / "run", str(tmp_path)
    run.mkdir()
    card = ModelCard(CLASSES, boxes="scr", image_size=32, scale=40, data=data, arch="A", exif=True)
    model = vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8, seed=0, boxes="scr")
    last = model.layers[-1]
    last.set_weights([last.kernel * 0, np.array([0.45, 0.4, 0.5, 0.5])])
    save_model(model, run / "model.keras", card)
    about = {**card.to_json(), "images": {"validation": 16}, "status": "done", "metrics": {}}
    about["recipe"] = {"arch": "A", "data": data, "boxes": "scr", "out": str(run)}
    (run / "run.json").write_text(json.dumps(about))
    text = report(run).read_text()
    predictor = vggkeras.load(run)
    split = vggkeras.load_data(data, boxes=True).split("validation").turned(upright=True)
    (row,) = evaluate_boxes(predictor, split, CLASSES)
    assert 0 < row.correct < row.images
    headline = re.sub(r"\s+", " ", text[text.index("<strong>") : text.index("</header>")])
    assert f"<strong>{100 * row.accuracy:.2f}%</strong>" in headline
    assert f"{row.correct} of {row.images} validation images" in headline
    shown = boxed([row], [predictor], split, str, data, [])
    assert [len(pictures) for _, pictures in shown.galleries] == [8, 8, 8]
    best, worst, _ = (pictures for _, pictures in shown.galleries)
    assert best[0].overlap == row.overlaps.max()
    assert worst[0].overlap == row.overlaps.min()
    for bars in (shown.classes, shown.sizes):
        assert sum(bar.images for bar in bars) == row.images
        assert sum(round(bar.value * bar.images) for bar in bars) == row.correct
    assert text.count('class="mistake"') == 24
    assert 'aria-label="Images by intersection over union of true and predicted box"' in text
    assert "Confidence" not in text
