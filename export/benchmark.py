"""Measure deployed models side by side: latency, throughput, cold start and memory.

    python -m export.benchmark runs/latest runs/latest/export/model.onnx

The figures are MLPerf LoadGen's (loadgen.py). Every file runs in a process of its own (serving.py),
with its own runtime; the first file is what the others are compared with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.loadgen import OFFLINE, PERCENTILES, SECONDS, SINGLE, Lengths, Outcome
from export.serving import Loaded, started, with_provider
from vggkeras import files
from vggkeras.errors import InputError
from vggkeras.provider import ON_GPU, Provider
from vggkeras.runtimes.providers import Options

if TYPE_CHECKING:
    from rich.console import Console

    from export.accuracy import Accuracy

FIGURES = files.Kind("of `export.benchmark`", files.json_with("settings", "rows"))
ROUNDS = 10
# Seconds between two turns: ONNX Runtime's and TensorFlow's threads spin for some ms after their
# last call.
REST = 0.05


@dataclass(frozen=True)
class Arguments:
    """Measure deployed models side by side: latency, throughput, cold start and memory.

    The figures are MLPerf LoadGen's: single-stream latency percentiles, one image a query, and
    offline images/s. Every file has a process of its own, and they take turns; ratios are to the
    first file. --data adds each file's accuracy.
    """

    files: tuple[Path, ...]
    """.keras, .onnx and .tflite files, run and SavedModel folders, at any precision, or
    hf:USER/NAME[@REV][:FILE]. Each is shown the golden images beside it, or random ones.
    FILE@PROVIDER has a provider of its own: model.onnx@openvino."""
    provider: Provider = "cpu"
    """Where a model computes; all but cpu and cuda are for .onnx files."""
    threads: int | None = None
    """Of the runtime; its own choice when not given."""
    batch: int = 8
    """Images a call in the offline scenario, 1 to 64."""
    rounds: int = ROUNDS
    """Turns of every file in each scenario."""
    seconds: float = SECONDS
    """Of a turn, at least; single-stream also asks 64 queries over all rounds."""
    official: bool = False
    """MLPerf's own smallest lengths instead, one turn each: 600 s a file and scenario, 24,576
    images offline."""
    trust_saved_model: bool = False
    """Load a SavedModel even if its operators may touch files, sockets or Python."""
    batch_sizes: tuple[int, ...] = ()
    """The batches that a GPU is prepared for, of .onnx files of one image size; a single size
    becomes a CUDA graph."""
    data: str | None = None
    """Also score every file on the central crops of this data: digits, tfds:NAME, hf:NAME, a list
    or a folder; on its validation images, else test, else all."""
    images: int = 0
    """With --data: score a sample of so many images, each class in proportion; 0 is all."""
    json: Path | None = None
    """Write the figures to this file too."""

    @property
    def asked(self) -> Options:
        """How every file is loaded."""
        return Options(
            self.provider,
            self.threads,
            tf32=True,
            trust_saved_model=self.trust_saved_model,
            batch_sizes=self.batch_sizes,
        )

    @property
    def lengths(self) -> Lengths:
        """How long each test is."""
        rounds = 1 if self.official else self.rounds
        return Lengths(self.batch, rounds, self.seconds, self.official)

    def check(self) -> None:
        """Raise InputError for counts that cannot be, and where LoadGen is not installed."""
        from vggkeras.runtimes.predictor import MAX_BATCH

        if self.rounds < 1:
            raise InputError(f"rounds must be 1 or more; received {self.rounds}.")
        if not 1 <= self.batch <= MAX_BATCH:
            raise InputError(f"batch must be 1 to {MAX_BATCH}; received {self.batch}.")
        if not 0 < self.seconds <= 600:
            raise InputError(
                f"seconds must be more than 0, and 600 or less; received {self.seconds}."
            )
        if self.images < 0 or (self.images and not self.data):
            raise InputError(
                f"images must be 1 or more, or 0 for all, and of --data; received {self.images}."
            )
        if not self.files:
            raise InputError("Expected one file or more to measure; received none.")
        if find_spec("mlperf_loadgen") is None:
            raise InputError(
                "MLPerf's LoadGen is not installed: pip install 'vggkeras[benchmark]'."
            )


@dataclass
class Row:
    """What was measured of one file."""

    loaded: Loaded
    cold_start_s: float
    images: str = ""  # which the file was shown
    accuracy: Accuracy | None = None  # None without --data
    peak_memory_mib: float = 0.0
    tests: dict[str, list[Outcome]] = field(default_factory=lambda: {SINGLE: [], OFFLINE: []})

    def ratio(self, first: Row, scenario: str) -> tuple[float, float, float]:
        """Return this file's figure over the first file's: the rounds' median, least and most."""
        import numpy as np

        name = "p50_ms" if scenario == SINGLE else "images_per_second"
        pairs = zip(self.tests[scenario], first.tests[scenario], strict=True)
        ratios = [getattr(test, name) / getattr(other, name) for test, other in pairs]
        return float(np.median(ratios)), min(ratios), max(ratios)

    def percentiles_ms(self) -> list[float]:
        """Return the latency percentiles over the queries of all rounds, ms."""
        import numpy as np

        tests = self.tests[SINGLE]
        if len(tests) == 1:  # LoadGen's own
            return [getattr(tests[0], f"p{percentile}_ms") for percentile in PERCENTILES]
        latencies = np.concatenate([test.latencies_ns or () for test in tests]) / 1e6
        return np.percentile(latencies, PERCENTILES, method="inverted_cdf").tolist()

    def to_json(self, first: Row) -> dict[str, Any]:
        """Return what --json holds of a file."""
        single, offline = self.tests[SINGLE], self.tests[OFFLINE]
        names = [f"p{percentile}_ms" for percentile in PERCENTILES]
        images = sum(test.images or 0 for test in offline)
        seconds = sum((test.images or 0) / (test.images_per_second or 1) for test in offline)

        def compared(scenario: str, tests: list[Outcome]) -> dict[str, Any]:
            ratio, low, high = self.ratio(first, scenario)
            rounds = [test.to_json() for test in tests]
            return {"ratio": ratio, "ratio_range": [low, high], "rounds": rounds}

        return {
            **dataclasses.asdict(self.loaded),
            **({"accuracy": self.accuracy.to_json()} if self.accuracy else {}),
            "cold_start_s": self.cold_start_s,
            "images": self.images,
            "peak_memory_mib": self.peak_memory_mib,
            "single_stream": {
                "queries": sum(test.queries or 0 for test in single),
                **dict(zip(names, self.percentiles_ms(), strict=True)),
                **compared(SINGLE, single),
            },
            "offline": {
                "images": images,
                "seconds": seconds,
                "images_per_second": images / seconds,
                **compared(OFFLINE, offline),
            },
        }


def benchmark(
    paths: Sequence[str | os.PathLike[str]],
    provider: Provider = "cpu",
    threads: int | None = None,
    batch: int = 8,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    console: Console | None = None,
    *,
    official: bool = False,
    trust_saved_model: bool = False,
    batch_sizes: Sequence[int] = (),
    data: str | None = None,
    images: int = 0,
) -> dict[str, Any]:
    """Measure files side by side, each in a process of its own, taking turns.

    Every process is started once to warm the disk's cache, then again for good: the cold start is
    the second one's. Then all are loaded, and in each of the rounds every file answers LoadGen in
    turn while the others are idle; every second round goes the other way round. Ratios are medians
    of the rounds' own, so what slows the machine for a while slows both sides of a ratio.

    The arguments are the fields of `Arguments`, which explains each.

    Returns:
        {"settings": ..., "rows": [one a file]}. Times are in ms or s as the names say, memory in
        MiB. `single_stream` has percentiles over the queries of all rounds; each `ratio` is this
        file's figure by the first file's, and `ratio_range` the smallest and the largest of the
        rounds. `peak_memory_mib` is the most physical memory that the process held: Python, the
        runtime, the model, LoadGen and the images, but nothing that is on a GPU. `accuracy` is
        there with `data` alone.

    Raises:
        InputError (a ValueError): LoadGen is not installed, what `runtimes.load` raises, counts
            below one, a process that ended.
    """
    from vggkeras.terminal import plain

    files = tuple(Path(path) for path in paths)
    lengths = (batch, rounds, seconds, official)
    others = (trust_saved_model, tuple(batch_sizes), data, images)
    arguments = Arguments(files, provider, threads, *lengths, *others)
    arguments.check()
    console = plain(console)
    scores: list[Accuracy | None] = [None] * len(files)
    if data:
        from export.accuracy import accuracies

        scores = [*accuracies(files, arguments.asked, data, images, console)]
    rows = _measured(arguments, console)
    for row, score in zip(rows, scores, strict=True):
        row.accuracy = score
    return {
        "settings": _settings(arguments, rows),
        "rows": [row.to_json(rows[0]) for row in rows],
    }


def _measured(arguments: Arguments, console: Console) -> list[Row]:
    """Start every file's process, and let them take turns."""
    from vggkeras.terminal import progress_bar

    lengths = arguments.lengths
    asked = [with_provider(path, arguments.asked) for path in arguments.files]
    paths = [path for path, _ in asked]
    with (
        progress_bar(console, "steps") as bar,
        tempfile.TemporaryDirectory(prefix="vggkeras-benchmark-") as folder,
        contextlib.ExitStack() as stack,
    ):
        task = bar.add_task("measuring", total=len(paths) * (3 + 2 * lengths.rounds))

        def step(doing: str, path: Path) -> None:
            bar.update(task, description=f"{doing} {path.name}", advance=1)

        logs = [Path(folder) / str(number) for number in range(len(paths))]
        for (path, own), log in zip(asked, logs, strict=True):
            step("starting", path)
            log.mkdir()
            with started(path, own, log):
                pass
        servers, rows = [], []
        for (path, own), log in zip(asked, logs, strict=True):
            step("starting", path)
            start = time.perf_counter()
            servers.append(stack.enter_context(started(path, own, log)))
            rows.append(Row(servers[-1].loaded, time.perf_counter() - start))
        speeds = []
        for path, row, server in zip(paths, rows, servers, strict=True):
            step("warming", path)
            row.images, speed = server.warm(lengths)
            speeds.append(speed)
        files = list(zip(paths, rows, servers, speeds, strict=True))
        for number in range(lengths.rounds):
            for scenario in (SINGLE, OFFLINE):
                for path, row, server, speed in files[:: -1 if number % 2 else 1]:
                    step(scenario, path)
                    time.sleep(REST)
                    row.tests[scenario].append(server.test(scenario, lengths, speed))
        for row, server in zip(rows, servers, strict=True):
            row.peak_memory_mib = server.peak_memory_mib()
    return rows


def _settings(arguments: Arguments, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what --json says of how and where it was measured."""
    from vggkeras.nvidia import this_card
    from vggkeras.processor import this_processor

    card = this_card()
    return {
        **dataclasses.asdict(arguments.lengths),
        "seconds": None if arguments.official else arguments.seconds,
        "provider": arguments.provider,
        "threads": arguments.threads,
        "batch_sizes": list(arguments.batch_sizes),
        "data": arguments.data,
        "interleaved": arguments.lengths.rounds > 1,
        "loadgen": version("mlcommons-loadgen"),
        "python": platform.python_version(),
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": str(this_processor()),
        "gpu": card.name if card and any(row.loaded.provider in ON_GPU for row in rows) else None,
        "cores": os.cpu_count(),
    }


def main() -> int:
    """Parse, measure, and print."""
    import tyro

    from export.benchmark_table import print_benchmark
    from vggkeras.errors import parsed
    from vggkeras.terminal import Console

    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.DisallowNone)
    arguments = parsed(
        lambda: tyro.cli(Arguments, prog="python -m export.benchmark", config=config)
    )
    if arguments.official and (arguments.rounds, arguments.seconds) != (ROUNDS, SECONDS):
        raise InputError("--official has lengths of its own: leave out --rounds and --seconds.")
    if arguments.json:
        files.check_file(arguments.json, FIGURES)
    console = Console()
    options = {k: v for k, v in vars(arguments).items() if k not in ("files", "json")}
    figures = benchmark(arguments.files, **options, console=console)
    print_benchmark(figures, console)
    if arguments.json:
        files.write_json(arguments.json, figures)
    return 0


def cli() -> int:
    """Run the command, and return its exit code."""
    from vggkeras.errors import run_command

    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
