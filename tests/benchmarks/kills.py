"""Kill labelling jobs by SIGKILL at random moments, go on with each, and compare every bit.

python tests/benchmarks/kills.py FOLDER --kills 20

FOLDER gets a source and a tiny network, unless they are there. In turn the local engine, Ray's
driver and one of Ray's workers are killed. A row that is lost or doubled would be a part that
differs from the folder that nobody killed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "batch"))
import many

WAYS = ("local", "driver", "worker")  # the local engine, Ray's driver, one of Ray's workers


def main() -> None:
    """Label without a kill, then with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS, help="in turn")
    options = parser.parse_args()
    folder = options.folder
    model = folder / "network" / "export" / "model.onnx"
    if not model.exists():
        many.tiny_network(folder / "network")
    source = folder / f"kills-{options.images}"
    if not source.exists():
        many.write_tables(source, options.images)
    arguments = [f"{source}/*.parquet", "--model", str(model), "--threads", "1"]
    reference = folder / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    start = time.monotonic()
    subprocess.run(
        [*many.COMMAND, *arguments, "--out", str(reference)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - start
    many.check_ids(reference, options.images)
    local = many.Killing(arguments, folder / "killed-local", reference, options.seed)
    ray = many.Killing(
        [*arguments, "--engine", "ray", "--workers", "2"],
        folder / "killed-ray",
        reference,
        options.seed,
    )
    for job in (local, ray):
        shutil.rmtree(job.out, ignore_errors=True)
    turn = 0
    while local.kills + ray.kills < options.kills:
        way = options.ways[turn % len(options.ways)]
        job, worker = local if way == "local" else ray, way == "worker"
        before = job.kills
        job.kill_once(0.2 * seconds, worker=worker)
        turn += 1
        if job.kills > before:
            left = len(many.labelled(job.out))
            print(f"kill {local.kills + ray.kills}: {way}; {left} parts are there", flush=True)
    for job in (local, ray):
        if job.out.exists():
            job.finish()
    print(
        f"{local.kills} kills of the local engine and {ray.kills} of Ray; {local.ended} and "
        f"{ray.ended} folders ended, of {len(local.whole)} parts each: all bits as in the one that "
        "nobody killed"
    )


if __name__ == "__main__":
    main()
