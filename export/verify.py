"""Check an exported file against what travels inside it: its checksums, and its golden answers.

Where they lie beside it, against its entry in certificate.json and the golden answers named there.

    python -m export.verify model.onnx model.int8.tflite
    python -m export.verify --public-key key.pub.pem model.onnx   by whom are they signed?
    python -m export.verify --explain model.onnx             stage by stage: the first that differs
    python -m export.verify --original photo.jpg model.onnx  write its golden photograph
    python -m export.verify --inputs mine.npy model.onnx     what your preprocessing made of it:
                                                             what is wrong?

NumPy, Pillow and the file's runtime are enough: ONNX Runtime (or, by --provider, OpenVINO, or MNN
with onnx), LiteRT, or TensorFlow for a SavedModel; for signatures, model-signing. So the command
line is argparse's.

Exit code 0: every file is whole and gives its golden answers. 1: one differs. 2: nothing to verify.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from export import artifact, integers, parity, signature
from export import golden as golden_module
from export.formats import tolerance_of
from export.golden import Golden, GoldenFile
from vggkeras import certificate, containers, files, hub, runtimes
from vggkeras.card import INPUT_NAME, ModelCard
from vggkeras.certificate import Entry
from vggkeras.errors import InputError, refuse_empty_arguments, run_command, visible
from vggkeras.processor import this_processor
from vggkeras.runtimes import providers
from vggkeras.runtimes.predictor import Predictor

# Of int8's own answers: another processor or version may round the other way in every layer.
INT8_TOLERANCE = 0.05
SHOWN = 10  # golden images of those beside a file, all of whose bytes are checked by their digest


def verify(path: Path, provider: str = "cpu", *, trust_saved_model: bool = False) -> list[str]:
    """Return what differs between an exported file and what travels inside it; [] for nothing.

    A file that was changed is not run: a damaged one may crash its runtime, and this process with
    it. Where certificate.json beside it names the file, it is checked against its entry there, and
    against golden.npz, whose digest the entry holds. (int8 answers a little differently than Keras,
    whose answers golden.npz has.)

    Args:
        path: a .onnx or .tflite file, or a SavedModel folder.
        provider: what a .onnx file runs on.
        trust_saved_model: that of `vggkeras.load`.

    Raises:
        InputError (a ValueError): no such file; one that vggkeras did not write; one that keeps
            weights in other files; a certificate.json that was changed since it was written.
    """
    check(path)
    entry = certificate.read(path.parent).get(path.name)  # first: it finishes a killed export
    try:
        contents = artifact.read(path)
    except containers.DamagedError as error:
        return [str(error)]
    problems, beside = _changed_parts(contents), None
    if entry is not None:
        problems += _certificate_problems(path, entry)
        try:
            beside = golden_module.certified_golden(path.parent, contents.card.form, entry)
        except InputError as error:
            problems.append(str(error))
    if contents.changed:
        return problems
    try:
        candidate = runtimes.load(  # its seal was checked above
            path, provider, verify=False, trust_saved_model=trust_saved_model
        )
    except InputError as error:
        if provider != "cpu":
            raise
        return [*problems, str(error)]
    return problems + _answer_problems(contents, candidate, beside)


def check(path: Path) -> None:
    """Check that a path is an exported file that keeps its weights inside.

    Raises:
        InputError (a ValueError): it is none, or its runtime would read other files.
    """
    expected = "expected an exported .onnx or .tflite file, or a SavedModel folder"
    if not path.exists():
        raise InputError(f"No artifact at {path}: {expected}.")
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return
        if inside := sorted(name for name in certificate.read(path) if (path / name).exists()):
            raise InputError(
                f"{path} is a folder of them: name the files themselves: {', '.join(inside)}."
            )
    if path.is_dir() or path.suffix not in (".onnx", ".tflite"):
        raise InputError(f"{path} is not an exported artifact: {expected}.")
    if path.suffix != ".onnx":
        return
    try:
        outside = containers.external_data(path)
    except ValueError:
        return  # `artifact.read` says that it is damaged
    if outside:
        raise InputError(
            f"{path} keeps weights in {', '.join(map(repr, outside[:3]))}: expected them inside "
            "the file, as `python -m export` writes it; do not load it."
        )


def check_proven(path: Path) -> None:
    """Check that an exported file is proven on this machine, before it is given to others.

    Raises:
        InputError (a ValueError): `verify` finds a difference, or cannot be done.
    """
    if problems := verify(path):
        raise InputError(f"{path} is not proven here: {'; '.join(problems)}: export it again.")


def _changed_parts(contents: artifact.Contents) -> list[str]:
    return [f"{part}: not what it was when the file was made (sha256)" for part in contents.changed]


def _certificate_problems(path: Path, entry: Entry) -> list[str]:
    """Return what a file's entry in certificate.json says against it."""
    problems = []
    if not entry.passed:
        problems.append(f"certificate: {'; '.join(entry.failures)}")
    if (digest := files.sha256(path)) != entry.sha256:
        problems.append(f"sha256: certified {entry.sha256[:12]}…, found {digest[:12]}…")
    return problems


def _answer_problems(
    contents: artifact.Contents, candidate: Predictor, beside: GoldenFile | None
) -> list[str]:
    """Return how a file's answers differ from the golden ones inside it, and from those beside."""
    card, golden = contents.card, contents.golden
    assert golden is not None
    answers, tolerance = expected_answers(card, golden, candidate.runtime)
    _, height, width, channels = golden.images.shape
    expected = replace(
        candidate,
        runtime="golden answers",
        input_shape=(height, width, channels),
        outputs=answers.shape[-1],
        input_name=INPUT_NAME,
        output_name=card.form.output_name,
        card=card,
        form=card.form,
        run=lambda _: answers,
    )
    gate = parity.Gate(tolerance)
    result = parity.compare((expected, answers), candidate, golden.images, gate=gate)
    on_cpu = candidate.runtime == "onnxruntime" and candidate.provider == "cpu"
    if card.precision == "int8" and on_cpu:
        # This processor may compute integers differently from the one that wrote the file.
        result = integers.with_integers_checked(
            result, candidate, golden.images, golden.probabilities
        )
    results = [result]
    if beside is not None and candidate.dense:
        results += [
            parity.compare((expected, sized), candidate, images, gate=gate)
            for images, sized in beside.sizes
        ]
    problems = [str(failure) for failure in parity.merged(results).failures]
    if beside is None or problems or card.precision == "int8":
        return problems
    shown = beside.answers[:SHOWN]
    result = parity.compare((expected, shown), candidate, beside.images[:SHOWN], gate=gate)
    file = golden_module.golden_path(candidate.path.parent, card.form).name
    return [f"{file}: {failure}" for failure in result.failures]


def expected_answers(
    card: ModelCard, golden: Golden, runtime: str = "onnxruntime"
) -> tuple[np.ndarray, float]:
    """Return the answers that a file must give to its golden images, and the largest error.

    int8 is compared with itself elsewhere; its distance from Keras was measured when it was made.
    """
    answers = golden.answers if card.precision == "int8" else golden.probabilities
    return answers, tolerance_of(card.precision, runtime, card.tolerance) or INT8_TOLERANCE


def certified_how(path: Path) -> str:
    """Return what the certificate beside a file does not say of it; "" where there is none."""
    if not (path.parent / certificate.CERTIFICATE).is_file():
        return ""
    entry = certificate.read(path.parent).get(path.name)
    if entry is None:
        return "certificate.json beside it does not name it: checked against what is inside alone"
    if entry.entry_sha256 is None or entry.golden_sha256 is None:
        return (
            "certificate.json is of an older version: it has no digest of itself or of the golden "
            "answers beside it; export again to have them"
        )
    return ""


def made_where(path: Path) -> str:
    """Return where an int8 file was proven, and what this machine is; "" of other files.

    Other processors compute int8 by other instructions. The file was proven again on this one.
    """
    card = artifact.read(path).card
    if card.precision != "int8":
        return ""
    there, here = card.processor, this_processor()
    proven = f"proven on {there}" if there else "the processor it was proven on is not recorded"
    if here is None:
        return (
            f"{proven}; proven again here (py-cpuinfo, which would name this processor, is not "
            "installed)"
        )
    if there is not None and there.is_like(here):
        return f"{proven}; proven again here, on the same kind"
    return f"{proven}; proven again here, on {here}"


def main() -> int:
    """Parse, and verify each file."""
    refuse_empty_arguments()
    arguments = _parser().parse_args()
    expected = signature.expected_signer(arguments.public_key, arguments.identity, arguments.issuer)
    if expected and not signature.is_as_signed(arguments.files, expected):
        return 1
    arguments.files = [hub.local(path) for path in arguments.files]
    if any((path / "saved_model.pb").exists() for path in arguments.files):
        from vggkeras.terminal import Console, load_tensorflow  # TensorFlow's users have rich

        load_tensorflow(Console(), *arguments.files)
    if arguments.original or arguments.inputs:
        return _own_preprocessing(arguments)
    passed = [_verified(path, arguments) for path in arguments.files]
    return 0 if all(passed) else 1


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of every command."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `python -m export.verify --help` says what there is.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m export.verify",
        description="Check exported files against the checksums and golden answers inside them.",
        epilog="Exit code 0: every file is whole and gives its golden answers. 1: one differs. "
        "2: nothing to verify.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".onnx and .tflite files, SavedModel folders, or hf:USER/NAME[@REV][:FILE]",
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
        help="what .onnx files run on (mnn and openvino: other engines on a CPU); never another in "
        "silence",
    )
    parser.add_argument(
        "--trust-saved-model",
        action="store_true",
        help="load a SavedModel even if its operators may touch files, sockets or Python",
    )
    signature.add_arguments(parser)
    return parser


def _verified(path: Path, arguments: argparse.Namespace) -> bool:
    """Verify one file, print the result, and return whether it passed."""
    problems = verify(path, arguments.provider, trust_saved_model=arguments.trust_saved_model)
    result = "passed" if not problems else "FAILED\n  " + "\n  ".join(problems)
    print(visible(f"{path}: {result}"))
    for note in () if problems else (made_where(path), certified_how(path)):
        if note:
            print(visible(f"  {note}"))
    if arguments.explain:
        from export import stages

        try:
            print(visible(stages.as_text(stages.stages(path))))
        except InputError as error:
            if not problems:
                raise
            print(visible(f"  {error}"))
    return not problems


def _own_preprocessing(arguments: argparse.Namespace) -> int:
    """Write the golden photograph, or judge what a user's own preprocessing made of it."""
    if len(arguments.files) > 1:
        raise InputError(
            f"--original and --inputs go with one file; received {len(arguments.files)}."
        )
    (path,) = arguments.files
    check(path)
    try:
        contents = artifact.read(path)
        problems = _changed_parts(contents)
    except containers.DamagedError as error:
        problems = [str(error)]
    if problems:  # nothing can be judged by it
        print(visible(f"{path}: FAILED\n  " + "\n  ".join(problems)))
        return 1
    golden = contents.golden
    if golden is None or golden.original is None:
        raise InputError(f"No photograph travels inside {path}: export it with real --data.")
    if arguments.original:
        _write_photograph(arguments.original, golden.original)
        print(
            f"{arguments.original}: put it through your preprocessing, save what the network would "
            "get with numpy.save,\n"
            f"and ask: python -m export.verify --inputs mine.npy {path}"
        )
        return 0
    from export import preprocessing, stages

    judged = preprocessing.preprocessing(path, _array(arguments.inputs), arguments.provider)
    print(visible(stages.as_text(judged)))
    return 0 if all(stage.passed for stage in judged) else 1


def _write_photograph(path: Path, encoded: bytes) -> None:
    files.check_file(
        path, files.Kind("this photograph", lambda there: there.read_bytes() == encoded)
    )
    kind = Image.open(io.BytesIO(encoded)).format or ""
    suffixes = [suffix for suffix, name in Image.registered_extensions().items() if name == kind]
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"--original {path}: the photograph is a {kind}: give a name ending in "
            f"{' or '.join(suffixes[:3])}."
        )
    with files.replacing(path) as beside:
        beside.write_bytes(encoded)


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error}): expected an array that numpy.save wrote."
        ) from error
    # NumPy's own words for a file of another format advise to load it unsafely.
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} does not hold one array: expected an array that numpy.save wrote."
        ) from error
    return array


def cli() -> int:
    """Run the command and return its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(cli())
