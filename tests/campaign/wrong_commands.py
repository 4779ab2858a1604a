"""Wrong command lines: each ends in one line and exit code 2, soon, and replaces no file."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from pathlib import Path

from hostile import _photo
from machinery import Case, Outcome, Trial
from subjects import command, prepare_exports, refused

TRAIN = "vggkeras train --width 0.05 --fc-units 8 --arch A --epochs 1 --out out --data digits"
# Flags of training, each with wrong values.
TRAINING = """
--image-size: -1 0 31 100000 1000000000 '' x
--width: 0 -1 nan inf 1e9 1e300
--fc-units: 0 -5 100000000000 1e3
--epochs: 0 -1 1.5 ''
--batch-size: 0 -1 x
--accumulate: 0 3 -1
--learning-rate: 0 -1 nan inf
--momentum: 1 -0.1 nan
--dropout: 1 -1 nan
--weight-decay: -1 nan inf
--patience: 0 -1
--seed: -1 2147483648 99999999999999999999
--scale: x 64:37 0 99999 -5 37: :
--init: '' other
--init-from: nowhere '' keras: torchvision:none.pth keras:/dev/null {onnx} other:thing
--freeze: conv all
--copied-rate: 0 2 0.5
--precision: float64 ''
--data: '' nowhere tfds: tfds:no_such_data_set /dev/null {onnx} {photo}
--out: '' {photo} {photo}/run {run} {onnx} /proc/1/run /dev/null
--arch: F '' d2
"""
OTHERS = """
vggkeras
vggkeras bogus
vggkeras info G
vggkeras info A --image-size 16
vggkeras info A --classes 0
vggkeras info A --classes -3
vggkeras train --bogus 1
vggkeras evaluate --data digits
vggkeras evaluate --model nowhere --data digits
vggkeras evaluate --model {onnx} --data ''
vggkeras evaluate --model {onnx} --data nowhere
vggkeras evaluate --model {onnx} --data digits --split test
vggkeras evaluate --model {onnx} --data digits --protocol other
vggkeras evaluate --model {onnx} --data digits --scales 16
vggkeras evaluate --model {onnx} --data digits --scales 0
vggkeras evaluate --model {onnx} --data digits --scales 1000000
vggkeras evaluate --model {onnx} --data digits --scales -1
vggkeras evaluate --model {onnx} --data digits --threads 0
vggkeras evaluate --model {onnx} --data digits --threads 1000000
vggkeras evaluate --model {onnx} --data digits --provider cuda
vggkeras evaluate --model {onnx} --data digits --json {run}
vggkeras evaluate --model {onnx} --data digits --json ''
vggkeras evaluate --model {onnx} --data digits --json {run}/run.json
vggkeras evaluate --model {onnx} --data digits --json {run}/history.csv
vggkeras evaluate --model {onnx} --data digits --json {onnx}
vggkeras evaluate --model {onnx} --data digits --json {run}/export/certificate.json
vggkeras evaluate --model {onnx} --data digits --json {run}/export/golden.npz
vggkeras evaluate --model {onnx} --data digits --json {photo}
vggkeras predict ''
vggkeras predict '' --model {onnx}
vggkeras predict {photo} --model ''
vggkeras predict {photo} --model nowhere
vggkeras predict {photo} --model {photo}
vggkeras predict {photo} --model {run}/run.json
vggkeras predict {photo} --model {onnx} --top 0
vggkeras predict {photo} --model {onnx} --top -1
vggkeras predict {photo} --model {onnx} --threads 1000000
vggkeras predict {photo} --model {onnx} --threads -1
vggkeras predict {photo} --model {tflite} --threads 1000000
vggkeras predict {photo} --model {tflite} --provider tensorrt
vggkeras predict nowhere.png --model {onnx}
vggkeras predict {run}/run.json --model {onnx}
vggkeras predict /dev/null --model {onnx}
vggkeras predict /proc --model {onnx}
vggkeras predict --model {onnx}
vggkeras features --model {run} --data digits --out ''
vggkeras features --model {run} --data digits --out {run}
vggkeras features --model {run} --data digits --out x.txt
vggkeras features --model {run} --data digits --out {run}/run.json
vggkeras features --model {run} --data digits --out {run}/resume/000000001.npz
vggkeras features --model {run} --data digits --out {run}/export/golden.npz
vggkeras features --model {run} --data digits --out f.npz --json {run}/run.json
vggkeras features --model {run} --data digits --out f.npz --scales 0
vggkeras features --model {run} --data digits --out f.npz --split other
vggkeras features --model {run} --data digits --out f.npz --svm --train-images 0
vggkeras features --model {run} --data digits --out f.npz --svm --repeats 0
vggkeras features --model {onnx} --data digits --out f.npz
vggkeras convert {keras} {keras}
vggkeras convert {keras} ''
vggkeras convert '' new.keras
vggkeras convert {keras} {onnx}
vggkeras convert {keras} {run}/run.json
vggkeras convert keras: new.keras
vggkeras convert keras:{onnx} new.keras
vggkeras convert torchvision:{photo} new.keras
vggkeras convert {keras} other:new.h5
vggkeras report ''
vggkeras report nowhere
vggkeras report {photo}
vggkeras report {run} --out {run}/run.json
vggkeras report {run} --evaluation {photo}
vggkeras benchmark --arch A --steps 0
vggkeras benchmark --arch A --image-size 0
vggkeras benchmark --arch A --json {run}/run.json --images 8 --batch-size 0
export
export --formt onnx
export --model nowhere
export --model ''
export --model {onnx}
export --model {run} --format coreml
export --model {run} --precision int4
export --model {run} --opset 9
export --model {run} --opset 99
export --model {run} --images -5
export --model {run} --data nowhere
export --model {run} --data ''
export --model {run} --out {photo}
export --model {run} --out ''
export --model {run} --precision int8 --calibration 0
export.verify
export.verify nowhere.onnx
export.verify ''
export.verify {run}
export.verify {run}/export
export.verify {photo}
export.verify {keras}
export.verify {onnx} --provider other
export.verify {onnx} --inputs {photo}
export.verify {onnx} --original {run}/run.json
export.verify {onnx} --original {keras}
export.compare {onnx}
export.compare {onnx} --reference nowhere
export.compare {onnx} --reference {photo}
export.compare {onnx} --reference {run} --json {run}/run.json
export.benchmark
export.benchmark nowhere.onnx
export.benchmark {onnx} --threads 0
export.benchmark {onnx} --batch 0
export.benchmark {onnx} --rounds 0
export.benchmark {onnx} --seconds -1
export.benchmark {onnx} --seconds nan
export.benchmark {onnx} --json {run}/run.json --seconds 0.1 --rounds 1
"""


def command_lines() -> list[str]:
    """Return 160 command lines: those of training, and as many of the others as there is room."""
    lines = []
    for row in TRAINING.strip().splitlines():
        flag, _, values = row.partition(": ")
        for value in shlex.split(values, posix=False):
            lines.append(f"{TRAIN} {flag} {value}")
    others = OTHERS.strip().splitlines()
    return [*others, *lines]


def prepare_commands(subject: Path) -> None:
    """Prepare a run with its export, and a checkpoint that nothing may replace."""
    prepare_exports(subject)
    (subject / "run" / "resume").mkdir(exist_ok=True)
    (subject / "run" / "resume" / "000000001.npz").write_bytes(b"a checkpoint")


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def wrong_command(case: Case) -> Outcome:
    """Give a wrong command line."""
    line = command_lines()[case.index]
    run = shutil.copytree(case.subject / "run", case.scratch / "run")
    photo = _photo(case.scratch)
    exports = run / "export"
    paths = {
        "run": run,
        "photo": photo,
        "keras": run / "model.keras",
        "onnx": exports / "model.onnx",
        "tflite": exports / "model.tflite",
    }
    before = _digests(case.scratch)
    ended = command(*shlex.split(line.format(**paths)))
    after = _digests(case.scratch)
    changed = sorted(name for name, digest in before.items() if after.get(name) != digest)
    if changed:
        return Outcome("overwrote", detail=f"{line}: {changed}")
    end = refused(ended, "accepted")
    if os.path.getsize(photo) == 0:
        return Outcome("overwrote", detail=line)
    return Outcome(end.failure, end.note, f"{line}: {end.detail}")


TRIALS = (Trial("commands", len(command_lines()), 30, wrong_command, prepare_commands, limit=60.0),)
