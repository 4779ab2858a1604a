"""A process of its own for one file, which `export.benchmark` measures.

`started` starts it and gives its `Server`; `serve` is what it runs. A process reaches its first
answer without the benchmark's command line, so nothing heavy is imported up here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.loadgen import Lengths, Outcome, Speed, tested, warmed
from vggkeras import hub
from vggkeras.errors import InputError
from vggkeras.runtimes.predictor import Predictor
from vggkeras.runtimes.providers import ON_GPU, PROVIDERS, Options

IMAGES = 32  # random ones, where a file has no golden ones beside it


@dataclass(frozen=True)
class Loaded:
    """What a process has loaded. The fields are --json's, in their order."""

    file: str
    runtime: str
    version: str
    provider: str
    threads: int | None
    tf32: bool
    precision: str
    input_shape: list[int]
    bytes: int


@dataclass(frozen=True)
class Server:
    """A process that serves one file.

    Every method raises InputError for what the process refuses, and where it ended.
    """

    loaded: Loaded
    ask: Callable[[dict[str, Any]], dict[str, Any]]

    def warm(self, lengths: Lengths) -> tuple[str, Speed]:
        """Warm the file up; return which images it is shown, and how fast it is."""
        answer = self.ask({"warm": True, "lengths": dataclasses.asdict(lengths)})
        return answer["images"], Speed(**answer["speed"])

    def test(self, scenario: str, lengths: Lengths, speed: Speed) -> Outcome:
        """Run one test of LoadGen."""
        lasting, expected = dataclasses.asdict(lengths), dataclasses.asdict(speed)
        return Outcome(**self.ask({"scenario": scenario, "lengths": lasting, "speed": expected}))

    def peak_memory_mib(self) -> float:
        """Return the most physical memory that the process has held, MiB."""
        return self.ask({"memory": True})["mib"]


def with_provider(path: Path, options: Options) -> tuple[Path, Options]:
    """Return the file and options that FILE@PROVIDER stands for; of another path, the same.

    FILE may be one of a hub: see `hub.local`.
    """
    name, _, provider = path.name.rpartition("@")
    if not name or provider not in PROVIDERS or path.exists():
        return hub.local(path), options
    sizes = options.batch_sizes if provider in ON_GPU else ()
    own = dataclasses.replace(options, provider=provider, batch_sizes=sizes)
    return hub.local(path.with_name(name)), own


@contextlib.contextmanager
def started(path: str | os.PathLike[str], asked: Options, logs: Path) -> Iterator[Server]:
    """Start a process that serves one file; it ends with the block, however that ends.

    `logs` is a folder for its stderr and LoadGen's logs; the others are what `runtimes.load` takes.

    Raises:
        InputError (a ValueError): what the process refuses, or it ended.
    """
    command = [sys.executable, "-c", "from export.serving import serve; serve()"]
    options = {"path": os.fspath(path), "logs": str(logs), "asked": dataclasses.asdict(asked)}
    # TensorFlow's messages go to the log, and would be the last words of a process that died of
    # something else.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    with open(logs / "stderr", "w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(
            [*command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            env=environment,
        )
        requests, answers = process.stdin, process.stdout
        assert requests
        assert answers

        def receive() -> dict[str, Any]:
            line = answers.readline()
            if not line:
                code = process.wait()
                stderr.seek(0)
                last = (stderr.read().split("\n")[-2:] or [""])[0][:300]
                raise InputError(
                    f"{path}: its process ended with code {code} ({last or 'without a word'}); try "
                    "fewer threads, a smaller --batch, or another provider."
                )
            answer = json.loads(line)
            if "refused" in answer:
                raise InputError(answer["refused"])
            return answer

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):  # the missing answer says it
                requests.write(json.dumps(request) + "\n")
                requests.flush()
            return receive()

        try:
            yield Server(Loaded(**receive()), ask)
        finally:
            process.kill()
            process.wait()
            for pipe in (requests, answers):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def serve() -> None:
    """Load a file, answer once, then answer a request a line until stdin is closed.

    The process' argument is JSON: path, options, and a folder for LoadGen's logs. It
    ends when its parent does, even in the middle of a test.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    # Ctrl-C reaches the whole group: the parent sees to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in iter(sys.stdin.readline, ""):
            requests.put(json.loads(line))
        os._exit(1)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()

    def send(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    options = json.loads(sys.argv[1])
    try:
        from vggkeras import runtimes

        predictor = runtimes.load(options["path"], **options["asked"])
        predictor(_random_images(predictor, 1))
        send(dataclasses.asdict(_loaded(options["path"], predictor)))
        images, description = _images(predictor)
        while True:
            send(_answer(requests.get(), predictor, images, description, Path(options["logs"])))
    except InputError as error:
        send({"refused": str(error)})


def _answer(
    request: dict[str, Any],
    predictor: Predictor,
    images: np.ndarray,
    description: str,
    logs: Path,
) -> dict[str, Any]:
    """Return the answer to what a method of `Server` asks."""
    if "memory" in request:
        return {"mib": _peak_memory()}
    lengths = Lengths(**request["lengths"])
    if "warm" in request:
        speed = warmed(predictor, images, lengths)
        return {"images": description, "speed": dataclasses.asdict(speed)}
    speed = Speed(**request["speed"])
    return dataclasses.asdict(tested(predictor, images, request["scenario"], lengths, speed, logs))


def _loaded(path: str, predictor: Predictor) -> Loaded:
    """Return what was loaded."""
    from vggkeras import files

    return Loaded(
        file=path,
        runtime=predictor.runtime,
        version=predictor.version,
        provider=predictor.provider,
        threads=predictor.threads,
        tf32=predictor.tf32,
        precision=predictor.card.precision,
        input_shape=list(predictor.input_shape),
        bytes=files.size(predictor.path),
    )


def _images(predictor: Predictor) -> tuple[np.ndarray, str]:
    """Return the images that a file is shown, and which these are.

    They are its golden images, or those of a run's export, where there are any of its size.
    """
    from export import golden

    for folder in (predictor.path.parent, predictor.path.parent / "export"):
        if golden.golden_path(folder, predictor.form).is_file():
            images = golden.load_golden(folder, predictor.form).images
            if images.shape[1:] == tuple(predictor.input_shape):
                return images, f"{len(images)} golden images"
    return _random_images(predictor, IMAGES), f"{IMAGES} random images"


def _random_images(predictor: Predictor, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *predictor.input_shape), np.uint8)


def _peak_memory() -> float:
    """Return the most physical memory that this process has held since it started, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage begins with what the parent held before exec here
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) / 1024
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
