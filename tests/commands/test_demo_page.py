"""The page of `demo --ui`: what it refuses, what it draws, and the page itself in Chromium."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsers import chromium
from helpers import CLASSES, photo, saved
from PIL import Image

import vggkeras
from vggkeras.__main__ import cli
from vggkeras.commands import demo_page
from vggkeras.report.side_by_side import Models

pytestmark = pytest.mark.integration

PATIENCE = 120_000  # ms


@pytest.fixture
def refused(command, monkeypatch):
    """Run the command where Gradio seems to be installed, and return its one line."""
    find = importlib.util.find_spec

    def refused(*arguments, gradio: bool = True) -> str:
        def found(name):
            return gradio if name == "gradio" else find(name)

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) or None)
        code, _, err = command(cli, "demo", *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        return err

    return refused


def test_what_it_refuses(refused, run, tmp_path):
    page = ("--ui", "--port", 0, "--model")
    assert "give --ui" in refused("--model", run.path)
    assert "pip install 'vggkeras[ui]'" in refused(*page, run.path, gradio=False)
    assert "No model at" in refused(*page, tmp_path / "none.onnx")
    assert "No model at runs/latest" in refused("--ui", "--port", 0)
    two = saved(tmp_path / "two.keras", vggkeras.build("A", (32, 32, 3), 2, width=0.05), CLASSES)
    assert "cannot be shown side by side" in refused(*page, run.path / "model.keras", two)
    with demo_page.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        said = refused("--ui", "--port", port, "--model", run.path)
        assert f"port {port}: " in said
        assert "give another --port" in said
    assert "port 70000" in refused("--ui", "--port", 70_000, "--model", run.path)
    assert "no.such.host.invalid" in refused("--ui", "--host", "no.such.host.invalid")


def test_it_draws_names_as_text(tmp_path):
    names = ["<i>cat</i>", "dog & co"]
    path = saved(tmp_path / "a.keras", vggkeras.build("A", (32, 32, 3), 2, width=0.05), names)
    models = Models([vggkeras.load(path)])
    assert "1 model of 2 classes is ready" in demo_page.drawn(models, None)
    picture = tmp_path / "<b>x.png"
    Image.fromarray(photo(1)).save(picture)
    text = demo_page.drawn(models, str(picture))
    assert "&lt;b&gt;x.png" in text
    assert "&lt;i&gt;cat&lt;/i&gt;" in text
    assert not re.search("<[bi]>", text)
    assert " ms</span>" in text
    picture.write_text("no picture")
    assert re.search(
        'role="alert">&lt;b&gt;x.png cannot be read as', demo_page.drawn(models, str(picture))
    )


@pytest.mark.slow
def test_a_client_cannot_name_other_files_nor_urls(tmp_path, monkeypatch):
    """Nor go past the queue, come by another name, or send without end."""
    pytest.importorskip("gradio", reason="no Gradio here: the extra ui")
    from starlette.testclient import TestClient

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    path = saved(tmp_path / "a.keras", vggkeras.build("A", (32, 32, 3), 2, width=0.05), CLASSES)
    private = tmp_path / "private.png"
    Image.fromarray(photo(1)).save(private)
    Image.fromarray(photo(2)).save(tmp_path / "example.png")
    page = demo_page.application(
        Models([vggkeras.load(path)]), [tmp_path / "example.png"], "127.0.0.1"
    )
    with TestClient(page, base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 421
        assert client.post("/gradio_api/upload", headers={"Content-Length": "9" * 10}).is_error
        assert client.post("/gradio_api/upload", content=iter([b"a"])).status_code == 413
        assert client.post("/gradio_api/run/lambda", json={"data": [None]}).is_error
        with private.open("rb") as file:
            (mine,) = client.post("/gradio_api/upload", files={"files": file}).json()
        assert "card" in answered(client, {"path": mine})
        is_file = {"meta": {"_type": "gradio.FileData"}}
        for other in (str(private), "http://127.0.0.1/", f"{mine}/../../../private.png"):
            for more in ({}, is_file, {"is_stream": True}, is_file | {"is_stream": True}):
                answer = answered(client, {"path": other} | more)
                assert "process_completed" in answer
                assert "card" not in answer
        copies = (tmp_path / "uploads").rglob("*.*")  # of what was uploaded, and of the example
        assert sorted(copy.name for copy in copies) == ["example.png", "private.png"]


def answered(client, picture: dict) -> str:
    """All that the queue says of a picture."""
    (number,) = [
        each["id"] for each in client.get("/config").json()["dependencies"] if each["queue"]
    ][-1:]
    body = {"data": [picture], "fn_index": number, "session_hash": "a"}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    return client.get("/gradio_api/queue/data", params={"session_hash": "a"}).text


@contextmanager
def page(*arguments: object) -> Iterator[str]:
    """Start the command, and give the page's address."""
    command = [sys.executable, "-m", "vggkeras", "demo", "--ui", "--port", "0"]
    with subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stdout)
            yield next(match[0] for match in found if match)
        finally:
            server.terminate()
            assert server.wait(60) == 130


def shown(tab) -> dict[str, list[tuple[str, str]]]:
    """Each file's classes and probabilities."""
    cards = {}
    for card in tab.locator("#answers .card").all():
        labels = card.locator(".label").all_text_contents()
        numbers = card.locator(".number").all_text_contents()
        cards[card.locator(".file").text_content()] = list(zip(labels, numbers, strict=True))
        assert re.fullmatch(r"\d+\.\d ms", card.locator(".ms").text_content())
    return cards


@pytest.mark.slow
def test_a_picture_gets_the_answers_of_predict(run, exports, command, tmp_path):
    pytest.importorskip("gradio", reason="no Gradio here: the extra ui")
    picture = tmp_path / "picture.jpg"
    Image.fromarray(photo(3, 70, 50)).save(picture)
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    files = {path.name: path for path in (folder / "model.keras", *(folder / "export").iterdir())}
    expected = {}
    for name in ("model.keras", "saved_model", "model.onnx", "model.tflite"):
        _, out, _ = command(cli, "predict", picture, "--json", "--model", files[name])
        classes = json.loads(out)["classes"]
        expected[name] = [(one["class"], f"{one['probability']:.4f}") for one in classes]
    (tmp_path / "text.jpg").write_text("no picture")
    with chromium() as browser, page("--model", folder) as address:
        requests: list[str] = []
        for width in (1280, 360):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            tab.set_default_timeout(PATIENCE)
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(address)
            tab.locator("#answers .note").wait_for()
            choose = tab.locator("input[type=file]").first
            choose.set_input_files(picture)
            tab.locator("#answers .card").first.wait_for()
            assert shown(tab) == expected
            assert tab.locator("#answers img").count() == 2  # the crop, and Grad-CAM
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        tab.reload()
        choose.set_input_files(tmp_path / "text.jpg")
        alert = tab.locator("#answers [role=alert]")
        alert.wait_for()
        assert alert.text_content().startswith("text.jpg cannot be read as an image (")
        tab.locator(".gallery-item").first.click()
        tab.locator("#answers .card").first.wait_for()
        assert not [u for u in requests if not u.startswith((address, f"blob:{address}", "data:"))]
