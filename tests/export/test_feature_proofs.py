"""What proves exported files of features: certificates, golden answers, checksums, parity."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from feature_shapes import NAMES, PLAIN, SMALLEST, UNITS, shown
from helpers import (
    NOTHING_ELSE,
    REPOSITORY,
    certify_golden_answers,
    edit_onnx,
    resealed,
    the_mean_of_the_graph,
    trained_looking,
)

import export
import vggkeras
from export import artifact, parity, samples, to_onnx, verify
from export import golden as golden_module
from export import stages as stages_module
from export.__main__ import cli as export_cli
from vggkeras import certificate, files
from vggkeras.card import Form, ModelCard
from vggkeras.errors import InputError

pytestmark = pytest.mark.integration


def test_the_certificate_says_what_features_have(made):
    entries = json.loads((made / "export" / "certificate.json").read_text())
    for name in NAMES:
        entry = entries[name]
        assert entry["passed"]
        assert entry["sha256"] == files.sha256(made / "export" / name)
        assert (entry["features"], entry["output"]["name"], entry["output"]["shape"]) == (
            UNITS,
            "features",
            ["batch", UNITS],
        )
        assert entry["max_rel_error"] <= entry["tolerance"] == 1e-5
        assert 1 - 1e-9 < entry["smallest_cosine"] <= 1
        assert entry["images"] == 10 + 8 * len(samples.MARGINS)
        assert entry["sizes"] == [
            [64, 96],
            *([64 + down, 96 + right] for down, right in samples.MARGINS),
        ]
        assert entry["milliseconds"] > 0
        for of_classes in (
            "top1_agreement",
            "top1_agreement_interval",
            "accuracy_artifact",
            "accuracy_interval",
            "mcnemar_p",
        ):
            assert entry[of_classes] is None
    assert entries["model.onnx"]["features"] is entries["model.onnx"]["smallest_cosine"] is None


def test_the_others_are_left_as_they_were_and_leave_these(made, copied_features):
    names = {path.name for path in (made / "export").iterdir()}
    before = {path.name for path in (made / "before").iterdir()}
    assert names - before == {*NAMES, "golden.features.npz"}
    entries = certificate.read(made / "export")
    assert {name: entries[name] for name in PLAIN} == certificate.read(made / "before")
    for name in before - {"certificate.json"}:
        assert files.sha256(made / "export" / name) == files.sha256(made / "before" / name), name
    golden = (copied_features / "golden.features.npz").read_bytes()
    export.export_model(
        made / "net.keras", "onnx", data=str(made / "photos"), out=copied_features, images=6
    )
    after = certificate.read(copied_features)
    assert {name: after[name] for name in NAMES} == {name: entries[name] for name in NAMES}
    assert after["model.onnx"].images == 6
    assert (copied_features / "golden.features.npz").read_bytes() == golden
    for name in NAMES:
        assert verify.verify(copied_features / name) == []
    (copied_features / "golden.features.npz").write_bytes(golden[:-1])
    assert "golden.features.npz: not what it was" in verify.verify(copied_features / NAMES[1])[0]


@pytest.mark.full  # the others are left as they were, below
def test_golden_answers_of_another_models_dense_files_are_not_kept(made, tmp_path):
    out = tmp_path / "e"
    trained_looking("A", (32, 32, 3), False, width=0.06, fc_units=8).save(tmp_path / "other.keras")
    export.export_model(tmp_path / "other.keras", "onnx", data="random", out=out, dense=True)
    assert golden_module.load_golden(out).sizes
    asked = {"data": str(made / "photos"), "out": out, "images": 5}
    export.export_model(made / "net.keras", "onnx", features=True, **asked)
    export.export_model(made / "net.keras", "onnx", **asked)
    assert golden_module.load_golden(out).sizes == ()


def test_golden_features_lie_beside(made, keras_form):
    golden = golden_module.load_golden(made / "export", Form.FEATURES)
    images, features, sizes = golden.images, golden.answers, golden.sizes
    labels = golden.labels
    np.testing.assert_allclose(features, keras_form(images), rtol=0, atol=1e-6 * features.max())
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [one.shape[1:3] for one, _ in sizes] == [
        (64 + down, 96 + right) for down, right in samples.MARGINS
    ]
    for one, answers in sizes:
        np.testing.assert_allclose(answers, keras_form(one), rtol=0, atol=1e-6 * features.max())


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_verified_alone(name, alone_features, command):
    path = alone_features(name)
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert command(verify.cli, path)[:2] == (0, f"{path}: passed\n")


@pytest.mark.parametrize("name", ["model.features.onnx", "model.features.tflite"])
def test_numpy_pillow_and_the_runtime_are_enough(name, alone_features):
    packages = {
        ".onnx": "onnxruntime,flatbuffers,google,packaging",
        ".tflite": "ai_edge_litert,flatbuffers,ml_dtypes,google,tqdm,typing_extensions,backports",
    }
    path = alone_features(name)
    child = subprocess.run(
        [sys.executable, "-c", NOTHING_ELSE, packages[path.suffix], "--explain", name],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert f"{name}: passed" in child.stdout
    assert "no difference" in child.stdout


@pytest.mark.parametrize("name", ["model.features.onnx", "model.features.tflite"])
def test_no_flipped_byte_escapes(name, made, tmp_path):
    whole = (made / "export" / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 20), *range(0, 24, 3), *range(-700, 0, 70)]:
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        (tmp_path / name).write_bytes(data)
        try:
            assert verify.verify(tmp_path / name), place
        except InputError:  # it does not even look like one of ours
            continue


def test_a_flipped_byte_of_a_saved_model_is_found(alone_features):
    path = alone_features("saved_model.features")
    for file in (
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "assets.extra/golden.npz",
    ):
        data = bytearray((path / file).read_bytes())
        data[len(data) // 2] ^= 1
        (path / file).write_bytes(data)
        assert verify.verify(path), file
        data[len(data) // 2] ^= 1
        (path / file).write_bytes(data)
        assert verify.verify(path) == []


@pytest.mark.parametrize("name", ["model.features.onnx", "model.features.tflite"])
def test_altered_weights_with_new_checksums_are_caught_by_their_answers(name, alone_features):
    path = alone_features(name)
    resealed(path, the_mean_of_the_graph)
    (problem,) = verify.verify(path)
    assert re.search(r"values: largest error .* of the largest feature and exceeds 1e-05", problem)


def test_answers_at_other_sizes_are_held_against_the_golden_ones_beside(copied_features):
    golden = dict(np.load(copied_features / "golden.features.npz"))
    golden["features_101x173"] = np.roll(golden["features_101x173"], 1, axis=1)
    np.savez(copied_features / "golden.features.npz", **golden)
    certify_golden_answers(copied_features, Form.FEATURES)
    (problem,) = verify.verify(copied_features / "model.features.onnx")
    assert "at 101 x 173 px: values: largest error" in problem
    assert verify.verify(copied_features / "model.onnx") == []


def altered(predictor, change):
    return dataclasses.replace(predictor, run=lambda images: change(predictor.run(images)))


def test_parity_finds_every_planted_fault(made, keras_form):
    images = golden_module.load_golden(made / "export", Form.FEATURES).images
    good, plain = (
        vggkeras.load(made / "export" / name) for name in ("model.features.onnx", "model.onnx")
    )
    largest = np.float32(keras_form(images).max())

    def poisoned(features):
        features = features.copy()
        features[0, 0] = np.nan
        return features

    faults = {
        "output name": dataclasses.replace(good, output_name="embedding"),
        "class names": dataclasses.replace(
            good, form=Form.CLASSIFIER, outputs=1, card=ModelCard(("a",))
        ),
        "output: expected float32": altered(good, lambda f: f[:, :-1]),
        "received float64": altered(good, lambda f: f.astype(np.float64)),
        "NaN": altered(good, poisoned),
        "largest error": altered(good, lambda f: f + 2e-5 * largest),
        "largest error ": altered(
            good, lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)
        ),  # normalised
        "largest error  ": altered(good, lambda f: f if len(f) != 7 else f[::-1]),
        "running": altered(good, lambda f: 1 / 0),
        "output name ": plain,
    }
    assert parity.compare(keras_form, good, images).passed
    assert parity.compare(keras_form, altered(good, lambda f: f + 5e-6 * largest), images).passed
    for name, faulty in faults.items():
        result = parity.compare(keras_form, faulty, images)
        assert any(name.strip() in str(failure) for failure in result.failures), (
            name,
            result.failures,
        )
        assert result.top1_agreement is result.top1_agreement_interval is None


def test_cosines_by_hand(made, keras_form):
    images = shown(SMALLEST, 3)
    ours = np.zeros((3, UNITS), np.float32)
    ours[1, :2], ours[2, 0] = (3, 4), 7
    theirs = ours.copy()
    theirs[1, :2] = 4, 3

    def smallest(others) -> float:
        answering = dataclasses.replace(keras_form, run=lambda _: others)
        return parity.compare(
            (keras_form, ours), answering, images, None, parity.Gate(), (3,)
        ).smallest_cosine

    assert smallest(theirs) == pytest.approx(24 / 25)
    assert smallest(2 * ours) == 1  # the direction alone; two rows of zeros are alike
    assert smallest(ours + np.float32(np.eye(3, UNITS))) == 0  # one row of zeros is like nothing
    assert smallest(ours * np.float32(np.nan)) == 0


def test_explain_names_the_stage(alone_features, monkeypatch):
    path = alone_features("model.features.onnx")
    stages = stages_module.stages(path)
    assert [stage.name for stage in stages[-3:]] == ["fc1", "fc2", "features"]
    assert all(stage.passed for stage in stages)

    def fc2(graph, weights):
        weights["fc2.bias"] += np.arange(UNITS, dtype=np.float32)

    resealed(path, lambda p: edit_onnx(p, fc2))
    assert [stage.name for stage in stages_module.stages(path) if not stage.passed] == [
        "fc2",
        "features",
    ]
    path = alone_features("model.features.tflite")
    golden = artifact.read(path).golden
    resealed(path, lambda p: None)
    spoilt = dataclasses.replace(golden, probabilities=golden.probabilities * np.float32(1.01))
    monkeypatch.setattr(stages_module, "golden_of", lambda _: (artifact.read(path), spoilt))
    *_, last = stages_module.stages(path)
    assert (last.name, last.passed) == ("features", False)
    assert last.error == pytest.approx(0.01 / 1.01, rel=1e-3)  # of the largest feature


def test_ones_own_preprocessing_is_judged(made, tmp_path, command):
    path = made / "export" / "model.features.tflite"
    right = artifact.read(path).golden.images[0]
    np.save(tmp_path / "mine.npy", right)
    assert command(verify.cli, "--inputs", tmp_path / "mine.npy", path)[0] == 0
    np.save(tmp_path / "mine.npy", right[..., ::-1])
    code, out, _ = command(verify.cli, "--inputs", tmp_path / "mine.npy", path)
    assert code == 1
    off, fixed = map(
        float,
        re.search(
            r"BGR.*off by ([\de.-]+); with this undone, answers are off by ([\de.-]+)\)", out
        ).groups(),
    )
    assert off > 1e-3 > fixed


def test_features_that_are_all_zero_prove_nothing(tmp_path):
    model = trained_looking("A", (32, 32, 3), False, width=0.06, fc_units=8)
    kernel, bias = model.get_layer("fc2").get_weights()
    model.get_layer("fc2").set_weights([0 * kernel, -np.abs(bias) - 1])
    model.save(tmp_path / "dead.keras")
    with pytest.raises(InputError, match="fc2 gives zeros alone for all 64 images"):
        export.export_model(tmp_path / "dead.keras", "onnx", out=tmp_path / "out", features=True)
    assert not (tmp_path / "out").exists()


def test_a_file_that_fails_is_rejected(tmp_path, made, monkeypatch, command):
    write = to_onnx.write

    def faulty(graph, *arguments):
        layer = graph.get_layer("fc2")
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel, bias + 0.5])
        write(graph, *arguments)

    monkeypatch.setattr(to_onnx, "write", faulty)
    asked = (
        "--features",
        "--format",
        "onnx",
        "--model",
        made / "net.keras",
        "--data",
        made / "photos",
    )
    code, out, _ = command(export_cli, *asked, "--out", tmp_path / "e")
    assert code == 1
    assert "NOT proven" in out
    assert "of the largest feature and exceeds 1e-05" in out
    left = sorted(path.name for path in (tmp_path / "e").iterdir())
    assert left == ["certificate.json", "golden.features.npz", "model.features.onnx.rejected"]
