"""Write a model repository of NVIDIA's Triton Inference Server, of files that are proven already.

    python -m export --triton models --model runs/digits --precision int8

REPOSITORY/NAME/ holds config.pbtxt, labels.txt and a folder a version, 1/model.onnx. NAME is the
run's, with the file's precision, engine and form: digits.int8. A version that is there is never
changed: another file becomes the next one, and the newest is served.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export import artifact
from export.formats import Target
from export.request import Request
from vggkeras import certificate, files
from vggkeras.card import INPUT_NAME, ModelCard
from vggkeras.errors import InputError
from vggkeras.runtimes import tensorrt
from vggkeras.runtimes.onnx import check_batch_sizes, cuda_options
from vggkeras.runtimes.predictor import MAX_BATCH
from vggkeras.runtimes.providers import Options
from vggkeras.runtimes.seal import card_of

if TYPE_CHECKING:
    from rich.console import Console

CONFIG, LABELS, MODEL = "config.pbtxt", "labels.txt", "model.onnx"
ENGINES = "/tmp/vggkeras-tensorrt"  # in Triton's container
MODES = {"float16": "FP16", "int8": "INT8"}  # by precision; TensorRT's, as Triton names them


@dataclass(frozen=True)
class Serving:
    """A Triton repository to write, and where Triton computes."""

    triton: Path | None = None
    """Write a model repository of Triton Inference Server into this folder, and export nothing: of
    .onnx files that are exported and proven already, as certificate.json says."""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    """With --triton: where Triton computes."""
    batch_sizes: tuple[int, ...] = ()
    """With --triton, on a GPU: the batches that Triton should prefer to form, of which the largest
    is the largest that it forms, 64 when not given; TensorRT builds its engine for 1 up to that."""


def write(request: Request, serving: Serving, console: Console) -> list[Path]:
    """Write a model into a Triton repository for each file that a request names.

    Args:
        request: names the model, its export's folder, and files in it: format, precision, form.
        serving: the repository, and where Triton computes.
        console: for what was written.

    Returns:
        The folders of the versions that Triton will serve.

    Raises:
        InputError (a ValueError): a file that is not there, failed its proof, or is not what was
            proven; another format than ONNX; a provider that cannot take the file; a folder of the
            same name that holds another kind of model.
    """
    assert serving.triton
    if request.format not in ("onnx", "all"):
        raise InputError(
            f"--triton serves .onnx files, which Triton runs in ONNX Runtime; received --format "
            f"{request.format}: leave --format out."
        )
    options = Options(serving.provider, batch_sizes=serving.batch_sizes)
    options.check()
    used = ("model", "format", "precision", "out", "dense", "features", "boxes", "target")
    if request != Request(**{name: getattr(request, name) for name in used}):
        raise InputError(
            "--triton exports nothing: beside its own flags it takes --model, --out, --format, "
            "--precision, --target, --dense, --features and --boxes alone."
        )
    files.check_writable(serving.triton)
    request = request.resolved()
    name = _name_of(request.source)
    proven = [
        (target, *_proven(target, files.sha256(request.source)))
        for target in replace(request, format="onnx").targets()
    ]
    for target, card, _ in proven:  # all of them, before the first one is placed
        _check_provider(target.path, card, options)
    written = []
    for target, card, sha256 in proven:
        folder = serving.triton / target.name.removesuffix(".onnx").replace("model", name, 1)
        text = config(folder.name, card, sha256, options)
        version = _place(folder, target.path, card, sha256, text)
        written.append(version)
        console.print(f"{version}: {target.path}, {serving.provider}", soft_wrap=True, markup=False)
    return written


def _name_of(source: Path) -> str:
    """Return the name of a run, or of a .keras file, that names a model of Triton's."""
    name = source.parent.name if source.name == "model.keras" else source.stem
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise InputError(
            f"{name!r} cannot be a model of Triton's: expected letters, digits, _, - and . alone; "
            "rename the run."
        )
    return name


def _proven(target: Target, model_sha256: str) -> tuple[ModelCard, str]:
    """Return a file's card and sha256; raise InputError unless the certificate proves it."""
    entry = certificate.read(target.folder).get(target.name)
    again = (
        f"export it first: `python -m export --format onnx --precision {target.precision}"
        f"{f' --target {target.engine}' if target.engine else ''}"
        f"{target.form.flags}`, of the same model."
    )
    if entry is None:
        raise InputError(f"{target.folder}/certificate.json has no {target.name}: {again}")
    if not entry.passed:
        raise InputError(f"{target.path} failed its proof: {'; '.join(entry.failures)}.")
    if entry.model_sha256 != model_sha256:
        raise InputError(f"{target.path} is of another model than the run's: {again}")
    if not target.path.is_file() or files.sha256(target.path) != entry.sha256:
        raise InputError(f"{target.path} is not the file that was proven (sha256): {again}")
    return card_of(target.path, verify=False)[0], entry.sha256


def _check_provider(path: Path, card: ModelCard, options: Options) -> None:
    """Raise InputError for what a provider cannot take."""
    check_batch_sizes(path, card, options)
    if options.provider == "tensorrt":
        tensorrt.check(path, card)
    if options.provider == "cuda" and card.precision == "int8":
        raise InputError(
            f"{path}: ONNX Runtime has no int8 on CUDA, and Triton would stop at the file: give "
            "--precision float16, or --provider tensorrt with --target tensorrt."
        )


def _place(folder: Path, file: Path, card: ModelCard, sha256: str, text: str) -> Path:
    """Copy a file into a repository as its newest version, and return that version's folder.

    A kill leaves the versions that were there, and perhaps the new one with the old configuration,
    which is of the same classes and images.
    """
    newest = _newest(folder)
    if newest is None and folder.exists():
        raise InputError(
            f"{folder} is there and holds no version of a model: give another --triton folder."
        )
    version = newest or folder / "1"
    if newest:
        _check_same_kind(newest / MODEL, card)
        if files.sha256(newest / MODEL) != sha256:
            version = folder / str(int(newest.name) + 1)
    labels = "".join(f"{name}\n" for name in card.class_names)
    if newest is None:  # all of it appears at once
        with files.replacing(folder) as beside:
            artifact.copy(file, beside / "1" / MODEL, sha256)
            (beside / LABELS).write_text(labels, encoding="utf-8")
            (beside / CONFIG).write_text(text, encoding="utf-8")
        return version
    if version != newest:
        with files.replacing(version) as beside:
            artifact.copy(file, beside / MODEL, sha256)
    files.write_text(folder / CONFIG, text)
    return version


def _newest(folder: Path) -> Path | None:
    """Return the folder of the newest version, None where there is no version."""
    versions = folder.glob("[1-9]*") if folder.is_dir() else ()
    numbered = [path for path in versions if path.name.isdecimal() and (path / MODEL).is_file()]
    return max(numbered, key=lambda path: int(path.name), default=None)


def _check_same_kind(before: Path, card: ModelCard) -> None:
    """Raise InputError where the next version would not take a client's images, or mean others."""
    other = card_of(before, verify=False)[0]
    same = other.input_shape is not None and (other.shapes, other.class_names, other.resize) == (
        card.shapes,
        card.class_names,
        card.resize,
    )
    if not same:
        raise InputError(
            f"{before.parent.parent} holds a model of other images or classes, which cannot be an "
            "earlier version of this one: give another --triton folder, or remove that one."
        )


def config(name: str, card: ModelCard, sha256: str, options: Options) -> str:
    """Return config.pbtxt: Triton's ModelConfig in protobuf's text format.

    Args:
        name: the model's, as its folder is called.
        card: of the file.
        sha256: of the file; a client reads it, and how images are prepared, from the configuration.
        options: where Triton computes, and for which batches.
    """
    (_, *sides), (_, *answer) = card.shapes
    sizes = sorted(options.batch_sizes)
    output = {
        "name": card.form.output_name,
        "data_type": _Word("TYPE_FP32"),
        "dims": [-1 if isinstance(side, str) else side for side in answer],
    }
    if card.class_names and card.form.gives_probabilities:
        output["label_filename"] = LABELS
    kind = "KIND_CPU" if options.provider == "cpu" else "KIND_GPU"
    fields = {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": MODEL,
        "max_batch_size": sizes[-1] if sizes else MAX_BATCH,
        "input": [
            {
                "name": INPUT_NAME,
                "data_type": _Word("TYPE_UINT8"),
                "format": _Word("FORMAT_NHWC"),
                "dims": [-1 if isinstance(side, str) else side for side in sides],
            }
        ],
        "output": [output],
        "instance_group": [{"count": 1, "kind": _Word(kind)}],
        "dynamic_batching": {"preferred_batch_size": sizes} if sizes else {},
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": [
            {"key": key, "value": {"string_value": value}}
            for key, value in (("sha256", sha256), ("resize", card.resize))
        ],
    }
    if accelerators := _accelerators(card, sha256, options):
        named = {"gpu_execution_accelerator": accelerators}
        # 2 turns ONNX Runtime's own optimizations off: see `onnx._session_options`.
        graph = {"graph": {"level": 2}} if options.provider == "tensorrt" else {}
        fields["optimization"] = graph | {"execution_accelerators": named}
    return "# Written by `python -m export --triton`.\n" + "\n".join(_lines(fields)) + "\n"


def _accelerators(card: ModelCard, sha256: str, options: Options) -> list[dict[str, Any]]:
    """Return what of the provider Triton's ONNX Runtime is told; [] on the CPU."""
    if options.provider == "cpu":
        return []
    asked = {"cuda": cuda_options(replace(options, batch_sizes=()), card.form.takes_any_size)}
    if options.provider == "tensorrt":
        # Triton fills no batch up: any from 1 on may come, and no graph of one size be captured.
        sizes = sorted({1, *options.batch_sizes}) if options.batch_sizes else ()
        shapes = tensorrt.shape_options(card, sizes)
        profile = {key: value for key, value in shapes.items() if "profile" in key}
        mode = {"precision_mode": MODES[card.precision]} if card.precision in MODES else {}
        folder = f"{ENGINES}/{sha256}"
        cache = tensorrt.cache_options(folder, ENGINES)
        cache = {key: value.replace("True", "true") for key, value in cache.items()}
        asked = {"tensorrt": mode | cache | profile, **asked}
    return [
        {
            "name": name,
            "parameters": [{"key": key, "value": value} for key, value in values.items()],
        }
        for name, values in asked.items()
    ]


class _Word(str):
    """The name of an enumeration's value, which stands without quotation marks."""


def _lines(fields: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a message's fields in protobuf's text format; a list of messages is a repeated one."""
    for key, value in fields.items():
        messages: Sequence[Any] = value if isinstance(value, list) else [value]
        if messages and isinstance(messages[0], dict):
            for message in messages:
                yield f"{indent}{key} {{"
                yield from _lines(message, f"{indent}  ")
                yield f"{indent}}}"
        else:
            yield f"{indent}{key}: {value if isinstance(value, _Word) else json.dumps(value)}"
