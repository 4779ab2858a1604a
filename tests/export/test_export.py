"""Exported files: the graph, what travels in it, the proof, and that the proof can fail."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import weakref

import numpy as np
import onnx
import pytest
from helpers import CARD, certify_golden_answers, trained_looking

import export
import vggkeras
from export import golden as golden_module
from export import parity, samples, subjects, to_onnx, to_saved_model, verify
from export.formats import Target, writer_of
from vggkeras import certificate, files, locks, runtimes
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import keras

pytestmark = pytest.mark.integration


@pytest.fixture
def copied(exports, tmp_path):
    shutil.copytree(exports, tmp_path / "copy")
    return tmp_path / "copy"


def write_and_compare(
    model, folder, *images, dense=False, formats=tuple(export.FORMATS)
) -> dict[str, parity.Parity]:
    form = Form.DENSE if dense else Form.CLASSIFIER
    graph = to_saved_model.inference_model(model, form)
    reference = keras.keras_predictor(model, CARD)
    card = dataclasses.replace(CARD, form=form, input_shape=reference.input_shape)
    reference = reference.dense_form() if dense else reference
    results = {}
    for name in formats:
        path = Target(folder, name, form=form).path
        writer_of(name, is_vgg=True)(graph, path, card)
        candidate = runtimes.load(path)
        assert candidate.dense == dense
        results[name] = parity.merged([parity.compare(reference, candidate, x) for x in images])
    return results


# Every configuration as ONNX; in the other formats those of every kind of layer. That TFLite's
# loop writes every one is in test_emission.py.
EVERYWHERE = (("A-LRN", True, 3), ("C", False, 1), ("E", True, 3))


@pytest.mark.parametrize(
    ("arch", "batch_norm", "channels"),
    [*EVERYWHERE, ("A", False, 3), ("A-LRN", False, 1), ("B", True, 3), ("D", False, 3)],
)
def test_every_configuration_passes_parity(arch, batch_norm, channels, tmp_path):
    shape = (64, 96, channels)
    formats = tuple(export.FORMATS) if (arch, batch_norm, channels) in EVERYWHERE else ("onnx",)
    model = trained_looking(arch, shape, batch_norm, width=0.06, fc_units=12)
    images = np.random.default_rng(1).integers(0, 256, (20, *shape), dtype=np.uint8)
    for name, result in write_and_compare(model, tmp_path, images, formats=formats).items():
        assert result.passed, (name, result.failures)
        assert result.batch_sizes == (1, 2, 7)
        assert result.top1_agreement == 1
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("Transpose") <= 1  # with one channel it is a Reshape
    assert nodes.count("LRN") == (arch == "A-LRN")
    assert not {"BatchNormalization", "Shape", "Mul"} & set(nodes)


@pytest.mark.parametrize(
    ("arch", "batch_norm"), [pytest.param("A-LRN", False, marks=pytest.mark.full), ("C", True)]
)
def test_dense_files_pass_parity_at_any_size(arch, batch_norm, tmp_path):
    model = trained_looking(arch, (64, 96, 3), batch_norm, width=0.06, fc_units=12)
    rng = np.random.default_rng(1)
    images = [
        rng.integers(0, 256, (4, *size, 3), dtype=np.uint8)
        for size in ((64, 96), (65, 131), (200, 97))
    ]
    for name, result in write_and_compare(model, tmp_path, *images, dense=True).items():
        assert result.passed, (name, result.failures)
        assert result.sizes == ((64, 96), (65, 131), (200, 97))
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.dense.onnx").graph.node]
    assert nodes.count("Transpose") <= 2 + 2 * (arch == "A-LRN")
    assert not {"BatchNormalization", "Shape", "Mul", "Gemm", "MatMul"} & set(nodes)
    # On the training size the dense network is the classifier.
    classifier = keras.keras_predictor(model, ModelCard())
    np.testing.assert_allclose(
        runtimes.load(tmp_path / "model.dense.onnx")(images[0]), classifier(images[0]), atol=1e-5
    )


@pytest.mark.parametrize("size", [32, 33, 70])
def test_sizes_that_leave_one_pixel_or_do_not_divide(size, tmp_path):
    model = trained_looking("A", (size, size, 3), False, width=0.06, fc_units=12)
    images = np.random.default_rng(1).integers(0, 256, (10, size, size, 3), dtype=np.uint8)
    for name, result in write_and_compare(
        model, tmp_path, images, formats=("onnx", "tflite")
    ).items():
        assert result.passed, (name, result.failures)


def test_keras_weights_are_gone_while_files_are_proven(run, tmp_path, monkeypatch):
    load, compare, held = subjects.load, parity.compare, []

    def loading(*arguments):
        subject = load(*arguments)
        held.append(weakref.ref(subject.reference.network))
        return subject

    def comparing(*arguments, **options):
        held.append(held[0]())
        return compare(*arguments, **options)

    monkeypatch.setattr(subjects, "load", loading)
    monkeypatch.setattr(parity, "compare", comparing)
    entries = export.export_model(run.path, "onnx", out=tmp_path / "out", images=20)
    assert entries["model.onnx"]["passed"]
    assert held[1:] == [None]


def test_certificate_and_golden_answers(exports, run):
    certificate = json.loads((exports / "certificate.json").read_text())
    assert set(certificate) == {"saved_model", "model.onnx", "model.tflite"}
    for name, entry in certificate.items():
        assert entry["passed"]
        assert entry["sha256"] == files.sha256(exports / name)
        assert entry["bytes"] == files.size(exports / name)
        assert entry["images"] == 256
        assert entry["batch_sizes"] == [1, 2, 7]
        assert entry["max_abs_error"] <= entry["tolerance"] == 1e-5
        assert entry["top1_agreement"] == 1
        low, high = entry["top1_agreement_interval"]
        assert 0.98 < low < high <= 1
        assert entry["accuracy_artifact"] == entry["accuracy_reference"] > 0.6
        assert entry["mcnemar_p"] == 1
    with np.load(exports / "golden.npz") as golden:
        assert golden["images"].dtype == np.uint8
        assert golden["probabilities"].dtype == np.float32
        p = vggkeras.load(run.path)(golden["images"])
        np.testing.assert_allclose(p, golden["probabilities"], atol=1e-6)
        assert (p.argmax(axis=1) == golden["labels"]).mean() > 0.6
    assert not [
        p.name for p in exports.iterdir() if p.name.startswith(".") or p.name.endswith(".rejected")
    ]


def test_dense_files_are_certified_and_verified_at_every_size(dense_exports, tmp_path, run):
    folder = shutil.copytree(dense_exports, tmp_path / "export")
    entries = json.loads((folder / "certificate.json").read_text())
    names = ("model.dense.onnx", "model.dense.tflite", "saved_model.dense")
    for name in names:
        entry = entries[name]
        assert entry["passed"]
        assert entry["input"]["shape"] == ["batch", "height", "width", 3]
        assert entry["sizes"] == [
            [32, 32],
            *([32 + down, 32 + right] for down, right in samples.MARGINS),
        ]
        assert entry["accuracy_artifact"] == entries["model.onnx"]["accuracy_artifact"]
        assert entry["images"] == entries["model.onnx"]["images"] + 8 * len(samples.MARGINS)
        assert verify.verify(folder / name) == []
    # Exporting the others again leaves the dense ones their golden answers.
    export.export_model(run.path, "onnx", out=folder, images=20)
    assert len(golden_module.load_golden(folder).sizes) == len(samples.MARGINS)
    for name in names:
        assert verify.verify(folder / name) == []
    golden = dict(np.load(folder / "golden.npz"))
    golden["probabilities_69x109"] = np.roll(golden["probabilities_69x109"], 1, axis=1)
    np.savez(folder / "golden.npz", **golden)
    certify_golden_answers(folder)
    assert verify.verify(folder / "model.onnx") == []
    (problem,) = verify.verify(folder / "model.dense.onnx")
    assert "at 69 x 109 px: values: largest error" in problem


def test_another_opset(tmp_path, run):
    entries = export.export_model(run.path, "onnx", data="random", out=tmp_path / "e", opset=14)
    written = onnx.load(tmp_path / "e" / "model.onnx")
    assert [o.version for o in written.opset_import if o.domain == ""] == [14]
    assert entries["model.onnx"]["passed"]
    assert "weak evidence" in entries["model.onnx"]["evidence"]
    assert entries["model.onnx"]["accuracy_artifact"] is None


def altered(predictor, change):
    return dataclasses.replace(predictor, run=lambda images: change(predictor.run(images)))


def test_parity_finds_every_planted_fault(exports, run):
    images = golden_module.load_golden(exports).images
    reference, good = vggkeras.load(run.path), vggkeras.load(exports / "model.onnx")
    assert parity.compare(reference, good, images).passed

    def poisoned(p):
        p = p.copy()
        p[0, 0] = np.nan
        return p

    faults = {
        "class names": dataclasses.replace(good, card=ModelCard(tuple(good.class_names[::-1]))),
        "input name": dataclasses.replace(good, input_name="keras_tensor"),
        "output name": dataclasses.replace(good, output_name="Softmax:0"),
        "input shape": dataclasses.replace(good, input_shape=(33, 32, 3)),
        "output": altered(good, lambda p: p[:, :-1]),
        "received float64": altered(good, lambda p: p.astype(np.float64)),
        "NaN": altered(good, poisoned),
        "largest error": altered(good, lambda p: p + np.float32(2e-5)),
        "largest error ": altered(good, lambda p: np.roll(p, 1, axis=1)),
        "largest error  ": altered(
            good, lambda p: p if len(p) != 7 else p[::-1]
        ),  # wrong at one batch size
        "running": altered(good, lambda p: 1 / 0),
    }
    for name, faulty in faults.items():
        result = parity.compare(reference, faulty, images)
        assert not result.passed
        assert any(name.strip() in str(failure) for failure in result.failures), (
            name,
            result.failures,
        )
    two = dataclasses.replace(
        altered(good, lambda p: p * np.float32(0.5)), card=ModelCard(("x",) * 10)
    )
    assert len(parity.compare(reference, two, images).failures) == 2  # all are gathered
    few = parity.compare(
        reference, good, images[:3]
    )  # shown again, so that every batch size is tried
    assert few.passed
    assert (few.images, few.batch_sizes) == (3, (1, 2, 7))
    assert not parity.compare(reference, faults["largest error  "], images[:3]).passed
    with pytest.raises(ValueError, match="received none"):
        parity.compare(reference, good, images[:0])


def test_parity_counts(exports):
    """Agreement, accuracy and McNemar's p by hand: 32 images, 3 flipped away from the label."""
    golden = golden_module.load_golden(exports)
    images, p = golden.images, golden.answers
    reference = dataclasses.replace(vggkeras.load(exports / "model.onnx"), run=lambda _: p)
    flipped = p.copy()
    flipped[:3] = np.roll(p[:3], 1, axis=1)
    result = parity.compare(
        (reference, p),
        dataclasses.replace(reference, run=lambda _: flipped),
        images,
        p.argmax(axis=1),
        batch_sizes=(32,),
    )
    assert result.top1_agreement == 29 / 32
    assert (result.accuracy_reference, result.accuracy_artifact) == (1, 29 / 32)
    assert result.mcnemar_p == pytest.approx(2 * 0.5**3)
    assert not result.passed


def test_a_file_that_fails_is_rejected_with_exit_code_1(tmp_path, run, monkeypatch, command):
    from export.__main__ import cli

    write = to_onnx.write

    def faulty(graph, *arguments):
        layer = graph.get_layer("block3_conv1")
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel, bias + 0.5])
        write(graph, *arguments)

    monkeypatch.setattr(to_onnx, "write", faulty)
    code, out, _ = command(cli, "--format", "onnx", "--model", run.path, "--out", tmp_path / "e")
    assert code == 1
    assert "NOT proven" in out
    assert "largest error" in out
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == [
        "certificate.json",
        "golden.npz",
        "model.onnx.rejected",
    ]
    entry = json.loads((tmp_path / "e" / "certificate.json").read_text())["model.onnx"]
    assert not entry["passed"]
    assert entry["failures"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert export.export_model(run.path, "onnx", out=tmp_path / "e")["model.onnx"]["passed"]
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == [
        "certificate.json",
        "golden.npz",
        "model.onnx",
    ]


def test_a_file_that_does_not_load_is_rejected_too(tmp_path, run, monkeypatch):
    monkeypatch.setattr(to_onnx, "write", lambda graph, path, *_: path.write_bytes(b"junk"))
    entry = export.export_model(run.path, "onnx", data="random", out=tmp_path / "e")["model.onnx"]
    assert not entry["passed"]
    assert "cannot be loaded by ONNX Runtime" in entry["failures"][0]
    assert (tmp_path / "e" / "model.onnx.rejected").exists()
    assert not (tmp_path / "e" / "model.onnx").exists()


def test_what_a_killed_export_left_is_swept_and_other_models_files_are_named(
    tmp_path, run, copied, capsys
):
    killed = f".partial-{locks.machine()}-1-00000000"
    (copied / killed).touch()
    (copied / f"{killed}-model.onnx").write_bytes(b"half")
    os.rename(copied / "saved_model", copied / f"{killed}~saved_model")
    vggkeras.build("A", (32, 32, 3), 10, width=0.05, fc_units=8).save(tmp_path / "other.keras")
    export.export_model(tmp_path / "other.keras", "onnx", data="random", out=copied)
    assert not [p.name for p in copied.iterdir() if p.name.startswith(".")]
    assert "not of this model: model.tflite, saved_model" in capsys.readouterr().out
    assert set(certificate.read(copied)) == {"model.onnx"}


def test_a_second_export_into_a_folder_is_refused_at_once(run, copied):
    with (
        locks.locked(copied),
        pytest.raises(InputError, match=f"{copied} is being written by process {os.getpid()}"),
    ):
        export.export_model(run.path, "onnx", out=copied)


@pytest.mark.slow
def test_a_run_that_skipped_unreadable_images_is_proven_without_them(tmp_path, photos):
    truncated, text = photos / "val" / "dog" / "002.jpg", photos / "val" / "cat" / "000.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    text.write_text("text")
    recipe = vggkeras.Recipe(
        "A", str(photos), tmp_path / "r", 32, 0.05, 8, epochs=1, batch_size=8, skip_unreadable=True
    )
    vggkeras.train(recipe)
    assert export.export_model(tmp_path / "r", "onnx")["model.onnx"]["images"] == 6


def test_a_model_that_is_not_square_is_proven_on_real_images(tmp_path, photos):
    vggkeras.build("A", (48, 64, 3), 2, width=0.05, fc_units=8).save(tmp_path / "wide.keras")
    assert export.export_model(tmp_path / "wide.keras", "onnx", data=str(photos))["model.onnx"][
        "passed"
    ]


def test_nothing_is_written_into_a_package_called_export(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").touch()
    vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8).save(tmp_path / "d.keras")
    export.export_model(tmp_path / "d.keras", "onnx")
    assert (tmp_path / "d-export" / "certificate.json").exists()
    assert [p.name for p in (tmp_path / "export").iterdir()] == ["__init__.py"]


def test_a_damaged_certificate_is_bad_input(copied, command):
    for damage in ("[]", "{}}", '{"model.onnx": {}}', '{"model.onnx": 1}'):
        (copied / "certificate.json").write_text(damage)
        code, _, err = command(verify.cli, copied / "model.onnx")
        assert code == 2, damage
        assert "certificate.json is damaged" in err


def test_golden_answers_are_no_file_to_verify(copied, command):
    code, _, err = command(verify.cli, copied / "golden.npz")
    assert code == 2
    assert "is not an exported artifact" in err


def test_a_damaged_certificate_is_said_before_anything_is_written(copied, run):
    (copied / "certificate.json").write_text("[]")
    before = {p.name: p.stat().st_mtime_ns for p in copied.iterdir()}
    with pytest.raises(InputError, match="remove it and export again"):
        export.export_model(run.path, "onnx", data="random", out=copied)
    assert {p.name: p.stat().st_mtime_ns for p in copied.iterdir()} == before


def test_a_file_keras_alone_saved_is_exported_on_random_images_or_the_data_given(tmp_path, photos):
    vggkeras.build("A", (32, 32, 3), 2, width=0.05, fc_units=8).save(tmp_path / "mine.keras")
    entries = export.export_model(tmp_path / "mine.keras", "onnx")
    assert entries["model.onnx"]["evidence"] == "random images: weak evidence"
    entries = export.export_model(tmp_path / "mine.keras", "onnx", data=str(photos))
    assert entries["model.onnx"]["evidence"] == "8 images of photos/validation"
    assert vggkeras.load(tmp_path / "export" / "model.onnx").class_names == ["cat", "dog"]


def test_a_network_that_ends_in_scores_gets_a_softmax(tmp_path, capsys):
    scores = trained_looking(
        "A", (32, 32, 3), False, width=0.05, fc_units=8, classifier_activation=None
    )
    scores.save(tmp_path / "s.keras")
    entries = export.export_model(tmp_path / "s.keras", images=16)
    assert all(entry["passed"] for entry in entries.values())
    assert "ends in class scores: a soft-max is added" in capsys.readouterr().out
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    powers = np.exp(np.asarray(scores(x)))
    answers = vggkeras.load(tmp_path / "export" / "model.onnx")(x)
    np.testing.assert_allclose(answers, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


# GB at most, of the whole process and its child; seconds are a benchmark's.
LIMITS = {"onnx": 5, "tflite": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "boxes"),
    [
        ("D", None),
        pytest.param("A-LRN", None, marks=pytest.mark.full),
        pytest.param("D", "pcr", marks=pytest.mark.full),
    ],
)
def test_full_width_at_224(arch, boxes, tmp_path):
    """Full-size networks pass parity in every format, within memory, unlike the stock export.

    One a class of a thousand, the boxes are 4,000 numbers.
    """
    vggkeras.build(arch, boxes=boxes, seed=0).save(tmp_path / "full.keras")
    form = Form.BOXES if boxes else Form.CLASSIFIER
    asked = ["--model", tmp_path / "full.keras", "--images", "4", *form.flags.split()]
    child = subprocess.run(
        [sys.executable, "-m", "export", *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    certificate = json.loads((tmp_path / "export" / "certificate.json").read_text())
    assert len(certificate) == 3
    for entry in certificate.values():
        assert entry["passed"]
        assert entry["max_rel_error"] <= 1e-5
        assert entry["output"]["shape"] == ["batch", 4000 if boxes else 1000]
    for name, gigabytes in LIMITS.items():
        rows = [line for line in child.stdout.splitlines() if line.endswith("GB │")]
        target = Target(tmp_path / "export", name, form=form)
        row = next(line for line in rows if target.name in line)
        assert verify.verify(target.path) == []
        assert float(re.search(r"([\d.]+) GB", row)[1]) <= gigabytes, child.stdout
    shutil.rmtree(tmp_path / "export")  # half a gigabyte a file
