"""Trials, the processes that try their inputs, and what became of each input.

Each input is tried in a fork of this process, which has imported TensorFlow but started nothing in
it. A fork tries one input after another until it dies, hangs or takes too much memory; the next
input then gets a new one. Linux only, as it forks after libraries were loaded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

FORK = multiprocessing.get_context("fork")
REFUSALS = ("InputError", "DamagedError")  # a user's mistake, or a damaged file, in one line


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    failure: str = ""  # traceback, accepted change, other answer, hang, …; "" of a good end
    note: str = ""  # how a good one ended: refused, harmless, …
    detail: str = ""
    inputs: int = 1  # how many inputs it was, where a fuzzer tries many at once
    times: int = 1  # and how many of them failed
    seconds: float = 0.0
    megabytes: float = 0.0  # peak memory above rest, where a trial measures it


@dataclass(frozen=True)
class Case:
    """One input of a trial: everything about it follows from the seed and its index."""

    index: int
    seed: str
    subject: Path  # what the trial prepared, not to be changed
    scratch: Path  # an empty folder, kept where the input fails

    @property
    def rng(self) -> random.Random:
        """A new random number generator, the same one for the same input."""
        return random.Random(self.seed)


@dataclass(frozen=True)
class Trial:
    """A kind of input, how many there are, and what must become of each."""

    name: str
    full: int  # inputs of the full form
    short: int  # and of the short one
    attempt: Callable[[Case], Outcome]
    prepare: Callable[[Path], None]
    limit: float = 120.0  # seconds for an input, the first one's imports included
    megabytes: float = 4000.0  # for an input's processes together


@dataclass
class Row:
    """What became of a trial's inputs."""

    trial: str
    seed: int
    inputs: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)  # of the failures
    seconds: float = 0.0
    slowest: float = 0.0  # seconds of one input
    megabytes: float = 0.0  # the largest peak above rest

    def add(self, index: int, outcome: Outcome) -> None:
        """Count an input."""
        self.inputs += outcome.inputs
        self.slowest = max(self.slowest, outcome.seconds)
        self.megabytes = max(self.megabytes, outcome.megabytes)
        if outcome.failure:
            self.failures[outcome.failure] += outcome.times
            self.details.append(f"{self.trial} {index}: {outcome.failure}: {outcome.detail}")
        elif outcome.note:
            self.notes[outcome.note] += outcome.inputs


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function gives in a fork: this process must not start TensorFlow itself.

    A fork of a process whose TensorFlow has started may wait forever.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function} ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def run(trial: Trial, indices: Sequence[int], seed: int, work: Path) -> Row:
    """Try a trial's inputs, and return what became of them. Failing inputs stay in `work`."""
    row, start, left = Row(trial.name, seed), time.monotonic(), list(indices)
    subject = work / "subject"
    subject.mkdir(parents=True, exist_ok=True)
    forked(_prepared, trial, subject, work / f"{trial.name}.noise")
    with open(work / f"{trial.name}.log", "a") as log:
        while left:
            receiver, sender = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_serve, args=(trial, left, seed, work, sender))
            process.start()
            sender.close()
            try:
                while left and process.is_alive():
                    began = time.monotonic()
                    outcome = _next(process, receiver, trial)
                    row.add(left[0], replace(outcome, seconds=time.monotonic() - began))
                    if outcome.failure:
                        print(row.details[-1], file=log, flush=True)
                    left.pop(0)
            finally:  # when this process is asked to end, too
                kill(process.pid)
                process.join()
    row.seconds = time.monotonic() - start
    return row


def _prepared(trial: Trial, subject: Path, noise: Path) -> None:
    _send_noise(noise)
    trial.prepare(subject)


def _serve(trial: Trial, indices: Sequence[int], seed: int, work: Path, sender: Connection) -> None:
    """Try inputs in this fork, one after another."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this process first
    _send_noise(work / f"{trial.name}.noise")
    for index in indices:
        scratch = work / trial.name / f"{index}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        case = Case(index, f"{seed} {trial.name} {index}", work / "subject", scratch)
        os.chdir(scratch)
        try:
            outcome = trial.attempt(case)
        except BaseException:
            outcome = Outcome("traceback", detail=traceback.format_exc()[-1500:])
        os.chdir(work)
        if not outcome.failure:
            shutil.rmtree(scratch, ignore_errors=True)
        sender.send(outcome)


def _send_noise(path: Path) -> None:
    """Send what this process and its children print to a file."""
    noise = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(noise, 1)
    os.dup2(noise, 2)


def _next(process: Any, receiver: Connection, trial: Trial) -> Outcome:
    """Return what becomes of the input that a fork is trying, and end a fork that does not end."""
    deadline = time.monotonic() + trial.limit
    while time.monotonic() < deadline:
        try:
            if receiver.poll(0.05):
                return receiver.recv()
        except EOFError:
            process.join()
            by_kernel = process.exitcode == -signal.SIGKILL
            failure = "killed for memory" if by_kernel else "died"
            return Outcome(failure, detail=f"exit code {process.exitcode}")
        used = _resident(process.pid) / 1e6
        if used > trial.megabytes:
            kill(process.pid)
            process.join()
            return Outcome("killed for memory", detail=f"{used:.0f} MB", megabytes=used)
    kill(process.pid)
    process.join()
    return Outcome("hang", detail=f"not done after {trial.limit:.0f} s")


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(pid: int) -> int:
    total = 0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def kill(pid: int) -> None:
    """Kill a process and all that it started."""
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Give a function that returns the peak of this process' memory since, above rest, in MB."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith(key))
        return int(value) / 1e3

    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    rest = status("VmRSS")
    yield lambda: status("VmHWM") - rest
