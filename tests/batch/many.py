"""Sources of many small images, and what is checked of the folders that they are labelled into."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

import vggkeras

DIFFERENT = 1000  # images that differ in their bytes; the others are copies of them
A_TABLE = 100_000  # rows of a Parquet file
A_FOLDER = 1000  # files of a folder
COMMAND = (sys.executable, "-m", "vggkeras", "predict")
SECONDS = 600  # in which a process ends, or says why not


def contents(count: int = DIFFERENT, side: int = 32) -> list[bytes]:
    """Return images, as JPEG and PNG in turn."""
    encoded = []
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(buffer, ("JPEG", "PNG")[i % 2])
        encoded.append(buffer.getvalue())
    return encoded


def names(first: int, last: int) -> list[str]:
    """Return the ids of a range of images."""
    return [f"image-{i:09d}" for i in range(first, last)]


def write_tables(folder: Path, count: int, a_table: int = A_TABLE) -> None:
    """Write images into Parquet files with columns id and image (bytes)."""
    folder.mkdir(parents=True)
    images = contents(min(count, DIFFERENT))
    for first in range(0, count, a_table):
        last = min(first + a_table, count)
        schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
        with parquet.ParquetWriter(folder / f"{first:09d}.parquet", schema) as writer:
            for start in range(first, last, 1000):
                stop = min(start + 1000, last)
                of_rows = [images[i % len(images)] for i in range(start, stop)]
                writer.write_table(pa.table([names(start, stop), of_rows], schema=schema))


def write_files(folder: Path, count: int) -> None:
    """Write images as files into folders of a thousand."""
    images = contents(min(count, DIFFERENT))
    for i in range(count):
        inside = folder / f"{i // A_FOLDER:06d}"
        if i % A_FOLDER == 0:
            inside.mkdir(parents=True)
        (inside / f"image-{i:09d}{('.jpg', '.png')[i % len(images) % 2]}").write_bytes(
            images[i % len(images)]
        )


def tiny_network(folder: Path, width: float = 0.02) -> Path:
    """Write an untrained network that costs less than reading its images, as a .onnx file."""
    import keras

    from export import export_model

    keras.utils.set_random_seed(0)
    classes = [str(i) for i in range(10)]  # as those of the digits, which prove the file
    options = {"class_names": classes, "width": width, "fc_units": 16}
    model = vggkeras.build("A", input_shape=(32, 32, 3), **options)
    folder.mkdir(parents=True)
    model.save(folder / "tiny.keras")
    export_model(folder / "tiny.keras", format="onnx", data="digits", out=folder / "export")
    return folder / "export" / "model.onnx"


def labelled(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each part of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def check_ids(folder: Path, count: int) -> None:
    """Check that a folder's rows are the images of `write_tables` or `write_files`, each once."""
    at = 0
    for path in sorted(folder.glob("part-*.parquet")):
        ids = parquet.read_table(path, columns=["image"])["image"].to_pylist()
        assert [Path(i).stem for i in ids] == names(at, at + len(ids)), path
        at += len(ids)
    assert at == count, (at, count)


class Killing:
    """A job that is killed by SIGKILL again and again, and gone on with."""

    def __init__(self, arguments: list[str], out: Path, reference: Path, seed: int) -> None:
        """Take the arguments of `predict` but for --out, and the folder that nobody killed."""
        self.command = [*COMMAND, *arguments, "--out", str(out), "--resume"]
        self.out, self.whole = out, labelled(reference)
        self.random = random.Random(seed)
        self.kills = self.ended = 0

    def start(self) -> psutil.Popen:
        """Start the job, or go on with it."""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        return psutil.Popen(
            self.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def kill_once(self, seconds: float, *, worker: bool = False) -> None:
        """Go on for a random time after the first part, at most so long; kill; compare.

        Args:
            seconds: that a job takes from its first part to its last.
            worker: kill a worker of Ray, without which the job ends by itself, not the driver.
        """
        before, job = len(labelled(self.out)), self.start()
        try:
            until = time.monotonic() + SECONDS
            while len(labelled(self.out)) == before and job.poll() is None:
                assert time.monotonic() < until, "no part was written"
                time.sleep(0.01)
            time.sleep(self.random.uniform(0, seconds))
            victims = list(filter(is_worker, children_of(job))) if worker else [job]
            if victims and job.poll() is None:
                self.random.choice(victims).send_signal(signal.SIGKILL)
                self.kills += 1
            if worker or job.poll() == 0:
                self._end(job)
        finally:
            children = children_of(job)
            if job.poll() is None:
                job.kill()
            job.communicate(timeout=SECONDS)
            psutil.wait_procs(children, timeout=60)
        self.check_parts()

    def _end(self, job: psutil.Popen) -> None:
        """Wait until a job has ended well; then the folder is whole, and is removed."""
        _, errors = job.communicate(timeout=SECONDS)
        assert job.returncode == 0, errors.decode()
        self.check_whole()

    def finish(self) -> None:
        """Go on until the end."""
        self._end(self.start())

    def check_parts(self) -> None:
        """Check that what is there is a part of what nobody killed, bit for bit."""
        for name, content in labelled(self.out).items():
            assert content == self.whole[name], name

    def check_whole(self) -> None:
        """Check that all is there, bit for bit, and nothing else; then remove it."""
        import shutil

        assert labelled(self.out) == self.whole
        left = {path.name for path in self.out.iterdir()} - self.whole.keys()
        assert left <= {"_manifest.json", "_source.parquet"}, left
        self.ended += 1
        shutil.rmtree(self.out)


def children_of(job: psutil.Popen) -> list[psutil.Process]:
    """Return all processes that a job has started; none where it has ended."""
    try:
        return job.children(recursive=True)
    except psutil.Error:
        return []


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is an actor that labels."""
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
