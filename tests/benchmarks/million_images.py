"""Label up to a million small images: images/s and memory of each engine, and every id once.

python tests/benchmarks/million_images.py FOLDER    # 1,000, 100,000 and 1,000,000 images
python tests/benchmarks/million_images.py FOLDER --images 1000 10000 --source files
python tests/benchmarks/million_images.py FOLDER --images 50000 --halves 3

FOLDER gets the sources and a tiny network, unless they are there. Each job is a process of its own;
its memory is the largest resident set of it and of every process that it starts, added up, so that
what they share counts in each. --halves compares Ray's two workers with two processes of the local
engine at once, each on half of the images, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "batch"))
import many

LARGEST = 12  # processes whose memory is printed
EVERY = 0.2  # seconds between two looks at the memory


def look(process: psutil.Process, most: dict[tuple[int, str], int]) -> None:
    """Note the largest resident set that a process, and each that it has started, has had so far.

    Args:
        process: with its children.
        most: takes bytes, by process and what it is; Linux keeps them itself (VmHWM).
    """
    with contextlib.suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(OSError):  # it has just ended
                status = Path(f"/proc/{each.pid}/status").read_text()
                if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
                    name = " ".join(each.cmdline()).split(" --")[0].strip()[-60:]
                    most[each.pid, name] = 1024 * int(found[1])


def run(jobs: list[list[str]]) -> tuple[float, int]:
    """Run jobs at once; return their seconds, and the sum of their processes' memory in bytes."""
    start, most = time.monotonic(), dict[tuple[int, str], int]()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = [
        psutil.Popen([*many.COMMAND, *job], env=environment, stdout=subprocess.DEVNULL)
        for job in jobs
    ]
    while any(job.poll() is None for job in running):
        for job in running:
            look(job, most)
        time.sleep(EVERY)
    assert not any(job.returncode for job in running), [job.returncode for job in running]
    for (_, name), peak in sorted(most.items(), key=lambda each: -each[1])[:LARGEST]:
        print(f"    {peak / 1e6:6,.0f} MB  {name}")
    return time.monotonic() - start, sum(most.values())


def steady(*folders: Path) -> float:
    """Return the images/s between the first part and the last one of some folders."""
    from pyarrow import parquet

    parts = [path for folder in folders for path in folder.glob("part-*.parquet")]
    times = sorted((path.stat().st_mtime, parquet.read_metadata(path).num_rows) for path in parts)
    (first, _), *later = times
    return sum(rows for _, rows in later) / (times[-1][0] - first) if later else float("nan")


def source_of(folder: Path, kind: str, count: int) -> Path:
    """Return where as many images are; they are written if they are not there."""
    path = folder / f"{kind}-{count}"
    if not path.exists():
        beside = folder / f"{path.name}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        (many.write_tables if kind == "bytes" else many.write_files)(beside, count)
        beside.rename(path)
    return path


def asked(path: Path, kind: str) -> list[str]:
    """Return what `predict` is asked for, to have the images of a source."""
    return [f"{path}/*.parquet"] if kind == "bytes" else [str(path)]


def each_size(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Label each number of images by each engine."""
    out = folder / f"labels-{os.getpid()}"
    for count in options.images:
        path = source_of(folder, options.source, count)
        for engine in options.engines:
            job = [*asked(path, options.source), "--model", str(model), "--out", str(out)]
            seconds, peak = run([[*job, "--engine", engine]])
            many.check_ids(out, count)
            print(
                f"{engine}, {options.source}: {count:,} images in {seconds:.1f} s, "
                f"{count / seconds:,.0f} images/s ({steady(out):,.0f} between the first and the "
                f"last part), {peak / 1e6:,.0f} MB, every id once",
                flush=True,
            )
            shutil.rmtree(out)


def halves(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Compare Ray's two workers with two processes, each on half of the images."""
    (count,) = options.images
    path = folder / f"halves-{count}"
    if not path.exists():
        many.write_tables(path, count, a_table=-(-count // 2))
    outs = [folder / f"labels-{os.getpid()}-{name}" for name in ("ray", "1", "2")]
    common = ["--model", str(model), "--threads", "1", "--out"]
    tables = sorted(map(str, path.glob("*.parquet")))
    for _ in range(options.halves):
        ray = [*tables, *common, str(outs[0]), "--engine", "ray", "--workers", "2"]
        by_ray, memory_of_ray = run([ray])
        many.check_ids(outs[0], count)
        pair = zip(tables, outs[1:], strict=True)
        by_two, memory_of_two = run([[table, *common, str(out)] for table, out in pair])
        rates = steady(outs[0]), steady(*outs[1:])
        print(
            f"{count:,} images: Ray {by_ray:.1f} s ({rates[0]:,.0f} images/s between the first "
            f"and the last part), {memory_of_ray / 1e6:,.0f} MB; two processes {by_two:.1f} s "
            f"({rates[1]:,.0f}), {memory_of_two / 1e6:,.0f} MB; ratio of all "
            f"{by_two / by_ray:.2f}, between the parts {rates[0] / rates[1]:.2f}",
            flush=True,
        )
        for out in outs:
            shutil.rmtree(out)


def main() -> None:
    """Write the sources, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--source", choices=("bytes", "files"), default="bytes")
    parser.add_argument("--model", type=Path, help="a .onnx file; by default a tiny network")
    parser.add_argument("--halves", type=int, default=0, metavar="ROUNDS")
    options = parser.parse_args()
    model = options.model or options.folder / "network" / "export" / "model.onnx"
    if not model.exists():
        many.tiny_network(options.folder / "network")
    (halves if options.halves else each_size)(options.folder, model, options)


if __name__ == "__main__":
    main()
