"""Deployed models side by side: latency, throughput, cold start and memory, measured by MLPerf's LoadGen.

    python -m export.benchmark runs/latest runs/latest/export/model.onnx runs/latest/export/model.tflite

Every file runs in a process of its own, with its own runtime; the first file is what the others are compared with. A
process reaches its first answer without this module's own command line, so nothing heavy is imported up here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from vggkeras.runtimes.predictor import Predictor

ROUNDS, SECONDS = 10, 0.5
QUERIES = 64  # of single-stream over all rounds, at least: what LoadGen asks for before it trusts a 90th percentile
OFFICIAL_WARMING = (
    10.0  # s of calls from which the number of images that last for 600 s is estimated
)
IMAGES = 32  # random ones, where a file has no golden ones beside it
REST = 0.05  # s between two turns: ONNX Runtime's and TensorFlow's threads spin for some ms after their last call
SINGLE, OFFLINE = "SingleStream", "Offline"
PERCENTILES = (50, 90, 99)


def benchmark(
    paths: Sequence[str | os.PathLike],
    provider: str = "cpu",
    threads: int | None = None,
    batch: int = 8,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    console: Console | None = None,
    *,
    official: bool = False,
) -> dict[str, Any]:
    """Measure files side by side, each in a process of its own, taking turns.

    Every process is started once to warm the disk's cache, then again for good: the cold start is the second one's. Then
    all are loaded, and in each of the rounds every file answers LoadGen in turn while the others are idle; every second
    round goes the other way round. Ratios are medians of the rounds' own, so what slows the machine for a while slows
    both sides of a ratio.

    Args:
        paths: .keras, .onnx and .tflite files, run and SavedModel folders.
        provider: as of `runtimes.load`.
        threads: of the runtime; its own choice when None.
        batch: images a call in the offline scenario, 1 to 64.
        rounds: turns of each file in each scenario.
        seconds: each turn lasts at least.
        console: for the progress bar.
        official: one turn of MLPerf's own smallest length, 600 s, instead, which LoadGen itself says is valid or not.

    Returns:
        {"settings": ..., "rows": [one a file]}. Times are in ms or s as the names say, memory in MiB. `single_stream` has
        percentiles over the queries of all rounds; each `ratio` is this file's figure by the first file's, and
        `ratio_range` the smallest and the largest of the rounds. `peak_memory_mib` is the most physical memory that
        the process held: Python, the runtime, the model, LoadGen and the images, but nothing that is on a GPU.

    Raises:
        InputError (a ValueError): LoadGen is not installed, what `runtimes.load` raises, counts below one, a process
            that ended.
    """
    from rich.console import Console

    from vggkeras.processor import this_processor
    from vggkeras.runtimes import predictor as predictor_module
    from vggkeras.terminal import progress_bar

    if rounds < 1:
        raise InputError(f"rounds must be 1 or more; received {rounds}.")
    if not 1 <= batch <= predictor_module.MAX_BATCH:
        raise InputError(f"batch must be 1 to {predictor_module.MAX_BATCH}; received {batch}.")
    if not 0 < seconds <= 600:
        raise InputError(f"seconds must be more than 0, and 600 or less; received {seconds}.")
    if not paths:
        raise InputError("Expected one file or more to measure; received none.")
    if find_spec("mlperf_loadgen") is None:
        raise InputError("MLPerf's LoadGen is not installed: pip install 'vggkeras[benchmark]'.")
    rounds = 1 if official else rounds
    turn = {"batch": batch, "rounds": rounds, "seconds": seconds, "official": official}
    asked = {"provider": provider, "threads": threads}
    names = [Path(path).name for path in paths]
    found: list[dict[str, Any]] = [{"rounds": {SINGLE: [], OFFLINE: []}} for _ in paths]
    with (
        progress_bar(console or Console()) as bar,
        tempfile.TemporaryDirectory(prefix="vggkeras-benchmark-") as folder,
        contextlib.ExitStack() as stack,
    ):
        task = bar.add_task("", total=len(paths) * (3 + 2 * rounds))

        def step(doing: str, number: int) -> None:
            bar.update(task, description=f"{doing} {names[number]}", advance=1)

        logs = [Path(folder) / str(number) for number in range(len(paths))]
        for number, path in enumerate(paths):
            step("starting", number)
            logs[number].mkdir()
            with _process(path, asked, logs[number]) as ask:
                ask(None)
        asks = []
        for number, path in enumerate(paths):
            step("starting", number)
            start = time.perf_counter()
            asks.append(stack.enter_context(_process(path, asked, logs[number])))
            found[number] |= asks[-1](None)
            found[number]["cold_start_s"] = time.perf_counter() - start
        for number, ask in enumerate(asks):
            step("warming", number)
            found[number] |= ask({**turn, "scenario": None})
        for i in range(rounds):
            for scenario in (SINGLE, OFFLINE):
                for number in range(len(asks))[:: -1 if i % 2 else 1]:
                    step(scenario, number)
                    time.sleep(REST)
                    rate = {
                        name: found[number][name]
                        for name in ("warm_latency_s", "warm_images_per_second")
                    }
                    found[number]["rounds"][scenario].append(
                        asks[number]({**turn, **rate, "scenario": scenario})
                    )
        for row, ask in zip(found, asks, strict=True):
            row |= ask({"memory": True})
    settings = {
        **turn,
        "seconds": None if official else seconds,
        "provider": provider,
        "threads": threads,
        "interleaved": rounds > 1,
        "loadgen": version("mlcommons-loadgen"),
        "python": platform.python_version(),
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": str(this_processor()),
        "gpu": None if provider == "cpu" else _gpu(),
        "cores": os.cpu_count(),
    }
    return {"settings": settings, "rows": [_row(row, found[0]) for row in found]}


def _row(found: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """What is said of a file: figures over all rounds, and their ratios to the first file's."""
    import numpy as np

    single, offline = found["rounds"][SINGLE], found["rounds"][OFFLINE]
    if len(single) == 1:
        percentiles = {f"p{p}_ms": single[0][f"p{p}_ms"] for p in PERCENTILES}  # LoadGen's own
    else:
        milliseconds = np.concatenate([turn.pop("latencies_ns") for turn in single]) / 1e6
        values = np.percentile(milliseconds, PERCENTILES, method="inverted_cdf")
        percentiles = {
            f"p{p}_ms": float(value) for p, value in zip(PERCENTILES, values, strict=True)
        }
    images = sum(turn["images"] for turn in offline)
    seconds = sum(turn["images"] / turn["images_per_second"] for turn in offline)
    return {
        **{
            name: value
            for name, value in found.items()
            if name not in ("rounds", "warm_latency_s", "warm_images_per_second")
        },
        "single_stream": {
            "queries": sum(turn["queries"] for turn in single),
            **percentiles,
            **_ratio(single, first["rounds"][SINGLE], "p50_ms"),
            "rounds": single,
        },
        "offline": {
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds,
            **_ratio(offline, first["rounds"][OFFLINE], "images_per_second"),
            "rounds": offline,
        },
    }


def _ratio(turns: list[dict[str, Any]], firsts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    import numpy as np

    ratios = [turn[name] / first[name] for turn, first in zip(turns, firsts, strict=True)]
    return {"ratio": float(np.median(ratios)), "ratio_range": [min(ratios), max(ratios)]}


def _gpu() -> str | None:
    """The first GPU's name, where NVIDIA's tool is there to say it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0] or None


@contextlib.contextmanager
def _process(
    path: str | os.PathLike, asked: dict[str, Any], logs: Path
) -> Iterator[Callable[[dict[str, Any] | None], dict[str, Any]]]:
    """A process that serves one file, as a function from request to answer; it ends with the block, however that ends.

    Its first answer, to no request, is what it has loaded. Raises InputError for what the process refuses, and where it
    ended without a word.
    """
    command = [sys.executable, "-c", "from export.benchmark import serve; serve()"]
    arguments = json.dumps({**asked, "path": os.fspath(path), "logs": str(logs)})
    # TensorFlow's chatter goes to the log, and would be the last words of a process that died of something else.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    with open(logs / "stderr", "w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [*command, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            encoding="utf-8",
            env=environment,
        )
        requests, answers = process.stdin, process.stdout
        assert requests
        assert answers

        def ask(request: dict[str, Any] | None) -> dict[str, Any]:
            if request:
                with contextlib.suppress(BrokenPipeError):  # the answer that does not come says it
                    requests.write(json.dumps(request) + "\n")
                    requests.flush()
            line = answers.readline()
            if not line:
                code = process.wait()
                said.seek(0)
                last = (said.read().split("\n")[-2:] or [""])[0][:300]
                raise InputError(
                    f"{path}: its process ended with code {code} ({last or 'without a word'}); try fewer threads, a "
                    "smaller --batch, or another provider."
                )
            answer = json.loads(line)
            if "refused" in answer:
                raise InputError(answer["refused"])
            return answer

        try:
            yield ask
        finally:
            process.kill()
            process.wait()
            for pipe in (requests, answers):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def serve() -> None:
    """What the process of one file runs: load it, answer once, then one request a line until stdin is closed.

    Its argument is JSON: path, provider, threads, and a folder for LoadGen's logs. It ends when its parent does, even in
    the middle of a test.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group: the parent sees to it
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in iter(sys.stdin.readline, ""):
            requests.put(json.loads(line))
        os._exit(1)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    asked = json.loads(sys.argv[1])
    logs = Path(asked["logs"])
    try:
        from vggkeras import runtimes

        predictor = runtimes.load(
            asked["path"], asked["provider"], threads=asked["threads"], tf32=True
        )
        images = _random_images(predictor, 1)
        predictor(images)
        tell(_about(asked["path"], predictor))
        images, whose = _images(predictor)
        while True:
            request = requests.get()
            if "memory" in request:
                tell({"peak_memory_mib": _peak_memory()})
            elif request["scenario"] is None:
                tell({"images": whose, **_warmed(predictor, images, request)})
            else:
                tell(_tested(predictor, images, request, logs))
    except InputError as error:
        tell({"refused": str(error)})


def _about(path: str, predictor: Predictor) -> dict[str, Any]:
    from vggkeras import files

    return {
        "file": path,
        "runtime": predictor.runtime,
        "version": predictor.version,
        "provider": predictor.provider,
        "threads": predictor.threads,
        "tf32": predictor.tf32,
        "precision": predictor.card.precision,
        "input_shape": list(predictor.input_shape),
        "bytes": files.size(predictor.path),
    }


def _random_images(predictor: Predictor, count: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, *predictor.input_shape), np.uint8)


def _images(predictor: Predictor) -> tuple[np.ndarray, str]:
    """What the file is shown: its golden images, or a run's export's, where there are any of its size; and which."""
    from export import golden

    for folder in (predictor.path.parent, predictor.path.parent / "export"):
        if golden.golden_path(folder, predictor.form).is_file():
            images = golden.load_golden(folder, predictor.form).images
            if images.shape[1:] == tuple(predictor.input_shape):
                return images, f"{len(images)} golden images"
    return _random_images(predictor, IMAGES), f"{IMAGES} random images"


def _warmed(predictor: Predictor, images: np.ndarray, request: dict[str, Any]) -> dict[str, float]:
    """Calls of one image, then of a batch: what LoadGen has to expect."""
    lasts, times = OFFICIAL_WARMING if request["official"] else min(request["seconds"], SECONDS), {}
    for count in (1, request["batch"]):
        shown = _batch(images, range(count))
        predictor(shown)  # plans memory for this size
        start, calls = time.perf_counter(), 0
        while calls < 2 or time.perf_counter() - start < lasts:
            predictor(shown)
            calls += 1
        times[count] = (time.perf_counter() - start) / calls
    return {
        "warm_latency_s": times[1],
        "warm_images_per_second": request["batch"] / times[request["batch"]],
    }


def _batch(images: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    return images[[i % len(images) for i in indices]]


def _tested(
    predictor: Predictor, images: np.ndarray, request: dict[str, Any], logs: Path
) -> dict[str, Any]:
    """One test of LoadGen: in single-stream a query an image, in offline one query of all images, answered in batches."""
    import mlperf_loadgen as loadgen

    scenario, batch = request["scenario"], request["batch"]
    settings = loadgen.TestSettings()
    # MLPerf's rules as LoadGen has them inside; resnet50 is its image classifier.
    settings.FromConfig("", "resnet50", scenario, 0)
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.performance_sample_count_override = 0  # all images that there are
    # LoadGen draws up its queries before the clock starts. More than are needed are harmless; running out ends the test.
    settings.single_stream_expected_latency_ns = max(1, int(request["warm_latency_s"] * 1e9 / 4))
    settings.offline_expected_qps = 1.2 * request["warm_images_per_second"]
    if not request["official"]:
        settings.min_duration_ms = (
            max(1, int(request["seconds"] * 1000)) if scenario == SINGLE else 0
        )
        # Whole batches, and as many in every round: a rest of another size would be planned for anew.
        batches = max(1, round(request["warm_images_per_second"] * request["seconds"] / batch))
        settings.min_query_count = (
            math.ceil(QUERIES / request["rounds"]) if scenario == SINGLE else batches * batch
        )

    def complete(samples: Sequence[Any]) -> None:
        loadgen.QuerySamplesComplete(
            [loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        )

    def single(samples: Sequence[Any]) -> None:
        predictor(_batch(images, [samples[0].index]))
        complete(samples)

    def offline(samples: Sequence[Any]) -> None:
        for i in range(0, len(samples), batch):
            part = samples[i : i + batch]
            predictor(_batch(images, [sample.index for sample in part]))
            complete(part)

    log = loadgen.LogSettings()
    log.log_output.outdir = str(logs)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = traced = (
        scenario == SINGLE and request["rounds"] > 1
    )  # the one place of every query's latency
    predictor(
        _batch(images, range(1 if scenario == SINGLE else batch))
    )  # the others have had the caches since its turn
    system = loadgen.ConstructSUT(single if scenario == SINGLE else offline, lambda: None)
    library = loadgen.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
    try:
        # It looks for audit.config in the current folder unless told otherwise.
        loadgen.StartTestWithLogSettings(system, library, settings, log, str(logs / "audit.config"))
    finally:
        loadgen.DestroySUT(system)
        loadgen.DestroyQSL(library)
    lines = (logs / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines()
    said = {
        entry["key"]: entry["value"]
        for entry in (json.loads(line.partition(" ")[2]) for line in lines)
    }
    used = {"min_seconds": settings.min_duration_ms / 1000, "min_queries": settings.min_query_count}
    valid = {"valid": said["result_validity"] == "VALID"} if request["official"] else {}
    if scenario == OFFLINE:
        count, rate = said["effective_samples_per_query"], said["result_samples_per_second"]
        return {"images": count, "images_per_second": rate, **used, **valid}
    answer = {"queries": said["result_query_count"], **used, **valid}
    answer |= {f"p{p}_ms": said[f"result_{p}.00_percentile_latency_ns"] / 1e6 for p in PERCENTILES}
    if traced:
        trace = (logs / "mlperf_log_trace.json").read_text(encoding="utf-8")
        spans = re.findall(r'"name":"Sample".*?"issue_start_ns":(\d+),"complete_ns":(\d+)', trace)
        answer["latencies_ns"] = [int(end) - int(start) for start, end in spans]
    return answer


def _peak_memory() -> float:
    """Most physical memory that this process has held since it started, MiB."""
    status = Path("/proc/self/status")
    if (
        status.exists()
    ):  # elsewhere getrusage says it; here that begins with what the parent held before exec
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1 << 10
    )


def print_benchmark(found: dict[str, Any], console: Console) -> None:
    """A row a file, and below it what was measured how."""
    from rich.table import Table

    from vggkeras.evaluation import tables
    from vggkeras.terminal import print_table

    settings, rows = found["settings"], found["rows"]
    short = tables.short_names([row["file"] for row in rows])
    machine = f"{settings['processor']}, {settings['cores']} cores" + (
        f", {settings['gpu']}" if settings["gpu"] else ""
    )
    table = Table(title=f"{machine}; each x is of the first file's")
    table.add_column("file")
    table.add_column("runtime")
    for column in (
        "p50, ms",
        "x",
        "p90",
        "p99",
        "images/s",
        "x",
        "cold start, s",
        "peak MiB",
        "bytes",
    ):
        table.add_column(column, justify="right")
    for number, row in enumerate(rows):
        single, offline = row["single_stream"], row["offline"]
        ratios = []
        for part in (single, offline):
            low, high = part["ratio_range"]
            spread = f" [{low:.2f}, {high:.2f}]" if settings["interleaved"] and number else ""
            ratios.append(f"{part['ratio']:.2f}{spread}")
        threads = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
        table.add_row(
            short[row["file"]] + ("" if row["precision"] == "float32" else f", {row['precision']}"),
            f"{row['runtime']} {row['version']}, {row['provider']}{threads}",
            f"{single['p50_ms']:.2f}",
            ratios[0],
            f"{single['p90_ms']:.2f}",
            f"{single['p99_ms']:.2f}",
            f"{offline['images_per_second']:.1f}",
            ratios[1],
            f"{row['cold_start_s']:.2f}",
            f"{row['peak_memory_mib']:.0f}",
            f"{row['bytes']:,}",
        )
    print_table(table, console)
    queries = ", ".join(f"{row['single_stream']['queries']:,}" for row in rows)
    images = ", ".join(f"{row['offline']['images']:,}" for row in rows)
    told = [
        f"LoadGen {settings['loadgen']}; single-stream: {queries} queries; offline: {images} images in batches of "
        f"{settings['batch']}; shown: {', '.join(dict.fromkeys(row['images'] for row in rows))}"
    ]
    if settings["official"]:
        single, offline = (rows[0][name]["rounds"][0] for name in ("single_stream", "offline"))
        told.append(
            f"MLPerf's own smallest lengths: {single['min_seconds']:g} s and {single['min_queries']:,} queries; "
            f"{offline['min_seconds']:g} s and {offline['min_queries']:,} images; files one after another, in one turn"
        )
        told += [
            f"{short[row['file']]}: LoadGen calls the {name} test invalid"
            for row in rows
            for name in ("single_stream", "offline")
            if not row[name]["rounds"][0]["valid"]
        ]
    else:
        told.append(
            f"rounds in turn: {settings['rounds']}, of {settings['seconds']:g} s or more; x: median of the rounds' ratios "
            "[smallest, largest]"
        )
    console.print("\n".join(told), soft_wrap=True, highlight=False, markup=False)


@dataclass
class Arguments:
    """Measure deployed models side by side: latency, throughput, cold start and memory; accuracy is not measured here.

    The figures are MLPerf LoadGen's: single-stream latency percentiles, one image a query, and offline images/s. Every
    file has a process of its own, and they take turns; ratios are to the first file.
    """

    files: tuple[Path, ...]
    """.keras, .onnx and .tflite files, run and SavedModel folders, at any precision. Each is shown the golden images
    beside it, or random ones."""
    provider: str = "cpu"
    """cpu, cuda or tensorrt."""
    threads: int | None = None
    """Of the runtime; its own choice when not given."""
    batch: int = 8
    """Images a call in the offline scenario, 1 to 64."""
    rounds: int = ROUNDS
    """Turns of every file in each scenario."""
    seconds: float = SECONDS
    """Of a turn, at least; single-stream also asks 64 queries over all rounds."""
    official: bool = False
    """MLPerf's own smallest lengths instead, one turn each: 600 s a file and scenario, 24,576 images offline."""
    json: Path | None = None
    """Write the figures to this file too."""


def main() -> int:
    """Parse, measure, and print."""
    import tyro
    from rich.console import Console

    from vggkeras import files
    from vggkeras.errors import parsed

    config = (tyro.conf.PositionalRequiredArgs,)
    arguments = parsed(
        lambda: tyro.cli(Arguments, prog="python -m export.benchmark", config=config)
    )
    if arguments.official and (arguments.rounds, arguments.seconds) != (ROUNDS, SECONDS):
        raise InputError("--official has lengths of its own: leave out --rounds and --seconds.")
    if arguments.json:
        files.check_file(arguments.json)
    console = Console()
    options = {
        name: value for name, value in vars(arguments).items() if name not in ("files", "json")
    }
    found = benchmark(arguments.files, **options, console=console)
    print_benchmark(found, console)
    if arguments.json:
        files.write_json(arguments.json, found)
    return 0


def cli() -> int:
    """The command, with its exit code."""
    from vggkeras.errors import run_command

    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
