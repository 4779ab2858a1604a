"""A file against its own golden answers, with neither Keras nor TensorFlow for .onnx and .tflite.

    python -m export.verify runs/latest/export/model.onnx runs/latest/export/model.tflite

Exit code 0: every file is the certified one and gives the golden answers. 1: one differs. 2: nothing to verify.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from export import artifact, parity
from vggkeras import files, runtimes
from vggkeras.errors import InputError, parsed, run_command
from vggkeras.terminal import load_tensorflow


def verify(path: Path) -> list[str]:
    """What differs between an artifact and its certificate and golden answers, both beside it; [] when nothing does.

    Raises:
        InputError (a ValueError): no such artifact, no golden answers, or a certificate that does not name it.
    """
    expected_files = "expected an exported .onnx or .tflite file, or a SavedModel folder"
    if not path.exists():
        raise InputError(f"No artifact at {path}: {expected_files}.")
    if path.suffix not in (".onnx", ".tflite") and not (path / "saved_model.pb").exists():
        raise InputError(f"{path} is not an exported artifact: {expected_files}.")
    images, labels, probabilities, sizes = artifact.load_golden(path.parent)
    certified = files.read_certificate(path.parent).get(path.name)
    if certified is None:
        raise InputError(f"There is no entry {path.name!r} in {path.parent / files.CERTIFICATE}: export it again.")
    problems = [] if certified["passed"] is True else [f"certificate: {'; '.join(certified['failures'])}"]
    if (found := files.sha256(path)) != certified["sha256"]:
        problems.append(f"sha256: certified {certified['sha256'][:12]}…, found {found[:12]}…")
    try:
        candidate = runtimes.load(path)
    except InputError as error:
        return [*problems, str(error)]
    expected = runtimes.Predictor(
        path,
        "golden answers",
        "",
        "",
        images.shape[1:],
        # The certificate does not repeat the labels: the file's own are under its sha256.
        candidate.class_names,
        certified["input"]["name"],
        certified["output"]["name"],
        {},
        lambda _: probabilities,
    )
    results = [parity.compare((expected, probabilities), candidate, images, labels, certified["tolerance"])]
    if candidate.dense:
        results += [parity.compare((expected, p), candidate, shown, None, certified["tolerance"]) for shown, p in sizes]
    return problems + parity.merged(results).failures


@dataclass
class Arguments:
    """Check exported files against the golden answers (golden.npz) and the certificate beside them."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """.onnx and .tflite files, SavedModel folders."""


def main() -> int:
    """Parse, and verify each file."""
    files = parsed(lambda: tyro.cli(Arguments, prog="python -m export.verify")).files
    if not files:
        raise InputError("Expected one file or more to verify; received none.")
    load_tensorflow(Console(), *files)
    failed = 0
    for path in files:
        problems = verify(path)
        print(f"{path}: " + ("passed" if not problems else "FAILED\n  " + "\n  ".join(problems)))
        failed += bool(problems)
    return 1 if failed else 0


def cli() -> int:
    """The command, with its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
