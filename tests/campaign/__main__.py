"""Attack the commands and the library with damaged and hostile inputs, kills, threads and load.

    python tests/campaign                                  every trial in its full form: hours
    python tests/campaign --short                          a few inputs of each: minutes
    python tests/campaign --trials flips-verify --count 50 --seed 7
    python tests/campaign --trials flips-load --only 17    one input again

A trial prints a row: its inputs, and how many failed, by kind. Everything about an input follows
from the seed, its trial and its index. Failing inputs and a log stay below --work. Only public
commands and functions are used, so that the same program runs on another version of the code:
set PYTHONPATH to it. Several processes can share the work, each with trials and a --work of its
own. Exit code 0: nothing failed. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import flips
import fuzz
import hostile
import kills
import together
import wrong_commands
from machinery import Row, Trial, run

TRIALS = {
    trial.name: trial
    for group in (flips, hostile, wrong_commands, kills, together, fuzz)
    for trial in group.TRIALS
}


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/campaign", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="NAME")
    parser.add_argument("--count", type=int, help="inputs of each trial")
    parser.add_argument("--short", action="store_true", help="a few inputs of each trial")
    parser.add_argument("--only", type=int, nargs="+", metavar="INDEX", help="these inputs alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for subjects and failing inputs")
    parser.add_argument("--json", type=Path, help="append a line of JSON for each trial")
    parser.add_argument("--list", action="store_true", help="print the trials and their sizes")
    return parser.parse_args()


def indices(trial: Trial, arguments: argparse.Namespace) -> list[int]:
    """Return which inputs of a trial to try."""
    if arguments.only:
        return arguments.only
    count = arguments.count or (trial.short if arguments.short else trial.full)
    if count >= trial.full:
        return list(range(count))
    # One of each part of the full form, so that there are some of every kind.
    rng, ends = random.Random(trial.name), [n * trial.full // count for n in range(count + 1)]
    return [rng.randrange(start, end) for start, end in itertools.pairwise(ends)]


def printed(row: Row) -> str:
    """Return a row as text."""
    failures = ", ".join(f"{count} {kind}" for kind, count in row.failures.most_common()) or "0"
    notes = ", ".join(f"{count} {kind}" for kind, count in row.notes.most_common())
    memory = f", {row.megabytes:.0f} MB" if row.megabytes else ""
    return (
        f"{row.trial:20} inputs {row.inputs:7,}  failures {failures}  [{notes}]  "
        f"{row.seconds:.0f} s (worst {row.slowest:.1f} s{memory}), seed {row.seed}"
    )


def main() -> int:
    """Run the trials that were asked for, and print a row each."""
    arguments = parse()
    if arguments.list:
        for trial in TRIALS.values():
            print(f"{trial.name:20} {trial.full:7,} full, {trial.short:4,} short")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # and leave no fork behind
    import tensorflow  # noqa: F401 (once, before all forks)

    import vggkeras

    work = (arguments.work or Path(tempfile.mkdtemp(prefix="campaign-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    json_file = arguments.json and arguments.json.resolve()
    print(f"of {Path(vggkeras.__file__).parent}; failing inputs in {work}", flush=True)
    failed = False
    for name in arguments.trials:
        row = run(TRIALS[name], indices(TRIALS[name], arguments), arguments.seed, work)
        print(printed(row), flush=True)
        if json_file:
            with open(json_file, "a") as file:
                file.write(json.dumps(vars(row)) + "\n")
        failed = failed or bool(row.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
