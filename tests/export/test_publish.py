"""`python -m export --card`, and loading what it wrote from a hub's cache: hf:USER/NAME."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import edit_member, photo, resealed, swap_layers, tiny
from PIL import Image

import vggkeras
from export import publish, web
from export.__main__ import cli
from export.comparison import compare
from export.verify import cli as verify_cli
from export.verify import verify
from vggkeras import certificate, files, hub, pages
from vggkeras.__main__ import cli as vggkeras_cli
from vggkeras.errors import InputError

huggingface_hub = pytest.importorskip(
    "huggingface_hub", reason="huggingface_hub is not installed: pip install 'vggkeras[hub]'"
)
pytestmark = pytest.mark.integration

NAMES = ("saved_model", "model.onnx", "model.tflite")
FIGURES = {
    "accuracy": ("accuracy_artifact", "accuracy_interval"),
    "top1_agreement": ("top1_agreement", "top1_agreement_interval"),
}
REPOSITORY = "someone/digits"
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture(scope="module")
def card(exports, tmp_path_factory) -> Path:
    """The card's folder of the trained network's three files."""
    return publish.write_card(tmp_path_factory.mktemp("card") / "digits", exports)


@pytest.fixture
def copied(exports, tmp_path) -> Path:
    return Path(shutil.copytree(exports, tmp_path / "copied"))


def certify(folder: Path, **changes) -> None:
    """Change fields of all entries of a certificate."""
    entries = {
        name: dataclasses.replace(entry, **changes)
        for name, entry in certificate.read(folder).items()
    }
    (folder / "certificate.json").write_text(certificate.text_of(entries))


def test_the_folder_has_the_proven_files_and_proves_them(card, exports):
    assert sorted(path.name for path in card.iterdir()) == sorted(
        [*NAMES, "README.md", "certificate.json", "config.json", "golden.npz", "labels.txt"]
    )
    entries = certificate.read(card)
    assert entries == certificate.read(exports)
    for name in NAMES:
        assert files.sha256(card / name) == entries[name].sha256
        assert verify(card / name) == []
    assert (card / "labels.txt").read_text().split() == [str(i) for i in range(10)]
    config = json.loads((card / "config.json").read_text())
    assert config["id2label"] == {str(i): str(i) for i in range(10)}
    assert config["input"]["shape"] == ["batch", 32, 32, 3]
    assert config["files"] == {name: entry.sha256 for name, entry in entries.items()}


def test_the_hubs_own_parser_finds_the_certificates_figures(card):
    readme = card / "README.md"
    parsed = huggingface_hub.ModelCard.load(readme)
    assert parsed.content == readme.read_text(encoding="utf-8")
    data = parsed.data
    assert (data.license, data.library_name) == ("apache-2.0", "vggkeras")
    assert (data.pipeline_tag, data.metrics) == ("image-classification", ["accuracy"])
    assert data.tags == ["vgg", "keras", "tf-keras", "onnx", "tflite"]
    index = yaml.safe_load(readme.read_text().split("---")[1])["model-index"]
    name, results = huggingface_hub.repocard_data.model_index_to_eval_results(index)
    assert (name, results) == ("digits", data.eval_results)
    assert len(results) == len(NAMES) * len(FIGURES)
    entries = certificate.read(card)
    for result in results:
        entry = entries[result.metric_args["file"]]
        value, interval = FIGURES[result.metric_type]
        assert result.metric_value == getattr(entry, value)
        assert result.metric_args["confidence_interval_95"] == list(getattr(entry, interval))
        assert f"{entry.images} images of digits/validation" == entry.evidence
        assert (result.dataset_name, result.dataset_split) == ("digits", "validation")
        assert result.metric_args["images"] == entry.images


def test_the_text_says_how_to_verify_load_and_train(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    for title in ("Intended use", "Limits", "Training", "Verify", "Load", "License"):
        assert f"\n## {title}\n" in text
    for name, entry in certificate.read(card).items():
        assert f"\n{entry.sha256}  {name}\n" in text
        low, high = (f"{100 * bound:.1f}" for bound in entry.accuracy_interval)
        assert f"| {pages.percent(entry.accuracy_artifact)} [{low}, {high}] |" in text
    assert "python -m export.verify " + " ".join(certificate.read(card)) in text
    assert 'vggkeras.load("hf:USER/digits")' in text
    assert "python -m vggkeras train --arch A-LRN --data digits" in re.sub(r" \\\n +", " ", text)
    assert "\n\n\n\n" not in text
    assert str(card.parent) not in text


def test_a_figure_that_the_certificate_has_not_is_not_told(copied, tmp_path):
    certify(copied, accuracy_artifact=None, accuracy_interval=None, accuracy_reference=None)
    folder = publish.write_card(tmp_path / "card", copied)
    data = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert {result.metric_type for result in data.eval_results} == {"top1_agreement"}
    assert data.metrics is None
    certify(copied, top1_agreement_interval=None, evidence="random images: weak evidence")
    folder = publish.write_card(tmp_path / "other", copied)
    data = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert [set(result.metric_args) for result in data.eval_results] == [{"file", "images"}] * 3
    assert {result.dataset_name for result in data.eval_results} == {"random images: weak evidence"}
    certify(copied, top1_agreement=None)
    folder = publish.write_card(tmp_path / "bare", copied)
    data = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert data.eval_results is None
    assert "model-index" not in (folder / "README.md").read_text()


def test_features_are_told_as_features(made, tmp_path):
    folder = publish.write_card(tmp_path / "card", made / "export" / "model.features.onnx")
    data = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert (data.pipeline_tag, data.license) == ("image-feature-extraction", "unknown")
    assert data.eval_results is None
    assert "golden.features.npz" in {path.name for path in folder.iterdir()}
    assert verify(folder / "model.features.onnx") == []
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "vggkeras.load(" in readme
    assert "vggkeras predict" not in readme  # which names classes


def test_an_older_certificate_may_name_no_golden_answers(copied, tmp_path):
    certify(copied, golden_sha256=None)
    (copied / "golden.npz").unlink()
    folder = publish.write_card(tmp_path / "card", copied)
    assert set(certificate.read(folder)) == set(NAMES)
    assert not (folder / "golden.npz").exists()


def test_a_rejected_file_stays_behind_and_one_file_may_be_chosen(copied, command, tmp_path):
    (copied / "model.tflite").rename(copied / "model.tflite.rejected")
    entries = certificate.read(copied)
    entries["model.tflite"] = dataclasses.replace(
        entries["model.tflite"], passed=False, failures=["it differs"]
    )
    (copied / "certificate.json").write_text(certificate.text_of(entries))
    folder = publish.write_card(tmp_path / "card", copied)
    assert set(certificate.read(folder)) == {"saved_model", "model.onnx"}
    arguments = ("--card", "one", "--model", copied / "model.onnx", "--license", "cc-by-4.0")
    code, out, _ = command(cli, *arguments)
    assert code == 0
    assert "1 proven file, " in out
    assert set(certificate.read(Path("one"))) == {"model.onnx"}
    data = huggingface_hub.ModelCard.load(Path("one/README.md")).data
    assert (data.license, data.tags) == ("cc-by-4.0", ["vgg", "keras", "onnx"])


def test_what_cannot_be_published_is_said_in_one_line(copied, command, monkeypatch):
    def refused(*arguments) -> str:
        code, _, err = command(cli, *arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert not list(Path().glob("card*"))
        return err

    write = ("--card", "card", "--model")
    assert "is there already" in refused("--card", copied, "--model", copied)
    assert "--license goes with --card" in refused("--license", "mit", "--model", copied)
    assert "--card takes --model and --license alone" in refused(*write, copied, "--dense")
    assert "No trained model at nowhere" in refused(*write, "nowhere")
    assert "says passed its proof" in refused(*write, "model.onnx")
    with open(copied / "model.onnx", "r+b") as file:
        file.write(b"x")
    assert "model.onnx is not proven here" in refused(*write, copied)
    certify(copied, passed=False, failures=["it differs"])
    assert "has no file that passed its proof" in refused(*write, copied)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'vggkeras[hub]'" in refused(*write, copied)


def test_files_of_another_model_than_the_named_one_are_not_published(run, exports, tmp_path):
    folder = Path(shutil.copytree(exports, tmp_path / "run" / "export"))
    model = folder.parent / "model.keras"
    shutil.copy(run.path / model.name, model)
    assert web.chosen(folder.parent) == folder / "model.onnx"
    model.write_bytes(b"trained again")
    for write in (publish.write_card, web.write_page):
        with pytest.raises(InputError, match="files of another model than"):
            write(tmp_path / "written", folder.parent)
    assert publish.write_card(tmp_path / "written", folder).is_dir()


def test_no_folder_of_this_machine_and_no_markup_is_published():
    recipe = vggkeras.Recipe(data="/home/me/my photos", out=Path("/home/me/run"))
    recipe = dataclasses.replace(recipe, init_from="timm:/home/me/weights.pth")
    published = publish._without_paths(recipe)
    assert published == dataclasses.replace(
        recipe, data="my photos", out=None, init_from="timm:weights.pth"
    )
    for data in ("digits", "tfds:imagenette/160px-v2", "hf:someone/set", "hf:mnist:a"):
        kept = dataclasses.replace(recipe, data=data)
        assert publish._without_paths(kept).data == data
    assert pages.markdown("<b>| `a`\n# b") == r"\<b\>\| \`a\` \# b"


# A hub's cache.


def lay_out(cache: Path, folder: Path, commit: str = COMMIT, *refs: str) -> Path:
    """Put a folder into a cache as the hub's client does, and return the commit's folder there."""
    root = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for file in folder.rglob("*"):
        if file.is_file():
            blob, link = root / "blobs" / files.sha256(file), snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def snapshot(cache, card) -> Path:
    """The card's folder in the cache, as main and as v1; and another commit without model.onnx."""
    other = cache.parent / "other"
    shutil.copytree(card, other)
    (other / "model.onnx").unlink()
    entries = {n: e for n, e in certificate.read(other).items() if n != "model.onnx"}
    (other / "certificate.json").write_text(certificate.text_of(entries))
    lay_out(cache, other, OTHER)
    return lay_out(cache, card, COMMIT, "main", "v1")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_is_loaded_as_it_lies_in_the_cache(snapshot, card, images, capsys, name):
    clf = vggkeras.load(f"hf:{REPOSITORY}:{name}")
    assert clf.path == snapshot / name
    assert clf.sealed == "yes"
    np.testing.assert_array_equal(clf(images), vggkeras.load(card / name)(images))
    told = capsys.readouterr().err
    spec = f"hf:{REPOSITORY}:{name}"
    assert told == f"{spec} is at commit {COMMIT}: add @{COMMIT} to stay with it\n"


def test_a_revision_is_a_commit_or_a_name_for_one(snapshot, capsys):
    assert hub.local(f"hf:{REPOSITORY}@v1") == snapshot / "model.onnx"
    assert f"commit {COMMIT}" in capsys.readouterr().err
    assert hub.local(f"hf:{REPOSITORY}@{COMMIT}") == snapshot / "model.onnx"
    assert capsys.readouterr().err == ""
    other = hub.local(f"hf:{REPOSITORY}@{OTHER}:model.tflite")
    assert other == snapshot.parent / OTHER / "model.tflite"


@pytest.fixture
def ends(command) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command, and gives its exit code and all that it printed."""

    def ends(which, *arguments) -> tuple[int, str]:
        code, out, err = command(which, *arguments)
        return code, out + err

    return ends


def test_every_command_that_takes_a_model_takes_one_of_a_hub(snapshot, ends, tmp_path):
    Image.fromarray(photo(1)).save("photo.png")
    spec = f"hf:{REPOSITORY}"
    code, told = ends(vggkeras_cli, "predict", "photo.png", "--model", spec)
    assert code == 0, told
    assert f"commit {COMMIT}" in told
    code, told = ends(vggkeras_cli, "predict", "photo.png", "--model", spec, "--out", "labels")
    assert code == 0, told
    score = ("--data", "digits", "--images", 20)
    both = (f"{spec}@v1", f"{spec}:model.tflite")
    code, told = ends(vggkeras_cli, "evaluate", *score, "--model", *both)
    assert code == 0, told
    code, told = ends(verify_cli, spec, f"{spec}@{OTHER}:model.tflite")
    assert code == 0, told
    assert told.count(": passed") == 2
    code, told = ends(cli, "--web", "page", "--model", spec)
    assert code == 0, told
    assert files.sha256(Path("page/model.onnx")) == files.sha256(snapshot / "model.onnx")
    assert web.chosen(Path(f"{spec}@{COMMIT}")) == snapshot / "model.onnx"
    result = compare(f"{spec}:model.tflite", spec, "digits", 8)
    assert (result.candidate.path, result.images) == (snapshot / "model.tflite", 8)


def test_a_page_is_of_an_onnx_file_of_a_hub_alone(snapshot):
    with pytest.raises(InputError, match=r"needs a \.onnx file, and hf:.* is model\.tflite: give"):
        web.chosen(Path(f"hf:{REPOSITORY}:model.tflite"))


def test_a_process_finds_the_cache_by_the_clients_own_variables(snapshot, cache):
    own = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "export.verify", f"hf:{REPOSITORY}"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"commit {COMMIT}" in done.stderr
    done = subprocess.run(
        [*command, f"hf:{REPOSITORY}@v2"], env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: hf:{REPOSITORY}@v2 is not in the cache")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:someone/else", "is not in the cache of this machine, and the hub cannot be reached"),
        (f"hf:{REPOSITORY}@v2", "is not in the cache of this machine"),
        (f"hf:{REPOSITORY}@{'a' * 40}", "is not in the cache of this machine"),
        (f"hf:{REPOSITORY}:model.keras", "has no model.keras among proven files: name one of"),
        (f"hf:{REPOSITORY}@{OTHER}", "has several proven files: name one of saved_model"),
        ("hf:digits", "expected hf:USER/NAME"),
        ("hf:", "expected hf:USER/NAME"),
        ("hf:../x", "expected hf:USER/NAME"),
        ("hf:a/b@../../x", "expected hf:USER/NAME"),
        ("hf:a/b@/tmp/x", "expected hf:USER/NAME"),
        ("hf:a/b:c/d", "expected hf:USER/NAME"),
        ("hf:a/b/c", "expected hf:USER/NAME"),
        ("hf:a--b/c..d", "cannot be downloaded"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(snapshot, command, spec, message):
    code, _, err = command(vggkeras_cli, "predict", __file__, "--model", spec)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_a_file_that_was_changed_in_the_cache_is_refused(snapshot, command):
    blob = (snapshot / "model.onnx").resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + b"x")
    code, _, err = command(vggkeras_cli, "predict", __file__, "--model", f"hf:{REPOSITORY}")
    assert (code, err.count("\n")) == (2, 1)
    assert "is not the file that was proven (sha256)" in err
    blob.write_bytes(whole)
    local = snapshot / "model.onnx"
    local.unlink()
    local.write_bytes(whole)
    resealed(local, lambda path: swap_layers(path, "block4_conv2", "block5_conv1"))
    with pytest.raises(InputError, match="is not the file that was proven"):
        vggkeras.load(f"hf:{REPOSITORY}")
    (snapshot / "certificate.json").unlink()
    with pytest.raises(InputError, match=r"has no certificate.json with a file that passed"):
        vggkeras.load(f"hf:{REPOSITORY}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("member", ["vggkeras.json", "sha256.json"])
def test_a_file_that_a_certificate_proves_must_have_its_seal(card, cache, tmp_path, name, member):
    folder = Path(shutil.copytree(card, tmp_path / "folder"))
    edit_member(folder / name, member, lambda _: None)
    entries = certificate.read(folder)
    entries[name] = dataclasses.replace(entries[name], sha256=files.sha256(folder / name))
    (folder / "certificate.json").write_text(certificate.text_of(entries))
    lay_out(cache, folder, COMMIT, "main")
    with pytest.raises(InputError, match="has no seal inside"):
        hub.local(f"hf:{REPOSITORY}:{name}")


def test_golden_answers_show_a_file_that_was_changed_with_its_certificate(snapshot, command):
    for name in ("model.onnx", "certificate.json"):
        content = (snapshot / name).read_bytes()
        (snapshot / name).unlink()
        (snapshot / name).write_bytes(content)
    local = snapshot / "model.onnx"
    resealed(local, lambda path: swap_layers(path, "block4_conv2", "block5_conv1"))
    entries = certificate.read(snapshot)
    changed = dataclasses.replace(entries["model.onnx"], sha256=files.sha256(local))
    entries["model.onnx"] = changed
    (snapshot / "certificate.json").write_text(certificate.text_of(entries))
    code, out, _ = command(verify_cli, f"hf:{REPOSITORY}")
    assert code == 1
    assert "FAILED" in out


def test_a_download_that_was_cut_off_is_said(snapshot):
    (snapshot / "model.onnx").unlink()
    with pytest.raises(InputError, match="is not there: remove"):
        vggkeras.load(f"hf:{REPOSITORY}")


@contextmanager
def a_hub(monkeypatch, code: str) -> Iterator[None]:
    """Serve a hub that answers everything with one of its errors."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        yield
        server.shutdown()


def test_what_the_hub_itself_says_is_told(cache, monkeypatch):
    for code, message in (
        ("RepoNotFound", "there is no such repository, or it is private"),
        ("RevisionNotFound", "the repository has no revision v3"),
    ):
        with a_hub(monkeypatch, code), pytest.raises(InputError, match=message) as error:
            hub.local("hf:someone/nothing@v3")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="the hub cannot be reached"):  # its server is gone
        hub.local("hf:someone/nothing@v3")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install .vggkeras\[hub\]"):
        vggkeras.load(f"hf:{REPOSITORY}")


def test_a_name_in_a_file_makes_nobody_ask_the_hub(snapshot, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # would be called
    with pytest.raises(InputError, match="Unknown weights"):
        vggkeras.train(tiny(tmp_path / "run", init_from=f"hf:{REPOSITORY}"))
    entry = certificate.read(copied)["model.onnx"]
    for name in (f"hf:{REPOSITORY}", "hf:x"):
        (copied / "certificate.json").write_text(certificate.text_of({name: entry}))
        monkeypatch.chdir(copied)
        with pytest.raises(InputError):
            publish.write_card(tmp_path / "card", ".")
