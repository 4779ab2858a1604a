"""Predicting folders: a row an image, what is shown of few and of many, and what cannot be read."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import photo, write_photos
from PIL import Image
from pyarrow import parquet

import vggkeras
from vggkeras import rows
from vggkeras.__main__ import cli
from vggkeras.card import ModelCard
from vggkeras.commands import predict
from vggkeras.commands.predict import Prediction, classify, image_files
from vggkeras.commands.predictions import FEW, Tally, show
from vggkeras.data import reading
from vggkeras.errors import InputError
from vggkeras.evaluation import protocols
from vggkeras.runtimes.predictor import Predictor
from vggkeras.terminal import Console

pytestmark = pytest.mark.integration

HOSTILE = ("two\nlines.png", "[red]x.png", "=cmd|'x'!A0.png", '"a",b.png', "\x1b[31m.png")


def free(run=None, classes=("a", "b")) -> Predictor:
    """Return a model that costs nothing; it is sure of its last class."""
    last = np.eye(len(classes), dtype=np.float32)[-1:]
    return Predictor(
        path=Path("free"),
        runtime="none",
        version="",
        provider="cpu",
        input_shape=(32, 32, 3),
        outputs=len(classes),
        input_name="images",
        output_name="probabilities",
        card=ModelCard(classes, scale=32),
        run=run or (lambda x: last.repeat(len(x), axis=0)),
    )


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a file, the columns of lists in a .csv file as lists, "" as None."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, quoting=csv.QUOTE_NONNUMERIC))
    for row in found:
        for name, pattern in (("classes", r"class_\d+"), ("probabilities", r"(p|probability)_.+")):
            items = [row.pop(key) for key in list(row) if re.fullmatch(pattern, key)]
            row[name] = None if "" in items else items
    return [{key: None if value == "" else value for key, value in row.items()} for row in found]


@pytest.fixture
def folder(tmp_path) -> Path:
    """41 images in nested folders, two of which cannot be read, and files that are no images."""
    top = tmp_path / "images"
    write_photos(top / "a", 20, suffix=".png")
    write_photos(top / "b" / "deep", 21, 100)
    cut = top / "b" / "deep" / "003.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    (top / "a" / "005.png").write_text("text")
    (top / "notes.txt").write_text("")
    (top / "LAYERS.XCF").write_text("")
    (top / ".hidden.txt").write_text("")
    (top / ".thumbnails").mkdir()
    (top / ".thumbnails" / "x.png").write_text("")
    return top


@pytest.mark.parametrize("suffix", rows.WRITERS)
def test_rows_are_the_posteriors(suffix, folder, run, command, tmp_path):
    model = vggkeras.load(run.path)
    paths = image_files([folder])
    bad = {str(folder / "a" / "005.png"), str(folder / "b" / "deep" / "003.jpg")}
    good = [path for path in paths if path not in bad]
    expected = vggkeras.posteriors(model, good)
    out = tmp_path / f"rows{suffix}"
    for top, flags, exit_code in ((0, (), 1), (3, ("--skip-unreadable",), 0)):
        arguments = ("predict", folder, "--model", run.path, "--out", out, "--top", top, *flags)
        code, text, err = command(cli, *arguments)
        assert (code, err) == (exit_code, "")
        assert "2 of 41 images could not be read" in text
        assert ("--skip-unreadable to exit with 0" in text) == (exit_code == 1)
        assert "not read: 2 files (.txt 1, .xcf 1)" in text
        assert f"wrote 41 rows to {out}" in text
        found = read_rows(out)
        assert [row["image"] for row in found] == paths
        assert {row["image"] for row in found if row["error"]} == bad
        assert all(row["class"] is row["probabilities"] is None for row in found if row["error"])
        read = [row for row in found if not row["error"]]
        given = np.array([row["probabilities"] for row in read])
        ordered = -np.sort(-expected, axis=1)[:, :3] if top else expected
        np.testing.assert_allclose(given, ordered, atol=1e-6)
        best = [str(i) for i in expected.argmax(axis=1)]
        assert [row["class"] for row in read] == best
        np.testing.assert_allclose([row["probability"] for row in read], expected.max(1), atol=1e-6)
        if top:
            assert [row["classes"][0] for row in read] == best
    if suffix == ".parquet":
        about = json.loads(parquet.read_schema(out).metadata[b"vggkeras"])
        assert about["class_names"] == model.class_names
    assert not list(tmp_path.glob(".partial-*"))


def test_json_has_a_line_per_image_and_the_reasons(folder, run, command):
    code, out, err = command(cli, "predict", folder, "--model", run.path, "--json", "--top", "0")
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == image_files([folder])
    failed = [line for line in lines if "error" in line]
    assert [set(line) for line in failed] == [{"image", "error"}] * 2
    assert failed[0]["error"].startswith("cannot be read as a")
    assert all(len(line["classes"]) == 10 for line in lines if line not in failed)
    assert "2 of 41 images could not be read" in err
    assert "not read: 2 files" in err


def test_answers_come_window_by_window_and_memory_is_flat(tmp_path):
    asked = []

    def run(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return np.full((len(images), 2), 0.5, np.float32)

    Image.fromarray(photo(0, 100, 100)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("")
    few = [str(tmp_path / "a.png"), str(tmp_path / "b.png")] * 100
    predictions = classify(free(run), few)
    assert asked == []
    assert next(predictions).classes == ("a", "b")
    assert asked == [protocols.WINDOW]  # what cannot be read has its place in the batch
    assert [p.image for p in predictions] == few[1:]

    def peak(count: int) -> int:
        tally = Tally()
        tracemalloc.start()
        for prediction in classify(free(), few[:1] * count):
            tally.add(prediction)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert tally.read == count
        return used

    peak(40)
    assert peak(1200) < 2 * peak(300) + 1_000_000


@pytest.mark.parametrize("flag", ["--skip-unreadable", "--no-skip-unreadable"])
def test_no_image_that_can_be_read_is_exit_code_1(flag, command, run, tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    code, out, err = command(cli, "predict", "text.jpg", "--model", run.path, flag)
    assert (code, err) == (1, "")
    assert "text.jpg: cannot be read as a" in out
    assert "1 of 1 images could not be read" in out


def test_a_file_that_is_not_there_is_told_before_the_model_loads(command, monkeypatch, tmp_path):
    Image.fromarray(photo(0)).save(tmp_path / "a.png")
    monkeypatch.setattr(predict.Compute, "load", lambda *_: pytest.fail("it was loaded"))
    code, out, err = command(cli, "predict", "a.png", "none.jpg", "--model", "m.onnx")
    assert (code, out) == (2, "")
    assert "No image at none.jpg" in err


def tally_of(count: int, names=("cat", "dog"), image="{}.jpg") -> Tally:
    tally = Tally()
    for i in range(count):
        best = names[i % len(names)]
        tally.add(Prediction(image.format(i), (best, "other"), (0.75, 0.25)))
    return tally


def shown(tally: Tally, width: int, *, terminal: bool = True) -> str:
    file = io.StringIO()
    show(tally, Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


def test_no_name_is_cut_in_two():
    name = "a-long-name-" * 12 + "{}.jpg"
    for count in (2, FEW + 1):
        tally = tally_of(count, ("class-" * 12, "dog"), name)
        tally.add(Prediction(name.format("bad"), error="cannot be read (cut short)"))
        whole = [name.format("bad"), "class-" * 12, *([name.format(0)] if count == 2 else [])]
        for text in (shown(tally, 40), shown(tally, 300, terminal=False), shown(tally, 300)):
            assert all(part in text for part in whole)
            assert "(cut short)" in text
        assert "│" not in shown(tally, 40) + shown(tally, 300, terminal=False)
        assert "│" in shown(tally, 300)


def test_many_images_are_shown_by_class():
    tally = tally_of(1000, ("cat", "cat", "dog", "cat"))
    for i in range(30):
        tally.add(Prediction(f"bad{i}.jpg", error="cannot be read"))
    text = shown(tally, 80)
    assert re.search(r"cat +│ +750 │ +75.0% │ +0.7500", text)
    assert re.search(r"dog +│ +250 │ +25.0% │ +0.7500", text)
    assert "bad9.jpg: cannot be read" in text
    assert "bad10.jpg" not in text
    assert "and 20 more that could not be read" in text
    assert "cat: 750 images (75.0%), mean probability 0.7500" in shown(tally, 80, terminal=False)
    assert shown(tally_of(FEW), 80).count(".jpg") == FEW


@pytest.mark.skipif(sys.platform != "linux", reason="such names are files there")
def test_hostile_names_are_kept_in_files_and_obeyed_nowhere(tmp_path, command, run):
    for i, name in enumerate(HOSTILE):
        Image.fromarray(photo(i)).save(tmp_path / name)
    (tmp_path / f"bad{HOSTILE[0]}").write_text("")
    names = sorted([*HOSTILE, f"bad{HOSTILE[0]}"])
    for suffix in rows.WRITERS:
        out = tmp_path / f"rows{suffix}"
        code, text, _ = command(cli, "predict", ".", "--model", run.path, "--out", out)
        assert code == 1
        assert [row["image"] for row in read_rows(out)] == names
    lines = text.splitlines()
    assert "\x1b" not in text
    for name in names:
        escaped = name.replace("\n", "\\u000a").replace("\x1b", "\\u001b")
        assert sum(line.startswith(f"{escaped}: ") for line in lines) == 1, name
    assert '\n"=cmd|' in (tmp_path / "rows.csv").read_text("utf-8")


def test_a_file_is_overwritten_only_by_its_own_kind(command, run, tmp_path):
    Image.fromarray(photo(0)).save(tmp_path / "a.png")
    others = {
        "mine.csv": "image,class\na.png,cat\n",
        "mine.jsonl": '{"image": "a.png"}\n',
        "mine.parquet": "PAR1",
        "empty.csv": "",
    }
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    messages = dict.fromkeys(others, "is not a file of `vggkeras predict`: only such a file")
    messages |= {"rows.txt": "ends in .csv, .jsonl or .parquet; received '.txt'"}
    messages |= {"rows.keras": "is a model's name", ".": "is a folder"}
    for name, message in messages.items():
        code, out, err = command(cli, "predict", "a.png", "--model", run.path, "--out", name)
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())
    assert {name: (tmp_path / name).read_text() for name in others} == others
    assert not (tmp_path / "rows.txt").exists()


@pytest.mark.parametrize("suffix", rows.WRITERS)
def test_a_failure_leaves_the_old_file(suffix, tmp_path):
    path, columns = tmp_path / f"rows{suffix}", [rows.Column("image"), rows.Column("class")]
    kind = rows.kind("a file of this test", "image", "class")
    with rows.writing(path, columns) as write:
        write({"image": "a", "class": "b"})
    before = path.read_bytes()
    rows.check_out(path, kind)

    def write_and_stop() -> None:
        with rows.writing(path, columns) as write:
            for i in range(rows.ROW_GROUP + 1):
                write({"image": str(i)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_more_rows_than_a_group(tmp_path):
    count = 2 * rows.ROW_GROUP + 1
    columns = [rows.Column("image"), rows.probabilities(["a", "b"])]
    with rows.writing(tmp_path / "rows.parquet", columns) as write:
        for i in range(count):
            write({"image": str(i), "probabilities": np.array([i, 0], np.float32)})
    file = parquet.ParquetFile(tmp_path / "rows.parquet")
    assert (file.num_row_groups, file.metadata.num_rows) == (3, count)
    assert file.read().column("probabilities")[count - 1].as_py() == [count - 1, 0]


def test_a_csv_has_no_more_columns_than_programs_read(tmp_path):
    names = [str(i) for i in range(rows.CSV_CLASSES + 1)]
    columns = [rows.Column("image"), rows.probabilities(names)]
    with (
        pytest.raises(InputError, match=r"each of 1,001 classes: expected 1,000 at most"),
        rows.writing(tmp_path / "rows.csv", columns),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_folders_have_the_order_of_their_parts(folder, monkeypatch):
    (folder / "a-b").mkdir()
    Image.fromarray(photo(0)).save(folder / "a-b" / "x.PNG")
    (folder / "a.gif").write_text("")
    (folder / "loop").symlink_to(folder)
    unread: Counter[str] = Counter()
    found = image_files([folder, folder / "a.gif"], unread)
    inside = [p for p in folder.rglob("*.*") if p.suffix.lower() in (".png", ".jpg", ".gif")]
    expected = sorted(p for p in inside if ".thumbnails" not in p.parts)
    assert found == [*map(str, expected), str(folder / "a.gif")]
    assert unread == {".txt": 1, ".xcf": 1}
    monkeypatch.chdir(folder / "a-b")
    assert image_files([Path()]) == ["x.PNG"]


def test_files_that_are_not_read_are_counted_by_suffix():
    counts = {".txt": 82, ".psd": 100, ".xcf": 300}
    assert reading.unread(counts) == "not read: 482 files (.xcf 300, .psd 100, .txt 82)"
    assert reading.unread({"": 1}) == "not read: 1 file (no suffix 1)"
    many = {f".{i:02d}": 1000 for i in range(12)}
    assert reading.unread(many).endswith(".09 1,000, others 2,000)")
