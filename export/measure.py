"""How long a step of an export takes, and how much memory."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import numpy as np

from vggkeras.runtimes.predictor import Predictor


def milliseconds_of(predictor: Predictor, images: np.ndarray) -> float:
    """Return the median time of a call with one image, ms."""
    times = []
    for image in [images[0], *images[:20]]:
        start = time.perf_counter()
        predictor(image[None])
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[len(times[1:]) // 2] * 1e3


class Peak:
    """Seconds and peak memory of this process and its children, together, while a block runs."""

    seconds = gigabytes = 0.0

    def __enter__(self) -> Peak:
        """Begin to watch."""
        import psutil

        self.before = _lifetime_peak()
        self.start, self.stop = time.perf_counter(), threading.Event()
        me = psutil.Process()

        def look() -> None:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # a child that has just ended
                    total += process.memory_info().rss
            self.gigabytes = max(self.gigabytes, total / 1e9)

        def watch() -> None:
            while not self.stop.wait(0.02):
                look()

        look()
        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End watching."""
        self.seconds = time.perf_counter() - self.start
        self.stop.set()
        self.thread.join()
        # A spike between two looks is in the process' own count, if it was its highest so far.
        if _lifetime_peak() > self.before:
            self.gigabytes = max(self.gigabytes, _lifetime_peak())


def _lifetime_peak() -> float:
    """Return the peak resident memory of this process since it started, GB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
