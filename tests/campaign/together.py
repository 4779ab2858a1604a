"""Many at once: threads on one predictor, and pairs of processes that write into one folder."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import kill_trials
import numpy as np
from kills import export_of, prepare_two_exports, write_data
from machinery import FORK, REFUSALS, Case, Outcome, Trial, forked
from subjects import FORMATS, answers, command, load, prepare_exports

ROUNDS, THREADS, CALLS = 10, 8, 60
RUNTIMES = ("model.onnx", "model.tflite", "saved_model", "keras")


def call_in_threads(case: Case) -> Outcome:
    """Call one predictor from eight threads, each with images of its own, in batches of its own."""
    name = RUNTIMES[case.index // ROUNDS % len(RUNTIMES)]
    run = case.subject / "run"
    model = load(run if name == "keras" else run / "export" / name)
    images, expected = answers(case.subject, name)
    errors: list[str] = []
    wrong: list[int] = []

    def work(number: int) -> None:
        own = [number, (number + 1) % THREADS][: 1 + number % 2]
        for _ in range(CALLS):
            try:
                given = model(images[own])
            except Exception:
                errors.append(traceback.format_exc()[-700:])
                continue
            if np.abs(given - expected[own]).max() > 1e-5:
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    calls = f"{name}: of {THREADS * CALLS} calls {len(errors)} raised, {len(wrong)} gave others"
    if wrong:
        return Outcome("other answer", detail=calls)
    if errors:
        return Outcome("traceback", detail=f"{calls}; {errors[0]}")
    return Outcome(note=name)


# ---- pairs --------------------------------------------------------------------------------------


def prepare_pairs(subject: Path) -> None:
    """Prepare what one run and one export alone give, of two seeds and of two models."""
    prepare_two_exports(subject)
    write_data(subject / "pair-data")
    os.chdir(subject)
    for seed in (0, 1):
        out = subject / f"alone-{seed}"
        if not out.exists():
            child = FORK.Process(target=_train, args=(subject / "pair-data", out, seed, 0.0))
            child.start()
            child.join()


def _train(data: Path, out: Path, seed: int, delay: float) -> None:
    from dataclasses import replace

    from vggkeras.training.train import train

    time.sleep(delay)
    _ended(lambda: train(replace(kill_trials.recipe(str(data), out), seed=seed)))


def _ended(function) -> None:
    """Call, and end this process as a command does: 0, or 2 where it is refused."""
    try:
        function()
    except Exception as error:
        traceback.print_exc()
        sys.exit(2 if type(error).__name__ in REFUSALS or isinstance(error, OSError) else 3)


def two_at_once(case: Case) -> Outcome:
    """Train, or export, twice at once into one folder: a whole result of one of them is there."""
    out, delay = case.scratch / "out", case.rng.uniform(0, 1.0)
    training = case.index % 2 == 0
    if training:
        jobs = [
            (_train, (case.subject / "pair-data", out, s, d)) for s, d in ((0, 0.0), (1, delay))
        ]
    else:
        jobs = [
            (_export_later, (case.subject / n, out, d)) for n, d in (("old", 0.0), ("new", delay))
        ]
    children = [FORK.Process(target=target, args=arguments) for target, arguments in jobs]
    for child in children:
        child.start()
    for child in children:
        child.join()
    codes = [child.exitcode for child in children]
    said = f"{'training' if training else 'export'} {delay:.2f} s later: exit codes {codes}"
    if not set(codes) <= {0, 2} or 0 not in codes:
        return Outcome("traceback", detail=said)
    problem = forked(_run_problem if training else _export_problem, case, out)
    if problem:
        return Outcome("mixed", detail=f"{said}: {problem}")
    return Outcome(note="one was refused" if 2 in codes else "one after the other")


def _export_later(run: Path, out: Path, delay: float) -> None:
    time.sleep(delay)
    ended = command("export", "--model", run, "--images", "16", "--out", out)
    print(ended.err)
    sys.exit(3 if ended.code is None else ended.code)


def _run_problem(case: Case, out: Path) -> str:
    """Return why a folder is not the run of one seed alone; "" if it is."""
    seed = json.loads((out / "run.json").read_text())["seed"]
    try:
        expected, digests = (kill_trials.end(p) for p in (case.subject / f"alone-{seed}", out))
    except (OSError, ValueError) as error:
        return str(error)
    return ", ".join(name for name, digest in expected.items() if digests[name] != digest)


def _export_problem(case: Case, out: Path) -> str:
    """Return why a folder is not one model's export; "" if it is."""
    missing = [name for name in FORMATS if not (out / name).exists()]
    if missing:
        return f"{missing} missing"
    ended = command("export.verify", *(out / name for name in FORMATS))
    if ended.code:
        return (ended.out + ended.err)[-500:]
    sets = [export_of(case, out / name) for name in FORMATS]
    return f"{sets}" if len(set(sets)) > 1 else ""


TRIALS = (
    Trial("threads", ROUNDS * len(RUNTIMES), len(RUNTIMES), call_in_threads, prepare_exports),
    Trial("pairs", 10, 1, two_at_once, prepare_pairs, limit=300.0),
)
