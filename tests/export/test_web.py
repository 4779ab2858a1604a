"""The page of `python -m export --web`: written, served by Python, and opened in Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import chromium, npm_install, served
from helpers import edit_onnx, photo
from PIL import Image

import export
import vggkeras
from export import web
from export.__main__ import cli
from vggkeras.data import augment, decoding
from vggkeras.errors import InputError

pytestmark = pytest.mark.integration

AXE = "axe-core@4.14.1"
# WebGPU on the processor, by SwiftShader.
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
PATIENCE = 300_000  # ms
ENDED = "body.ready, #problem:not([hidden])"
ANSWERED = "#results:not([hidden]), #problem:not([hidden])"


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """An export of the trained network as model.onnx, model.float16.onnx and model.int8.onnx."""
    out = tmp_path_factory.mktemp("web") / "export"
    entries = export.export_model(run.path, "onnx", "all", out=out, images=100)
    assert all(entry["passed"] for entry in entries.values()), entries
    return out


@pytest.fixture(scope="module")
def node_modules() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as installed:
        yield npm_install(f"{web.INSTALL} {AXE}", Path(installed))


@pytest.fixture(scope="module")
def browser():
    with chromium(*WEBGPU) as started:
        yield started


@pytest.fixture(scope="module")
def pages(folder, node_modules, tmp_path_factory) -> dict[str, Path]:
    """The page of each precision, by the file's name, with onnxruntime-web in it."""
    out = tmp_path_factory.mktemp("pages")
    return {
        name: web.write_page(out / name, folder / name, node_modules)
        for name in ("model.onnx", "model.float16.onnx", "model.int8.onnx")
    }


@pytest.fixture
def page(pages, tmp_path) -> Path:
    """A copy of the smallest one."""
    return Path(shutil.copytree(pages["model.int8.onnx"], tmp_path / "page"))


@dataclass
class Opened:
    """A page in the browser, what it asked for, and what was said on its console."""

    tab: Any
    address: str
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        return self.tab.text_content(f"#{name}")

    def begun(self) -> str:
        """What the page says of its proof once that has ended; raises what it says against it."""
        self.tab.locator(ENDED).first.wait_for()
        assert self.tab.locator("body.ready").count(), self.text("problem")
        return self.text("proof")

    def choose(self, picture: Path) -> None:
        self.tab.set_input_files("input >> nth=0", picture)
        self.tab.locator(ANSWERED).first.wait_for()

    def answers(self) -> tuple[list[str], np.ndarray]:
        """The labels and probabilities that are shown."""
        assert self.text("problem") == ""
        labels = self.tab.locator("#answers .label").all_text_contents()
        shown = self.tab.locator("#answers .number").all_text_contents()
        return labels, np.array([float(text.rstrip("%")) / 100 for text in shown])


@contextmanager
def opened(browser, page: Path, backend: str = "wasm", **options: Any) -> Iterator[Opened]:
    """Serve a page, open it, and choose a backend."""
    with served(page) as address:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        it = Opened(tab, address)
        tab.on("console", lambda message: it.messages.append(message.text))
        tab.on("pageerror", lambda error: it.messages.append(str(error)))
        context.on("request", lambda request: it.requests.append(request.url))
        tab.goto(address)
        if backend != "wasm":
            it.begun()
            tab.select_option("#backend", backend)
        yield it
        context.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """A JPEG, one that lies on its side, a transparent PNG, a gray one, and a small WebP.

    They are pale, so that no answer is certain, and grained, so that the filter matters.
    """
    out, grain = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    sizes = [(333, 250), (120, 161), (101, 90), (50, 150), (20, 29)]
    images = [
        Image.fromarray(photo(i, *size) // 3 + grain.integers(0, 60, (*size, 3), np.uint8))
        for i, size in enumerate(sizes)
    ]
    images[2].putalpha(Image.fromarray(photo(9, *sizes[2])[..., 0]))
    images[3] = images[3].convert("L")
    sideways = Image.Exif()
    sideways[274] = 6
    how = [{"quality": 95}, {"quality": 95, "exif": sideways}, {}, {}, {"lossless": True}]
    names = ["0.jpg", "1.jpg", "2.png", "3.png", "4.webp"]
    for image, name, options in zip(images, names, how, strict=True):
        image.save(out / name, **options)
    return [out / name for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("model.onnx", "wasm"),
        pytest.param("model.onnx", "webgpu", marks=pytest.mark.full),
        ("model.float16.onnx", "wasm"),
        ("model.int8.onnx", "wasm"),
        ("model.int8.onnx", "webgpu"),
    ],
)
def test_it_gives_pythons_answers_and_proves_itself(
    pages, folder, pictures, browser, name, backend
):
    expected = vggkeras.posteriors(vggkeras.load(folder / name), pictures)
    assert expected.max(axis=1).min() < 0.9  # not so sure that any crop would do
    with opened(browser, pages[name]) as it:
        it.begun()
        if not it.tab.locator(f"#backend option[value={backend}]").count():
            pytest.skip(f"this Chromium has no {backend}")
        it.tab.select_option("#backend", backend)
        assert re.match(r"Proven, largest error \d.\de-\d+ \(", it.begun())
        for picture, probabilities in zip(pictures, expected, strict=True):
            it.choose(picture)
            labels, shown = it.answers()
            best = probabilities.argsort()[::-1][:5]
            assert len(set(labels)) == 5
            np.testing.assert_allclose(shown, probabilities[best], atol=0.005)
            np.testing.assert_allclose(shown, probabilities[[int(x) for x in labels]], atol=0.005)
            assert re.search(r"in \d+\sms on Web.* alone: \d+\sms\)", it.text("status"))
        assert it.messages == []
        others = [url for url in it.requests if not url.startswith((it.address, "blob:"))]
        assert others == ["data:,"] * len(others)  # the icon, which is nothing


# What the worker makes of a picture, in the page.
CROP = """async ([encoded, given]) => {
    const code = await (await fetch("worker.js")).text();
    const crop = new Function("given", `${code}; about = given; return [decoded, centralCrop]`);
    const [decode, centralCrop] = crop(given);
    const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
    return [...centralCrop(await decode(new Blob([bytes])))];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 1])
def test_its_crops_are_pillows(page, pictures, browser, tmp_path, channels):
    large = tmp_path / "large.png"  # which is copied in two bands
    Image.fromarray(photo(5, 2200, 2501)).save(large)
    narrow = tmp_path / "narrow.png"
    Image.fromarray(photo(6, 700, 3)).save(narrow)
    with opened(browser, page, bypass_csp=True) as it:
        for picture in [*pictures, large, narrow]:
            encoded = base64.b64encode(picture.read_bytes()).decode()
            given = {"input": [32, 30, channels], "scale": 37}
            crop = np.array(it.tab.evaluate(CROP, [encoded, given])).reshape(32, 30, channels)
            image = decoding.decode(picture.read_bytes(), exif=True)
            expected = augment.in_channels(augment.center_crop(image, 37, (32, 30)), channels)
            if picture.suffix == ".jpg":  # another decoder may round the other way
                assert np.abs(crop - expected.astype(int)).mean() < 0.5
            else:
                np.testing.assert_array_equal(crop, expected)


@pytest.mark.slow
def test_webgpu_is_taken_by_itself_and_webassembly_where_it_fails(pages, browser, tmp_path):
    page = Path(shutil.copytree(pages["model.onnx"], tmp_path / "page"))
    card = "navigator.gpu.requestAdapter = async () => ({ info: { isFallbackAdapter: false } })"
    for missing in (False, True):
        if missing:
            (page / "runtime" / "ort.webgpu.bundle.min.mjs").unlink()
        with served(page) as address:
            context = browser.new_context()
            context.set_default_timeout(PATIENCE)
            context.add_init_script(f"if (navigator.gpu) {card}")
            it = Opened(context.new_page(), address)
            it.tab.goto(address)
            told = it.begun()
            if not it.tab.evaluate("!!navigator.gpu"):
                pytest.skip("this Chromium has no WebGPU")
            if missing:
                assert "on WebAssembly just now" in told
                assert "Not on WebGPU: " in told
                assert "cannot be fetched" in told
            else:
                assert "on WebGPU just now" in told
            context.close()


@pytest.mark.slow
def test_a_model_that_was_changed_is_refused(page, browser):
    content = bytearray((page / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (page / "model.int8.onnx").write_bytes(content)
    with opened(browser, page) as it:
        it.tab.locator(ENDED).first.wait_for()
        assert "model.int8.onnx" in it.text("problem")
        assert "its digest differs" in it.text("problem")
        assert it.text("status") == "Not proven: no answers are given."
        assert it.tab.locator("input:enabled").count() == 0


@pytest.mark.slow
def test_a_changed_model_with_a_digest_that_fits_is_refused_by_its_answers(page, browser):
    def change(graph, weights):
        name = "predictions.kernel.int8"
        weights[name] = np.roll(weights[name], 1, axis=1)

    path, about = page / "model.int8.onnx", json.loads((page / "about.json").read_text())
    edit_onnx(path, change)
    digest = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
    about["model"]["integrity"] = f"sha256-{digest}"
    (page / "about.json").write_text(json.dumps(about))
    with opened(browser, page) as it:
        it.tab.locator(ENDED).first.wait_for()
        assert "the answers to the golden images are off by up to 1.0 (" in it.text("problem")
        assert it.tab.locator("input:enabled").count() == 0
        assert it.messages == []


@pytest.mark.slow
def test_a_browser_that_decodes_otherwise_is_refused(page, browser):
    path, about = page / "golden.bin", json.loads((page / "about.json").read_text())
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[: 32 * 32 * 3] = np.roll(content[: 32 * 32 * 3], 3)  # the first image, by a pixel
    path.write_bytes(content)
    about["golden"] |= {"integrity": "", "tolerance": 1}
    (page / "about.json").write_text(json.dumps(about))
    with opened(browser, page) as it:
        it.tab.locator(ENDED).first.wait_for()
        assert "decodes or rescales the golden photograph differently" in it.text("problem")


@pytest.mark.slow
def test_it_works_without_a_network_after_the_first_time(page, pictures, browser):
    with opened(browser, page) as it:
        it.begun()
        it.choose(pictures[0])
        before = it.answers()
        it.tab.evaluate("async () => { await navigator.serviceWorker.ready }")
        it.tab.context.set_offline(True)
        it.tab.goto(it.address)
        assert it.begun().startswith("Proven, largest error")
        it.choose(pictures[0])
        labels, shown = it.answers()
        assert labels == before[0]
        np.testing.assert_array_equal(shown, before[1])
        assert it.messages == []


@pytest.mark.slow
def test_pictures_that_are_none(page, browser, tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(100))
    (tmp_path / "cut.png").write_bytes((tmp_path / "huge.png").read_bytes()[:20])
    says = {
        "huge.png": "huge.png has 100 megapixels (10000",
        "text.jpg": "text.jpg cannot be read as a picture: give a JPEG, PNG or WebP file.",
        "phone.heic": "phone.heic is a HEIC picture, which this browser does not decode",
        "cut.png": "cut.png cannot be read as a picture",
    }
    with opened(browser, page) as it:
        it.begun()
        for name, message in says.items():
            it.choose(tmp_path / name)
            assert message in it.text("problem")
            assert it.text("status").startswith("Ready")
        assert it.messages == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_it_is_accessible_on_every_screen(page, pictures, node_modules, browser, width, scheme):
    axe = (node_modules / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    view = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}
    with opened(browser, page, bypass_csp=True, **view) as it:  # or axe could not be started
        it.begun()
        for picture in (None, pictures[0], page / "sw.js"):
            if picture:
                it.choose(picture)
            it.tab.evaluate(axe)
            found = it.tab.evaluate("axe.run().then((results) => results.violations)")
            assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
            assert it.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_the_keyboard_is_enough(page, pictures, browser):
    with opened(browser, page) as it:
        it.begun()
        for _ in range(3):  # on a busy machine the first key may come before the page has the focus
            it.tab.keyboard.press("Tab")
            if it.tab.evaluate("document.activeElement.type") == "file":
                break
        assert it.tab.evaluate("document.activeElement.type") == "file"
        with it.tab.expect_file_chooser() as chooser:
            it.tab.keyboard.press("Enter")
        chooser.value.set_files(pictures[0])
        it.tab.locator(ANSWERED).first.wait_for()
        assert len(it.answers()[0]) == 5
        assert it.tab.get_attribute("#status", "role") == "status"
        assert pictures[0].name in it.tab.get_attribute("#preview", "alt")


@contextmanager
def cdn(folder: Path) -> Iterator[str]:
    """Serve a folder to pages of other addresses."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Access-Control-Allow-Origin", "*")
            super().end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_from_a_cdn_only_the_pinned_files_are_taken(
    folder, node_modules, browser, tmp_path, monkeypatch
):
    page = web.write_page(tmp_path / "page", folder)
    assert sorted(path.name for path in page.iterdir()) == [
        *("about.json", "golden.bin", "index.html", "model.int8.onnx"),
        *("page.css", "page.js", "sw.js", "worker.js"),
    ]
    assert page.joinpath("index.html").read_text().count(f"{web.CDN}/") == len(web.PINNED)

    def says() -> str:
        """What a page against the CDN that is set says once it has ended."""
        page = web.write_page(tmp_path / "other", folder)
        with opened(browser, page) as it:
            it.tab.locator(ENDED).first.wait_for()
            shutil.rmtree(page)
            return it.text("proof") + it.text("problem")

    dist = shutil.copytree(node_modules / web.PACKAGE / "dist", tmp_path / "dist")
    with cdn(dist) as address:
        monkeypatch.setattr(web, "CDN", address)
        assert says().startswith("Proven")
        for name in web.PINNED:
            (tmp_path / "dist" / name).write_text("changed")
        assert says().endswith("its digest differs.")
    assert "cannot be fetched" in says()
    assert f"{web.INSTALL}` and write the page with --bundle" in says()


@pytest.mark.slow
def test_the_pinned_digests_are_those_of_the_package(node_modules):
    dist = node_modules / web.PACKAGE / "dist"
    for name, (size, digest) in web.PINNED.items():
        found = web.Loaded.of(dist / name, name, "sha384")
        assert (found.bytes, found.integrity) == (size, digest)


def test_the_command_takes_the_smallest_file_that_passed(folder, run, command, tmp_path):
    code, out, _ = command(cli, "--web", tmp_path / "page", "--model", folder)
    assert code == 0
    assert "model.int8.onnx" in out
    assert web.chosen(folder) == folder / "model.int8.onnx"
    about = json.loads((tmp_path / "page" / "about.json").read_text())
    assert about["labels"] == [str(i) for i in range(10)]
    code, _, err = command(cli, "--web", tmp_path / "page", "--model", folder)
    assert code == 2
    assert "is there already" in err


def test_bad_input(folder, command, tmp_path, monkeypatch):
    def refused(*arguments) -> str:
        code, _, err = command(cli, *arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert not (tmp_path / "page").exists()
        return err

    page = ("--web", tmp_path / "page", "--model")
    os.mkdir(tmp_path / "bare")
    (tmp_path / "bare" / "certificate.json").write_text("{}")
    assert "no .onnx file that passed its proof" in refused(*page, tmp_path / "bare")
    assert "No artifact at" in refused(*page, tmp_path / "model.onnx")
    assert f"{web.INSTALL}" in refused(*page, folder, "--bundle", tmp_path)
    assert "--bundle goes with --web" in refused("--model", folder, "--bundle", tmp_path)
    assert "--web takes --model and --bundle alone" in refused(*page, folder, "--dense")
    broken = Path(shutil.copy(folder / "model.onnx", tmp_path))
    broken.write_bytes(broken.read_bytes()[:-1])
    assert "is not proven here" in refused(*page, broken)
    monkeypatch.setattr(web, "MOST_BYTES", 10)
    assert "has 0 MB" in refused(*page, folder)


def test_a_dense_file_is_no_classifier_for_a_page(run, tmp_path):
    export.export_model(run.path, "onnx", data="random", out=tmp_path, images=8, dense=True)
    with pytest.raises(InputError, match="expected a classifier"):
        web.write_page(tmp_path / "page", tmp_path / "model.dense.onnx")
