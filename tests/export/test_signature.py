"""Signatures: whose export it is, whatever its checksums say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import EXPORTED, REPOSITORY, edit_member, resealed, the_mean_of_the_graph

import export.__main__
from export import signature, verify

pytest.importorskip("model_signing", reason="signatures need the extra sign")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="keys are made by openssl"),
]


def make_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private and a public key, made as the documentation says."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    make = f"ecparam -name prime256v1 -genkey -noout -out {private}"
    for arguments in (make, f"ec -in {private} -pubout -out {public}"):
        subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(exported, keys, tmp_path) -> Path:
    """A copy of the exported folder, signed."""
    folder = Path(shutil.copytree(exported, tmp_path / "signed"))
    signature.signer(keys[0], folder).sign(folder)
    return folder


def test_the_signer_is_named_and_the_files_are_verified_as_before(signed, keys, command):
    paths = [signed / name for name in EXPORTED]
    code, out, err = command(verify.cli, "--public-key", keys[1], *paths)
    assert (code, err) == (0, "")
    made = subprocess.run(["sha256sum", keys[1]], capture_output=True, text=True, check=True)
    who = f"signed by the key SHA256:{made.stdout.split()[0]}"
    assert out.splitlines()[0] == f"{signed / 'model.sig'}: {who}"
    assert all(f"{path}: passed" in out for path in paths)


def test_of_a_hub_the_whole_repository_is_asked_for(keys, command):
    code, out, err = command(verify.cli, "--public-key", keys[1], "hf:someone/digits:model.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "download the whole repository first" in err


def another_model_with_new_checksums(folder: Path) -> None:
    resealed(folder / "model.onnx", the_mean_of_the_graph)


def signed_by_another_key(folder: Path) -> None:
    another_model_with_new_checksums(folder)
    private, _ = make_keys(folder.parent, "other")
    signature.signer(private, folder).sign(folder)


def signed_by_another_key_in_our_name(folder: Path) -> None:
    before = (folder / "model.sig").read_text()
    signed_by_another_key(folder)
    text = (folder / "model.sig").read_text()
    hint = '"hint":'
    ours, theirs = (t.replace(" ", "").split(hint)[1][:66] for t in (before, text))
    (folder / "model.sig").write_text(text.replace(theirs, ours))


FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model, its checksums right": (another_model_with_new_checksums, "'model.onnx'"),
    "signed anew by another key": (signed_by_another_key, "Key mismatch"),
    "signed anew, under our name": (signed_by_another_key_in_our_name, "not of this key"),
    "golden answers": (lambda f: (f / "golden.npz").write_bytes(b""), "'golden.npz'"),
    "the certificate removed": (lambda f: (f / "certificate.json").unlink(), "certificate.json"),
    "a file more": (lambda f: shutil.copy(f / "model.onnx", f / "b.onnx"), "b.onnx"),
    "a file of git's name": (lambda f: (f / ".gitignore").write_text(""), ".gitignore"),
    "a link": (lambda f: (f / "b.onnx").symlink_to(f / "model.onnx"), "symlink"),
    "a member of a SavedModel": (
        lambda f: edit_member(f / "saved_model", "golden.npz", lambda t: t + b"x"),
        "'saved_model/assets.extra/golden.npz'",
    ),
    "no JSON": (lambda f: (f / "model.sig").write_text("["), "Expecting value"),
    "another JSON": (lambda f: (f / "model.sig").write_text("[]"), "indices"),
    "deep JSON": (lambda f: (f / "model.sig").write_text("[" * 100_000), "recursion"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forgery_fails_in_one_line_and_is_not_run(what, signed, keys, command, monkeypatch):
    forge, message = FORGED[what]
    forge(signed)
    monkeypatch.setattr(verify, "verify", None)
    code, out, err = command(verify.cli, "--public-key", keys[1], signed / "model.onnx")
    assert (code, err) == (1, "")
    (line,) = out.splitlines()
    assert line.startswith(f"{signed / 'model.sig'}: FAILED: ")
    assert message in line


def test_what_cannot_be_checked_is_one_line(signed, keys, command, tmp_path):
    private, public = keys
    (tmp_path / "noise.pem").write_bytes(bytes(range(256)))
    rsa, encrypted = tmp_path / "rsa.pem", tmp_path / "encrypted.pem"
    for arguments in (
        f"genrsa -out {rsa} 2048",
        f"ec -in {private} -aes256 -passout pass:word -out {encrypted}",
    ):
        subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)
    path = signed / "model.onnx"
    wrong = [
        (["--public-key", tmp_path / "none.pem"], "No such file"),
        (["--public-key", tmp_path / "noise.pem"], "cannot be used: expected a PEM file"),
        (["--public-key", private], "openssl ec -in key.pem -pubout"),
        (["--identity", "me@example.org"], "give both --identity and --issuer"),
        (["--public-key", public, "--issuer", "https://example.org"], "not both"),
    ]
    for arguments, message in wrong:
        code, out, err = command(verify.cli, *arguments, path)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert message in err
    for key in (tmp_path / "noise.pem", rsa, encrypted, public):
        with pytest.raises(ValueError, match=r"cannot be used: expected a PEM file.*ecparam"):
            signature.signer(key, signed)
    with pytest.raises(ValueError, match="keep a private key elsewhere"):
        signature.signer(signed / "key.pem", signed)
    (signed / "model.sig").unlink()
    code, out, err = command(verify.cli, "--public-key", public, path)
    assert (code, out) == (2, "")
    assert "There is no signature" in err


def test_an_export_signs_last_and_removes_what_no_longer_holds(run, keys, command, tmp_path):
    out = tmp_path / "out"
    asked = ["--model", run.path, "--format", "tflite", "--images", 8, "--out", out]
    code, said, _ = command(export.__main__.cli, *asked, "--sign", keys[0])
    assert code == 0
    assert f"{out / 'model.sig'}" in said.replace("\n", "")
    verified = [verify.cli, "--public-key", keys[1], out / "model.tflite"]
    assert command(*verified)[0] == 0
    code, said, _ = command(export.__main__.cli, *asked)
    assert code == 0
    assert "which no longer held" in said
    assert not (out / "model.sig").exists()


@pytest.mark.full  # this environment verifies, above
def test_a_fresh_environment_verifies_a_signed_export(signed, keys, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = ["numpy", "pillow", "onnx", "onnxruntime", "model-signing", "pyopenssl"]
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    install = [python, "-m", "pip", "install", *packages]
    asked = subprocess.run(install, env=environment, capture_output=True, text=True)
    if asked.returncode and (
        "No matching distribution" in asked.stderr or "connection" in asked.stderr.lower()
    ):
        pytest.skip("pip reaches no index")
    assert asked.returncode == 0, asked.stderr
    verified = [python, "-m", "export.verify", "--public-key", keys[1], "model.onnx"]
    told = subprocess.run(verified, cwd=signed, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "signed by the key SHA256:" in told.stdout
    assert "model.onnx: passed" in told.stdout
    another_model_with_new_checksums(signed)
    told = subprocess.run(verified, cwd=signed, env=environment, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (1, "")
