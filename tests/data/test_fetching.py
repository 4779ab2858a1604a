"""Data sets that would have to be downloaded, where there is no network and where there is one."""

from __future__ import annotations

import http.server
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

import vggkeras
from vggkeras.data import fetching
from vggkeras.errors import InputError


@pytest.fixture
def closed() -> str:
    """An address at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/photos.bin"


@pytest.fixture
def served():
    """served(send) -> an address whose content `send` writes to a file."""
    servers = []

    def serve(send) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                send(self.wfile)

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/photos.bin"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def builder_of(tmp_path):
    """builder_of(url) -> the builder of a data set that downloads from it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def make(url: str):
        # Registered, its name could be taken once in a process.
        with registered.skip_registration():

            class Downloaded(tfds.core.GeneratorBasedBuilder):
                VERSION = tfds.core.Version("1.0.0")
                url_infos = {url: None}  # noqa: RUF012

                def _info(self):
                    features = {
                        "image": tfds.features.Image(),
                        "label": tfds.features.ClassLabel(num_classes=2),
                    }
                    return tfds.core.DatasetInfo(
                        builder=self, features=tfds.features.FeaturesDict(features)
                    )

                def _split_generators(self, dl_manager):
                    path = dl_manager.download(url)
                    return {"train": self._generate_examples(Path(path))}

                def _generate_examples(self, path):
                    import numpy as np

                    for i, value in enumerate(path.read_bytes()):
                        yield i, {"image": np.full((8, 8, 3), value, np.uint8), "label": i % 2}

        return Downloaded(data_dir=tmp_path / "tfds")

    return make


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_network_nothing_is_begun(builder_of, closed, monkeypatch, capfd):
    import tensorflow_datasets as tfds

    builder = builder_of(closed)
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    monkeypatch.setattr(builder, "download_and_prepare", lambda: pytest.fail("it was begun"))
    with pytest.raises(InputError) as caught:
        vggkeras.load_data("tfds:downloaded")
    assert "could not be downloaded (cannot connect to 127.0.0.1): set" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_part_of_a_download_is_gone_on_with_and_its_hosts_are_tried_once(builder_of, closed):
    builder = builder_of(closed)
    (Path(builder.data_dir_root) / "downloads").mkdir(parents=True)
    (Path(builder.data_dir_root) / "downloads" / "another.zip").write_bytes(b"x")
    with pytest.raises(ConnectionError, match=r"cannot connect to 127\.0\.0\.1"):
        fetching.prepare(builder)


def test_with_a_network_it_is_prepared(builder_of, served):
    from tensorflow_datasets.core.download import downloader

    before = downloader._open_url, downloader.MAX_RETRIES
    builder = builder_of(served(lambda file: file.write(bytes(range(20)))))
    fetching.prepare(builder)
    assert builder.info.splits["train"].num_examples == 20
    assert getattr(downloader._open_url, "original", downloader._open_url) is getattr(
        before[0], "original", before[0]
    )
    assert before[1] == downloader.MAX_RETRIES


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "where the caller waits for it"])
def test_ctrl_c_ends_a_download(builder_of, served, monkeypatch, waits):
    ended, hung_up = threading.Event(), threading.Event()

    def send(file):
        try:
            file.write(bytes(1 << 10))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            for _ in range(600):  # slowly: what is not stopped fills no disk
                file.write(bytes(1 << 10))  # the other side looks after every 8 kB
                file.flush()
                time.sleep(0.1)
        except OSError:
            hung_up.set()
        ended.set()

    builder = builder_of(served(send))
    prepare = builder.download_and_prepare

    def prepare_and_wait():
        try:
            prepare()
        finally:
            ended.wait()

    if waits:
        monkeypatch.setattr(builder, "download_and_prepare", prepare_and_wait)
    # A shell that starts the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fetching.prepare(builder)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    ended.wait()
    # No thread goes on with it, for which the end of the process would wait.
    assert hung_up.is_set()


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        ("http://proxy.test:3128", ("proxy.test", 3128)),
        ("proxy.test:8080", ("proxy.test", 8080)),
        (None, ("data.test", 80)),
    ],
)
def test_a_proxy_is_asked_instead_of_the_host(proxy, expected, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
    assert fetching._host("http://data.test/x.zip") == expected
