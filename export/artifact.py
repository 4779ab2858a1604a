"""What travels with an exported file: labels, preprocessing, provenance, golden answers, and the certificate.

Inside the file, as one JSON text: in ONNX's metadata_props under "vggkeras" (with "labels" beside it); in a zip archive
at a .tflite file's end (TFLite's associated files: vggkeras.json and labels.txt); in a SavedModel's
assets.extra/vggkeras.json. Beside it: golden.npz and certificate.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import vggkeras
from export.parity import Parity
from vggkeras import files
from vggkeras.errors import InputError
from vggkeras.runtimes import Predictor

GOLDEN = "golden.npz"


def describe(about: dict[str, Any], reference: Predictor, model_sha256: str, dense: bool = False) -> dict[str, Any]:
    """The JSON that travels inside an exported file."""
    h, w, c = reference.input_shape
    rescaled = f"smallest side to {reference.scale} px (Pillow BILINEAR), then "
    return {
        "class_names": reference.class_names,
        "mean_rgb": about["mean_rgb"],
        "input": {"name": "images", "type": "uint8", "shape": _shape(reference, dense), "smallest": [h, w, c], "order": "RGB" if c == 3 else "as trained"},
        "output": {"name": "probabilities", "type": "float32", "shape": ["batch", len(reference.class_names)]},
        "scale": reference.scale,
        "resize": rescaled + ("the whole image" if dense else f"the central {h} x {w} crop"),
        "provenance": {
            key: about[key] for key in ("arch", "recipe", "data", "seed", "epoch", "images") if key in about
        } | {"trained_with": about.get("versions"), "model_sha256": model_sha256},
        "versions": {"vggkeras": vggkeras.__version__},
    }  # fmt: skip


def _shape(predictor: Predictor, dense: bool) -> list[str | int]:
    h, w, c = predictor.input_shape
    return ["batch", "height", "width", c] if dense else ["batch", h, w, c]


def save_golden(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    probabilities: np.ndarray,
    sizes: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> None:
    """Write golden.npz: images uint8 `[N, H, W, C]`, labels int64 `[N]` (-1: unknown), probabilities float32.

    `sizes` are (images, probabilities) of other sizes, for dense files: images_HxW and probabilities_HxW.
    """
    known = np.full(len(images), -1, np.int64) if labels is None else labels
    arrays: dict[str, Any] = {"images": images, "labels": known, "probabilities": probabilities}
    for shown, answers in sizes:
        size = f"{shown.shape[1]}x{shown.shape[2]}"
        arrays |= {f"images_{size}": shown, f"probabilities_{size}": answers}
    with files.replacing(folder / GOLDEN) as beside:
        np.savez_compressed(beside, **arrays)


def golden_sizes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images, probabilities) of other sizes in golden.npz; [] where there is none."""
    return load_golden(folder)[3] if (folder / GOLDEN).is_file() else []


Golden = tuple[np.ndarray, np.ndarray | None, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]


def load_golden(folder: Path) -> Golden:
    """Images, labels (None where unknown), probabilities, and (images, probabilities) of other sizes.

    Raises InputError when the file is missing or damaged.
    """
    path = folder / GOLDEN
    if not path.is_file():
        raise InputError(f"There is no {path} to verify against: export with `python -m export`, which writes it.")
    try:
        with np.load(path, allow_pickle=False) as golden:
            images, labels, probabilities = golden["images"], golden["labels"], golden["probabilities"]
            others = [name for name in golden.files if name.startswith("images_")]
            sizes = [(golden[name], golden[name.replace("images", "probabilities")]) for name in others]
    except Exception as error:  # a damaged zip raises what its layer raises
        raise InputError(f"{path} cannot be read ({error}): export again.") from error
    if not len(images) or len(images) != len(probabilities):
        raise InputError(f"{path} has {len(images)} images and {len(probabilities)} answers: export again.")
    return images, None if (labels < 0).any() else labels, probabilities, sizes


def entry(
    path: Path,
    candidate: Predictor,
    parity: Parity,
    evidence: str,
    model_sha256: str,
    milliseconds: float | None,
    dense: bool = False,
) -> dict[str, Any]:
    """A certificate's entry: what was checked, where, and how it came out; median time of a call with one image, ms."""
    record = asdict(parity)
    failures = record.pop("failures")
    return {
        "sha256": files.sha256(path),
        "bytes": files.size(path),
        "runtime": candidate.runtime,
        "version": candidate.version,
        "provider": candidate.provider,
        "input": {"name": candidate.input_name, "type": "uint8", "shape": _shape(candidate, dense)},
        "output": {
            "name": candidate.output_name,
            "type": "float32",
            "shape": ["batch", len(candidate.class_names)],
        },
        "batch_sizes": list(record.pop("batch_sizes")),
        "sizes": [list(size) for size in record.pop("sizes")],
        **{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()},
        "milliseconds": milliseconds,
        "evidence": evidence,
        "model_sha256": model_sha256,
        "passed": parity.passed,
        "failures": failures,
    }


def update_certificate(folder: Path, entries: dict[str, dict[str, Any]], model_sha256: str) -> list[str]:
    """Put entries into certificate.json, beside those of the same model's other artifacts.

    Returns the names of artifacts that are there and of another model, whose entries are dropped.
    """
    known = files.read_certificate(folder)
    kept = {k: v for k, v in known.items() if v["model_sha256"] == model_sha256}
    files.write_json(folder / files.CERTIFICATE, {**kept, **entries})
    return sorted(name for name in known.keys() - kept.keys() - entries.keys() if (folder / name).exists())
