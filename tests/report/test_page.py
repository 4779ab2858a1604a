"""The report says what the files and the evaluation say, and needs nothing outside its page."""

from __future__ import annotations

import dataclasses
import html
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import bare_run, write_photos

from vggkeras import certificate, runtimes
from vggkeras.__main__ import cli
from vggkeras.data.sources import load_data
from vggkeras.departures import command as command_line
from vggkeras.evaluation import scoring, statistics
from vggkeras.evaluation.tables import with_interval
from vggkeras.report.header import run_facts
from vggkeras.report.page import REPORT, report
from vggkeras.report.sources import read_source
from vggkeras.training.record import EpochsChange

pytestmark = pytest.mark.integration

BREAKING = "<script>alert('x')<"  # as bad a name as a folder can have
DASH = "\N{EN DASH}"  # what a table shows where there is nothing


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


@pytest.mark.slow
def test_the_command_gives_the_recipe_back(page, recipe, monkeypatch, command):
    shown = re.search(r"<pre>(.*?)</pre>", page.read_text(), re.DOTALL)[1]
    shown = html.unescape(re.sub("<[^>]*>", "", shown))
    other = dataclasses.replace(
        recipe,
        init_from="runs/it's one",
        image_size=40,
        flip=False,
        skip_unreadable=True,
        scale="40:48",
        data="a folder",
        learning_rate=1e-5,
    )
    parsed = []
    training = importlib.import_module("vggkeras.training.train")
    monkeypatch.setattr(training, "train", lambda recipe, *_, **__: parsed.append(recipe))
    for line in (shown, " ".join(command_line(other))):
        assert line.startswith("python -m vggkeras train --arch A-LRN --data ")
        code, _, err = command(cli, *shlex.split(line)[3:])
        assert code == 0, err
    assert parsed == [recipe, other]
    assert "--momentum" not in shown  # only what is not the default


def test_the_facts_name_the_recipe_and_where_validation_comes_from(run):
    source = read_source(run.path)
    facts = dict(run_facts(source))
    assert facts["recipe"].startswith("not the paper's: batch normalization, 0.1 of the filters")
    assert "validation" not in facts  # the stored network's card does not say it
    record = dataclasses.replace(source.record, epochs_changed=(EpochsChange(4, 4, 6),))
    card = dataclasses.replace(source.card, validation="split train[80%:]")
    facts = dict(run_facts(dataclasses.replace(source, card=card, record=record)))
    assert facts["validation"] == "split train[80%:]"
    assert facts["training"].endswith("; 6 instead of 4 since epoch 4")


def test_the_figures_are_those_of_evaluate(page, rows, exports):
    first, dense = rows
    text = text_of(page)
    low, high = statistics.wilson(first.correct, first.images)
    headline = f"{first.accuracy:.2%} top-1 accuracy by the central crop"
    assert f"{headline}: {first.correct} of {first.images}" in text
    assert f"95% interval {100 * low:.2f} to {100 * high:.2f}%" in text
    assert f"{first.calibration_error():.3f} expected calibration error" in text
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
        assert f"{100 * recall:.1f} [{100 * low:.1f}, {100 * high:.1f}] {images}" in text
    entries = json.loads((exports / "certificate.json").read_text())
    for name, cells in zip(entries, table_rows(page, "artifacts"), strict=True):
        entry = entries[name]
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
    text = text_of(page)
    assert "speed.json: CPU, 2 cores; LoadGen 6, rounds in turn: 2; offline in batches of 8" in text
    assert "gpu.json: CPU, 2 cores, some GPU; LoadGen 6, the smallest lengths of MLPerf" in text
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


def test_the_mistakes_are_the_most_confident_ones(page, rows, many):
    data = load_data(str(many.parents[1] / "photos"))
    split = data.split("validation")
    (row,) = scoring.evaluate(runtimes.load(many.parent), split, data.class_names)
    paths = [str(Path(split.image_name(i)).relative_to(data.spec)) for i in row.indices]
    digits = [f"validation[{i}]" for i in rows[0].indices]
    shown = []
    for written, first, images in ((page, rows[0], digits), (many, row, paths)):
        wrong = [i for i in np.argsort(-first.confidences, kind="stable") if not first.right[i]]
        text = written.read_text()
        figures = re.findall(r'<figure class="mistake">.*?</figure>', text, re.DOTALL)
        assert len(figures) == min(24, len(wrong))
        for figure, i in zip(figures, wrong, strict=False):
            label, answer = (first.class_names[k[i]] for k in (first.labels, first.predictions))
            caption = " ".join(re.sub("<[^>]*>", " ", figure).split())
            assert caption == f"{answer} {first.confidences[i]:.2%} is {label} {images[i]}"
            assert 'src="data:image/jpeg;base64,' in figure
            assert f'alt="{images[i]}: labeled {label}, answered {answer}' in figure
        shown.append(len(figures))
    assert shown[0] > 0
    assert shown[1] == 24


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
    assert REPORT.holds(report(run))  # the same command may overwrite it
    text = (run / "report.html").read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert html.escape(BREAKING).replace("&#x27;", "&#39;") in text
    assert "b&amp;b/&#34;&gt;&lt;img src=x&gt;.jpg" in text
    assert "it has done 0 of 74 epochs" in text


def test_many_classes_are_a_heat_map_and_lists(many):
    text = many.read_text()
    assert "heat map" in text
    assert len(table_rows(many, "classes")) == 20
    assert "Recall of the 30 worst of 52 classes" in text_of(many)
    assert text.count('class="bar"') == 30


def test_a_run_without_a_model_has_its_curves_alone(run, tmp_path, command):
    unfinished = {**run.metadata, "status": "training", "data": "nowhere"}  # no data are needed
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(unfinished))
    code, out, _ = command(cli, "report", "run", "--out", "a/page.html")
    assert code == 0
    assert "report: a/page.html" in out
    text = text_of(tmp_path / "a" / "page.html")
    assert "neither a model nor a finished epoch" in text
    shutil.copy(run.path / "history.csv", tmp_path / "run")
    assert command(cli, "report", "run")[0] == 0
    page = tmp_path / "run" / "report.html"
    text = text_of(page)
    assert (
        "This run is not finished: it has done 6 of 6 epochs. "
        "It has no model.keras, so only its curves" in text
    )
    accuracy = f"{run.metadata['metrics']['val_accuracy']:.2%}"
    assert f"{accuracy} validation accuracy of the best epoch so far, " in text
    assert page.read_text().count("<svg") == 3
    assert 'id="mistakes"' not in page.read_text()


def test_an_export_has_a_row_a_file(exports, command, rows):
    entries = json.loads((exports / "certificate.json").read_text())
    code, _, err = command(cli, "report", exports, "--out", "page.html")
    assert code == 0, err
    page = Path("page.html")
    assert [row[0] for row in table_rows(page, "errors")] == list(entries)
    assert all(row[1] == "center" for row in table_rows(page, "errors"))
    assert len(table_rows(page, "artifacts")) == len(entries)
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
    entries = certificate.read(exports)
    failed = {"passed": False, "failures": ["values: largest error 1"], "max_abs_error": None}
    other = {"sha256": "0" * 64, "milliseconds": 1.234}
    for name, values in (("model.tflite", failed), ("model.onnx", other)):
        entries[name] = dataclasses.replace(entries[name], **values)
    (folder / certificate.CERTIFICATE).write_text(certificate.text_of(entries))
    page = report(folder)
    artifacts = {cells[0]: cells for cells in table_rows(page, "artifacts")}
    assert artifacts["saved_model"][1] == "passed; the file is gone"
    assert artifacts["model.onnx"][1] == "passed; the file was changed since"
    assert artifacts["model.onnx"][5] == "1.23"
    assert artifacts["model.tflite"][1].startswith("failed")
    assert artifacts["model.tflite"][2] == DASH
    assert "model.tflite : values: largest error 1" in text_of(page)
    assert [row[0] for row in table_rows(page, "errors")] == ["model.onnx"]


def test_a_report_goes_on_without_unreadable_images_when_asked(command, photos, tmp_path):
    run = bare_run(tmp_path / "r", ["cat", "dog"], str(tmp_path / "gone"))
    cut = photos / "val" / "cat" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    code, _, err = command(cli, "report", run, "--data", photos)
    assert code == 2
    assert "001.jpg cannot be read" in " ".join(err.split())
    assert command(cli, "report", run, "--data", photos, "--skip-unreadable")[0] == 0
    assert "of 7 validation images" in text_of(run / "report.html")
