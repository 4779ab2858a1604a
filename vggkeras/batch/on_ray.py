"""Write the parts of a folder of labels by actors of Ray Data, a `Predictor` each."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vggkeras import files, runtimes
from vggkeras.batch.labelling import Labeller
from vggkeras.batch.manifest import Manifest
from vggkeras.batch.parts import Advance, Job
from vggkeras.batch.parts import write_parts as write_here
from vggkeras.errors import InputError
from vggkeras.runtimes.providers import ON_GPU, TF32_OVERRIDE
from vggkeras.runtimes.stderr import quiet_stderr

LOOPBACK = "127.0.0.1"
OBJECT_STORE = 100 * 2**20  # bytes: what goes through it are the numbers of parts
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# Otherwise Ray listens on every address of the machine, whatever address it is given. It is read
# when Ray is imported.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
SHORT = Path("/tmp")  # where the names of Ray's sockets are short enough


class Worker:
    """An actor: it loads the model strictly, then writes the parts that it is given."""

    def __init__(self, job: Job, model: Path) -> None:
        """Load the model; why that failed is kept for the first part."""
        self.job, self.failure = job, ""
        try:
            self.labeller = self._load(model)
        except (InputError, OSError) as error:
            self.failure = str(error)

    def _load(self, model: Path) -> Labeller:
        """Return the model; raises InputError where it is another one than the driver's."""
        options, manifest = self.job.options, self.job.manifest
        if options.provider == "tensorrt":  # in this process nothing has read it yet
            os.environ.setdefault(TF32_OVERRIDE, "0")
        predictor = runtimes.load(
            model,
            options.provider,
            threads=options.threads,
            trust_saved_model=options.trust_saved_model,
            batch_sizes=options.batch_sizes,
        )
        asked = manifest.top, manifest.exif, manifest.fast_decode
        found = Manifest.of(predictor, self.job.source, manifest.columns, *asked)
        found = dataclasses.replace(found, batch_sizes=options.batch_sizes)
        if changed := manifest.differences(found):
            raise InputError(f"not as where the job was started: {'; '.join(changed)}")
        return Labeller(predictor, manifest.top, exif=manifest.exif, fast=manifest.fast_decode)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write a part; return how many images it has, or why it could not be written."""
        (part,) = batch["item"]
        try:
            if not self.failure:
                with files.claimed(self.job.out):
                    write_here(self.job, self.labeller, [int(part)], lambda _: None)
        except (InputError, OSError) as error:
            self.failure = str(error)
        images = len(self.job.manifest.rows_of(int(part)))
        return {"images": [images], "failure": [self.failure]}


def write_parts(
    job: Job, model: Path, numbers: list[int], workers: int | None, advance: Advance
) -> None:
    """Write parts as `parts.write_parts` does, in actors of Ray Data.

    An actor that is killed is started again, and does its part again. Memory holds a batch in each.

    Args:
        job: what is labelled.
        model: the file that every worker loads.
        numbers: of the parts.
        workers: how many actors; by default as many as fit.
        advance: is told how many more images are labelled, as each part is done.

    Raises:
        InputError (a ValueError): a worker cannot load the model on the provider asked for, loads
            another one, or cannot write; or Ray has ended.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(files.sweep, job.out)  # of workers that were killed
        ray = stack.enter_context(_started())
        on_gpu = job.options.provider in ON_GPU
        there = ray.cluster_resources()
        fit = int(there.get("GPU", 0) if on_gpu else there["CPU"] // (job.options.threads or 1))
        size = min(workers or max(1, fit), len(numbers))
        needed: dict[str, Any] = (
            {"num_gpus": 1} if on_gpu and fit else {"num_cpus": job.options.threads or 1}
        )
        labelled = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            Worker,
            fn_constructor_args=(job, model.absolute()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size),
            **needed,
        )
        try:
            for row in labelled.iter_rows():
                if row["failure"]:
                    raise InputError(f"a worker of Ray stopped: {row['failure']}")
                advance(row["images"])
        except ray.exceptions.RayTaskError:
            raise  # a defect of ours
        except ray.exceptions.RayError as error:
            raise InputError(
                f"Ray ended ({str(error).splitlines()[0][:200]}): run the command again with "
                "--resume."
            ) from error


@contextlib.contextmanager
def _started() -> Iterator[Any]:
    """Give Ray, silent, on this machine alone unless RAY_ADDRESS names a cluster; then end it."""
    address = os.environ.get("RAY_ADDRESS", "local")
    is_local = address == "local"
    with _environment(QUIET | ALONE if is_local else QUIET):
        import ray

        if ray.is_initialized():  # by the caller, whose it is
            yield ray
            return
        with tempfile.TemporaryDirectory(
            prefix="ray-", dir=SHORT if SHORT.is_dir() else None, ignore_cleanup_errors=True
        ) as logs:
            here: dict[str, Any] = {
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "_node_ip_address": LOOPBACK,
                "_temp_dir": logs,
            }
            quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
            try:
                at_end = signal.getsignal(signal.SIGTERM)
                with quiet_stderr():  # it says there at which level it will log
                    ray.init(address, **quiet, **(here if is_local else {}))
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, at_end)  # Ray's own prints a stack
                if is_local and ray.util.get_node_ip_address() != LOOPBACK:
                    raise InputError(
                        "Ray was imported before, and would listen beyond this machine: leave its "
                        "import to vggkeras, or call ray.init() first."
                    )
                context = ray.data.DataContext.get_current()
                context.enable_progress_bars = context.print_on_execution_start = False
                logging.getLogger("ray.data").setLevel(logging.ERROR)
                yield ray
            finally:
                ray.shutdown()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment while a block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
