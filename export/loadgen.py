"""One test of MLPerf's LoadGen on one file: single-stream latency, or offline throughput.

LoadGen itself is imported when a test begins, after the file has given its first answer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras.runtimes.predictor import Predictor

SINGLE, OFFLINE = "SingleStream", "Offline"
PERCENTILES = (50, 90, 99)
SECONDS = 0.5
# Single-stream queries over all rounds, at least: what LoadGen asks for before it trusts a 90th
# percentile.
QUERIES = 64
# Seconds of calls from which the number of images that last for 600 s is estimated.
OFFICIAL_WARMING = 10.0


@dataclass(frozen=True)
class Lengths:
    """How long a test is."""

    batch: int  # images a call in the offline scenario
    rounds: int  # tests of each file in each scenario
    seconds: float  # of a test, at least
    official: bool  # MLPerf's own smallest lengths instead


@dataclass(frozen=True)
class Speed:
    """What LoadGen has to expect, from calls without it."""

    latency_s: float  # of a call with one image
    images_per_second: float  # in batches


@dataclass(frozen=True)
class Outcome:
    """How a test came out. Fields of the other scenario are None."""

    min_seconds: float  # the test's length, at least
    min_queries: int
    valid: bool | None  # what LoadGen says of a test of official length; None of others
    queries: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    latencies_ns: tuple[int, ...] | None = None  # of every query, where there are several rounds
    images: int | None = None
    images_per_second: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what --json holds of a test."""
        first = ("queries", "images", "images_per_second", "min_seconds", "min_queries", "valid")
        names = (*first, "p50_ms", "p90_ms", "p99_ms")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def warmed(predictor: Predictor, images: np.ndarray, lengths: Lengths) -> Speed:
    """Call a file with one image, then with batches, and return how fast it is."""
    lasts = OFFICIAL_WARMING if lengths.official else min(lengths.seconds, SECONDS)
    times = {}
    for count in (1, lengths.batch):
        batch = _batch(images, range(count))
        predictor(batch)  # plans memory for this size
        start, calls = time.perf_counter(), 0
        while calls < 2 or time.perf_counter() - start < lasts:
            predictor(batch)
            calls += 1
        times[count] = (time.perf_counter() - start) / calls
    return Speed(times[1], lengths.batch / times[lengths.batch])


def tested(
    predictor: Predictor,
    images: np.ndarray,
    scenario: str,
    lengths: Lengths,
    speed: Speed,
    logs: Path,
) -> Outcome:
    """Run one test of LoadGen.

    In single-stream, every query is one image; in offline, one query has all images, which are
    answered in batches.

    Args:
        predictor: the file.
        images: uint8 `[N, H, W, C]`, from which LoadGen draws.
        scenario: SINGLE or OFFLINE.
        lengths: of the test.
        speed: what to expect.
        logs: folder for LoadGen's logs.
    """
    import mlperf_loadgen as loadgen

    single, batch = scenario == SINGLE, lengths.batch
    settings = _settings(scenario, lengths, speed)

    def answer(samples: Sequence[Any]) -> None:
        for i in range(0, len(samples), 1 if single else batch):
            part = samples[i : i + (1 if single else batch)]
            predictor(_batch(images, [sample.index for sample in part]))
            answers = [loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in part]
            loadgen.QuerySamplesComplete(answers)

    log = loadgen.LogSettings()
    log.log_output.outdir = str(logs)
    log.log_output.copy_summary_to_stdout = False
    # Every query's latency is in the trace alone.
    log.enable_trace = traced = single and lengths.rounds > 1
    # The other files have had the processor's caches since this one's last turn.
    predictor(_batch(images, range(1 if single else batch)))
    system = loadgen.ConstructSUT(answer, lambda: None)
    library = loadgen.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
    try:
        # It looks for audit.config in the current folder unless told otherwise.
        loadgen.StartTestWithLogSettings(system, library, settings, log, str(logs / "audit.config"))
    finally:
        loadgen.DestroySUT(system)
        loadgen.DestroyQSL(library)
    return _read(logs, scenario, settings, official=lengths.official, traced=traced)


def _settings(scenario: str, lengths: Lengths, speed: Speed) -> Any:
    """Return LoadGen's settings."""
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    # MLPerf's rules as LoadGen has them inside; resnet50 is its image classifier.
    settings.FromConfig("", "resnet50", scenario, 0)
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.performance_sample_count_override = 0  # all images that there are
    # LoadGen draws up its queries before the clock starts. More than are needed are harmless;
    # running out ends the test.
    settings.single_stream_expected_latency_ns = max(1, int(speed.latency_s * 1e9 / 4))
    settings.offline_expected_qps = 1.2 * speed.images_per_second
    if lengths.official:
        return settings
    if scenario == SINGLE:
        settings.min_duration_ms = max(1, int(lengths.seconds * 1000))
        settings.min_query_count = math.ceil(QUERIES / lengths.rounds)
    else:
        settings.min_duration_ms = 0
        # Whole batches, and as many in every round: a last one of another size would be planned
        # for anew.
        batches = max(1, round(speed.images_per_second * lengths.seconds / lengths.batch))
        settings.min_query_count = batches * lengths.batch
    return settings


def _read(logs: Path, scenario: str, settings: Any, *, official: bool, traced: bool) -> Outcome:
    """Return how a test came out, from LoadGen's logs."""
    lines = (logs / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line.partition(" ")[2]) for line in lines]
    log = {entry["key"]: entry["value"] for entry in entries}
    test = Outcome(
        min_seconds=settings.min_duration_ms / 1000,
        min_queries=settings.min_query_count,
        valid=log["result_validity"] == "VALID" if official else None,
    )
    if scenario == OFFLINE:
        return dataclasses.replace(
            test,
            images=log["effective_samples_per_query"],
            images_per_second=log["result_samples_per_second"],
        )
    latencies = None
    if traced:
        trace = (logs / "mlperf_log_trace.json").read_text(encoding="utf-8")
        spans = re.findall(r'"name":"Sample".*?"issue_start_ns":(\d+),"complete_ns":(\d+)', trace)
        latencies = tuple(int(end) - int(start) for start, end in spans)
    p50, p90, p99 = (log[f"result_{p}.00_percentile_latency_ns"] / 1e6 for p in PERCENTILES)
    return dataclasses.replace(
        test,
        queries=log["result_query_count"],
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        latencies_ns=latencies,
    )


def _batch(images: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Return some of the images, beginning again where there are fewer."""
    return images[[i % len(images) for i in indices]]
