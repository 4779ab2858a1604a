"""A file against what travels inside it: its checksums, and the answers it gave where it was made. Needs that one file.

    python -m export.verify model.onnx model.int8.tflite
    python -m export.verify --explain model.onnx             stage by stage, the first one that differs
    python -m export.verify --original photo.jpg model.onnx  write its golden photograph: put it through your own
    python -m export.verify --inputs mine.npy model.onnx     preprocessing, save the array, and learn what is wrong with it

NumPy, Pillow and the file's runtime are enough: ONNX Runtime, LiteRT, or TensorFlow for a SavedModel.

Exit code 0: every file is whole and gives its golden answers. 1: one differs. 2: nothing to verify.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from export import TOLERANCES, artifact, containers, parity
from export import golden as golden_module
from vggkeras import files, runtimes
from vggkeras.card import INPUT_NAME, Form
from vggkeras.errors import InputError, run_command
from vggkeras.processor import this_processor
from vggkeras.runtimes import providers
from vggkeras.runtimes.predictor import Predictor

# Of int8's own answers: another processor, or another version, may round a step the other way in every layer.
INT8_TOLERANCE = 0.05


def verify(path: Path, provider: str = "cpu") -> list[str]:
    """What differs between an exported file and what travels inside it; [] when nothing does.

    A file that is not what it was is not run: a damaged one may crash its runtime, and take the process with it. Where
    certificate.json and its golden answers lie beside the file, it is held against these as well.

    Raises:
        InputError (a ValueError): no such file, a file of another make, one that keeps weights in other files.
    """
    check(path)
    try:
        contents = artifact.read(path)
    except containers.DamagedError as error:
        return [str(error)]
    problems = _changed(contents)
    certified = files.read_certificate(path.parent).get(path.name)
    if certified is not None:
        problems += (
            []
            if certified["passed"] is True
            else [f"certificate: {'; '.join(certified['failures'])}"]
        )
        if (found := files.sha256(path)) != certified["sha256"]:
            problems.append(f"sha256: certified {certified['sha256'][:12]}…, found {found[:12]}…")
    golden = contents.golden
    if contents.changed or golden is None:
        return problems
    try:
        candidate = runtimes.load(path, provider)
    except InputError as error:
        if provider != "cpu":
            raise
        return [*problems, str(error)]
    card, precision = contents.card, contents.card.precision
    features = card.form is Form.FEATURES
    # int8 is held against itself, elsewhere; how near it is to Keras was measured when it was made.
    answers = golden.answers if precision == "int8" else golden.probabilities
    expected = Predictor(
        path,
        "golden answers",
        "",
        "",
        golden.images.shape[1:],
        answers.shape[1],
        INPUT_NAME,
        card.form.output_name,
        card,
        lambda _: answers,
        card.form,
    )
    gate = parity.Gate(card.tolerance or TOLERANCES[precision] or INT8_TOLERANCE)
    results = [parity.compare((expected, answers), candidate, golden.images, None, gate)]
    if precision == "int8" and candidate.runtime == "onnxruntime" and provider == "cpu":
        # The processor may be of another kind than the one where the file was made.
        some = golden.images
        parity.check_rounding(results[0], path, candidate(some), some, golden.probabilities)
    if (
        candidate.dense
        and certified is not None
        and golden_module.golden_path(path.parent, features=features).is_file()
    ):
        sizes = golden_module.load_golden(path.parent, features=features)[3]
        results += [
            parity.compare((expected, p), candidate, shown, None, gate) for shown, p in sizes
        ]
    return problems + parity.merged(results).failures


def made_where(path: Path) -> str:
    """Return, of an int8 file, on which processor it was proven, and what this machine is; "" of other files.

    int8 is computed by other instructions on other processors. The file was proven again on this one.
    """
    card = artifact.read(path).card
    if card.precision != "int8":
        return ""
    made = card.processor
    here = this_processor()
    proven = f"proven on {made}" if made else "the processor it was proven on is not recorded"
    if here is None:
        return f"{proven}; proven again here (py-cpuinfo, which would name this processor, is not installed)"
    if made is not None and made.is_like(here):
        return f"{proven}; proven again here, on the same kind"
    return f"{proven}; proven again here, on {here}"


def _changed(contents: artifact.Contents) -> list[str]:
    return [f"{part}: not what it was when the file was made (sha256)" for part in contents.changed]


def check(path: Path) -> None:
    """Raises InputError when a path is no exported file, or one that would have the runtime read other files."""
    expected = "expected an exported .onnx or .tflite file, or a SavedModel folder"
    if not path.exists():
        raise InputError(f"No artifact at {path}: {expected}.")
    if not (
        (path / "saved_model.pb").exists() if path.is_dir() else path.suffix in (".onnx", ".tflite")
    ):
        if inside := sorted(
            name for name in files.read_certificate(path) if (path / name).exists()
        ):
            raise InputError(
                f"{path} is a folder of them: name the files themselves: {', '.join(inside)}."
            )
        raise InputError(f"{path} is not an exported artifact: {expected}.")
    if path.suffix != ".onnx" or path.is_dir():
        return
    try:
        outside = containers.external_data(path)
    except ValueError:
        return  # what cannot be read is said by those who read it
    if outside:
        raise InputError(
            f"{path} keeps weights in {', '.join(map(repr, outside[:3]))}: expected them inside the file, as `python -m "
            "export` writes it; do not load it."
        )


def main() -> int:
    """Parse, and verify each file."""
    parser = argparse.ArgumentParser(
        prog="python -m export.verify",
        description="Check exported files against the checksums and golden answers inside them.",
        epilog="Exit code 0: every file is whole and gives its golden answers. 1: one differs. 2: nothing to verify.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".onnx and .tflite files, SavedModel folders",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--explain",
        action="store_true",
        help="say at which stage a file first differs: decode, resize, each layer, the answer",
    )
    instead.add_argument(
        "--original",
        type=Path,
        metavar="PHOTO",
        help="write the golden photograph that travels inside, and stop",
    )
    instead.add_argument(
        "--inputs",
        type=Path,
        metavar="ARRAY.npy",
        help="what your own preprocessing makes of that photograph: say what is wrong",
    )
    parser.add_argument(
        "--provider",
        choices=providers.PROVIDERS,
        default="cpu",
        help="what .onnx files run on; never another in silence",
    )
    arguments = parser.parse_args()
    if any((path / "saved_model.pb").exists() for path in arguments.files):
        from rich.console import Console  # TensorFlow's users have it

        from vggkeras.terminal import load_tensorflow

        load_tensorflow(Console(), *arguments.files)
    if arguments.original or arguments.inputs:
        return _own_preprocessing(arguments)
    failed = 0
    for path in arguments.files:
        problems = verify(path, arguments.provider)
        print(f"{path}: " + ("passed" if not problems else "FAILED\n  " + "\n  ".join(problems)))
        if not problems and (note := made_where(path)):
            print(f"  {note}")
        failed += bool(problems)
        if arguments.explain:
            from export import stages

            try:
                print(stages.told(stages.stages(path)))
            except InputError as error:
                if not problems:
                    raise
                print(f"  {error}")  # beside what is wrong already, which is the answer
    return 1 if failed else 0


def _own_preprocessing(arguments: argparse.Namespace) -> int:
    from export import preprocessing, stages

    if len(arguments.files) > 1:
        raise InputError(
            f"--original and --inputs go with one file; received {len(arguments.files)}."
        )
    (path,) = arguments.files
    check(path)
    try:
        contents = artifact.read(path)
        golden, problems = contents.golden, _changed(contents)
    except containers.DamagedError as error:
        golden, problems = None, [str(error)]
    if problems:  # nothing can be judged by it
        print(f"{path}: FAILED\n  " + "\n  ".join(problems))
        return 1
    if golden is None or golden.original is None:
        raise InputError(f"No photograph travels inside {path}: export it with real --data.")
    if arguments.original:
        files.check_file(arguments.original)
        kind = Image.open(io.BytesIO(golden.original)).format or ""
        known = [suffix for suffix, name in Image.registered_extensions().items() if name == kind]
        if arguments.original.suffix.lower() not in known:
            raise InputError(
                f"--original {arguments.original}: the photograph is a {kind}: give a name ending in {' or '.join(known[:3])}."
            )
        _write(arguments.original, golden.original)
        print(
            f"{arguments.original}: put it through your preprocessing, save what the network would get with numpy.save,"
        )
        print(f"and ask: python -m export.verify --inputs mine.npy {path}")
        return 0
    try:
        mine = np.load(arguments.inputs, allow_pickle=False)
        if not isinstance(mine, np.ndarray):
            raise ValueError("it holds several arrays")
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{arguments.inputs} cannot be read ({error}): expected an array that numpy.save wrote."
        ) from error
    found = preprocessing.preprocessing(path, mine, arguments.provider)
    print(stages.told(found))
    return 0 if all(stage.passed for stage in found) else 1


def _write(path: Path, content: bytes) -> None:
    """In one step, without files.replacing: what that needs to sweep a folder is not among what this command needs."""
    beside = files.partial(path)
    try:
        beside.write_bytes(content)
        files.move(beside, path)
    finally:
        files.remove(beside)


def cli() -> int:
    """The command, with its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
