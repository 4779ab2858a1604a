"""Download and prepare a TensorFlow data set, without a long wait where there is no network.

TFDS tries every address ten times, without a limit on how long one try may take, in threads that
do not hear Ctrl-C.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import threading
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CONNECT_SECONDS = 5.0  # in which a host of a data set answers, or is taken not to be there
STALLED_SECONDS = 30.0  # without a byte, after which a download has failed
RETRIES = 2
PORTS = {"http": 80, "https": 443, "ftp": 21}


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Download and prepare a data set.

    Where nothing of it is downloaded yet and none of its hosts can be reached, that is said within
    seconds. Ctrl-C and SIGTERM end the downloads too.

    Raises:
        ConnectionError: no host can be reached.
        Exception: whatever the data set's own code raises.
    """
    urls = [url for url in builder.url_infos or () if urlsplit(url).scheme in PORTS]
    downloads = Path(builder.data_dir_root) / "downloads"
    # TFDS says how to get by hand what must be.
    from_here = builder.MANUAL_DOWNLOAD_INSTRUCTIONS or any(downloads.glob("*"))
    if urls and not from_here and not reachable(urls):
        hosts = sorted({urlsplit(url).hostname or url for url in urls})
        raise ConnectionError(f"cannot connect to {', '.join(hosts)}")
    with _bounded_downloads():
        builder.download_and_prepare()


def reachable(urls: Collection[str], seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether the host of one of some addresses, or the proxy before it, answers."""
    hosts = {_host(url) for url in urls}
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect(host: str, port: int) -> None:
        try:
            socket.create_connection((host, port), seconds).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    # In threads, as nothing limits how long looking up a name takes.
    for host in hosts:
        threading.Thread(target=connect, args=host, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=seconds) for _ in hosts)
    return False


def _host(url: str) -> tuple[str, int]:
    """Return the host and port to which a connection for an address is opened."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 80)


@contextlib.contextmanager
def _bounded_downloads() -> Iterator[None]:
    """Let TFDS' downloads end soon: where no host answers, and where the block is left."""
    from tensorflow_datasets.core.download import downloader

    # Left there by a block that was interrupted, for the threads that still worked on it.
    open_url = getattr(downloader._open_url, "original", downloader._open_url)
    stopped = threading.Event()

    @contextlib.contextmanager
    def open_bounded(url: str, **options: Any) -> Iterator[tuple[Any, Iterable[bytes]]]:
        if stopped.is_set() or not reachable([url]):
            raise ConnectionError(f"cannot connect to {urlsplit(url).hostname}")
        timeout = (CONNECT_SECONDS, STALLED_SECONDS)
        with open_url(url, **options, timeout=timeout) as (response, blocks):
            yield response, until_stopped(blocks)

    def until_stopped(blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            if stopped.is_set():
                raise ConnectionError("the download was stopped")
            yield block

    open_bounded.original = open_url  # type: ignore[attr-defined]
    retries = downloader.MAX_RETRIES
    downloader._open_url, downloader.MAX_RETRIES = open_bounded, RETRIES
    try:
        with _told(stopped):
            yield
    except BaseException:
        stopped.set()
        raise
    else:
        downloader._open_url = open_url
    finally:
        downloader.MAX_RETRIES = retries


@contextlib.contextmanager
def _told(stopped: threading.Event) -> Iterator[None]:
    """Set an event as soon as Ctrl-C or SIGTERM comes, before what they raise has gone its way.

    That way may lead through code that waits for the downloads to end.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal comes there
        yield
        return

    def tell(number: int, frame: Any) -> None:
        stopped.set()
        before[signal.Signals(number)](number, frame)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, tell)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
