"""Labelling into a folder: its rows, what a killed job is gone on with, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import write_photos
from hypothesis import given
from hypothesis import strategies as st
from many import COMMAND, Killing, check_ids, labelled
from pyarrow import parquet

import vggkeras
from vggkeras import files, locks
from vggkeras.__main__ import cli
from vggkeras.batch import jobs, parts
from vggkeras.batch import manifest as manifests
from vggkeras.batch.manifest import Manifest
from vggkeras.card import ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor

pytestmark = pytest.mark.integration


def test_rows_are_those_of_predict(model, tmp_path, command):
    write_photos(tmp_path / "photos", 5)
    Path("photos/002.jpg").write_text("text")
    code, text, _ = command(cli, "predict", "photos", "--model", model, "--out", "labels")
    assert code == 1
    assert "1 of 5 images could not be read" in text
    assert "photos/002.jpg: cannot be read as an image" in text
    assert "wrote 5 rows to labels" in text
    command(cli, "predict", "photos", "--model", model, "--out", "labels.parquet")
    assert parquet.read_table("labels") == parquet.read_table("labels.parquet")
    manifest = json.loads(Path("labels/_manifest.json").read_text())
    assert manifest["sha256"] == files.sha256(model)
    assert (manifest["images"], manifest["provider"], manifest["exif"]) == (5, "cpu", True)
    code, text, _ = command(
        cli, "predict", "photos", "--model", model, "--out", "all", "--top", 0, "--skip-unreadable"
    )
    assert code == 0
    posteriors = vggkeras.posteriors(vggkeras.load(model), ["photos/001.jpg"])
    row = parquet.read_table("all").to_pylist()[1]
    np.testing.assert_allclose(row["probabilities"], posteriors[0], atol=1e-6)


def test_features_are_those_of_extract_features(tmp_path, run):
    from export import export_model

    export_model(run.path, format="onnx", features=True, out=tmp_path / "export")
    write_photos(tmp_path / "photos", 4)
    Path("photos/002.jpg").write_text("text")
    model = tmp_path / "export" / "model.features.onnx"
    found = vggkeras.label("photos", model, "labels")
    assert (found.images, found.failed, found.classes) == (4, 1, {})
    rows = parquet.read_table("labels").to_pylist()
    assert list(rows[0]) == ["image", "features", "error"]
    expected = vggkeras.extract_features(
        vggkeras.load(model), [row["image"] for row in rows if not row["error"]]
    )
    given = [row["features"] for row in rows if not row["error"]]
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_every_image_once_and_the_answers_of_a_call(whole, tables, model):
    check_ids(whole, 2500)
    rows = parquet.read_table(whole).to_pylist()
    predictor = vggkeras.load(model, threads=1)
    sizes = [parquet.read_metadata(path).num_rows for path in sorted(whole.glob("part-*"))]
    assert sizes == [1024, 1024, 452]
    assert {row["class"] for row in rows} <= set(predictor.class_names)
    assert all(row["error"] is None for row in rows)
    assert {p.name for p in whole.iterdir()} == {*labelled(whole), "_manifest.json"}


@pytest.mark.parametrize("gone", [set(), {1}, {0, 2}])
def test_whatever_parts_are_there_the_rest_is_labelled(whole, tables, model, gone, tmp_path):
    out = shutil.copytree(whole, tmp_path / "labels")
    for number in gone:
        (out / f"part-{number:06d}.parquet").unlink()
    found = vggkeras.label(f"{tables}/*.parquet", model, out, threads=1, resume=True)
    assert found.begun == 2500 - sum((1024, 1024, 452)[number] for number in gone)
    assert labelled(out) == labelled(whole)


@given(st.integers(1, 10_000), st.integers(1, 3000))
def test_parts_are_all_rows_once(images, size):
    manifest = replace(EMPTY, images=images, rows_per_part=size)
    rows = [row for part in range(manifest.parts()) for row in manifest.rows_of(part)]
    assert rows == list(range(images))


EMPTY = Manifest("", "", "", "", "", 1, (1, 1, 3), "", 1, True, False, 5, (), (), (), (), 1, "")


def test_an_unreadable_image_changes_no_bit_of_the_others(tmp_path, model):
    write_photos(tmp_path / "photos", 70)
    vggkeras.label("photos", model, "before")
    Path("photos/003.jpg").write_text("text")
    vggkeras.label("photos", model, "after")
    before, after = (parquet.read_table(out).to_pylist() for out in ("before", "after"))
    assert [i for i in range(70) if before[i] != after[i]] == [3]


def test_what_has_changed_is_named(whole, tables, model, tmp_path):
    out, source = shutil.copytree(whole, tmp_path / "labels"), f"{tables}/*.parquet"
    other = model.with_name("model.tflite")
    (tmp_path / "fewer").mkdir()
    shutil.copy(next(iter(sorted(tables.iterdir()))), tmp_path / "fewer")
    wrong = {
        "is there already, with labels of 2,500 images: pass --resume": {"resume": False},
        "sha256 was .*; runtime was onnxruntime, is litert": {"model": other},
        "top was 5, is 3": {"top": 3},
        "exif was True, is False": {"exif": False},
        "threads was 1, is 2": {"threads": 2},
        "images was 2500, is 1300": {"source": "fewer/*.parquet"},
    }
    for message, changes in wrong.items():
        arguments = {"source": source, "model": model, "threads": 1, "resume": True} | changes
        with pytest.raises(InputError, match=message):
            vggkeras.label(out=out, **arguments)
    assert labelled(out) == labelled(whole)
    (out / "_manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"_manifest.json is damaged"):
        vggkeras.label(source, model, out, threads=1, resume=True)


def test_a_part_of_other_rows_is_found(whole, tables, model, tmp_path):
    out = shutil.copytree(whole, tmp_path / "labels")
    shutil.copy(out / "part-000002.parquet", out / "part-000001.parquet")
    with pytest.raises(InputError, match=r"part-000001.parquet has 452 rows and should have 1,024"):
        vggkeras.label(f"{tables}/*.parquet", model, out, threads=1, resume=True)


def test_wrong_commands_are_one_line(command, model, tmp_path):
    write_photos(tmp_path / "photos", 2)
    Path("full").mkdir()
    Path("full/mine.txt").write_text("")
    Path("list.csv").write_text("image\nphotos/000.jpg\n")
    wrong = {
        ("photos", "--out", "full"): "full is a folder of other files, such as mine.txt",
        ("photos", "--out", "full", "--resume"): "full is a folder of other files",
        ("photos", "--out", "photos"): "photos is a folder of other files",
        ("photos", "--out", "labels", "--json"): "--json prints rows",
        ("photos", "--out", "labels", "--top", "-1"): "top must be 1 or more",
        ("photos", "--out", "labels", "--workers", "2"): "are those of engine ray",
        ("photos", "--out", "a.csv", "--resume"): "are for a folder of labels",
        ("photos", "--engine", "ray"): "are for a folder of labels",
        ("list.csv", "--out", "a.csv"): "list.csv: patterns, lists and URLs",
        ("nothing", "--out", "labels"): "No image at nothing",
        ("photos", "--out", "labels", "--provider", "cuda"): "provider cuda",
    }
    for arguments, message in wrong.items():
        code, out, err = command(cli, "predict", *arguments, "--model", model)
        assert (code, out) == (2, ""), arguments
        assert message in err
        assert err.count("\n") == 1
        assert not Path("labels").exists()
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


def test_ray_that_is_not_installed_is_told(command, model, monkeypatch, tmp_path):
    write_photos(tmp_path / "photos", 1)
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: None)
    arguments = ("photos", "--model", model, "--out", "labels", "--engine", "ray")
    code, _, err = command(cli, "predict", *arguments)
    assert code == 2
    assert "Ray is not installed: pip install 'vggkeras[scale]'" in err


def test_two_jobs_in_one_folder_are_refused(tables, model, tmp_path):
    with (
        locks.locked(tmp_path / "labels"),
        pytest.raises(InputError, match=r"labels is being written by process"),
    ):
        vggkeras.label(f"{tables}/*.parquet", model, tmp_path / "labels")


def test_the_model_is_at_work_while_images_are_read_ahead(tables, tmp_path, monkeypatch):
    """Two batches are read ahead, no more; batches begin anew with each part."""
    asked, read = [], []

    def run(images: np.ndarray) -> np.ndarray:
        asked.append((len(images), len(read)))
        return np.full((len(images), 2), 0.5, np.float32)

    predictor = Predictor(
        path=tables,
        runtime="none",
        version="",
        provider="cpu",
        input_shape=(32, 32, 3),
        outputs=2,
        input_name="images",
        output_name="probabilities",
        card=ModelCard(("a", "b"), scale=32),
        run=run,
    )
    fetched = parts.Labeller.read
    monkeypatch.setattr(parts.Labeller, "read", lambda *args: (read.append(1), fetched(*args))[1])
    monkeypatch.setattr("vggkeras.runtimes.providers.cores", lambda: 1)
    request = jobs.Request((f"{tables}/*.parquet",), tmp_path / "labels")
    jobs.run(request, lambda _: predictor, lambda total, done: lambda more: None)
    assert [size for size, _ in asked] == [64] * 16 * 2 + [64] * 7 + [4]
    done = np.cumsum([size for size, _ in asked])
    ahead = [count - shown for (_, count), shown in zip(asked, done, strict=True)]
    assert max(ahead) <= 2 * manifests.BATCH + parts.TOGETHER


def test_ctrl_c_ends_with_130_and_leaves_whole_parts(whole, tables, model, tmp_path):
    out = tmp_path / "labels"
    arguments = [f"{tables}/*.parquet", "--model", str(model), "--threads", "1"]
    job = subprocess.Popen(
        [*COMMAND, *arguments, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not labelled(out) and job.poll() is None:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    if job.returncode:  # it may have been done
        assert (job.returncode, err) == (130, "interrupted\n")
    there = labelled(out)
    assert there.items() <= labelled(whole).items()
    assert {p.name for p in out.iterdir()} == {*there, "_manifest.json"}


def killing(whole, tables, model, tmp_path, *flags: str) -> Killing:
    arguments = [f"{tables}/*.parquet", "--model", str(model), "--threads", "1", *flags]
    return Killing(arguments, tmp_path / "labels", whole, seed=0)


def test_a_killed_job_is_gone_on_with_bit_for_bit(whole, tables, model, tmp_path):
    job = killing(whole, tables, model, tmp_path)
    job.kill_once(0.5)
    if job.out.exists():
        job.finish()
    assert job.ended == 1


@pytest.mark.full  # one kill, above
def test_jobs_that_are_killed_again_and_again(whole, tables, model, tmp_path):
    job = killing(whole, tables, model, tmp_path)
    while job.kills < 4:
        job.kill_once(0.5)
    if job.out.exists():
        job.finish()
    assert job.ended
