"""What lies beside exported files: certificate.json and golden.npz, whole, damaged or cut off."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import certify_golden_answers

import export
import vggkeras
from export import certificate as placing
from export import golden as golden_module
from export import verify
from export.formats import Target
from vggkeras import certificate, files, locks
from vggkeras.card import Form
from vggkeras.errors import InputError

OLD, NEW = "0" * 64, "1" * 64  # sha256 of two models


def golden_file(seed: int) -> golden_module.GoldenFile:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    return golden_module.GoldenFile(images, None, rng.random((3, 2), np.float32))


def entry_of(content: bytes, model: str, **values) -> certificate.Entry:
    return certificate.Entry(
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        runtime="onnxruntime",
        version="1.2.3",
        input={"name": "images", "type": "uint8", "shape": ["batch", 8, 8, 3]},
        output={"name": "probabilities", "type": "float32", "shape": ["batch", 2]},
        tolerance=1e-5,
        max_abs_error=1.25e-6,
        top1_agreement_interval=(0.98, 1.0),
        model_sha256=model,
        **{"passed": True, "failures": []} | values,
    )


def rows_of(folder: Path, contents: dict[str, bytes], model: str, **values) -> list[placing.Row]:
    """Write files beside their places, as an export does before it places them."""
    rows = []
    for name, content in contents.items():
        target = Target(folder, name)
        target.beside.write_bytes(content)
        rows.append(placing.Row(target, entry_of(content, model, **values), None))
    return rows


def placed(folder: Path, model: str, seed: int, formats=("onnx", "tflite"), **values) -> None:
    contents = {name: f"{name} {model} {seed}".encode() for name in formats}
    packed = golden_file(seed).pack(Form.CLASSIFIER)
    placing.place(rows_of(folder, contents, model, **values), packed, model)


@pytest.fixture
def folder(tmp_path) -> Path:
    placed(tmp_path, OLD, 0)
    return tmp_path


def older(entry: dict) -> None:
    """Remove what entries of older versions do not have."""
    del entry["entry_sha256"], entry["golden_sha256"]


# A certificate that was changed.


def test_a_flip_in_any_byte_of_a_certificate_is_found_or_changes_nothing(tmp_path):
    placed(tmp_path, OLD, 0, ("onnx",))
    path, before = tmp_path / "certificate.json", certificate.read(tmp_path)
    content = path.read_bytes()
    found = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert certificate.read(tmp_path) == before, (place, flipped[place - 20 : place + 20])
        except InputError:
            found += 1
    assert found > 0.8 * len(content)  # the rest is white space


@pytest.mark.parametrize(
    "values",
    [
        {"passed": "yes"},
        {"passed": 1},
        {"failures": "none"},
        {"failures": [1]},
        {"bytes": "many"},
        {"tolerance": "0.1"},
        {"max_abs_error": True},
        {"left_in_float": {}},
        {"input": []},
        {"top1_agreement_interval": [0.5]},
    ],
)
def test_an_entry_of_wrong_types_is_refused_in_one_line(folder, values):
    path = folder / "certificate.json"
    entries = json.loads(path.read_text())
    older(entries["model.onnx"])
    entries["model.onnx"] |= values
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"certificate\.json is damaged"):
        certificate.read(folder)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"', "{}}", '{"a": []}', "[" * 100_000])
def test_what_is_no_certificate_is_refused_in_one_line(folder, text):
    (folder / "certificate.json").write_text(text)
    with pytest.raises(InputError, match=r"certificate\.json is damaged"):
        certificate.read(folder)


def test_an_entry_names_a_file_of_its_folder(folder):
    path = folder / "certificate.json"
    entries = json.loads(path.read_text())
    older(entries["model.onnx"])
    for name in ("../model.onnx", "/dev/zero", "..", ""):
        path.write_text(json.dumps({name: entries["model.onnx"]}))
        with pytest.raises(InputError, match="is no file's name"):
            certificate.read(folder)


# Golden answers that were changed.


def npz(**arrays: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", array)
    return content.getvalue()


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None, **options) -> bytes:
    """Return a .npy file's content, whose header may tell another shape."""
    content = io.BytesIO()
    np.save(content, array, **options)
    header = content.getvalue()
    if shape is None:
        return header
    told = f"'shape': {array.shape}, }}".encode()
    return header.replace(told, f"'shape': {shape}, }}".encode())


GOOD = {
    "images": npy(np.zeros((2, 8, 8, 3), np.uint8)),
    "labels": npy(np.array([0, 1])),
    "probabilities": npy(np.full((2, 2), 0.5, np.float32)),
}
ABSURD = {
    "10^12 rows": {"images": npy(np.zeros((2, 8, 8, 3), np.uint8), (10**12, 8, 8, 3))},
    "a negative shape": {"labels": npy(np.array([0, 1]), (-1, -2))},
    "objects": {"labels": npy(np.array([{}, None]), allow_pickle=True)},
    "images of floats": {"images": npy(np.zeros((2, 8, 8, 3)))},
    "a flat array of images": {"images": npy(np.zeros(384, np.uint8))},
    "no images": {"images": npy(np.zeros((0, 8, 8, 3), np.uint8))},
    "answers of text": {"probabilities": npy(np.array([["a", "b"]] * 2))},
    "an answer too few": {"probabilities": npy(np.ones((1, 2), np.float32))},
    "a label too many": {"labels": npy(np.array([0, 1, 2]))},
    "no array": {"probabilities": b"text"},
    "a size without answers": {"images_9x9": npy(np.zeros((2, 9, 9, 3), np.uint8))},
}


@pytest.mark.parametrize("what", ABSURD)
def test_absurd_golden_answers_are_refused_in_one_line(what, tmp_path):
    (tmp_path / "golden.npz").write_bytes(npz(**GOOD))
    assert golden_module.load_golden(tmp_path).labels.tolist() == [0, 1]
    (tmp_path / "golden.npz").write_bytes(npz(**GOOD | ABSURD[what]))
    with pytest.raises(InputError, match=r"golden\.npz cannot be read"):
        golden_module.load_golden(tmp_path)


def test_golden_answers_that_inflate_to_gigabytes_are_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr(golden_module, "MOST_BESIDE", 100_000)
    with zipfile.ZipFile(tmp_path / "golden.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1_000_000))
    assert (tmp_path / "golden.npz").stat().st_size < 10_000
    with pytest.raises(InputError, match="expected 100,000 at most"):
        golden_module.load_golden(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": np.array([10**12, 8, 8, 3])},
        {"shape": np.array([1, 8])},
        {"sizes": np.array([-1, 3])},
        {"sizes": np.array([10**12])},
        {"answers": np.zeros((0, 2), np.float32)},
        {"labels": np.array([0.5, 1, 2])},
    ],
)
def test_absurd_golden_answers_inside_a_file_are_refused(change):
    golden = golden_file(0)
    inside = golden_module.Golden(
        golden.images, None, golden.answers, golden.answers, {"a": np.ones(2, np.float32)}, None
    )
    packed = inside.pack()
    np.testing.assert_array_equal(golden_module.Golden.unpack(packed).images, golden.images)
    content = io.BytesIO()
    np.savez(content, **dict(np.load(io.BytesIO(packed))) | change)
    with pytest.raises(ValueError):  # noqa: PT011  artifact.read makes it a message
        golden_module.Golden.unpack(content.getvalue())


def test_every_damage_to_certified_golden_answers_is_found(folder):
    entry = certificate.read(folder)["model.onnx"]
    path, rng = folder / "golden.npz", random.Random(0)
    content = path.read_bytes()
    assert golden_module.certified_golden(folder, Form.CLASSIFIER, entry) is not None
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"golden\.npz: not what it was"):
            golden_module.certified_golden(folder, Form.CLASSIFIER, entry)
    path.unlink()
    with pytest.raises(InputError, match=r"There is no .*golden\.npz"):
        golden_module.certified_golden(folder, Form.CLASSIFIER, entry)


# An export that is killed while it puts its files into their places.


class Killed(BaseException):
    """Stands for a kill."""


def kill(steps: int, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments, **values) -> None:
    """Place files, and end after so many steps, as a process does that is killed."""
    real, done = files.move, []
    claim = files.partial(folder / "a").name.removesuffix("-a")
    lock = locks.acquire_own(folder / claim)

    def move(beside: Path, path: Path) -> None:
        if len(done) == steps:
            raise Killed
        done.append(path)
        real(beside, path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "move", move)
        with pytest.raises(Killed):
            placed(folder, *arguments, **values)
    os.close(lock)


def check_what_lies_there(folder: Path) -> None:
    """Check that every file there is certified, if its model's certificate is there, and golden."""
    for name, entry in certificate.read(folder).items():
        assert files.sha256(entry.path(folder, name)) == entry.sha256, name
        beside = golden_module.certified_golden(folder, Form.CLASSIFIER, entry)
        assert beside is None or len(beside.images) == 3


@pytest.mark.parametrize("model", [OLD, NEW])
@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("formats", [("onnx", "tflite"), ("onnx",), ("saved_model", "onnx")])
def test_a_kill_leaves_the_old_files_or_the_new_ones(model, steps, formats, folder, monkeypatch):
    old, names = certificate.read(folder), [Target(folder, name).name for name in formats]
    steps = min(steps, len(formats) + 2)  # the list of moves, the files, golden answers
    for seed in (1, 2):
        kill(steps, monkeypatch, folder, model, seed, formats)
        there = certificate.read(folder)
        check_what_lies_there(folder)
        if steps == 0:
            assert there == old
            continue
        kept = set(old) if model == OLD else set()
        assert set(there) == kept | set(names)
        for name, format in zip(names, formats, strict=True):
            assert (folder / name).read_bytes() == f"{format} {model} {seed}".encode()
    assert [path for path in os.listdir(folder) if path.startswith(".")] == []


def test_a_first_export_that_was_killed_leaves_nothing_or_all(tmp_path, monkeypatch):
    for steps, there in enumerate([0, 2, 2, 2]):
        kill(steps, monkeypatch, tmp_path, NEW, 1)
        assert len(certificate.read(tmp_path)) == there
        check_what_lies_there(tmp_path)


def test_a_file_that_failed_is_certified_where_it_lies(folder, monkeypatch):
    failed = {"passed": False, "failures": ["values: wrong"]}
    for steps, passed in enumerate([True, False, False]):
        kill(steps, monkeypatch, folder, OLD, 1, ("onnx",), **failed)
        assert certificate.read(folder)["model.onnx"].passed is passed
        check_what_lies_there(folder)
    assert (folder / "model.onnx").read_bytes() == f"onnx {OLD} 0".encode()
    placed(folder, OLD, 3, ("onnx",))
    assert not (folder / "model.onnx.rejected").exists()


def test_an_export_that_cannot_be_finished_here_is_said(folder, monkeypatch):
    kill(2, monkeypatch, folder, OLD, 1)
    monkeypatch.setattr(locks, "machine", lambda: "0123abcd")  # it may go on at another one
    monkeypatch.setattr(files, "FINISH_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"holds files of two exports.*says which ones are left"):
        certificate.read(folder)
    monkeypatch.undo()
    (decided,) = folder.glob(".partial-*=")
    decided.write_text('[["a", "../b", 1]]')
    with pytest.raises(InputError, match=r"is damaged .*: remove it and export again"):
        certificate.read(folder)


# `verify` of real files.


@pytest.fixture
def dense(dense_exports, tmp_path) -> Path:
    return Path(shutil.copytree(dense_exports, tmp_path / "export"))


NAMES = ("model.onnx", "model.tflite", "model.dense.onnx", "model.dense.tflite")


@pytest.mark.integration
def test_verify_reads_the_golden_answers_beside_a_file(dense, command):
    content = (dense / "golden.npz").read_bytes()
    for name in (*NAMES, "saved_model"):
        (dense / "golden.npz").write_bytes(content)
        assert command(verify.cli, dense / name)[:2] == (0, f"{dense / name}: passed\n")
        (dense / "golden.npz").write_bytes(content[:5000] + b"\0" + content[5001:])
        (problem,) = verify.verify(dense / name)
        assert "golden.npz: not what it was when the files were proven (sha256)" in problem
        (dense / "golden.npz").unlink()
        (problem,) = verify.verify(dense / name)
        assert "There is no" in problem


@pytest.mark.integration
def test_answers_beside_a_file_with_new_digests_are_held_against_the_files_own(dense):
    golden = golden_module.load_golden(dense)
    altered = dataclasses.replace(golden, answers=np.roll(golden.answers, 1, axis=1))
    (dense / "golden.npz").write_bytes(altered.pack(Form.CLASSIFIER))
    certify_golden_answers(dense)
    for name in NAMES:
        (problem,) = verify.verify(dense / name)
        assert problem.startswith("golden.npz: values: largest error")


@pytest.mark.integration
def test_an_edited_certificate_is_found(dense, command):
    path = dense / "certificate.json"
    entries = json.loads(path.read_text())
    entries["model.tflite"]["accuracy_artifact"] = 0.9999
    path.write_text(json.dumps(entries))
    code, out, err = command(verify.cli, dense / "model.tflite")
    assert (code, out) == (2, "")
    assert "certificate.json is damaged (model.tflite: changed since it was written)" in err


@pytest.mark.integration
def test_an_older_certificate_is_read_and_its_gaps_are_told(dense, run, command):
    path = dense / "certificate.json"
    entries = json.loads(path.read_text())
    for entry in entries.values():
        older(entry)
        del entry["processor"], entry["most_lost"]
        entry["a field of former times"] = 1
    path.write_text(json.dumps(entries))
    for name in NAMES:
        code, out, _ = command(verify.cli, dense / name)
        assert code == 0
        assert "certificate.json is of an older version: it has no digest of itself" in out
    (dense / "golden.npz").write_bytes(b"junk")
    assert "golden.npz cannot be read" in verify.verify(dense / "model.onnx")[0]
    (dense / "golden.npz").unlink()  # as such a file may have been copied
    assert verify.verify(dense / "model.onnx") == []
    del entries["model.onnx"]
    path.write_text(json.dumps(entries))
    assert "does not name it" in command(verify.cli, dense / "model.onnx")[1]


@pytest.mark.integration
def test_a_killed_export_leaves_files_that_verify(exports, run, tmp_path, monkeypatch):
    """Real files of another model take the place of these; the folder is kept at every step."""
    folder = Path(shutil.copytree(exports, tmp_path / "export"))
    vggkeras.build("A", (32, 32, 3), 10, width=0.05, fc_units=8).save(tmp_path / "other.keras")
    real, states = files.move, []

    def move(beside: Path, path: Path) -> None:
        if path.parent == folder:
            states.append(Path(shutil.copytree(folder, tmp_path / f"before-{len(states)}")))
        real(beside, path)

    monkeypatch.setattr(files, "move", move)
    export.export_model(tmp_path / "other.keras", "onnx", data="random", out=folder)
    monkeypatch.undo()
    assert len(states) == 4  # the list, the file, golden answers, certificate
    old = files.sha256(exports / "model.onnx")
    for number, state in enumerate(states):
        assert verify.verify(state / "model.onnx") == []
        assert (files.sha256(state / "model.onnx") == old) is (number == 0)
        assert verify.verify(state / "model.tflite") == []
    again = states[2]
    export.export_model(tmp_path / "other.keras", "onnx", data="random", out=again)
    assert set(certificate.read(again)) == {"model.onnx"}
    assert verify.verify(again / "model.onnx") == []
