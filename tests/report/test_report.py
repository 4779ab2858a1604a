"""The report: that it says what the files and the evaluation say, refuses what it cannot read, and opens anywhere."""

from __future__ import annotations

import csv
import dataclasses
import html
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import write_photos

import vggkeras
from vggkeras import models, runtimes
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.data.sources import load_data
from vggkeras.errors import InputError
from vggkeras.evaluation import scoring, statistics
from vggkeras.evaluation.tables import records, with_interval
from vggkeras.report import figures as figures_module
from vggkeras.report import page as page_module
from vggkeras.report import pictures, sources, tables

BREAKING = "<script>alert('x')<"  # as bad a name as a folder can have
DASH = "\N{EN DASH}"  # what a table shows where there is nothing


def bare_run(folder: Path, classes: list[str], data: str, **changes) -> Path:
    """A run's folder as training leaves it before its first epoch is over, with a network that has learnt nothing."""
    recipe = vggkeras.Recipe("A", data, folder, **changes)
    folder.mkdir(parents=True)
    about = {
        "arch": "A",
        "recipe": {**dataclasses.asdict(recipe), "out": str(folder), "init_from": None},
        "data": data,
        "class_names": classes,
        "image_size": 32,
        "scale": 32,
        "images": {"validation": 4 * len(classes)},
    }
    network = vggkeras.build("A", (32, 32, 3), len(classes), width=0.05, fc_units=8, seed=0)
    models.save_model(network, folder / "model.keras", ModelCard.from_json(about, folder))
    (folder / "run.json").write_text(json.dumps({**about, "status": "training", "metrics": {}}))
    return folder


def speed_of(file: str, p50: float = 2.0, rate: float = 400.0) -> dict:
    """A row as `python -m export.benchmark --json` writes it, of what the report reads."""
    ratios = {"ratio": 0.5, "ratio_range": [0.25, 1.5], "rounds": [{}, {}]}
    return {
        "file": file,
        "precision": "int8" if "int8" in file else "float32",
        "runtime": "litert",
        "version": "2.3.0",
        "provider": "cpu",
        "threads": 2,
        "cold_start_s": 0.75,
        "peak_memory_mib": 66.4,
        "bytes": 12345,
        "single_stream": {
            "queries": 1234,
            "p50_ms": p50,
            "p90_ms": 2 * p50,
            "p99_ms": 3 * p50,
            **ratios,
        },
        "offline": {"images_per_second": rate, **ratios},
    }


def speeds(*rows: dict, **changed) -> dict:
    settings = {
        "official": False,
        "rounds": 2,
        "processor": "CPU",
        "cores": 2,
        "gpu": None,
        "loadgen": "6",
        "batch": 8,
    }
    return {"settings": {**settings, **changed}, "rows": list(rows)}


@pytest.fixture(scope="module")
def page(run, exports, tmp_path_factory) -> Path:
    """The report of the trained network, beside the JSON of an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    clf, data = runtimes.load(exports / "model.onnx"), load_data("digits")
    split = data.split("validation")
    rows = scoring.evaluate(
        [clf, clf], split, data.class_names, ("center", "multicrop"), mirrors=False, grid=2
    )
    about = {"data": "digits", "split": "validation", "skipped": []}
    kept = records(rows, [None] * len(rows), split.image_name, about)
    (folder / "multicrop.json").write_text(json.dumps(kept))
    fast = speeds(speed_of("run/model.keras"), speed_of("run/export/model.int8.tflite", 1.25, 1600))
    (folder / "speed.json").write_text(json.dumps(fast))
    gpu = speeds(speed_of("$a$<b>.onnx"), official=True, gpu="some GPU")
    (folder / "gpu.json").write_text(json.dumps(gpu))
    return page_module.report(
        run.path,
        evaluations=[folder / "multicrop.json"],
        benchmarks=[folder / "speed.json", folder / "gpu.json"],
        out=folder / "report.html",
    )


@pytest.fixture(scope="module")
def rows(run):
    """What evaluate says of the trained network."""
    data = load_data("digits")
    return scoring.evaluate(
        runtimes.load(run.path),
        data.split("validation"),
        data.class_names,
        ("center", "dense"),
        mirrors=False,
    )


def text_of(page: Path) -> str:
    """What a reader reads: no tags, no entities, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def table_rows(page: Path, section: str) -> list[list[str]]:
    """Cells of the body of a section's first table."""
    text = page.read_text(encoding="utf-8")
    text = text[text.index(f'<section id="{section}">') :]
    rows = re.findall(
        r"<tr>(.*?)</tr>", text[text.index("<tbody>") : text.index("</table>")], re.DOTALL
    )
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [
        [" ".join(html.unescape(re.sub(r"<[^>]*>", "", cell)).split()) for cell in row]
        for row in cells
    ]


def test_the_command_gives_the_recipe_back(page, run, recipe, monkeypatch, command):
    told = html.unescape(
        re.sub("<[^>]*>", "", re.search(r"<pre>(.*?)</pre>", page.read_text(), re.DOTALL)[1])
    )
    others = {
        "flip": False,
        "skip_unreadable": True,
        "scale": "40:48",
        "data": "a folder",
        "learning_rate": 1e-5,
    }
    other = dataclasses.replace(recipe, init_from=Path("runs/it's one"), image_size=40, **others)
    other_json = {
        **dataclasses.asdict(other),
        "out": str(other.out),
        "init_from": str(other.init_from),
    }
    parsed = []
    monkeypatch.setattr(
        importlib.import_module("vggkeras.train"),
        "train",
        lambda recipe, *_, **__: parsed.append(recipe),
    )
    for line in (told, " ".join(tables.command(other_json))):
        assert line.startswith("python -m vggkeras train --arch A-LRN --data ")
        code, _, err = command(cli, *shlex.split(line)[3:])
        assert code == 0, err
    assert parsed == [recipe, other]
    assert "--momentum" not in told  # only what is not the default


def test_the_figures_are_those_of_evaluate(page, rows, exports):
    first, dense = rows
    told = text_of(page)
    low, high = statistics.wilson(first.correct, first.images)
    assert (
        f"{first.accuracy:.2%} top-1 accuracy by the central crop: {first.correct} of {first.images}"
        in told
    )
    assert f"95% interval {100 * low:.2f} to {100 * high:.2f}%" in told
    assert f"{first.calibration_error():.3f} expected calibration error" in told
    shown = [row for row in table_rows(page, "errors") if len(row) > 1]
    compared = statistics.Comparison.of(first, dense)
    for row, cells in zip(rows, shown, strict=False):
        assert cells[1] == row.protocol
        assert cells[3] == with_interval(row.images - row.correct, row.images)
        assert cells[4] == with_interval(row.images - row.correct5, row.images)
    assert shown[1][7:10] == [
        str(len(compared.gained)),
        str(len(compared.lost)),
        f"{compared.p:.2g}",
    ]
    matrix = [[int(cell) for cell in row[1:]] for row in table_rows(page, "classes")]
    assert matrix == first.confusion_matrix().tolist()
    for recall, images in zip(first.recalls(), first.confusion_matrix().sum(axis=1), strict=True):
        low, high = statistics.wilson(round(recall * images), int(images))
        assert f"{100 * recall:.1f} [{100 * low:.1f}, {100 * high:.1f}] {images}" in told
    certificate = json.loads((exports / "certificate.json").read_text())
    for name, cells in zip(certificate, table_rows(page, "artifacts"), strict=True):
        entry = certificate[name]
        assert cells[:3] == [name, "passed", f"{entry['max_abs_error']:.1e}"]
        assert cells[3].startswith(f"{entry['top1_agreement']:.2%} [")
        low, high = entry["accuracy_interval"]
        assert cells[4] == f"{entry['accuracy_artifact']:.2%} [{100 * low:.2f}, {100 * high:.2f}]"
        assert cells[6:] == [f"{entry['bytes']:,}", f"{entry['runtime']} {entry['version']}", "cpu"]


def test_another_evaluation_is_a_group_of_its_own(page):
    records = json.loads((page.parent / "multicrop.json").read_text())
    shown = table_rows(page, "errors")
    assert shown[3] == ["multicrop.json: digits, validation"]
    for number, (record, cells) in enumerate(zip(records, shown[4:], strict=True)):
        wrong = record["images"] - record["correct"]
        assert cells[1:4] == [
            record["protocol"],
            "37",
            with_interval(wrong, record["images"]),
        ]
        against = record["against"][0]["mcnemar_p"] if number else None
        assert cells[9] == (DASH if against is None else f"{against:.2g}")


def test_a_benchmark_is_bars_and_rows(page):
    shared = ["1,234", "0.75", "66", "12,345", "litert 2.3.0, cpu, 2 threads"]
    first, second = table_rows(page, "speed")
    assert first == [
        "run",
        "float32",
        "2.00",
        "0.50",
        "4.00",
        "6.00",
        shared[0],
        "400.0",
        "0.50",
        *shared[1:],
    ]
    spread = "0.50 [0.25, 1.50]"
    assert second == [
        "model.int8.tflite",
        "int8",
        "1.25",
        spread,
        "2.50",
        "3.75",
        shared[0],
        "1600.0",
        spread,
        *shared[1:],
    ]
    told = text_of(page)
    assert "speed.json: CPU, 2 cores; LoadGen 6, rounds in turn: 2; offline in batches of 8" in told
    assert "gpu.json: CPU, 2 cores, some GPU; LoadGen 6, the smallest lengths of MLPerf" in told
    section = page.read_text().partition('<section id="speed">')[2]
    bars = re.findall(r'<svg class="plot".*?</svg>', section, re.DOTALL)
    assert len(bars) == 4
    labels = [re.findall(r"<text[^>]*>([^<]*:[^<]*)</text>", bar) for bar in bars]
    assert labels[:2] == [
        ["run: 2", "model.int8.tflite, int8: 1.25"],
        ["run: 400", "model.int8.tflite, int8: 1600"],
    ]
    assert labels[2] == ["$a$&lt;b&gt;.onnx: 2"]
    assert "#0101" not in section  # no stand-in is left
    assert "fill: #000000" not in section  # which dark paper would hide


def test_the_mistakes_are_the_surest_ones(page, rows, tmp_path):
    beginner = bare_run(tmp_path / "run", [str(i) for i in range(10)], "digits")
    data = load_data("digits")
    (row,) = scoring.evaluate(runtimes.load(beginner), data.split("validation"), data.class_names)
    shown = []
    for written, first in ((page, rows[0]), (page_module.report(beginner), row)):
        wrong = [i for i in np.argsort(-first.confidences, kind="stable") if not first.right[i]]
        figures = re.findall(
            r'<figure class="mistake">.*?</figure>', written.read_text(), re.DOTALL
        )
        assert len(figures) == min(24, len(wrong))
        for figure, i in zip(figures, wrong, strict=False):
            expected = f"{first.class_names[first.predictions[i]]} {first.confidences[i]:.2%} is {first.labels[i]}"
            told = " ".join(re.sub("<[^>]*>", " ", figure).split())
            assert told == f"{expected} validation[{first.indices[i]}]"
            assert 'src="data:image/jpeg;base64,' in figure
            assert (
                f'alt="validation[{first.indices[i]}]: labelled {first.labels[i]}, answered'
                in figure
            )
        shown.append(len(figures))
    assert shown[0] > 0
    assert shown[1] == 24


def test_the_curves_mark_drops_and_the_best_epoch(run):
    history = [
        {
            "epoch": e,
            "loss": 1,
            "accuracy": 0.5,
            "val_loss": 1,
            "val_accuracy": a,
            "learning_rate": rate,
        }
        for e, a, rate in ((1, 0.5, 0.1), (2, 0.6, 0.1), (3, 0.6, 0.01), (4, 0.4, 0.001))
    ]
    source = dataclasses.replace(sources.read_source(run.path), history=history)
    assert source.drops == [3, 4]
    assert source.best is history[1]
    loss, accuracy, rate = (curve["svg"] for curve in figures_module.curves(source))
    for svg in (loss, accuracy, rate):
        assert svg.count("stroke-dasharray: 0.8,1.6") == 2  # the drops
        assert "<style" not in svg
        assert "http" not in svg
        assert "#0101" not in svg  # no stand-in is left
    assert "0.001" in rate
    ids = re.findall(r'id="([^"]*)"', loss + accuracy + rate)
    assert len(set(ids)) == len(ids)
    with open(run.path / "history.csv") as file:
        found = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert sources.read_source(run.path).history == found
    assert sources.read_source(run.path).best["epoch"] == run.metadata["best_epoch"]


def test_nothing_of_the_page_is_elsewhere_and_nothing_runs(page):
    text = page.read_text()
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert re.search(r" on[a-z]+=", text) is None
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    for target in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text):
        assert "".join(target) in ids
    assert set(re.findall(r'src="(data:image/[a-z]*)', text)) == {
        "data:image/jpeg",
        "data:image/png",
    }
    assert all(re.search(r'alt="[^"]', image) for image in re.findall(r"<img[^>]*>", text))


def test_grad_cam_weighs_the_maps_by_the_gradient_of_the_score():
    """By hand in float64: back through the three layers and the pooling, whose gradient goes to the largest value."""
    network = vggkeras.build("A", (64, 64, 3), 5, batch_norm=True, width=0.05, fc_units=12, seed=1)
    rng = np.random.default_rng(0)
    for weight in network.weights:  # no bias is 0, as after some training
        if "bias" in weight.name or "beta" in weight.name:
            weight.assign(rng.normal(0, 0.1, weight.shape))
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    maps = network.get_layer("block5_pool").input
    (a,) = np.asarray(keras.Model(network.input, maps)(image[None], training=False))  # [4, 4, C]
    a = a.astype(np.float64)
    (k1, b1), (k2, b2), (k3, _) = (
        [np.asarray(w, np.float64) for w in network.get_layer(name).weights]
        for name in ("fc1", "fc2", "predictions")
    )
    pooled = a.reshape(2, 2, 2, 2, -1).max(axis=(1, 3)).reshape(-1)
    first = pooled @ k1 + b1
    second = np.maximum(first, 0) @ k2 + b2
    gradient = k1 @ ((first > 0)[:, None] * (k2 @ ((second > 0)[:, None] * k3)))  # [4 * C, 5]
    weights = gradient.reshape(4, -1, 5).sum(axis=0) / 16  # a map has 4 x 4 cells
    found = pictures.grad_cam(network, np.stack([image] * 5), range(5))
    assert found.shape == (5, 4, 4)
    assert found.dtype == np.float32
    expected = np.maximum(a @ weights, 0).transpose(2, 0, 1)  # [5, 4, 4]
    assert (expected > 0).any(axis=(1, 2)).sum() >= 2
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_names_that_would_be_markup_are_text(tmp_path):
    for split, count in (("train", 2), ("val", 4)):
        for c, name in enumerate((BREAKING, "b&b")):
            write_photos(tmp_path / "photos" / split / name, count, 10 * c)
    (tmp_path / "photos" / "val" / "b&b" / "000.jpg").rename(
        tmp_path / "photos" / "val" / "b&b" / '"><img src=x>.jpg'
    )
    run = bare_run(
        tmp_path / "run", sorted((BREAKING, "b&b")), str(tmp_path / "photos"), scale="40"
    )
    text = page_module.report(run).read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert html.escape(BREAKING).replace("&#x27;", "&#39;") in text
    assert "b&amp;b/&#34;&gt;&lt;img src=x&gt;.jpg" in text
    assert "it has done 0 of 74 epochs" in text


def test_many_classes_are_a_heat_map_and_lists(tmp_path):
    names = [f"class {i:02d}" for i in range(52)]
    for split in ("train", "val"):
        for i, name in enumerate(names):
            write_photos(tmp_path / "photos" / split / name, 1 if split == "train" else 4, 10 * i)
    run = bare_run(tmp_path / "run", names, str(tmp_path / "photos"))
    page = page_module.report(run)
    text = page.read_text()
    assert "heat map" in text
    assert len(table_rows(page, "classes")) == 20
    assert "Recall of the 30 worst of 52 classes" in text_of(page)
    assert text.count('class="bar"') == 30


def test_a_run_without_a_model_has_its_curves_alone(run, tmp_path, command):
    unfinished = {**run.metadata, "status": "training", "data": "nowhere"}  # no data are needed
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(unfinished))
    code, out, _ = command(cli, "report", "run", "--out", "a/page.html")
    assert code == 0
    assert "report: a/page.html" in out
    told = text_of(tmp_path / "a" / "page.html")
    assert "neither a model nor a finished epoch" in told
    shutil.copy(run.path / "history.csv", tmp_path / "run")
    assert command(cli, "report", "run")[0] == 0
    text = (tmp_path / "run" / "report.html").read_text()
    told = text_of(tmp_path / "run" / "report.html")
    assert (
        "This run is not finished: it has done 6 of 6 epochs. It has no model.keras, so only its curves"
        in told
    )
    assert f"{run.metadata['metrics']['val_accuracy']:.2%} best validation accuracy so far" in told
    assert text.count("<svg") == 3
    assert 'id="mistakes"' not in text


def test_an_export_has_a_row_a_file(exports, command, rows):
    certificate = json.loads((exports / "certificate.json").read_text())
    code, _, err = command(cli, "report", exports, "--out", "page.html")
    assert code == 0, err
    page = Path("page.html")
    assert [row[0] for row in table_rows(page, "errors")] == list(certificate)
    assert all(row[1] == "center" for row in table_rows(page, "errors"))
    assert len(table_rows(page, "artifacts")) == len(certificate)
    first = rows[0]
    assert (
        f"{first.accuracy:.2%} top-1 accuracy by the central crop: {first.correct} of"
        in text_of(page)
    )
    assert "python -m vggkeras train --arch A-LRN" in text_of(page)
    assert 'id="looks"' not in page.read_text()  # that is of Keras models


def test_artifacts_that_failed_are_gone_or_changed_are_told(exports, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    shutil.copy(exports / "model.onnx", folder)
    certificate = json.loads((exports / "certificate.json").read_text())
    certificate["model.tflite"] |= {
        "passed": False,
        "failures": ["values: largest error 1"],
        "max_abs_error": None,
    }
    certificate["model.onnx"] |= {"sha256": "0" * 64, "milliseconds": 1.234}
    (folder / "certificate.json").write_text(json.dumps(certificate))
    page = page_module.report(folder)
    artifacts = {cells[0]: cells for cells in table_rows(page, "artifacts")}
    assert artifacts["saved_model"][1] == "passed; the file is gone"
    assert artifacts["model.onnx"][1] == "passed; the file was changed since"
    assert artifacts["model.onnx"][5] == "1.23"
    assert artifacts["model.tflite"][1].startswith("failed")
    assert artifacts["model.tflite"][2] == DASH
    assert "model.tflite : values: largest error 1" in text_of(page)
    assert [row[0] for row in table_rows(page, "errors")] == ["model.onnx"]


def test_a_report_goes_on_without_unreadable_images_when_asked(command, photos, tmp_path):
    recipe = vggkeras.Recipe(
        "A", str(photos), tmp_path / "r", 32, width=0.02, fc_units=4, epochs=1, batch_size=8
    )
    vggkeras.train(recipe)
    cut = photos / "val" / "cat" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    code, _, err = command(cli, "report", tmp_path / "r")
    assert code == 2
    assert "001.jpg cannot be read" in " ".join(err.split())
    assert command(cli, "report", tmp_path / "r", "--skip-unreadable")[0] == 0
    assert "of 7 validation images" in text_of(tmp_path / "r" / "report.html")


def test_every_mistake_is_one_line_and_exit_code_2(command, tmp_path, run, exports, photos):
    def copy(name: str, **changed: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("run.json", "history.csv"):
            (folder / file).write_text(
                changed.get(file.split(".")[0], (run.path / file).read_text())
            )
        shutil.copy(run.path / "model.keras", folder)
        return folder

    header = "epoch,accuracy,loss,val_accuracy,val_loss,learning_rate\n"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad-export").mkdir()
    (tmp_path / "bad-export" / "certificate.json").write_text('{"model.onnx": {}}')
    for name, text in (("cut", '{"model.onnx": '), ("none", "{}")):
        (tmp_path / f"{name}-export").mkdir()
        (tmp_path / f"{name}-export" / "certificate.json").write_text(text)
    (tmp_path / "no-rows.json").write_text("[]")
    (tmp_path / "many.json").write_text(
        '[{"data": "d", "split": "s", "correct": 9, "correct5": 9, "images": 5, "model": "m"}]'
    )
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "other.json").write_text('[{"model": "a", "images": 5}]')
    (tmp_path / "no-speed.json").write_text(json.dumps(speeds()))
    (tmp_path / "half.json").write_text(json.dumps(speeds({"file": "a.onnx"})))
    (tmp_path / "nan.json").write_text(json.dumps(speeds(speed_of("a.onnx", float("nan")))))
    (tmp_path / "file").write_text("")
    copy("moved", run=json.dumps({**run.metadata, "data": str(tmp_path / "gone")}))
    cases = [
        ([], "No folder runs/latest: expected a run's or an export's"),
        (["none"], "No folder none"),
        (["empty"], "neither run.json nor certificate.json"),
        ([copy("a", run="{")], "a/run.json is damaged"),
        ([copy("b", run='{"recipe": {}}')], "b/run.json is damaged"),
        ([copy("c", history=header + "1,2,3\n")], "c/history.csv is damaged"),
        ([copy("d", history=header + "1,2,3,x,5,6\n")], "could not convert string to float"),
        ([copy("e", history=header)], "no epoch"),
        ([copy("f", history="epoch,loss\n1,2\n")], "no column accuracy, learning_rate"),
        ([copy("g", history=header + "1,2,3,nan,5,6\n")], "not finite"),
        (["bad-export"], "bad-export/certificate.json is damaged (an entry has no bytes"),
        (["cut-export"], "cut-export/certificate.json is damaged (Expecting value"),
        (["none-export"], "names no artifact"),
        ([copy("h", history=header + "1,2,3")], "a row is cut short"),
        ([run.path, "--evaluation", "no.json"], "No evaluation at no.json"),
        (
            [run.path, "--evaluation", "no-rows.json"],
            "no-rows.json is no evaluation, a list of rows",
        ),
        ([run.path, "--evaluation", "many.json"], "a row has more right answers than images"),
        ([run.path, "--evaluation", "text.json"], "text.json is no evaluation"),
        ([run.path, "--evaluation", "other.json"], "evaluate --json FILE` writes"),
        (
            [run.path, "--evaluation", exports / "certificate.json"],
            "certificate.json is no evaluation",
        ),
        ([run.path, "--benchmark", "no.json"], "No benchmark at no.json"),
        ([run.path, "--benchmark", "text.json"], "text.json is no benchmark"),
        ([run.path, "--benchmark", "no-rows.json"], "no-rows.json is no benchmark"),
        ([run.path, "--benchmark", "no-speed.json"], "export.benchmark --json FILE` writes"),
        (
            [run.path, "--benchmark", "half.json"],
            "half.json is no benchmark (KeyError: 'single_stream')",
        ),
        ([run.path, "--benchmark", "nan.json"], "a figure of a.onnx is not a number above 0"),
        ([run.path, "--out", "empty"], "empty is a folder"),
        ([run.path, "--out", "file/page.html"], "a file, not a folder"),
        (["moved"], "give --data where they are now"),
        (["moved", "--data", "nowhere"], "Unknown data 'nowhere'"),
        (["moved", "--data", photos], "10 classes and the data 2"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        code, _, err = command(cli, "report", *arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2, (arguments, err)
        assert len(lines) == 1, err
        assert message in lines[0], (arguments, err)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind
    assert command(cli, "report", "moved", "--data", "digits")[0] == 0


def test_another_backend_is_refused(run, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="set KERAS_BACKEND=tensorflow"):
        page_module.report(run.path, out="page.html")


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_in_a_browser(page, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab, said, asked = context.new_page(), [], []
    tab.on(
        "console",
        lambda message: said.append(message.text) if message.type in ("error", "warning") else None,
    )
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    images = tab.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(images) > 10
    assert all(images)
    ink, paper = tab.evaluate(
        "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor] })()"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    assert tab.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == ink
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    context.close()


def test_it_needs_no_script_and_prints(page, browser, tmp_path):
    context = browser.new_context(viewport={"width": 360, "height": 800}, java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert len(tab.screenshot(full_page=True)) > 50_000
    tab.emulate_media(media="print", color_scheme="dark")
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    context.close()
